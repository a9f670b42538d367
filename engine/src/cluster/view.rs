//! The immutable view of the cluster that everything else decides by.

use std::time::{Duration, Instant};

use crate::postgres::superuser::standing::Lag;

/// The role of a member, with the names of Patroni 4. (`master` of earlier versions is `leader` here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberRole {
    /// It holds the leader lock.
    Leader,
    /// It follows another member.
    Replica,
    /// It leads a cluster that follows another cluster. It takes no writes.
    StandbyLeader,
    /// It has no data yet.
    Uninitialized,
    /// Not known, or a primary that does not hold the lock.
    Unknown,
}

impl MemberRole {
    /// All roles.
    pub(crate) const ALL: [Self; 5] = [
        Self::Leader,
        Self::Replica,
        Self::StandbyLeader,
        Self::Uninitialized,
        Self::Unknown,
    ];

    /// The name in metrics, in the log and on HTTP.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Replica => "replica",
            Self::StandbyLeader => "standby_leader",
            Self::Uninitialized => "uninitialized",
            Self::Unknown => "unknown",
        }
    }
}

/// Why read-write sessions are not allowed on a member whose Postgres takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FenceCause {
    /// Patroni says that this member does not hold the leader lock.
    LockLost,
    /// Patroni has not confirmed the lock for `cluster_fence_after`.
    PatroniSilent,
    /// Another member says that the name of this one belongs to another VM, whose Patroni may take the lock for its own
    /// as well.
    NameConflict,
}

impl FenceCause {
    /// All causes.
    pub(crate) const ALL: [Self; 3] = [Self::LockLost, Self::PatroniSilent, Self::NameConflict];

    /// The name in metrics and in the log.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::LockLost => "lock_lost",
            Self::PatroniSilent => "patroni_silent",
            Self::NameConflict => "name_conflict",
        }
    }
}

/// What could not be learned, or what was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchError {
    /// Patroni refuses connections, or the connection broke.
    PatroniUnreachable,
    /// Patroni did not answer in time.
    PatroniTimeout,
    /// Patroni answered with another status than 200 or 503, such as a redirect.
    PatroniStatus,
    /// The answer is larger than any of Patroni's.
    PatroniTooLarge,
    /// The answer is not JSON, or lacks what every version of Patroni says.
    PatroniMalformed,
    /// The answer names a role that no version of Patroni has.
    PatroniUnknownRole,
    /// Two members are named as leaders.
    PatroniTwoLeaders,
    /// Patroni names a leader that is not in `cluster_members`.
    PatroniUnknownLeader,
    /// Patroni belongs to another cluster or another member.
    PatroniWrongCluster,
    /// The own Postgres is down: it refuses connections.
    PostgresUnreachable,
    /// The own Postgres does not answer in time, or refuses the superuser.
    PostgresSilent,
    /// The leader's Postgres cannot be asked.
    LeaderUnreachable,
    /// The leader's Postgres is in recovery or read-only.
    LeaderReadOnly,
    /// The leader's Postgres has another system identifier than the own one.
    LeaderOtherSystem,
    /// Another member says that the name of this one belongs to another VM.
    NameConflict,
    /// This version of Patroni can take the leader lock from another member after a pause, so that acknowledged writes are
    /// lost.
    PatroniUnsafeVersion,
}

impl WatchError {
    /// All errors.
    pub(crate) const ALL: [Self; 16] = [
        Self::PatroniUnreachable,
        Self::PatroniTimeout,
        Self::PatroniStatus,
        Self::PatroniTooLarge,
        Self::PatroniMalformed,
        Self::PatroniUnknownRole,
        Self::PatroniTwoLeaders,
        Self::PatroniUnknownLeader,
        Self::PatroniWrongCluster,
        Self::PostgresUnreachable,
        Self::PostgresSilent,
        Self::LeaderUnreachable,
        Self::LeaderReadOnly,
        Self::LeaderOtherSystem,
        Self::NameConflict,
        Self::PatroniUnsafeVersion,
    ];

    /// The value of the label `reason`, and the word in the log.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::PatroniUnreachable => "patroni_unreachable",
            Self::PatroniTimeout => "patroni_timeout",
            Self::PatroniStatus => "patroni_status",
            Self::PatroniTooLarge => "patroni_too_large",
            Self::PatroniMalformed => "patroni_malformed",
            Self::PatroniUnknownRole => "patroni_unknown_role",
            Self::PatroniTwoLeaders => "patroni_two_leaders",
            Self::PatroniUnknownLeader => "patroni_unknown_leader",
            Self::PatroniWrongCluster => "patroni_wrong_cluster",
            Self::PostgresUnreachable => "postgres_unreachable",
            Self::PostgresSilent => "postgres_silent",
            Self::LeaderUnreachable => "leader_unreachable",
            Self::LeaderReadOnly => "leader_read_only",
            Self::LeaderOtherSystem => "leader_other_system",
            Self::NameConflict => "name_conflict",
            Self::PatroniUnsafeVersion => "patroni_unsafe_version",
        }
    }
}

/// What Patroni says about a member. `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberView {
    pub(crate) role: Option<MemberRole>,
    /// Patroni's word, such as `running` or `streaming`.
    pub(crate) state: Option<String>,
    pub(crate) timeline: Option<u64>,
    pub(crate) lag_bytes: Option<u64>,
}

/// The cluster as this member sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterView {
    /// The role of this member.
    pub(crate) role: MemberRole,
    /// The position of the leader that holds the lock, and whose Postgres takes writes.
    pub(crate) leader: Option<usize>,
    /// The position of the leader that Patroni names, whether or not it takes writes.
    pub(crate) named_leader: Option<usize>,
    /// Grows whenever a leader is known to lead no more. Sessions that were carried in an earlier term have to end.
    pub(crate) term: u64,
    /// The timeline of the own Postgres.
    pub(crate) timeline: Option<u64>,
    pub(crate) system_identifier: Option<u64>,
    pub(crate) lag: Lag,
    /// Why read-write sessions may not be on this member, if they may not.
    pub(crate) fenced: Option<FenceCause>,
    /// Patroni is paused: it promotes no member by itself.
    pub(crate) paused: bool,
    /// As `cluster_members`.
    pub(crate) members: Vec<MemberView>,
    /// What is wrong at the moment, the most important first.
    pub(crate) errors: Vec<WatchError>,
    /// After this the view says nothing about the leader any more: the watcher is late.
    pub(crate) valid_until: Instant,
}

impl ClusterView {
    /// The view before the first answer: no member leads.
    pub(crate) fn unknown(members: usize, now: Instant, validity: Duration) -> Self {
        Self {
            role: MemberRole::Unknown,
            leader: None,
            named_leader: None,
            term: 0,
            timeline: None,
            system_identifier: None,
            lag: Lag::default(),
            fenced: None,
            paused: false,
            members: vec![MemberView::default(); members],
            errors: Vec::new(),
            valid_until: now + validity,
        }
    }

    /// The leader, unless the view is too old to say.
    pub(crate) fn leader_at(&self, now: Instant) -> Option<usize> {
        self.leader.filter(|_| now < self.valid_until)
    }

    /// Whether a login would be routed differently.
    pub(crate) fn routes_like(&self, other: &Self) -> bool {
        let route = |view: &Self| (view.role, view.leader, view.term, view.fenced);
        route(self) == route(other)
    }
}
