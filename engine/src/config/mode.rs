//! What the sidecar asks of its clients, in one word that start-up, `/ready`,
//! `/attestation`, `/metrics` and the log lines say.

/// Everything but production is named wherever the sidecar speaks of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Clients have to be attested.
    Production,
    /// `allow_unattested_clients`: a cluster secret is enough.
    Unattested,
    /// `DSTACK_SIMULATOR_ENDPOINT`: for development, on loopback.
    Simulator,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Production, Self::Unattested, Self::Simulator];

    /// The word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Unattested => "unattested",
            Self::Simulator => "simulator",
        }
    }
}
