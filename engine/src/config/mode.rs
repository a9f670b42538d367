//! The mode of the sidecar: what it requires of its clients.

/// What the sidecar requires of its clients. `/ready`, `/attestation`, `/metrics` and the log show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Clients must be attested.
    Production,
    /// `allow_unattested_clients`: a cluster secret is sufficient.
    Unattested,
    /// `DSTACK_SIMULATOR_ENDPOINT` is set: for development, on loopback.
    Simulator,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Production, Self::Unattested, Self::Simulator];

    /// The name that users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Unattested => "unattested",
            Self::Simulator => "simulator",
        }
    }
}
