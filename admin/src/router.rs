//! From a request's head to its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Version};
use serde::Serialize;

use crate::nonce::Nonce;
use crate::readiness::{Check, Readiness, all_ready};
use crate::reports::{Outcome, Reports};
use crate::response::Answer;
use crate::route::Endpoint;
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

const INDEX: &str = "\
/health       the process is alive
/ready        clients may be sent here
/attestation  a TDX quote over the state of Postgres; ?nonce=<hex> makes it a fresh one
/metrics      for Prometheus
";

/// What answers requests; one for all connections.
pub(crate) struct Surface {
    readiness: Readiness,
    source: Arc<dyn Source>,
    reports: Arc<Reports>,
    stats: Arc<Stats>,
}

/// The body of `/ready`.
#[derive(Serialize)]
struct Verdict {
    ready: bool,
    mode: &'static str,
    checks: Vec<Check>,
}

impl Surface {
    pub(crate) fn new(
        readiness: Readiness,
        source: Arc<dyn Source>,
        stats: Arc<Stats>,
        settings: &Settings,
    ) -> Self {
        let reports = Reports::new(Arc::clone(&source), Arc::clone(&stats), settings);
        Self {
            readiness,
            source,
            reports: Arc::new(reports),
            stats,
        }
    }

    pub(crate) async fn respond(&self, head: &Parts) -> Response<Full<Bytes>> {
        let endpoint = Endpoint::at(head.uri.path());
        let answer = match refusal(endpoint, head) {
            Some(refusal) => refusal,
            None => self.answer(endpoint, head.uri.query()).await,
        };
        self.stats.answered(endpoint, answer.status());
        answer.into_response()
    }

    async fn answer(&self, endpoint: Endpoint, query: Option<&str>) -> Answer {
        match endpoint {
            Endpoint::Index => Answer::text(INDEX),
            Endpoint::Health => Answer::text("ok\n"),
            Endpoint::Ready => guarded(|| self.ready()),
            Endpoint::Metrics => guarded(|| Answer::metrics(self.source.metrics(&self.stats))),
            Endpoint::Attestation => self.attestation(query).await,
            Endpoint::Other => not_found(),
        }
    }

    fn ready(&self) -> Answer {
        let checks = self.readiness.checks();
        let ready = all_ready(&checks);
        let mode = self.source.mode();
        let status = match ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        Answer::json(
            status,
            &Verdict {
                ready,
                mode,
                checks,
            },
        )
    }

    async fn attestation(&self, query: Option<&str>) -> Answer {
        let nonce = match Nonce::from_query(query) {
            Ok(nonce) => nonce,
            Err(error) => return Answer::error(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        match self.reports.report(nonce).await {
            Outcome::Report(report) => Answer::report(report),
            Outcome::Later(wait) => Answer::later(wait),
            Outcome::Unavailable(why) => Answer::error(StatusCode::SERVICE_UNAVAILABLE, &why),
            Outcome::Late => {
                Answer::error(StatusCode::GATEWAY_TIMEOUT, "no quote was made in time")
            }
            Outcome::Broken => internal_error(),
        }
    }
}

/// Why a request gets no answer of its endpoint.
fn refusal(endpoint: Endpoint, head: &Parts) -> Option<Answer> {
    if endpoint == Endpoint::Other {
        return Some(not_found());
    }
    if head.method != Method::GET && head.method != Method::HEAD {
        return Some(Answer::method_not_allowed());
    }
    if announces_body(head) {
        let why = "no endpoint takes a body";
        return Some(Answer::error(StatusCode::PAYLOAD_TOO_LARGE, why));
    }
    // RFC 9112, section 3.2.
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        let why = "one Host header is needed";
        return Some(Answer::error(StatusCode::BAD_REQUEST, why));
    }
    None
}

fn announces_body(head: &Parts) -> bool {
    let length = head.headers.get(CONTENT_LENGTH);
    head.headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn not_found() -> Answer {
    Answer::error(
        StatusCode::NOT_FOUND,
        "there is nothing here; GET / lists what there is",
    )
}

fn internal_error() -> Answer {
    Answer::error(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}

/// A source that panics spoils one answer.
fn guarded(answer: impl FnOnce() -> Answer) -> Answer {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
        tracing::error!("the source of an admin endpoint panicked");
        internal_error()
    })
}
