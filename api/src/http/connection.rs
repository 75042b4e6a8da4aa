//! One connection: requests in, responses out.

use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use http_body_util::LengthLimitError;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tower_service::Service;

use super::answer::Refusal;
use super::intake::Intake;
use super::limits::{BODY_TIME, LINGER_TIME, MAX_BODY, MAX_HEAD, MAX_HEADERS};
use super::router::Attached;
use super::socket::{ServerSocket, shut_down_write};

/// Answers the requests of a connection until either side has enough.
pub(super) async fn serve(stream: UnixStream, router: Router, intake: Intake) {
    let stream = Arc::new(stream);
    let socket = ServerSocket::new(Arc::clone(&stream), intake.clone());
    let service = service_fn(|request| respond(router.clone(), intake.clone(), request));
    let result = http1::Builder::new()
        // A client may say that it has nothing more to say, and wait for the answer.
        .half_close(true)
        // There are clients that look for `Content-Length` as it is written here.
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(socket, service)
        .await;
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn Error, "a connection ended early");
    }
    if !intake.is_idle() {
        linger(&stream).await;
    }
}

/// Takes what the client still sends, so that it can finish and read its response.
async fn linger(stream: &UnixStream) {
    if shut_down_write(stream).is_err() {
        return;
    }
    let discard = async {
        let mut buffer = [0; 4096];
        loop {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => tokio::task::yield_now().await,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if stream.readable().await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    // A client that takes longer than that loses its response.
    let _ = timeout(LINGER_TIME, discard).await;
}

async fn respond(
    mut router: Router,
    intake: Intake,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let length = body.size_hint().exact();
    intake.begin_body(length);
    let body = match read_body(body, length).await {
        Ok(body) => body,
        Err(refusal) => {
            let mut response = refusal.into_response();
            // What is left of the body is not a request.
            close_after(&mut response);
            // With its descriptors.
            drop(intake.end_body());
            without_reason(&mut response);
            return Ok(response);
        }
    };
    let mut request = Request::from_parts(parts, Body::from(body));
    request
        .extensions_mut()
        .insert(Attached::new(intake.end_body()));
    let Ok(mut response) = router.call(request).await;
    if intake.is_closing() {
        close_after(&mut response);
    }
    without_reason(&mut response);
    Ok(response.map(|body| Body::new(Answer { body, intake })))
}

/// Leaves out what a status means in words, which tells nothing: ch-remote takes all that follows the version for a number.
fn without_reason(response: &mut Response<Body>) {
    response
        .extensions_mut()
        .insert(ReasonPhrase::from_static(b""));
}

fn close_after(response: &mut Response<Body>) {
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
}

async fn read_body(body: Incoming, length: Option<u64>) -> Result<Bytes, Refusal> {
    let too_large = || {
        let message = format!("the body is larger than {MAX_BODY} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    match timeout(BODY_TIME, to_bytes(Body::new(body), MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error))
            if error
                .source()
                .is_some_and(|source| source.is::<LengthLimitError>()) =>
        {
            Err(too_large())
        }
        Ok(Err(error)) => {
            let message = format!("the body cannot be read: {error}");
            Err(Refusal::new(StatusCode::BAD_REQUEST, message))
        }
        Err(_) => {
            let seconds = BODY_TIME.as_secs();
            let message = format!("the body did not come within {seconds} seconds");
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// The body of a response. The next request may come when it is sent.
struct Answer {
    body: Body,
    intake: Intake,
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.intake.next_request();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
