//! The state machine that decides who leads: answers and the time in, the view and its changes out.
//!
//! A leader counts only while Patroni says that it holds the lock *and* its Postgres takes writes. What is not known is
//! never taken for leadership; it only does not end it at once: an answer stays valid for `fence_after`, because one slow
//! answer must not end sessions. No I/O, and no clock.

use std::time::{Duration, Instant};

use super::patroni::{ClusterAnswer, PatroniStatus};
use super::view::{ClusterView, FenceCause, MemberRole, MemberView, WatchError};
use crate::postgres::superuser::standing::Standing;

#[cfg(test)]
mod tests;

/// What does not change while the process runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoleSettings {
    /// The position of this member.
    pub(crate) own: usize,
    /// How many members there are.
    pub(crate) members: usize,
    /// Whether there is a Patroni. Otherwise a Postgres that is not in recovery leads.
    pub(crate) patroni: bool,
    /// How long an answer stays valid.
    pub(crate) fence_after: Duration,
    /// The port on loopback of the first member's Postgres; the others follow.
    pub(crate) first_port: Option<u16>,
}

/// The answers of one round.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    /// `None` without a Patroni.
    pub(crate) status: Option<Result<PatroniStatus, WatchError>>,
    /// `None` without a Patroni.
    pub(crate) cluster: Option<Result<ClusterAnswer, WatchError>>,
    /// The own Postgres.
    pub(crate) local: Result<Standing, WatchError>,
    /// The Postgres of another member, which [`RoleState::candidate`] named.
    pub(crate) remote: Option<(usize, Result<Standing, WatchError>)>,
    /// Whether another member says that the name of this one belongs to another VM.
    pub(crate) name_refused: bool,
}

/// A change that is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// The role of this member.
    Role(MemberRole),
    /// This member, at this position, leads and takes writes.
    Leader(usize),
    /// The leader leads no more, and another one is not known yet.
    LeaderLost(usize),
    /// Read-write sessions may not be on this member any more.
    Fenced(FenceCause),
    /// They may be again, or Postgres takes no writes.
    FenceEnded,
}

/// An answer, and when it was received.
#[derive(Clone, Debug)]
struct Dated<T> {
    value: T,
    at: Instant,
}

impl<T> Dated<T> {
    fn fresh(&self, now: Instant, validity: Duration) -> Option<&T> {
        (now.saturating_duration_since(self.at) < validity).then_some(&self.value)
    }
}

/// What is known of the leader lock of this member.
#[derive(Clone, Copy, Debug)]
struct Lock {
    /// When it was confirmed last, or Postgres was in recovery, or the process started.
    confirmed: Instant,
    held: bool,
    lost: bool,
}

/// The state machine.
pub(crate) struct RoleState {
    settings: RoleSettings,
    lock: Lock,
    status: Option<Dated<PatroniStatus>>,
    cluster: Option<Dated<ClusterAnswer>>,
    local: Option<Dated<Standing>>,
    remote: Option<Dated<(usize, Standing)>>,
    /// The own Postgres refuses connections, so that its last answer counts no more.
    down: bool,
    name_refused: bool,
    /// The last leader that took writes and is not known to have stopped.
    holder: Option<usize>,
    term: u64,
    role: MemberRole,
    fenced: Option<FenceCause>,
}

impl RoleState {
    pub(crate) fn new(settings: RoleSettings, now: Instant) -> Self {
        Self {
            settings,
            lock: Lock {
                confirmed: now,
                held: false,
                lost: false,
            },
            status: None,
            cluster: None,
            local: None,
            remote: None,
            down: false,
            name_refused: false,
            holder: None,
            term: 0,
            role: MemberRole::Unknown,
            fenced: None,
        }
    }

    /// The other member whose Postgres is to be asked, because it may lead.
    pub(crate) fn candidate(&self) -> Option<usize> {
        let named = match self.settings.patroni {
            true => self.cluster.as_ref()?.value.leader,
            // A standby's WAL comes from the leader, or from another standby, which takes no writes.
            false => self.upstream(&self.local.as_ref()?.value),
        };
        named.filter(|member| *member != self.settings.own)
    }

    /// Takes the answers of a round. Returns the new view and what has changed.
    pub(crate) fn observe(
        &mut self,
        now: Instant,
        observation: Observation,
    ) -> (ClusterView, Vec<Transition>) {
        let mut errors = self.keep(now, &observation);
        self.judge_lock(now, &observation);
        let leader = self.leader(now, &mut errors);
        let fenced = self.fence(now);
        let leader = leader.filter(|leader| fenced.is_none() || *leader != self.settings.own);
        let lost = self.has_lost(&observation);
        let mut transitions = Vec::new();
        self.note_leader(leader, lost, &mut transitions);
        let role = self.own_role(now, leader);
        if role != self.role {
            self.role = role;
            transitions.push(Transition::Role(role));
        }
        if fenced != self.fenced {
            self.fenced = fenced;
            transitions.push(fenced.map_or(Transition::FenceEnded, Transition::Fenced));
        }
        (self.view(now, leader, errors), transitions)
    }

