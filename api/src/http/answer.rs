//! Responses: codes and bodies.

use std::io;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::ser::Formatter;

use crate::config::ConfigError;
use crate::metrics::Metrics;
use crate::request::{ApiError, Reply};

/// Why a request has no answer of the service.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// From the outermost cause to the innermost.
    pub(super) messages: Vec<String>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            messages: vec![message.into()],
        }
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self {
            status: StatusCode::from_u16(error.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            messages: error.messages(),
        }
    }
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        ApiError::Invalid(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        json(self.status, &self.messages)
    }
}

/// The response to a request that was carried out. Metrics are written as `metrics` does.
pub(super) fn done(reply: &Reply, metrics: impl FnOnce(&Metrics) -> Response) -> Response {
    match reply {
        Reply::Done => StatusCode::NO_CONTENT.into_response(),
        Reply::Ping(ping) => json(StatusCode::OK, ping),
        Reply::Info(info) => json(StatusCode::OK, info),
        Reply::Counters(counters) => json(StatusCode::OK, counters),
        Reply::Device(device) => json(StatusCode::OK, device),
        Reply::Metrics(measured) => metrics(measured),
    }
}

/// A response with a body of JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut body, Ascii);
    if let Err(error) = value.serialize(&mut serializer) {
        tracing::error!(%error, "a response cannot be written as JSON");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    with_type(status, "application/json", Body::from(body))
}

pub(super) fn with_type(status: StatusCode, media_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// JSON in ASCII alone: clients there are read a response piece by piece, and give up on a piece that ends within a
/// character.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(position) = rest.find(|character: char| !character.is_ascii()) {
            let (plain, special) = rest.split_at(position);
            writer.write_all(plain.as_bytes())?;
            let mut characters = special.chars();
            let units = characters.next().map(|character| {
                let mut units = [0; 2];
                character.encode_utf16(&mut units).to_vec()
            });
            for unit in units.unwrap_or_default() {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_in_ascii() {
        let text = "a × b 😀 \"c\"\n";
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Ascii);
        text.serialize(&mut serializer).unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#""a \u00d7 b \ud83d\ude00 \"c\"\n""#
        );
        assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), text);
    }
}
