use super::*;
use crate::postgres::superuser::standing::Lag;

const SECOND: Duration = Duration::from_secs(1);
const FENCE_AFTER: Duration = Duration::from_secs(5);
const A: usize = 0;
const B: usize = 1;
const FIRST_PORT: u16 = 15432;

/// The member at position 0 of two, with a clock that the test sets.
struct Member {
    state: RoleState,
    now: Instant,
    transitions: Vec<Transition>,
}

impl Member {
    fn new(patroni: bool) -> Self {
        let now = Instant::now();
        let settings = RoleSettings {
            own: A,
            members: 2,
            patroni,
            fence_after: FENCE_AFTER,
            first_port: Some(FIRST_PORT),
        };
        Self {
            state: RoleState::new(settings, now),
            now,
            transitions: Vec::new(),
        }
    }

    /// A second passes, and a round ends with this.
    fn round(&mut self, observation: &Observation) -> ClusterView {
        self.now += SECOND;
        let mut observation = observation.clone();
        // The watcher asks the other member's Postgres only if it is a candidate.
        let candidate = self.state.candidate();
        observation.remote = observation
            .remote
            .filter(|(member, _)| candidate == Some(*member));
        let (view, transitions) = self.state.observe(self.now, observation);
        self.transitions.extend(transitions);
        view
    }

    /// Rounds until the answers have been asked for and have taken effect.
    fn settle(&mut self, observation: &Observation) -> ClusterView {
        self.round(observation);
        let view = self.round(observation);
        self.transitions.clear();
        view
    }
}

fn primary() -> Standing {
    Standing {
        in_recovery: false,
        read_only: false,
        system_identifier: Some(7),
        timeline: Some(2),
        lag: Lag::default(),
        upstream_port: None,
    }
}

fn standby() -> Standing {
    Standing {
        in_recovery: true,
        read_only: true,
        lag: Lag {
            bytes: Some(100),
            seconds: Some(1),
        },
        upstream_port: Some(FIRST_PORT + 1),
        ..primary()
    }
}

fn status(holds_lock: bool, role: MemberRole) -> Option<Result<PatroniStatus, WatchError>> {
    Some(Ok(PatroniStatus {
        holds_lock,
        role,
        unlocked: false,
        paused: false,
        timeline: Some(2),
        unsafe_version: false,
    }))
}

fn cluster(leader: Option<usize>) -> Option<Result<ClusterAnswer, WatchError>> {
    let member = |position| MemberView {
        role: Some(match leader == Some(position) {
            true => MemberRole::Leader,
            false => MemberRole::Replica,
        }),
        lag_bytes: (leader != Some(position)).then_some(300),
        ..MemberView::default()
    };
    Some(Ok(ClusterAnswer {
        leader,
        members: vec![member(A), member(B)],
    }))
}

/// A leads.
fn leading() -> Observation {
    Observation {
        status: status(true, MemberRole::Leader),
        cluster: cluster(Some(A)),
        local: Ok(primary()),
        remote: None,
        name_refused: false,
    }
}

/// B leads.
fn following() -> Observation {
    Observation {
        status: status(false, MemberRole::Replica),
        cluster: cluster(Some(B)),
        local: Ok(standby()),
        remote: Some((B, Ok(primary()))),
        name_refused: false,
    }
}

fn silent() -> Observation {
    Observation {
        status: Some(Err(WatchError::PatroniTimeout)),
        cluster: Some(Err(WatchError::PatroniTimeout)),
        ..leading()
    }
}

#[test]
fn the_holder_of_the_lock_leads_if_its_postgres_takes_writes() {
    let mut member = Member::new(true);
    let view = member.round(&leading());
    assert_eq!((view.leader, view.role), (Some(A), MemberRole::Leader));
    assert_eq!((view.timeline, view.system_identifier), (Some(2), Some(7)));
    let began = [Transition::Leader(A), Transition::Role(MemberRole::Leader)];
    assert_eq!(member.transitions, began);
    // Patroni's users have reported servers that stay read-only after their promotion.
    for standing in [
        Standing {
            read_only: true,
            ..primary()
        },
        standby(),
    ] {
        let view = member.round(&Observation {
            local: Ok(standing),
            ..leading()
        });
        assert_eq!((view.leader, view.fenced), (None, None));
    }
}

#[test]
fn an_unsafe_version_of_patroni_is_an_error_and_ends_nothing() {
    let mut observation = leading();
    if let Some(Ok(status)) = &mut observation.status {
        status.unsafe_version = true;
    }
    let mut member = Member::new(true);
    let view = member.round(&observation);
    assert_eq!(view.errors, [WatchError::PatroniUnsafeVersion]);
    assert_eq!((view.leader, view.fenced), (Some(A), None));
    // It was upgraded.
    assert_eq!(member.round(&leading()).errors, []);
}

