//! HTTP responses before hyper serializes them.

use std::time::Duration;

use http_body_util::Full;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use serde::Serialize;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Prometheus text exposition format.
const PROMETHEUS_TEXT: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// A status, a body, its content type and further headers.
#[derive(Debug)]
pub(crate) struct Response {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
    extra_headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
}

impl Response {
    fn new(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type,
            body: body.into(),
            extra_headers: Vec::new(),
        }
    }

    pub(crate) fn text(body: &'static str) -> Self {
        Self::new(StatusCode::OK, TEXT, body)
    }

    /// The text of a path that is also a page.
    pub(crate) fn text_of_page(body: String) -> Self {
        Self::new(StatusCode::OK, TEXT, body).with_header(VARY, HeaderValue::from_static("accept"))
    }

    /// The status page. `policy` is its Content-Security-Policy.
    pub(crate) fn page(body: Bytes, policy: HeaderValue) -> Self {
        Self::new(StatusCode::OK, HTML, body)
            .with_header(CONTENT_SECURITY_POLICY, policy)
            .with_header(REFERRER_POLICY, HeaderValue::from_static("no-referrer"))
            .with_header(VARY, HeaderValue::from_static("accept"))
    }

    pub(crate) fn metrics(body: String) -> Self {
        Self::new(StatusCode::OK, PROMETHEUS_TEXT, body)
    }

    /// 200 with a body that is already JSON.
    pub(crate) fn json_bytes(body: Bytes) -> Self {
        Self::new(StatusCode::OK, JSON, body)
    }

    pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self::new(status, JSON, body),
            // Unreachable: every type serialized here is representable as JSON.
            Err(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, JSON, "{}"),
        }
    }

    /// An answer about the role of a member, whose status is what load balancers read.
    pub(crate) fn role(passes: bool, body: &impl Serialize) -> Self {
        let status = match passes {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::json(status, body)
    }

    /// `{"error": message}`. `message` must never quote the request.
    pub(crate) fn error(status: StatusCode, message: &str) -> Self {
        Self::json(status, &ErrorBody { error: message })
    }

    /// 429 with a `Retry-After` header.
    pub(crate) fn too_many_requests(retry_after: Duration) -> Self {
        let message = "too many requests for a quote: retry after the time in Retry-After";
        let response = Self::error(StatusCode::TOO_MANY_REQUESTS, message);
        response.with_header(RETRY_AFTER, retry_after_seconds(retry_after).into())
    }

    pub(crate) fn method_not_allowed() -> Self {
        let response = Self::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET, HEAD and OPTIONS are allowed",
        );
        response.with_header(ALLOW, ALLOWED)
    }

    /// The methods, without a body.
    pub(crate) fn options(status: StatusCode) -> Self {
        Self::new(status, TEXT, "").with_header(ALLOW, ALLOWED)
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.extra_headers.push((name, value));
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Adds the headers that every response has. No response may be cached: each describes the
    /// current state.
    pub(crate) fn into_http(self) -> hyper::Response<Full<Bytes>> {
        let mut response = hyper::Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, self.content_type);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.extend(self.extra_headers);
        response
    }
}

/// Rounds up to whole seconds, at least 1: `Retry-After: 0` would ask for an immediate retry.
fn retry_after_seconds(retry_after: Duration) -> u64 {
    let fraction = u64::from(retry_after.subsec_nanos() > 0);
    retry_after.as_secs().saturating_add(fraction).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_to_seconds() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
            let retry_after = Duration::from_millis(milliseconds);
            assert_eq!(
                retry_after_seconds(retry_after),
                seconds,
                "{milliseconds} ms"
            );
        }
        assert_eq!(retry_after_seconds(Duration::MAX), u64::MAX);
    }
}
