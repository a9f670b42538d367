//! Finds entries that contradict each other.
//!
//! The first peer that matches admits, as in `pg_hba.conf`: a narrow entry before a wide one is an
//! exception to it. What would silently depend on the order otherwise is a mistake: an entry that an
//! earlier one leaves nothing to, and entries that share some peers and grant them different things.

use std::sync::Arc;

use super::{Entry, Parser};
use crate::policy::entry::{KmsRootPin, OsEntry, PeerEntry};

/// Reports operating systems that share a TD.
pub(super) fn check_systems(parser: &mut Parser<'_>, systems: &[Entry<Arc<OsEntry>>]) {
    for (earlier, later) in pairs(systems) {
        let (a, b) = (&earlier.entry, &later.entry);
        let shared = overlap(&a.mrtd, &b.mrtd)
            && a.rtmr.iter().zip(&b.rtmr).all(|(a, b)| overlap(a, b))
            && overlap(&a.os_image_hash, &b.os_image_hash)
            && overlap(&a.xfam, &b.xfam)
            && overlap(&a.td_attributes, &b.td_attributes);
        if let (true, Some(of_earlier), Some(of_later)) = (shared, &a.name, &b.name)
            && of_earlier != of_later
        {
            let text = format!(
                "os {of_later:?} has the values of os {of_earlier:?} (line {}): delete one",
                earlier.line
            );
            parser.mistake(later.line, text);
        }
    }
}

/// Reports peers that can never match, and peers that contradict each other.
pub(super) fn check_peers(parser: &mut Parser<'_>, peers: &[Entry<PeerEntry>]) {
    for (earlier, later) in pairs(peers) {
        let (a, b) = (&earlier.entry, &later.entry);
        let (Some(of_earlier), Some(of_later)) = (&a.name, &b.name) else {
            continue;
        };
        if of_earlier == of_later || !compare(a, b, &Overlap) {
            continue;
        }
        if compare(a, b, &Covers) {
            let text = format!(
                "peer {of_later:?} never matches: peer {of_earlier:?} (line {}) admits the same peers \
                 first; delete it, or move it up if it is the exception",
                earlier.line
            );
            parser.mistake(later.line, text);
        } else if !compare(b, a, &Covers) && (&a.grants, a.member) != (&b.grants, b.member) {
            let text = format!(
                "peer {of_later:?} contradicts peer {of_earlier:?} (line {}): both match some peers, \
                 and grant them different things; write an entry for those peers before both, or make \
                 the lists disjoint",
                earlier.line
            );
            parser.mistake(later.line, text);
        }
    }
}

fn pairs<T>(entries: &[Entry<T>]) -> impl Iterator<Item = (&Entry<T>, &Entry<T>)> {
    let later = entries.iter().enumerate();
    later.flat_map(|(index, later)| {
        entries
            .iter()
            .take(index)
            .map(move |earlier| (earlier, later))
    })
}

/// How two entries are compared, list by list.
trait Comparison {
    fn lists<T: PartialEq>(&self, a: &[T], b: &[T]) -> bool;
    fn flags(&self, a: Option<bool>, b: Option<bool>) -> bool;
    fn roots(&self, a: &KmsRootPin, b: &KmsRootPin) -> bool;
}

/// Whether some value is allowed by both.
struct Overlap;

impl Comparison for Overlap {
    fn lists<T: PartialEq>(&self, a: &[T], b: &[T]) -> bool {
        overlap(a, b)
    }

    fn flags(&self, a: Option<bool>, b: Option<bool>) -> bool {
        a.is_none() || b.is_none() || a == b
    }

    fn roots(&self, a: &KmsRootPin, b: &KmsRootPin) -> bool {
        match (a, b) {
            (KmsRootPin::Roots(a), KmsRootPin::Roots(b)) => overlap(a, b),
            // Own may be any root.
            _ => true,
        }
    }
}

/// Whether `a` allows everything that `b` allows.
struct Covers;

impl Comparison for Covers {
    fn lists<T: PartialEq>(&self, a: &[T], b: &[T]) -> bool {
        a.is_empty() || !b.is_empty() && b.iter().all(|value| a.contains(value))
    }

    fn flags(&self, a: Option<bool>, b: Option<bool>) -> bool {
        a.is_none() || a == b
    }

    fn roots(&self, a: &KmsRootPin, b: &KmsRootPin) -> bool {
        match (a, b) {
            (KmsRootPin::Any, _) | (KmsRootPin::Own, KmsRootPin::Own) => true,
            (KmsRootPin::Roots(a), KmsRootPin::Roots(b)) => b.iter().all(|root| a.contains(root)),
            (KmsRootPin::Own | KmsRootPin::Roots(_), _) => false,
        }
    }
}

fn compare(a: &PeerEntry, b: &PeerEntry, how: &impl Comparison) -> bool {
    let (of_a, of_b) = (&a.platform, &b.platform);
    how.lists(&a.app_id, &b.app_id)
        && how.lists(&a.compose_hash, &b.compose_hash)
        && how.lists(&a.instance_id, &b.instance_id)
        && how.lists(&a.os_image_hash, &b.os_image_hash)
        && how.lists(&a.rtmr3, &b.rtmr3)
        && how.lists(&a.os, &b.os)
        && how.roots(&a.kms_root, &b.kms_root)
        && how.lists(&a.mr_config_id, &b.mr_config_id)
        && how.lists(&a.mr_owner, &b.mr_owner)
        && how.lists(&a.mr_owner_config, &b.mr_owner_config)
        && how.lists(&of_a.mr_seam, &of_b.mr_seam)
        && how.lists(&of_a.piid, &of_b.piid)
        && how.flags(of_a.smt, of_b.smt)
        && how.flags(of_a.dynamic_platform, of_b.dynamic_platform)
        && how.flags(of_a.cached_keys, of_b.cached_keys)
}

fn overlap<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    a.is_empty() || b.is_empty() || a.iter().any(|value| b.contains(value))
}