    /// Keeps the answers of a round, and returns what was wrong with them.
    fn keep(&mut self, now: Instant, observation: &Observation) -> Vec<WatchError> {
        let mut errors = Vec::new();
        self.name_refused = observation.name_refused;
        if self.name_refused {
            errors.push(WatchError::NameConflict);
        }
        keep(
            &mut self.status,
            now,
            observation.status.clone(),
            &mut errors,
        );
        keep(
            &mut self.cluster,
            now,
            observation.cluster.clone(),
            &mut errors,
        );
        if matches!(&observation.status, Some(Ok(status)) if status.unsafe_version) {
            errors.push(WatchError::PatroniUnsafeVersion);
        }
        self.down = matches!(observation.local, Err(WatchError::PostgresUnreachable));
        let local = Some(observation.local.clone());
        keep(&mut self.local, now, local, &mut errors);
        let remote = observation.remote.clone();
        let remote = remote.map(|(member, standing)| standing.map(|standing| (member, standing)));
        keep(&mut self.remote, now, remote, &mut errors);
        errors
    }

    /// Compares both answers of Patroni. The lock is confirmed by both, and lost if `/cluster` names no leader or another
    /// one. Patroni reads that from etcd at once, and learns of a lost lock itself only in its next loop.
    fn judge_lock(&mut self, now: Instant, observation: &Observation) {
        if matches!(&observation.local, Ok(local) if local.in_recovery) {
            // There is nothing to fence. The time begins when Postgres claims to lead.
            (self.lock.confirmed, self.lock.held, self.lock.lost) = (now, false, false);
            return;
        }
        let holds = matches!(&observation.status, Some(Ok(status)) if status.holds_lock);
        let named = match &observation.cluster {
            Some(Ok(cluster)) => Some(cluster.leader == Some(self.settings.own)),
            // It names another one, which is not in the configuration.
            Some(Err(WatchError::PatroniUnknownLeader)) => Some(false),
            // Without etcd there is no answer, and Patroni's own word counts: it demotes Postgres in time.
            _ => None,
        };
        match (holds, named) {
            (_, Some(false)) => (self.lock.held, self.lock.lost) = (false, true),
            (true, _) => {
                self.lock = Lock {
                    confirmed: now,
                    held: true,
                    lost: false,
                };
            }
            // A Patroni that has just started, or no answer.
            (false, _) => {}
        }
    }

    /// The member that a standby receives its WAL from.
    fn upstream(&self, local: &Standing) -> Option<usize> {
        let member = local
            .upstream_port?
            .checked_sub(self.settings.first_port?)?;
        Some(usize::from(member)).filter(|member| *member < self.settings.members)
    }

    fn leader(&self, now: Instant, errors: &mut Vec<WatchError>) -> Option<usize> {
        let fresh = self.settings.fence_after;
        let own = self.settings.own;
        let local = self.local_at(now);
        if local.is_some_and(Standing::takes_writes) && self.may_lead(now) {
            return Some(own);
        }
        let named = match self.settings.patroni {
            true => {
                let status = self.status.as_ref()?.fresh(now, fresh)?;
                let cluster = self.cluster.as_ref()?.fresh(now, fresh)?;
                cluster.leader.filter(|_| !status.unlocked)
            }
            false => self.upstream(local?),
        };
        let named = named.filter(|named| *named != own)?;
        let remote = self.remote.as_ref()?.fresh(now, fresh);
        let (_, remote) = remote.filter(|(member, _)| *member == named)?;
        let known = local.and_then(|local| local.system_identifier);
        if known.is_some() && remote.system_identifier != known {
            errors.push(WatchError::LeaderOtherSystem);
            return None;
        }
        if !remote.takes_writes() {
            errors.push(WatchError::LeaderReadOnly);
            return None;
        }
        Some(named)
    }

    /// The last answer of the own Postgres, if it still counts.
    fn local_at(&self, now: Instant) -> Option<&Standing> {
        let local = self.local.as_ref().filter(|_| !self.down)?;
        local.fresh(now, self.settings.fence_after)
    }

    /// Whether this member leads if its Postgres takes writes.
    fn may_lead(&self, now: Instant) -> bool {
        let silent =
            now.saturating_duration_since(self.lock.confirmed) >= self.settings.fence_after;
        !self.settings.patroni || self.lock.held && !silent
    }

    fn fence(&self, now: Instant) -> Option<FenceCause> {
        // Also if it does not answer: a machine without time for that is a reason to fence, not one against.
        let claims = self
            .local
            .as_ref()
            .is_some_and(|local| !local.value.in_recovery);
        if !self.settings.patroni || !claims || self.down {
            return None;
        }
        let silent =
            now.saturating_duration_since(self.lock.confirmed) >= self.settings.fence_after;
        match (self.lock.lost, self.name_refused, silent) {
            (true, _, _) => Some(FenceCause::LockLost),
            (false, true, _) => Some(FenceCause::NameConflict),
            (false, false, true) => Some(FenceCause::PatroniSilent),
            (false, false, false) => None,
        }
    }

