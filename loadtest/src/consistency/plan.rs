//! The faults of a run, at random from a seed: whom they hit, what happens, and for how long.
//!
//! Every second one hits the member that leads at that moment, because only its loss can lose writes.

use std::str::FromStr;
use std::time::Duration;

/// The shortest and the longest fault. The longest exceeds Patroni's `ttl`, so that the leader changes.
const LENGTH: std::ops::Range<u64> = 3_000..30_000;
/// How far a clock is set off, either way, in seconds.
const CLOCK_OFFSET: std::ops::Range<i64> = -300..300;

/// What happens to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of everything on it, started again afterwards.
    Kill,
    /// SIGSTOP to everything on it, SIGCONT afterwards.
    Pause,
    /// The network between it and everybody else drops all packets.
    CutOff,
    /// Its clock differs by so many seconds.
    ClockOffset(i64),
    /// Another member is made the leader.
    Switchover,
}

impl Fault {
    /// The name on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::CutOff => "cut-off",
            Self::ClockOffset(_) => "clock",
            Self::Switchover => "switchover",
        }
    }
}

/// A kind of fault, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(&'static str);

impl FromStr for Kind {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let all = [
            Fault::Kill,
            Fault::Pause,
            Fault::CutOff,
            Fault::ClockOffset(0),
            Fault::Switchover,
        ];
        let mut names = all.into_iter().map(Fault::name);
        let known = names.find(|known| *known == name).map(Self);
        known.ok_or("expected kill, pause, cut-off, clock or switchover")
    }
}

impl PlannedFault {
    /// Whether it is of one of these kinds. None stands for all.
    #[must_use]
    pub fn is_one_of(&self, kinds: &[Kind]) -> bool {
        kinds.is_empty() || kinds.contains(&Kind(self.fault.name()))
    }
}

/// The member that a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that leads when the fault begins.
    Leader,
    /// The one at this position.
    Member(usize),
}

/// A fault and its place in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedFault {
    /// Whom it hits.
    pub target: Target,
    /// What happens.
    pub fault: Fault,
    /// For how long.
    pub length: Duration,
}

/// The faults that `seed` stands for, one after another: always the same ones.
pub fn faults(seed: u64, members: usize) -> impl Iterator<Item = PlannedFault> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || PlannedFault {
        target: match random.bool() {
            true => Target::Leader,
            false => Target::Member(random.usize(..members.max(1))),
        },
        fault: match random.u8(..5) {
            0 => Fault::Kill,
            1 => Fault::Pause,
            2 => Fault::CutOff,
            3 => Fault::ClockOffset(random.i64(CLOCK_OFFSET)),
            _ => Fault::Switchover,
        },
        length: Duration::from_millis(random.u64(LENGTH)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_stands_for_the_same_faults() {
        let planned = |seed| faults(seed, 3).take(50).collect::<Vec<_>>();
        assert_eq!(planned(7), planned(7));
        assert_ne!(planned(7), planned(8));
    }

    #[test]
    fn kinds_are_chosen_by_name() {
        let kinds = ["pause", "clock"].map(|name| name.parse().unwrap());
        let planned: Vec<_> = faults(1, 3).take(500).collect();
        let chosen: Vec<_> = planned
            .iter()
            .filter(|fault| fault.is_one_of(&kinds))
            .collect();
        let expected = |fault| matches!(fault, Fault::Pause | Fault::ClockOffset(_));
        assert!(!chosen.is_empty() && chosen.iter().all(|planned| expected(planned.fault)));
        assert!(planned.iter().all(|fault| fault.is_one_of(&[])));
        assert!("clocks".parse::<Kind>().is_err());
    }

    #[test]
    fn every_fault_meets_the_leader_and_every_member() {
        let planned: Vec<_> = faults(1, 3).take(500).collect();
        let targets = (0..3).map(Target::Member).chain([Target::Leader]);
        for target in targets {
            let of_target = || planned.iter().filter(|planned| planned.target == target);
            let kinds = of_target().map(|planned| std::mem::discriminant(&planned.fault));
            assert_eq!(kinds.collect::<std::collections::HashSet<_>>().len(), 5);
            assert!(
                of_target().all(|planned| LENGTH.contains(&(planned.length.as_millis() as u64)))
            );
        }
        let leader = planned
            .iter()
            .filter(|planned| planned.target == Target::Leader);
        assert!((200..300).contains(&leader.count()));
    }
}
