//! The other side of the API: a client of a VMM's Unix socket.
//!
//! ```no_run
//! use api::client::Client;
//!
//! let client = Client::new("/run/podvisor.sock");
//! let info = client.info()?;
//! if info.state == api::request::VmState::Running {
//!     client.put("vm.pause")?;
//! }
//! # Ok::<(), api::client::ClientError>(())
//! ```

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{self, Runtime};

use crate::event::Event;
use crate::http::socket::{ClientSocket, MAX_MESSAGE_DESCRIPTORS};
use crate::request::{Counters, PciDeviceInfo, PingInfo, VmInfo};

/// Largest response that is taken.
const MAX_RESPONSE: usize = 64 << 20;
const MAX_EVENT: usize = 1 << 20;

/// Why a call has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A descriptor could not be duplicated, or there is no event loop to be had.
    #[error("cannot prepare the call")]
    Prepare(#[source] io::Error),
    /// More descriptors than a message can carry.
    #[error("{count} descriptors are given, expected at most {MAX_MESSAGE_DESCRIPTORS}")]
    TooManyDescriptors {
        /// How many were given.
        count: usize,
    },
    /// The connection broke before the response was complete.
    #[error("the VMM did not answer")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is no.
    #[error("{}", .messages.first().map_or("the VMM refused without a reason", String::as_str))]
    Refused {
        /// Status code of the response.
        status: u16,
        /// Why, from the outermost cause to the innermost.
        messages: Vec<String>,
    },
    /// The response is not what this call answers.
    #[error("the VMM gave a response that is not understood: {body:?}")]
    Response {
        /// What it said.
        body: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// How a path is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Asks for something.
    Get,
    /// Changes something.
    Put,
}

/// What a VMM said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Text of the body; empty if there is none.
    pub body: String,
}

impl Response {
    /// Whether the call was carried out.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body of a call that was carried out.
    ///
    /// # Errors
    /// It was not, or the body is not that of a `T`.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let Self { body, .. } = self.success()?;
        serde_json::from_str(&body).map_err(|source| ClientError::Response { body, source })
    }

    /// The same response, if the call was carried out.
    ///
    /// # Errors
    /// It was not, and why.
    pub fn success(self) -> Result<Self, ClientError> {
        if self.is_success() {
            return Ok(self);
        }
        let Self { status, body } = self;
        let messages = serde_json::from_str(&body)
            .unwrap_or_else(|_| if body.is_empty() { vec![] } else { vec![body] });
        Err(ClientError::Refused { status, messages })
    }
}

