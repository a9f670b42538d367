//! Answers, before they are bytes.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use serde::Serialize;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Prometheus' text format.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// A status, a body, and what goes with it.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
    further: Option<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Fault<'a> {
    error: &'a str,
}

impl Answer {
    fn new(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            further: None,
        }
    }

    pub(crate) fn text(body: &'static str) -> Self {
        Self::new(StatusCode::OK, TEXT, body)
    }

    pub(crate) fn metrics(body: String) -> Self {
        Self::new(StatusCode::OK, METRICS, body)
    }

    /// What is JSON already.
    pub(crate) fn report(body: Bytes) -> Self {
        Self::new(StatusCode::OK, JSON, body)
    }

    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self::new(status, JSON, body),
            // No type that is used here has anything that JSON has not.
            Err(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, JSON, "{}"),
        }
    }

    /// `{"error": why}`; `why` never quotes the request.
    pub(crate) fn error(status: StatusCode, why: &str) -> Self {
        Self::json(status, &Fault { error: why })
    }

    /// 429: come back after `wait`.
    pub(crate) fn later(wait: Duration) -> Self {
        let why =
            "quotes are made one after another, and this one would be too soon: try again later";
        let answer = Self::error(StatusCode::TOO_MANY_REQUESTS, why);
        answer.with(RETRY_AFTER, whole_seconds(wait).into())
    }

    pub(crate) fn method_not_allowed() -> Self {
        let answer = Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are understood",
        );
        answer.with(ALLOW, HeaderValue::from_static("GET, HEAD"))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.further = Some((name, value));
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// None of it may be kept on the way: each answer is about this moment.
    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, self.content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.extend(self.further);
        response
    }
}

/// Rounded up, and at least 1: `Retry-After: 0` would be an invitation.
fn whole_seconds(wait: Duration) -> u64 {
    let part = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(part).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
            let wait = Duration::from_millis(milliseconds);
            assert_eq!(whole_seconds(wait), seconds, "{milliseconds} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
