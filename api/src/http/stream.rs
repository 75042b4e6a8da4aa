//! Events as server-sent events.

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::sleep;

use super::answer::with_type;
use super::limits::KEEP_ALIVE_TIME;
use super::listener::stopped;
use crate::event::{Event, Events};

/// Keeps the connection in use, so that the end of a client is seen. Listeners take no notice of it.
const COMMENT: &str = ":\n\n";

struct Listener {
    events: Receiver<std::sync::Arc<Event>>,
    stopping: watch::Receiver<bool>,
    greeted: bool,
}

/// A response that has no end: every event from now on, in one line of JSON each. A client that is too slow loses it.
pub(super) fn respond(events: &Events, stopping: watch::Receiver<bool>) -> Response {
    let listener = Listener {
        events: events.subscribe(),
        stopping,
        greeted: false,
    };
    let pieces = stream::unfold(listener, |mut listener| async move {
        let piece = listener.next().await?;
        Some((Ok::<_, Infallible>(piece), listener))
    });
    let mut response = with_type(
        StatusCode::OK,
        "text/event-stream",
        Body::from_stream(pieces),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Listener {
    async fn next(&mut self) -> Option<String> {
        if !self.greeted {
            self.greeted = true;
            return Some(COMMENT.to_owned());
        }
        tokio::select! {
            biased;
            event = self.events.recv() => match event {
                // Events consist of strings and numbers, which JSON can always say.
                Ok(event) => Some(format!("data: {}\n\n", serde_json::to_string(&*event).ok()?)),
                Err(RecvError::Lagged(count)) => {
                    tracing::debug!(count, "a listener is too slow, and loses its stream of events");
                    None
                }
                Err(RecvError::Closed) => None,
            },
            () = stopped(&mut self.stopping) => None,
            () = sleep(KEEP_ALIVE_TIME) => Some(COMMENT.to_owned()),
        }
    }
}