/// A client of one VMM. Each call makes a connection of its own and waits for its end, however long that takes.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the VMM that listens at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `verb`, as in `vm.create`, with a body and descriptors.
    ///
    /// # Errors
    /// There is no response. A response that says no is none of these.
    pub fn call(
        &self,
        method: Method,
        verb: &str,
        body: Option<&Value>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Response, ClientError> {
        let exchange = self.send(method, &format!("/api/v1/{verb}"), body, descriptors)?;
        exchange.into_response()
    }

    /// What the VMM is.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn ping(&self) -> Result<PingInfo, ClientError> {
        self.get("vmm.ping")
    }

    /// What the machine is and does.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn info(&self) -> Result<VmInfo, ClientError> {
        self.get("vm.info")
    }

    /// What the machine's devices counted.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn counters(&self) -> Result<Counters, ClientError> {
        self.get("vm.counters")
    }

    /// The OpenAPI document of what the VMM understands.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn openapi(&self) -> Result<Value, ClientError> {
        self.get("openapi.json")
    }

    /// What is measured, as OpenMetrics text.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn metrics(&self) -> Result<String, ClientError> {
        let exchange = self.send(Method::Get, "/metrics", None, &[])?;
        Ok(exchange.into_response()?.success()?.body)
    }

    /// Calls a verb that takes nothing and answers nothing, as in `vm.boot`.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn put(&self, verb: &str) -> Result<(), ClientError> {
        self.call(Method::Put, verb, None, &[])?.success()?;
        Ok(())
    }

    /// Calls a verb that takes a body, as in `vm.resize`. Tells where the device is if one was added to a machine that
    /// is booted.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn put_with(
        &self,
        verb: &str,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Option<PciDeviceInfo>, ClientError> {
        let body = serde_json::to_value(body).map_err(|source| ClientError::Response {
            body: verb.to_owned(),
            source,
        })?;
        let response = self.call(Method::Put, verb, Some(&body), descriptors)?;
        let response = response.success()?;
        if response.body.is_empty() {
            return Ok(None);
        }
        response.json().map(Some)
    }

    /// All events from now on.
    ///
    /// # Errors
    /// As of [`Client::call`], or the answer is no.
    pub fn events(&self) -> Result<EventStream, ClientError> {
        let exchange = self.send(Method::Get, "/api/v1/vm.events", None, &[])?;
        if exchange.status != 200 {
            let response = exchange.into_response()?;
            return Err(response.success().err().unwrap_or_else(|| {
                ClientError::Broken("the response is not a stream of events".into())
            }));
        }
        Ok(EventStream {
            exchange,
            received: Vec::new(),
            ended: false,
        })
    }

    fn get<T: DeserializeOwned>(&self, verb: &str) -> Result<T, ClientError> {
        self.call(Method::Get, verb, None, &[])?.json()
    }

    /// Sends a request and waits for the head of its response.
    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Exchange, ClientError> {
        if descriptors.len() > MAX_MESSAGE_DESCRIPTORS {
            let count = descriptors.len();
            return Err(ClientError::TooManyDescriptors { count });
        }
        let descriptors: io::Result<Vec<OwnedFd>> = descriptors
            .iter()
            .map(BorrowedFd::try_clone_to_owned)
            .collect();
        let descriptors = descriptors.map_err(ClientError::Prepare)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(ClientError::Prepare)?;
        let request = request(method, path, body)?;
        let response = runtime.block_on(async {
            let stream = UnixStream::connect(&self.path).await;
            let stream = stream.map_err(|source| ClientError::Connect {
                path: self.path.clone(),
                source,
            })?;
            let socket = ClientSocket::new(stream, descriptors);
            let (mut sender, connection) = http1::handshake(socket)
                .await
                .map_err(ClientError::broken)?;
            // It fails where the response does.
            tokio::spawn(async { drop(connection.await) });
            sender
                .send_request(request)
                .await
                .map_err(ClientError::broken)
        })?;
        let status = response.status().as_u16();
        Ok(Exchange {
            runtime,
            status,
            body: response.into_body(),
        })
    }
}

impl ClientError {
    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }

    /// All that is to be said, from the error itself to its innermost cause.
    pub fn messages(&self) -> Vec<String> {
        if let Self::Refused { messages, .. } = self
            && !messages.is_empty()
        {
            return messages.clone();
        }
        let mut messages = vec![self.to_string()];
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            messages.push(error.to_string());
            source = error.source();
        }
        messages
    }
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Result<Request<Body>, ClientError> {
    let method = match method {
        Method::Get => "GET",
        Method::Put => "PUT",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost");
    let request = match body {
        None => request.body(Body::empty()),
        Some(body) => request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
    };
    request.map_err(ClientError::broken)
}

/// A response whose body is still to be read, and the loop that reads it.
#[derive(Debug)]
struct Exchange {
    runtime: Runtime,
    status: u16,
    body: Incoming,
}

impl Exchange {
    fn into_response(self) -> Result<Response, ClientError> {
        let body = to_bytes(Body::new(self.body), MAX_RESPONSE);
        let body = self.runtime.block_on(body).map_err(ClientError::broken)?;
        Ok(Response {
            status: self.status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

/// Events as they happen. Ends when the VMM does, and when this side is too slow.
#[derive(Debug)]
pub struct EventStream {
    exchange: Exchange,
    /// What came after the last line that was taken.
    received: Vec<u8>,
    ended: bool,
}

impl EventStream {
    /// The next line, without its end.
    fn line(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            if self.received.len() > MAX_EVENT {
                return Err(ClientError::Broken("an event is too long".into()));
            }
            let frame = self.exchange.body.frame();
            match self.exchange.runtime.block_on(frame) {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::broken(error)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.received.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

impl Iterator for EventStream {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            };
            if let Some(data) = line.strip_prefix("data:") {
                let event = serde_json::from_str(data.trim());
                return Some(event.map_err(|source| ClientError::Response {
                    body: data.to_owned(),
                    source,
                }));
            }
        }
        self.ended = true;
        None
    }
}
