//! What the surface counts. All counts begin at 0 with the server, and only rise.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::StatusCode;

use crate::route::Endpoint;

/// The first digit of an answer's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 2xx.
    Success,
    /// 4xx: the client's fault, or asked too often.
    ClientError,
    /// 5xx: ours.
    ServerError,
}

impl Class {
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
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Answers {
    success: Count,
    client_error: Count,
    server_error: Count,
}

impl Answers {
    fn count(&self, class: Class) -> &Count {
        match class {
            Class::Success => &self.success,
            Class::ClientError => &self.client_error,
            Class::ServerError => &self.server_error,
        }
    }
}

/// The counts. Read them from any thread.
#[derive(Debug, Default)]
pub struct Stats {
    index: Answers,
    health: Answers,
    ready: Answers,
    attestation: Answers,
    metrics: Answers,
    other: Answers,
    pub(crate) reports_made: Count,
    pub(crate) reports_failed: Count,
    pub(crate) reports_shared: Count,
    pub(crate) reports_limited: Count,
    pub(crate) connections: Count,
    pub(crate) displaced: Count,
    pub(crate) too_slow: Count,
}

impl Stats {
    fn answers(&self, endpoint: Endpoint) -> &Answers {
        match endpoint {
            Endpoint::Index => &self.index,
            Endpoint::Health => &self.health,
            Endpoint::Ready => &self.ready,
            Endpoint::Attestation => &self.attestation,
            Endpoint::Metrics => &self.metrics,
            Endpoint::Other => &self.other,
        }
    }

    pub(crate) fn answered(&self, endpoint: Endpoint, status: StatusCode) {
        self.answers(endpoint).count(Class::of(status)).add();
    }

    /// Requests to `endpoint` that were answered with a status of `class`.
    #[must_use]
    pub fn requests(&self, endpoint: Endpoint, class: Class) -> u64 {
        self.answers(endpoint).count(class).get()
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
    pub fn displaced(&self) -> u64 {
        self.displaced.get()
    }

    /// Connections that were closed because a deadline of theirs had passed.
    #[must_use]
    pub fn too_slow(&self) -> u64 {
        self.too_slow.get()
    }
}