#[test]
fn a_standby_follows_the_leader_that_takes_writes() {
    let mut member = Member::new(true);
    let named = member.round(&following());
    assert_eq!((named.leader, named.named_leader), (None, Some(B)));
    let view = member.round(&following());
    assert_eq!((view.leader, view.role), (Some(B), MemberRole::Replica));
    assert_eq!(view.lag.bytes, Some(300), "the larger of both");
    let read_only = Standing {
        read_only: true,
        ..primary()
    };
    let other = Standing {
        system_identifier: Some(8),
        ..primary()
    };
    for (standing, error) in [
        (read_only, WatchError::LeaderReadOnly),
        (standby(), WatchError::LeaderReadOnly),
        (other, WatchError::LeaderOtherSystem),
    ] {
        let view = member.round(&Observation {
            remote: Some((B, Ok(standing))),
            ..following()
        });
        assert_eq!((view.leader, view.errors), (None, vec![error]));
        // It is its own leader again.
        assert_eq!(member.settle(&following()).leader, Some(B));
    }
}

#[test]
fn one_slow_answer_changes_nothing_and_silence_fences() {
    let mut member = Member::new(true);
    let before = member.settle(&leading());
    for _ in 0..4 {
        let view = member.round(&silent());
        assert!(view.routes_like(&before), "{view:?}");
        assert_eq!(view.errors, [WatchError::PatroniTimeout]);
    }
    assert_eq!(member.transitions, []);
    let view = member.round(&silent());
    assert_eq!(
        (view.leader, view.fenced),
        (None, Some(FenceCause::PatroniSilent))
    );
    // It did not lose the lock as far as anybody knows.
    assert_eq!(view.term, before.term);
    let view = member.round(&leading());
    assert_eq!((view.leader, view.fenced), (Some(A), None));
}

#[test]
fn a_lost_lock_fences_at_once() {
    let unknown = Some(Err(WatchError::PatroniUnknownLeader));
    for lost in [cluster(None), cluster(Some(B)), unknown] {
        let mut member = Member::new(true);
        let before = member.settle(&leading());
        // Patroni's own loop has not noticed yet.
        let view = member.round(&Observation {
            cluster: lost,
            ..leading()
        });
        assert_eq!(
            (view.leader, view.fenced),
            (None, Some(FenceCause::LockLost))
        );
        assert_ne!(view.term, before.term);
        // Silence does not give it back.
        assert_eq!(member.round(&silent()).fenced, Some(FenceCause::LockLost));
        // Postgres was demoted: nothing is left to fence.
        let view = member.settle(&following());
        assert_eq!((view.leader, view.fenced), (Some(B), None));
    }
}

#[test]
fn a_restart_of_patroni_does_not_end_sessions() {
    let mut member = Member::new(true);
    let before = member.settle(&leading());
    member.round(&silent());
    // Before its first loop it does not know that it holds the lock, which is still its own in etcd.
    let restarted = Observation {
        status: status(false, MemberRole::Leader),
        ..leading()
    };
    for _ in 0..3 {
        assert!(member.round(&restarted).routes_like(&before));
    }
    assert!(member.round(&leading()).routes_like(&before));
}

#[test]
fn without_etcd_patroni_decides() {
    let mut member = Member::new(true);
    member.settle(&leading());
    let away = Some(Err(WatchError::PatroniTimeout));
    for _ in 0..10 {
        let view = member.round(&Observation {
            cluster: away.clone(),
            ..leading()
        });
        assert_eq!((view.leader, view.fenced), (Some(A), None));
    }
    let demoting = Observation {
        status: status(false, MemberRole::Replica),
        cluster: away,
        ..leading()
    };
    for _ in 0..4 {
        assert_eq!(member.round(&demoting).fenced, None);
    }
    assert_eq!(
        member.round(&demoting).fenced,
        Some(FenceCause::PatroniSilent)
    );
}

#[test]
fn a_promotion_is_not_fenced_for_what_was_before() {
    let mut member = Member::new(true);
    for _ in 0..20 {
        member.round(&following());
    }
    member.transitions.clear();
    // It has the lock, and Postgres is being promoted.
    let promoted = Observation {
        status: status(false, MemberRole::Replica),
        ..leading()
    };
    let view = member.round(&promoted);
    assert_eq!((view.leader, view.fenced), (None, None));
    let view = member.round(&leading());
    assert_eq!((view.leader, view.role), (Some(A), MemberRole::Leader));
}

