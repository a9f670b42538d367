//! What to compare, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use crate::peers::PeerKind;

/// Most rounds.
pub const MAX_ROUNDS: usize = 100;

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds over all arms.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Connections of the query loads.
    pub clients: Vec<usize>,
    /// MiB of each COPY.
    pub bulk: u32,
    /// Idle connections.
    pub idle: usize,
    /// Connections of which 16 are active, for growth.
    pub growth: usize,
    /// Strangers of a storm.
    pub unknown_clients: usize,
    /// Certificates that are verified by themselves.
    pub certificates: u32,
    /// Which arms.
    pub arms: Vec<PeerKind>,
    /// Which parts.
    pub parts: Vec<Part>,
    /// Postgres and the load keep off the proxies' core.
    pub apart: bool,
    /// Threads of the load; 0 is one for every two cores.
    pub threads: usize,
    /// How long to wait for a machine that does nothing else.
    pub max_settle: Duration,
    /// Where the programs are; beside this one if not said.
    pub programs: Option<PathBuf>,
}

/// A part of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// SELECT by connections.
    Queries,
    /// COPY out and in.
    Bulk,
    /// Handshakes and logins.
    Connect,
    /// Memory by connections.
    Idle,
    /// CPU per query beside many idle connections.
    Growth,
    /// Strangers beside sessions.
    Storm,
    /// Verdicts without a network.
    Verdicts,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Queries,
        Self::Bulk,
        Self::Connect,
        Self::Idle,
        Self::Growth,
        Self::Storm,
        Self::Verdicts,
    ];

    /// For flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::Bulk => "bulk",
            Self::Connect => "connect",
            Self::Idle => "idle",
            Self::Growth => "growth",
            Self::Storm => "storm",
            Self::Verdicts => "verdicts",
        }
    }
}

impl Options {
    /// What is done in under 20 minutes.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            // Many short ones: what disturbs the machine for seconds then disturbs
            // all arms of a round alike.
            rounds: 7,
            seconds: 1.5,
            clients: vec![1, 4, 16, 64],
            bulk: 256,
            idle: 5_000,
            growth: 2_000,
            unknown_clients: 1_000,
            certificates: 300,
            arms: PeerKind::ALL.to_vec(),
            parts: Part::ALL.to_vec(),
            apart: false,
            threads: 0,
            max_settle: Duration::from_secs(60),
            programs: None,
        }
    }

    /// What is done in about 3 minutes, with less to say.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            seconds: 1.0,
            clients: vec![1, 16],
            idle: 1_000,
            growth: 500,
            unknown_clients: 300,
            certificates: 50,
            ..Self::standard()
        }
    }
}
