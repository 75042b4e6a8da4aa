//! The REST server: Cloud Hypervisor's `/api/v1` over a Unix socket.
//!
//! - `router`: which path is answered by what; `verbs` is the table of all paths.
//! - `listener` and `connection`: who is served, and how long one may take.
//! - `socket` and `intake`: bytes and descriptors (SCM_RIGHTS), and which request they belong to.
//! - `descriptors`: which device a descriptor belongs to.
//! - `stream` and `metrics`: `vm.events` and `/metrics`.
//! - [`limits`]: what one client can take.
//!
//! One thread does it all. What it is asked for it posts to a [`Service`], which has a thread of its own.

mod answer;
mod connection;
mod descriptors;
mod intake;
pub mod limits;
mod listener;
mod metrics;
mod router;
pub(crate) mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod verbs;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::runtime;
use tokio::sync::watch;

use crate::event::Events;
use crate::request::Service;

/// A server, with the thread that it runs on. Stopped when dropped.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers the requests that come in through `listener` by means of `service`, on a thread named `api`.
    ///
    /// # Errors
    /// There is no thread to be had, or the kernel refuses what its event loop needs.
    pub fn start(
        listener: UnixListener,
        service: Arc<dyn Service>,
        events: Events,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::UnixListener::from_std(listener)?
        };
        let (stop, stopping) = watch::channel(false);
        let api = Arc::new(router::Api {
            service,
            events,
            latency: metrics::Latency::new(),
            stopping: stopping.clone(),
        });
        let router = router::router(&api);
        let thread = thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || runtime.block_on(listener::run(listener, router, stopping)))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Takes no further requests, answers those that have come, and ends. Whoever carries them out must still do so, or
    /// have dropped them. Waits five seconds at most for clients that do not take their responses.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the API server panicked");
        }
    }
}
