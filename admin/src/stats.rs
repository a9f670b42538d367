//! The server's counters. All are monotonic and start at 0 with the server.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

use crate::route::Route;

/// The class of a response's status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusClass {
    /// 2xx.
    Success,
    /// 4xx: the client's fault, or rate-limited.
    ClientError,
    /// 5xx: the server's fault.
    ServerError,
}

impl StatusClass {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Success, Self::ClientError, Self::ServerError];

    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            ..400 => Self::Success,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }

    /// The value of a metric label, from a closed list.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
        }
    }
}

/// A monotonic counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct ResponseCounts {
    success: Counter,
    client_error: Counter,
    server_error: Counter,
}

impl ResponseCounts {
    fn counter(&self, class: StatusClass) -> &Counter {
        match class {
            StatusClass::Success => &self.success,
            StatusClass::ClientError => &self.client_error,
            StatusClass::ServerError => &self.server_error,
        }
    }
}

/// The counters, readable from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    index: ResponseCounts,
    health: ResponseCounts,
    ready: ResponseCounts,
    attestation: ResponseCounts,
    metrics: ResponseCounts,
    role: ResponseCounts,
    cluster: ResponseCounts,
    other: ResponseCounts,
    pub(crate) reports_made: Counter,
    pub(crate) reports_failed: Counter,
    pub(crate) reports_shared: Counter,
    pub(crate) reports_limited: Counter,
    pub(crate) connections: Counter,
    pub(crate) evicted: Counter,
    pub(crate) timed_out: Counter,
}

impl Stats {
    fn route_counts(&self, route: Route) -> &ResponseCounts {
        match route {
            Route::Index => &self.index,
            Route::Health => &self.health,
            Route::Ready => &self.ready,
            Route::Attestation => &self.attestation,
            Route::Metrics => &self.metrics,
            Route::Role => &self.role,
            Route::Cluster => &self.cluster,
            Route::Other => &self.other,
        }
    }

    pub(crate) fn record_response(&self, route: Route, status: StatusCode) {
        self.route_counts(route)
            .counter(StatusClass::of(status))
            .increment();
    }

    /// Number of requests to `route` that got a status of `class`.
    #[must_use]
    pub fn requests(&self, route: Route, class: StatusClass) -> u64 {
        self.route_counts(route).counter(class).get()
    }

    /// Number of quotes that the source made.
    #[must_use]
    pub fn reports_made(&self) -> u64 {
        self.reports_made.get()
    }

    /// Number of quotes that the source failed to make, or did not make in time.
    #[must_use]
    pub fn reports_failed(&self) -> u64 {
        self.reports_failed.get()
    }

    /// Number of requests that got a report made for another request.
    #[must_use]
    pub fn reports_shared(&self) -> u64 {
        self.reports_shared.get()
    }

    /// Number of requests for a report that were rate-limited.
    #[must_use]
    pub fn reports_limited(&self) -> u64 {
        self.reports_limited.get()
    }

    /// Number of accepted connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.get()
    }

    /// Number of connections closed because all slots were taken.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Number of connections closed by a timeout.
    #[must_use]
    pub fn timed_out(&self) -> u64 {
        self.timed_out.get()
    }
}
