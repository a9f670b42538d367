//! Options of a comparison.

use std::path::PathBuf;
use std::time::Duration;

use crate::peers::PeerKind;
use crate::peers::workspace::Placement;

/// Maximum rounds.
pub const MAX_ROUNDS: usize = 100;

/// What to compare, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds over all arms.
    pub rounds: usize,
    /// Connections of the open loops, with the rounds for each number: many connections take
    /// longer to open than to measure.
    pub open_loops: Vec<(usize, usize)>,
    /// Length of each measurement, in seconds.
    pub seconds: f64,
    /// Connections of the query loads.
    pub clients: Vec<usize>,
    /// Size of each COPY, in MiB.
    pub bulk: u32,
    /// Idle connections.
    pub idle: usize,
    /// How long they stay idle before the last memory sample.
    pub idle_time: Duration,
    /// Connections of the growth case. 16 of them are active.
    pub growth: usize,
    /// Unknown clients of a connection storm.
    pub unknown_clients: usize,
    /// Certificates for the verification measurements.
    pub certificates: u32,
    /// The arms to measure.
    pub arms: Vec<PeerKind>,
    /// The parts to run.
    pub parts: Vec<Part>,
    /// Where Postgres and the load run, except in the parts that always have them apart.
    pub placement: Placement,
    /// Threads of the load; 0 is one for every two cores.
    pub threads: usize,
    /// Maximum time to wait for an idle machine before the first round, and for virtual cores that
    /// do not share a physical one, over all rounds.
    pub max_settle: Duration,
    /// Directory of the programs; by default that of the running one.
    pub programs: Option<PathBuf>,
}

/// A part of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// SELECT at several numbers of connections.
    Queries,
    /// SELECT with Postgres and the load off the proxies' core.
    Apart,
    /// SELECT at fixed rates, with Postgres and the load off the proxies' core.
    OpenLoop,
    /// Short queries among large results, likewise.
    Mixture,
    /// COPY out and in.
    Bulk,
    /// Handshakes and logins.
    Connect,
    /// Memory of idle connections.
    Idle,
    /// CPU per query with many idle connections.
    Growth,
    /// A connection storm during sessions.
    Storm,
    /// Cost of verdicts, in memory.
    Verdicts,
}

impl Part {
    /// All parts, in the order in which they run.
    pub const ALL: [Self; 10] = [
        Self::Queries,
        Self::Apart,
        Self::OpenLoop,
        Self::Mixture,
        Self::Bulk,
        Self::Connect,
        Self::Idle,
        Self::Growth,
        Self::Storm,
        Self::Verdicts,
    ];

    /// Name for flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queries => "queries",
            Self::Apart => "apart",
            Self::OpenLoop => "open-loop",
            Self::Mixture => "mixture",
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
    /// The standard comparison, which takes about 40 minutes.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            // Many short rounds: a disturbance that lasts some seconds then affects all arms of a
            // round alike.
            rounds: 5,
            open_loops: vec![(64, 3), (512, 2)],
            seconds: 1.5,
            clients: vec![1, 4, 16, 64],
            bulk: 256,
            idle: 5_000,
            idle_time: Duration::from_secs(5),
            growth: 2_000,
            unknown_clients: 1_000,
            certificates: 300,
            arms: PeerKind::ALL.to_vec(),
            parts: Part::ALL.to_vec(),
            placement: Placement::Shared,
            threads: 0,
            max_settle: Duration::from_secs(90),
            programs: None,
        }
    }

    /// A shorter comparison of about 11 minutes, with less precision.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            rounds: 3,
            open_loops: vec![(64, 1)],
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