    /// Whether the answers of this round say that [`Self::holder`] leads no more. No answer says nothing.
    fn has_lost(&self, observation: &Observation) -> bool {
        let Some(holder) = self.holder else {
            return false;
        };
        let unlocked = matches!(&observation.status, Some(Ok(status)) if status.unlocked && !status.holds_lock);
        let other = match &observation.cluster {
            Some(Ok(cluster)) => cluster.leader != Some(holder),
            Some(Err(error)) => *error == WatchError::PatroniUnknownLeader,
            None => false,
        };
        let standing = match &observation.remote {
            Some((member, standing)) if *member == holder => standing.as_ref().ok(),
            _ => observation
                .local
                .as_ref()
                .ok()
                .filter(|_| holder == self.settings.own),
        };
        unlocked || other || standing.is_some_and(|standing| standing.in_recovery)
    }

    fn note_leader(
        &mut self,
        leader: Option<usize>,
        lost: bool,
        transitions: &mut Vec<Transition>,
    ) {
        let before = self.holder;
        match leader {
            Some(leader) if before == Some(leader) => {}
            Some(leader) => {
                self.term += u64::from(before.is_some());
                self.holder = Some(leader);
                transitions.push(Transition::Leader(leader));
            }
            None if lost => {
                self.term += 1;
                self.holder = None;
                transitions.extend(before.map(Transition::LeaderLost));
            }
            None => {}
        }
    }

    fn own_role(&self, now: Instant, leader: Option<usize>) -> MemberRole {
        if leader == Some(self.settings.own) {
            return MemberRole::Leader;
        }
        let fresh = self.settings.fence_after;
        let local = self.local_at(now);
        let status = self
            .status
            .as_ref()
            .and_then(|status| status.fresh(now, fresh));
        match (local, status.map(|status| status.role)) {
            (Some(local), Some(MemberRole::StandbyLeader)) if local.in_recovery => {
                MemberRole::StandbyLeader
            }
            // Postgres knows that itself, also while Patroni is silent.
            (Some(local), _) if local.in_recovery => MemberRole::Replica,
            (None, Some(MemberRole::Uninitialized)) => MemberRole::Uninitialized,
            _ => MemberRole::Unknown,
        }
    }

    /// Until when a view counts: as long as the oldest answer that it depends on.
    fn valid_until(&self, now: Instant, leader: Option<usize>) -> Instant {
        let at = match leader {
            Some(leader) if leader == self.settings.own && self.settings.patroni => {
                Some(self.lock.confirmed)
            }
            Some(leader) if leader == self.settings.own => {
                self.local.as_ref().map(|dated| dated.at)
            }
            Some(_) => {
                let status = self.status.as_ref().map(|dated| dated.at);
                let cluster = self.cluster.as_ref().map(|dated| dated.at);
                let remote = self.remote.as_ref().map(|dated| dated.at);
                status.into_iter().chain(cluster).chain(remote).min()
            }
            None => None,
        };
        at.unwrap_or(now) + self.settings.fence_after
    }

    fn view(&self, now: Instant, leader: Option<usize>, errors: Vec<WatchError>) -> ClusterView {
        let fresh = self.settings.fence_after;
        let local = self.local_at(now);
        let cluster = self
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.fresh(now, fresh));
        let mut members = match cluster {
            Some(cluster) => cluster.members.clone(),
            None => vec![MemberView::default(); self.settings.members],
        };
        if !self.settings.patroni {
            let known = [
                (Some(self.settings.own), Some(self.role)),
                (leader, Some(MemberRole::Leader)),
            ];
            for (member, role) in known {
                if let Some(slot) = member.and_then(|member| members.get_mut(member)) {
                    slot.role = role;
                }
            }
        }
        let mut lag = local.map(|local| local.lag).unwrap_or_default();
        let answered = members.get(self.settings.own).and_then(|own| own.lag_bytes);
        if self.role != MemberRole::Leader && lag.bytes.is_some() {
            // What Patroni knows is older, and does not depend on a connection to the leader.
            lag.bytes = lag.bytes.max(answered);
        }
        ClusterView {
            role: self.role,
            leader,
            named_leader: match self.settings.patroni {
                true => cluster.and_then(|cluster| cluster.leader),
                false => leader,
            },
            term: self.term,
            timeline: local.and_then(|local| local.timeline),
            system_identifier: self
                .local
                .as_ref()
                .and_then(|local| local.value.system_identifier),
            lag,
            fenced: self.fenced,
            paused: self
                .status
                .as_ref()
                .is_some_and(|status| status.value.paused),
            members,
            errors,
            valid_until: self.valid_until(now, leader),
        }
    }
}

/// Keeps an answer, or notes why there is none.
fn keep<T>(
    kept: &mut Option<Dated<T>>,
    now: Instant,
    answer: Option<Result<T, WatchError>>,
    errors: &mut Vec<WatchError>,
) {
    match answer {
        Some(Ok(value)) => *kept = Some(Dated { value, at: now }),
        Some(Err(error)) if !errors.contains(&error) => errors.push(error),
        Some(Err(_)) | None => {}
    }
}
