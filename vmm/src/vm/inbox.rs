//! Requests on their way to the thread that owns the machine.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use api::request::{Answer, Answerer, Request, Service};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::gdb::request::DebugRequest;

/// Where the answer to a request goes.
pub(super) struct ReplyTo(Option<Answerer>);

impl ReplyTo {
    pub(super) fn answer(self, answer: Answer) {
        if let Some(answerer) = self.0 {
            answerer(answer);
        } else if let Err(error) = answer {
            tracing::warn!(%error, "request refused");
        }
    }
}

/// Something to do.
pub(super) enum Posted {
    /// By a client, by a signal.
    Request(Request, ReplyTo),
    /// By a debugger.
    Debug(DebugRequest),
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
    pub fn send(&self, request: Request) {
        self.push(request, None);
    }

    /// Posts what a debugger asks. Its answerer is dropped when the owner is gone.
    pub fn debug(&self, request: DebugRequest) {
        self.put(Posted::Debug(request));
    }

    fn put(&self, posted: Posted) {
        if self.posted.send(posted).is_ok() {
            // A full counter is readable all the same.
            let _ = self.wake.write(1);
        }
    }

    fn push(&self, request: Request, answerer: Option<Answerer>) {
        // A process that ends takes no more requests: the answerer is dropped, which says so.
        self.put(Posted::Request(request, ReplyTo(answerer)));
    }
}

impl Service for Mailbox {
    fn post(&self, request: Request, answerer: Answerer) {
        self.push(request, Some(answerer));
    }
}
