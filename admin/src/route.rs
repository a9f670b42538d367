//! The paths that the server knows.

use crate::role::RoleCheck;

/// A known path, or [`Other`](Self::Other).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `/`: a list of the endpoints.
    Index,
    /// `/health`: liveness of the admin thread.
    Health,
    /// `/ready`: whether clients may be routed here.
    Ready,
    /// `/attestation`: a report with a TDX quote.
    Attestation,
    /// `/metrics`: Prometheus metrics.
    Metrics,
    /// `/primary`, `/replica` and the like: whether this member of a cluster has the role.
    Role,
    /// `/cluster`: the members, as JSON.
    Cluster,
    /// Any other path, or bytes that are not an HTTP request.
    Other,
}

impl Route {
    /// All routes.
    pub const ALL: [Self; 8] = [
        Self::Index,
        Self::Health,
        Self::Ready,
        Self::Attestation,
        Self::Metrics,
        Self::Role,
        Self::Cluster,
        Self::Other,
    ];

    pub(crate) fn from_path(path: &str) -> Self {
        match path {
            "/" => Self::Index,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/attestation" => Self::Attestation,
            "/metrics" => Self::Metrics,
            "/cluster" => Self::Cluster,
            path if RoleCheck::from_path(path).is_some() => Self::Role,
            _ => Self::Other,
        }
    }

    /// The value of a metric label, from a closed list.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Health => "health",
            Self::Ready => "ready",
            Self::Attestation => "attestation",
            Self::Metrics => "metrics",
            Self::Role => "role",
            Self::Cluster => "cluster",
            Self::Other => "other",
        }
    }
}
