//! Who gets a connection.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{sleep, timeout};

use super::connection;
use super::intake::Intake;
use super::limits::{ACCEPT_RETRY_TIME, MAX_CONNECTIONS, STOP_TIME};

/// How often the log tells that there are too many connections, or none to be had.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The connections there are.
pub(super) struct Connections {
    router: Router,
    tasks: JoinSet<()>,
    intakes: HashMap<Id, Intake>,
    warned: Option<Instant>,
}

/// Serves whoever connects, until `stopping` says so and all requests that have come are answered.
pub(super) async fn run(
    listener: UnixListener,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = Connections {
        router,
        tasks: JoinSet::new(),
        intakes: HashMap::new(),
        warned: None,
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => connections.admit(stream),
                Err(error) => {
                    connections.warn("cannot accept a connection", Some(&error));
                    sleep(ACCEPT_RETRY_TIME).await;
                }
            },
            Some(ended) = connections.tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                connections.intakes.remove(&id);
            }
            () = stopped(&mut stopping) => break,
        }
    }
    if let Ok(listener) = listener.into_std() {
        connections.admit_waiting(&listener);
    }
    connections.finish().await;
}

/// Waits until the server is told to stop, or is gone.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|&stopping| stopping).await);
}

impl Connections {
    /// Takes a connection. When there are too many, one that is idle makes room, or else the new one is told so.
    fn admit(&mut self, stream: UnixStream) {
        if self.intakes.len() >= MAX_CONNECTIONS && !self.make_room() {
            self.warn("too many connections", None);
            refuse(&stream);
            return;
        }
        let intake = Intake::new();
        let task = connection::serve(stream, self.router.clone(), intake.clone());
        let id = self.tasks.spawn(task).id();
        self.intakes.insert(id, intake);
    }

    fn make_room(&mut self) -> bool {
        let idle = self.intakes.values();
        let idle = idle.filter_map(|intake| Some((intake.idle_since()?, intake)));
        let Some((_, longest)) = idle.min_by_key(|(since, _)| *since) else {
            return false;
        };
        longest.close();
        true
    }

    /// Takes those who connected before the end: they may wait for an answer.
    fn admit_waiting(&mut self, listener: &StdListener) {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| UnixStream::from_std(stream));
            if let Ok(stream) = stream {
                self.admit(stream);
            }
        }
    }

    /// Ends all connections, each after what is under way on it.
    async fn finish(mut self) {
        for intake in self.intakes.values() {
            intake.close();
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_TIME, all).await.is_err() {
            tracing::warn!("a client did not take its response in time");
        }
    }

    fn warn(&mut self, message: &str, error: Option<&io::Error>) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            tracing::warn!(error = error.map(tracing::field::display), "{message}");
        }
    }
}

/// Tells a client that there are too many. The few bytes fit into a fresh socket.
fn refuse(stream: &UnixStream) {
    let body = format!("[\"there are {MAX_CONNECTIONS} connections already, all of them in use\"]");
    let response = format!(
        "HTTP/1.1 503 \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\nRetry-After: 1\r\n\r\n{body}",
        body.len()
    );
    let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
    let _ = rustix::net::send(stream, response.as_bytes(), flags);
}
