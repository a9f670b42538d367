//! What can be asked for.

/// A path, or everything that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/`: the list of the others.
    Index,
    /// `/health`: the thread is alive.
    Health,
    /// `/ready`: clients may be sent here.
    Ready,
    /// `/attestation`: a quote.
    Attestation,
    /// `/metrics`: for Prometheus.
    Metrics,
    /// Another path, or no request at all.
    Other,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Index,
        Self::Health,
        Self::Ready,
        Self::Attestation,
        Self::Metrics,
        Self::Other,
    ];

    pub(crate) fn from_path(path: &str) -> Self {
        match path {
            "/" => Self::Index,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/attestation" => Self::Attestation,
            "/metrics" => Self::Metrics,
            _ => Self::Other,
        }
    }

    /// A word from a closed list, for a metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Health => "health",
            Self::Ready => "ready",
            Self::Attestation => "attestation",
            Self::Metrics => "metrics",
            Self::Other => "other",
        }
    }
}
