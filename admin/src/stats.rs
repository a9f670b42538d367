//! What the surface counts. All counts begin at 0 with the server, and only rise.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

use crate::route::Route;

/// The first digit of an answer's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatusClass {
    /// 2xx.
    Success,
    /// 4xx: the client's fault, or asked too often.
    ClientError,
    /// 5xx: ours.
    ServerError,
}

impl StatusClass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Success, Self::ClientError, Self::ServerError];

    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            ..400 => Self::Success,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }

    /// A word from a closed list, for a metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
        }
    }
}

/// A number that only rises.
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

/// The counts. Read them from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    index: ResponseCounts,
    health: ResponseCounts,
    ready: ResponseCounts,
    attestation: ResponseCounts,
    metrics: ResponseCounts,
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
            Route::Other => &self.other,
        }
    }

    pub(crate) fn record_response(&self, route: Route, status: StatusCode) {
        self.route_counts(route)
            .counter(StatusClass::of(status))
            .increment();
    }

    /// Requests to `route` that were answered with a status of `class`.
    #[must_use]
    pub fn requests(&self, route: Route, class: StatusClass) -> u64 {
        self.route_counts(route).counter(class).get()
    }

    /// Quotes that the source made.
    #[must_use]
    pub fn reports_made(&self) -> u64 {
        self.reports_made.get()
    }

    /// Quotes that the source could not make, or not in time.
    #[must_use]
    pub fn reports_failed(&self) -> u64 {
        self.reports_failed.get()
    }

    /// Requests that were answered with a report that another had asked for.
    #[must_use]
    pub fn reports_shared(&self) -> u64 {
        self.reports_shared.get()
    }

    /// Requests for a report that were told to come back later.
    #[must_use]
    pub fn reports_limited(&self) -> u64 {
        self.reports_limited.get()
    }

    /// Connections that were accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.get()
    }

    /// Connections that were closed to make room for newer ones.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Connections that were closed because a deadline of theirs had passed.
    #[must_use]
    pub fn timed_out(&self) -> u64 {
        self.timed_out.get()
    }
}