#[test]
fn the_term_grows_when_a_leader_is_known_to_lead_no_more() {
    let mut member = Member::new(true);
    let first = member.settle(&following()).term;
    // Nothing is known: sessions that work continue.
    let nothing = Observation {
        remote: Some((B, Err(WatchError::LeaderUnreachable))),
        local: Ok(standby()),
        ..silent()
    };
    for _ in 0..10 {
        assert_eq!(member.round(&nothing).term, first);
    }
    assert_eq!(member.round(&nothing).leader, None);
    assert_eq!(member.settle(&following()).term, first);
    let mut unlocked = following();
    if let Some(Ok(status)) = &mut unlocked.status {
        status.unlocked = true;
    }
    let view = member.round(&unlocked);
    assert_eq!((view.leader, view.term), (None, first + 1));
    assert_eq!(member.transitions, [Transition::LeaderLost(B)]);
    assert_eq!(member.settle(&leading()).leader, Some(A));
    assert_eq!(member.round(&leading()).term, first + 1);
}

#[test]
fn the_leader_that_went_into_recovery_leads_no_more() {
    let mut member = Member::new(true);
    let first = member.settle(&following()).term;
    let demoted = Observation {
        remote: Some((B, Ok(standby()))),
        ..following()
    };
    let view = member.round(&demoted);
    assert_eq!((view.leader, view.term), (None, first + 1));
}

#[test]
fn before_the_first_answer_nobody_leads_and_then_silence_fences() {
    let mut member = Member::new(true);
    for second in 1..10 {
        let view = member.round(&silent());
        assert_eq!((view.leader, view.role), (None, MemberRole::Unknown));
        let fenced = (second >= 5).then_some(FenceCause::PatroniSilent);
        assert_eq!(view.fenced, fenced, "{second}");
    }
}

#[test]
fn a_standby_is_never_fenced_and_knows_its_role_without_patroni() {
    let mut member = Member::new(true);
    let alone = Observation {
        local: Ok(standby()),
        ..silent()
    };
    for _ in 0..20 {
        let view = member.round(&alone);
        assert_eq!((view.fenced, view.role), (None, MemberRole::Replica));
    }
}

#[test]
fn a_postgres_that_does_not_answer_keeps_its_standing_for_a_while() {
    let mut member = Member::new(true);
    member.settle(&leading());
    let busy = Observation {
        local: Err(WatchError::PostgresSilent),
        ..leading()
    };
    for _ in 0..4 {
        assert_eq!(member.round(&busy).leader, Some(A));
    }
    let view = member.round(&busy);
    assert_eq!(
        (view.leader, view.role, view.fenced),
        (None, MemberRole::Unknown, None)
    );
}

#[test]
fn without_a_patroni_a_primary_leads_and_nothing_is_fenced() {
    let off = |observation| Observation {
        status: None,
        cluster: None,
        ..observation
    };
    let mut member = Member::new(false);
    for _ in 0..10 {
        let view = member.round(&off(leading()));
        assert_eq!((view.leader, view.fenced), (Some(A), None));
        assert_eq!(view.members[A].role, Some(MemberRole::Leader));
    }
    // The standby's WAL comes from the port of the other member.
    let mut member = Member::new(false);
    assert_eq!(member.settle(&off(following())).leader, Some(B));
    let elsewhere = Standing {
        upstream_port: Some(5432),
        ..standby()
    };
    let elsewhere = Observation {
        local: Ok(elsewhere),
        ..off(following())
    };
    assert_eq!(member.settle(&elsewhere).leader, None);
}

#[test]
fn a_member_whose_name_is_refused_takes_no_writes() {
    let mut member = Member::new(true);
    let before = member.settle(&leading());
    let refused = Observation {
        name_refused: true,
        ..leading()
    };
    let view = member.round(&refused);
    assert_eq!(
        (view.leader, view.fenced, &view.errors[..]),
        (
            None,
            Some(FenceCause::NameConflict),
            &[WatchError::NameConflict][..]
        )
    );
    // No other member leads.
    assert_eq!((view.term, view.named_leader), (before.term, Some(A)));
    let lost = Observation {
        cluster: cluster(Some(B)),
        ..refused.clone()
    };
    assert_eq!(member.round(&lost).fenced, Some(FenceCause::LockLost));
    assert_eq!(member.round(&leading()).leader, Some(A));

    // A standby takes none anyway.
    let mut member = Member::new(true);
    let view = member.settle(&Observation {
        name_refused: true,
        ..following()
    });
    assert_eq!((view.leader, view.fenced), (Some(B), None));
    assert_eq!(view.errors, [WatchError::NameConflict]);
}

#[test]
fn a_postgres_that_is_down_leads_not_and_is_not_fenced() {
    let mut member = Member::new(true);
    let first = member.settle(&leading()).term;
    let down = Observation {
        local: Err(WatchError::PostgresUnreachable),
        cluster: cluster(None),
        ..leading()
    };
    let view = member.round(&down);
    assert_eq!((view.leader, view.fenced), (None, None));
    assert_eq!((view.role, view.term), (MemberRole::Unknown, first + 1));
    // It is back, and has not got the lock again.
    let back = Observation {
        cluster: cluster(None),
        ..leading()
    };
    assert_eq!(member.round(&back).fenced, Some(FenceCause::LockLost));
}
