//! What happens to the VMM and its machine, told while it happens.
//!
//! Events have the form of Cloud Hypervisor's event monitor. They go to a file ([`Events::write_to`]) and to any number
//! of listeners ([`Events::subscribe`]), none of which can delay whoever publishes.
//!
//! ```
//! use api::event::Events;
//!
//! let events = Events::new(std::time::Instant::now());
//! events.publish("vm", "device-added", &[("id", "_disk0")]);
//! ```

mod monitor;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub use monitor::EventMonitor;
use monitor::Feed;

/// How many events a listener may be behind before it loses its stream. A boot makes about ten.
const BACKLOG: usize = 256;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Time since the process started: an object of `secs` and `nanos`.
    pub timestamp: Duration,
    /// What it happened to, as in `vm`.
    pub source: Cow<'static, str>,
    /// What happened, as in `booted`.
    pub event: Cow<'static, str>,
    /// More about it, by name; `null` when there is nothing more.
    pub properties: Option<BTreeMap<String, String>>,
}

impl Event {
    fn new(
        timestamp: Duration,
        source: &'static str,
        event: &'static str,
        properties: &[(&str, &str)],
    ) -> Self {
        let properties = (!properties.is_empty()).then(|| {
            let pairs = properties.iter();
            pairs
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        });
        Self {
            timestamp,
            source: source.into(),
            event: event.into(),
            properties,
        }
    }
}

/// Where events are published. Its clones are the same.
#[derive(Clone, Debug)]
pub struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    listeners: broadcast::Sender<Arc<Event>>,
    /// Held while an event is handed out, so that all see the same order. No holder waits for anything.
    feed: Mutex<Option<Feed>>,
}

impl Events {
    /// Events that are stamped with the time since `started`.
    pub fn new(started: Instant) -> Self {
        Self(Arc::new(Inner {
            started,
            listeners: broadcast::Sender::new(BACKLOG),
            feed: Mutex::new(None),
        }))
    }

    /// Tells that `event` happened to `source`. Callable from any thread; never waits for a reader.
    pub fn publish(&self, source: &'static str, event: &'static str, properties: &[(&str, &str)]) {
        tracing::debug!(source, event, ?properties, "event");
        let mut feed = self.0.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let timestamp = self.0.started.elapsed();
        let event = Arc::new(Event::new(timestamp, source, event, properties));
        if let Some(feed) = feed.as_mut() {
            feed.offer(&event);
        }
        // Without listeners there is nobody to tell.
        let _ = self.0.listeners.send(event);
    }

    /// Writes all events from now on to `file`, as JSON with an empty line after each, until the [`EventMonitor`] is
    /// closed. Takes the place of a file before.
    ///
    /// A reader that is slow, or a file that is full, costs events and no time: the next one that is written is
    /// preceded by an event `lost` of source `monitor`, whose property `count` tells how many are missing.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn write_to(&self, file: File) -> io::Result<EventMonitor> {
        let (feed, monitor) = monitor::start(file, self)?;
        *self.0.feed.lock().unwrap_or_else(PoisonError::into_inner) = Some(feed);
        Ok(monitor)
    }

    /// All events from now on. A listener that is 256 events behind has lost some, and shall give up.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.listeners.subscribe()
    }
}
