//! Requests on their way to the thread that owns the machine.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use api::request::{ApiError, Reply, Request, Service};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

type Answer = Result<Reply, ApiError>;

/// A request, and where its answer goes.
pub(super) struct Posted {
    pub(super) request: Request,
    answer: Option<Sender<Answer>>,
}

impl Posted {
    pub(super) fn answer(self, answer: Answer) {
        if let Some(waiting) = self.answer {
            // Whoever asked may have gone.
            let _ = waiting.send(answer);
        } else if let Err(error) = answer {
            tracing::warn!(%error, "request refused");
        }
    }
}

/// The owner's end: requests in their order, and an eventfd that is readable while there are any.
pub struct Inbox {
    posted: Receiver<Posted>,
    mailbox: Mailbox,
}

/// The end of whoever asks; clones post to the same inbox.
#[derive(Clone)]
pub struct Mailbox {
    posted: Sender<Posted>,
    wake: Arc<EventFd>,
}

impl Inbox {
    /// An empty inbox.
    ///
    /// # Errors
    ///
    /// The host gives no eventfd.
    pub fn new() -> io::Result<Self> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (sender, receiver) = mpsc::channel();
        Ok(Self {
            posted: receiver,
            mailbox: Mailbox {
                posted: sender,
                wake,
            },
        })
    }

    /// A way into this inbox.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    pub(super) fn eventfd(&self) -> &EventFd {
        &self.mailbox.wake
    }

    /// The next request, if there is one.
    pub(super) fn next(&self) -> Option<Posted> {
        // Emptied first: what is posted from here on makes it readable again.
        let _ = self.mailbox.wake.read();
        let posted = self.posted.try_recv().ok();
        if posted.is_some() {
            // There may be more.
            let _ = self.mailbox.wake.write(1);
        }
        posted
    }
}

impl Mailbox {
    /// Posts `request` without waiting for its answer, which is logged if it is a refusal.
    pub fn post(&self, request: Request) {
        // A machine that has ended needs no more requests.
        let _ = self.send(request, None);
    }

    fn send(&self, request: Request, answer: Option<Sender<Answer>>) -> Result<(), ApiError> {
        self.posted
            .send(Posted { request, answer })
            .map_err(|_| ApiError::Gone)?;
        // A full counter is readable all the same.
        let _ = self.wake.write(1);
        Ok(())
    }
}

impl Service for Mailbox {
    fn call(&self, request: Request) -> Answer {
        let (answer, answered) = mpsc::channel();
        self.send(request, Some(answer))?;
        answered.recv().unwrap_or(Err(ApiError::Gone))
    }
}
