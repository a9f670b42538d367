//! Dispatches a request's head to its endpoint and returns the response.
//!
//! It must never read a request body, and never quote the request in a response.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Uri, Version};
use serde::Serialize;

use crate::endpoints::index;
use crate::nonce::Nonce;
use crate::page::StatusPage;
use crate::readiness::{Check, Readiness, all_ready};
use crate::reports::{Outcome, Reports};
use crate::response::Response;
use crate::role::RoleCheck;
use crate::route::Route;
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

/// The request handler, shared by all connections.
pub(crate) struct Router {
    readiness: Readiness,
    source: Arc<dyn Source>,
    reports: Arc<Reports>,
    stats: Arc<Stats>,
    /// `None` if it is switched off.
    page: Option<StatusPage>,
}

/// The body of `/ready`.
#[derive(Serialize)]
struct ReadyBody {
    ready: bool,
    mode: &'static str,
    checks: Vec<Check>,
}

impl Router {
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
            page: settings.status_page.then(StatusPage::new),
        }
    }

    pub(crate) async fn handle(
        &self,
        head: &Parts,
        client: IpAddr,
    ) -> hyper::Response<Full<Bytes>> {
        let route = match head.uri.path() {
            // RFC 9110, section 9.3.7: the server as a whole.
            "*" if head.method == Method::OPTIONS => Route::Index,
            path => Route::from_path(path),
        };
        let response = match reject(route, head) {
            Some(rejection) => rejection,
            None if head.method == Method::OPTIONS => self.options(route, &head.uri),
            None => self.dispatch(route, head, client).await,
        };
        self.stats.record_response(route, response.status());
        response.into_http()
    }

    async fn dispatch(&self, route: Route, head: &Parts, client: IpAddr) -> Response {
        let uri = &head.uri;
        match route {
            Route::Index if accepts_html(head) => catch_panic(|| self.page()),
            Route::Index => catch_panic(|| self.index()),
            Route::Health => Response::text("ok\n"),
            Route::Ready => catch_panic(|| self.ready()),
            Route::Metrics => catch_panic(|| Response::metrics(self.source.metrics(&self.stats))),
            Route::Attestation => self.attestation(uri.query(), client).await,
            Route::Role => catch_panic(|| self.role(uri)),
            Route::Cluster => catch_panic(|| self.cluster()),
            Route::Other => not_found(),
        }
    }

    /// The list of the paths.
    fn index(&self) -> Response {
        Response::text_of_page(index(&*self.source, self.page.is_some()))
    }

    /// The status page.
    fn page(&self) -> Response {
        let Some(page) = &self.page else {
            let message = "not found: status_page is off";
            return Response::error(StatusCode::NOT_FOUND, message);
        };
        match page.get(&self.readiness, &self.source, &self.stats) {
            Some(body) => Response::page(body, page.policy()),
            None => not_found(),
        }
    }

    /// HAProxy's `option httpchk` sends OPTIONS unless it is told otherwise, and reads the status as the health of the
    /// server. So `/ready` and the roles have the status of a GET.
    fn options(&self, route: Route, uri: &Uri) -> Response {
        match route {
            Route::Ready if !self.readiness.is_ready() => {
                Response::options(StatusCode::SERVICE_UNAVAILABLE)
            }
            Route::Role => Response::options(catch_panic(|| self.role(uri)).status()),
            _ => Response::options(StatusCode::OK),
        }
    }

    /// A member that is not ready or draining has no role for load balancers.
    fn role(&self, uri: &Uri) -> Response {
        let (Some(check), Some(cluster)) =
            (RoleCheck::from_path(uri.path()), self.source.cluster())
        else {
            return no_cluster();
        };
        match cluster.passes(check, uri.query()) {
            Ok(passes) => Response::role(passes && self.readiness.is_ready(), &cluster.document),
            Err(error) => Response::error(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    fn cluster(&self) -> Response {
        match self.source.cluster() {
            Some(cluster) => Response::json(StatusCode::OK, &cluster.document),
            None => no_cluster(),
        }
    }

    fn ready(&self) -> Response {
        let checks = self.readiness.checks();
        let ready = all_ready(&checks);
        let mode = self.source.mode();
        let status = match ready {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        Response::json(
            status,
            &ReadyBody {
                ready,
                mode,
                checks,
            },
        )
    }

    async fn attestation(&self, query: Option<&str>, client: IpAddr) -> Response {
        let nonce = match Nonce::from_query(query) {
            Ok(nonce) => nonce,
            Err(error) => return Response::error(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        match self.reports.report(nonce, client).await {
            Outcome::Report(report) => Response::json_bytes(report),
            Outcome::RetryAfter(delay) => Response::too_many_requests(delay),
            Outcome::Unavailable(message) => {
                Response::error(StatusCode::SERVICE_UNAVAILABLE, &message)
            }
            Outcome::TimedOut => {
                Response::error(StatusCode::GATEWAY_TIMEOUT, "timed out waiting for a quote")
            }
            Outcome::Internal => internal_error(),
        }
    }
}

/// The error response for a request that no endpoint handles; `None` if the request is acceptable.
fn reject(route: Route, head: &Parts) -> Option<Response> {
    if route == Route::Other {
        return Some(not_found());
    }
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&head.method) {
        return Some(Response::method_not_allowed());
    }
    if declares_body(head) {
        let message = "request bodies are not accepted";
        return Some(Response::error(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    // RFC 9112, section 3.2.
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        let message = "exactly one Host header is required";
        return Some(Response::error(StatusCode::BAD_REQUEST, message));
    }
    None
}

/// Whether the client asks for HTML by name, as browsers do. Others, such as curl, get text.
fn accepts_html(head: &Parts) -> bool {
    let accepted = head.headers.get_all(ACCEPT).into_iter();
    let mut accepted = accepted.filter_map(|value| value.to_str().ok());
    accepted.any(|value| value.split(',').any(is_html))
}

/// Whether an element of an Accept header is HTML, and not with the weight 0, by which it is refused.
/// [RFC 9110, section 12.4.2]
fn is_html(element: &str) -> bool {
    let mut parts = element.split(';').map(str::trim);
    let is_html = parts
        .next()
        .is_some_and(|name| name.eq_ignore_ascii_case("text/html"));
    let mut weights = parts.filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("q").then_some(value)
    });
    let is_zero = |weight: &str| weight.parse::<f64>().is_ok_and(|weight| weight == 0.0);
    is_html && !weights.any(is_zero)
}

fn declares_body(head: &Parts) -> bool {
    let length = head.headers.get(CONTENT_LENGTH);
    head.headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn not_found() -> Response {
    Response::error(
        StatusCode::NOT_FOUND,
        "not found: GET / lists the endpoints",
    )
}

fn no_cluster() -> Response {
    let message = "not found: this process is no member of a cluster";
    Response::error(StatusCode::NOT_FOUND, message)
}

fn internal_error() -> Response {
    Response::error(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}

/// Turns a panic of the source into a 500, so that it fails one response only.
fn catch_panic(response: impl FnOnce() -> Response) -> Response {
    catch_unwind(AssertUnwindSafe(response)).unwrap_or_else(|_| {
        tracing::error!("panic in an admin endpoint, responding with 500");
        internal_error()
    })
}
