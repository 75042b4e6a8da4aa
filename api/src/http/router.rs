//! Which path is answered by what.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on, put};
use tokio::sync::{oneshot, watch};

use super::answer::{self, Refusal};
use super::intake::Arrived;
use super::limits::MAX_BODY;
use super::metrics::{self, Latency};
use super::stream;
use super::verbs::{Input, UNSUPPORTED, VERBS, Verb};
use crate::event::Events;
use crate::openapi::DOCUMENT;
use crate::request::{ApiError, Reply, Request, Service};

const ROOT: &str = "/api/v1";

/// What all requests share.
pub(super) struct Api {
    pub(super) service: Arc<dyn Service>,
    pub(super) events: Events,
    pub(super) latency: Latency,
    pub(super) stopping: watch::Receiver<bool>,
}

/// The descriptors that came with a request, as an extension of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Attached(Arc<Mutex<Arrived>>);

impl Attached {
    pub(super) fn new(arrived: Arrived) -> Self {
        Self(Arc::new(Mutex::new(arrived)))
    }

    fn take(&self) -> Arrived {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All paths. A request is complete when it comes here: its body is in memory.
pub(super) fn router(api: &Arc<Api>) -> Router {
    let mut router = Router::new();
    for verb in VERBS {
        let api = Arc::clone(api);
        let handler = move |request| async move { api.serve(verb, request).await };
        router = router.route(&path(verb.name), with_method(&verb.method, handler));
    }
    for &(verb, reason) in UNSUPPORTED {
        let api = Arc::clone(api);
        let handler = move || async move { api.refuse(verb, reason) };
        router = router.route(&path(verb), put(handler));
    }
    let streaming = Arc::clone(api);
    let events =
        move || async move { stream::respond(&streaming.events, streaming.stopping.clone()) };
    let measuring = Arc::clone(api);
    let metrics = move |headers| async move { measuring.metrics(headers).await };
    router
        .route(&path("vm.events"), get(events))
        .route(&path("openapi.json"), get(document))
        .route("/metrics", get(metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
}

async fn document() -> Response {
    answer::with_type(StatusCode::OK, "application/json", Body::from(DOCUMENT))
}

fn path(verb: &str) -> String {
    format!("{ROOT}/{verb}")
}

fn with_method<H, T>(method: &Method, handler: H) -> MethodRouter
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let filter = if *method == Method::GET {
        MethodFilter::GET
    } else {
        MethodFilter::PUT
    };
    on(filter, handler)
}

async fn unknown_path(request: HttpRequest) -> Refusal {
    let path = request.uri().path();
    let message =
        format!("nothing is at {path:?}: the paths are {ROOT}/VERB, as in {ROOT}/vmm.ping");
    Refusal::new(StatusCode::NOT_FOUND, message)
}

async fn wrong_method(request: HttpRequest) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not take {method}: the header Allow tells what it takes");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

impl Api {
    async fn serve(&self, verb: &Verb, request: HttpRequest) -> Response {
        let started = Instant::now();
        let headers = request.headers().clone();
        let response = match read(verb, request).await {
            Ok(request) => self.carry_out(request, &headers).await,
            Err(refusal) => Err(refusal),
        };
        let response = response.unwrap_or_else(|refusal| {
            tracing::info!(verb = verb.name, status = refusal.status.as_u16(), messages = ?refusal.messages, "request refused");
            refusal.into_response()
        });
        self.latency
            .observe(verb.name, response.status(), started.elapsed());
        response
    }

    async fn metrics(&self, headers: HeaderMap) -> Response {
        let response = self.carry_out(Request::Metrics, &headers).await;
        response.unwrap_or_else(IntoResponse::into_response)
    }

    fn refuse(&self, verb: &'static str, reason: &str) -> Response {
        let started = Instant::now();
        let reason = reason.to_owned();
        let response = Refusal::from(ApiError::NotSupported { verb, reason }).into_response();
        self.latency
            .observe(verb, response.status(), started.elapsed());
        response
    }

    async fn carry_out(&self, request: Request, headers: &HeaderMap) -> Result<Response, Refusal> {
        let reply = self.call(request).await?;
        Ok(answer::done(&reply, |measured| {
            metrics::respond(measured, &self.latency, headers)
        }))
    }

    async fn call(&self, request: Request) -> Result<Reply, ApiError> {
        let (sender, receiver) = oneshot::channel();
        self.service.post(
            request,
            // A client that has gone needs no answer.
            Box::new(move |answer| drop(sender.send(answer))),
        );
        receiver.await.unwrap_or(Err(ApiError::Gone))
    }
}

async fn read(verb: &Verb, request: HttpRequest) -> Result<Request, Refusal> {
    let attached: Option<&Attached> = request.extensions().get();
    let arrived = attached.map(Attached::take).unwrap_or_default();
    let body = to_bytes(request.into_body(), MAX_BODY)
        .await
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    (verb.read)(Input {
        body: &body,
        arrived,
    })
}
