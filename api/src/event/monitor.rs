//! Events in a file.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Event, Events};

/// How many events wait for the file. A reader that is this far behind loses events.
const QUEUE: usize = 1024;
/// How long the end of the process waits for a reader that does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the log tells of lost events at most.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// An event on its way to the file.
#[derive(Debug)]
struct Entry {
    /// How many before it did not get into the queue.
    lost_before: u64,
    event: Arc<Event>,
}

/// The end of the queue that events are put into.
#[derive(Debug)]
pub(super) struct Feed {
    queue: SyncSender<Entry>,
    lost: u64,
    /// Those lost last, for the writer to tell when the queue is empty and closed.
    lost_last: Arc<AtomicU64>,
    warning: Warning,
}

impl Feed {
    /// Queues `event`, or counts it as lost. Does not wait.
    pub(super) fn offer(&mut self, event: &Arc<Event>) {
        let entry = Entry {
            lost_before: self.lost,
            event: Arc::clone(event),
        };
        match self.queue.try_send(entry) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                if self.warning.is_due() {
                    tracing::warn!("the event monitor's reader is slow: events are lost");
                }
            }
            // The writer ends only after its queue.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.lost_last.store(self.lost, Ordering::Release);
    }
}

/// A bound on the warnings.
#[derive(Debug, Default)]
struct Warning(Option<Instant>);

impl Warning {
    fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= WARN_EVERY);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// A file that events are written to. Closed when dropped.
#[derive(Debug)]
pub struct EventMonitor {
    events: Events,
    /// Which feed is its own.
    lost_last: Arc<AtomicU64>,
    /// Disconnected when the writer has ended.
    ended: Receiver<()>,
}

impl EventMonitor {
    /// Writes what is queued, and ends. Waits a second at most for a reader that does not read.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for EventMonitor {
    fn drop(&mut self) {
        let feed = self.events.0.feed.lock();
        let mut feed = feed.unwrap_or_else(PoisonError::into_inner);
        let own = |feed: &mut Feed| Arc::ptr_eq(&feed.lost_last, &self.lost_last);
        drop(feed.take_if(own));
        drop(feed);
        // Ends by the disconnection or by the time. A writer that still waits for its reader ends with the process.
        let _ = self.ended.recv_timeout(CLOSE_TIMEOUT);
    }
}

/// Starts a thread that writes to `file`.
pub(super) fn start(file: File, events: &Events) -> io::Result<(Feed, EventMonitor)> {
    let (queue, entries) = mpsc::sync_channel(QUEUE);
    let (end, ended) = mpsc::channel();
    let lost_last = Arc::new(AtomicU64::new(0));
    let mut writer = Writer {
        file,
        started: events.0.started,
        lost: 0,
        torn: false,
        warning: Warning::default(),
    };
    let told_last = Arc::clone(&lost_last);
    thread::Builder::new()
        .name("event-monitor".to_owned())
        .spawn(move || {
            let _end = end;
            for Entry { lost_before, event } in entries {
                writer.lost += lost_before;
                writer.write(&event);
            }
            writer.lost += told_last.load(Ordering::Acquire);
            writer.tell_lost();
        })?;
    let feed = Feed {
        queue,
        lost: 0,
        lost_last: Arc::clone(&lost_last),
        warning: Warning::default(),
    };
    let monitor = EventMonitor {
        events: events.clone(),
        lost_last,
        ended,
    };
    Ok((feed, monitor))
}

/// What the thread has.
struct Writer {
    file: File,
    started: Instant,
    /// Events that the reader does not know to be missing yet.
    lost: u64,
    /// Whether the last event may have been written in part.
    torn: bool,
    warning: Warning,
}

impl Writer {
    fn write(&mut self, event: &Event) {
        if !self.tell_lost() || !self.put(event) {
            self.lost += 1;
        }
    }

    /// Tells how many events are missing, and whether that could be told.
    fn tell_lost(&mut self) -> bool {
        if self.lost == 0 {
            return true;
        }
        let count = self.lost.to_string();
        let timestamp = self.started.elapsed();
        let told = self.put(&Event::new(
            timestamp,
            "monitor",
            "lost",
            &[("count", &count)],
        ));
        if told {
            self.lost = 0;
        }
        told
    }

    fn put(&mut self, event: &Event) -> bool {
        let mut text = String::new();
        if self.torn {
            text.push_str("\n\n");
        }
        // Events consist of strings and numbers, which JSON can always say.
        text.push_str(&serde_json::to_string_pretty(event).unwrap_or_default());
        text.push_str("\n\n");
        let result = self.file.write_all(text.as_bytes());
        self.torn = result.is_err();
        if let Err(error) = result
            && self.warning.is_due()
        {
            tracing::warn!(%error, "cannot write to the event monitor's file: events are lost");
        }
        !self.torn
    }
}
