//! The policy for members of a cluster, derived from that for clients: the same conditions on the platform, other
//! entries.
//!
//! By default a member is a peer that proves the same operating system, application and build as this process proves
//! itself. Entries with `member = true` add others. Without any of them no peer is a member: an entry that admits
//! none takes their place, because a policy without entries admits every peer.

use std::sync::Arc;

use super::entry::{KmsRootPin, OsEntry, PeerEntry};
use super::{Policy, Settings};
use crate::values::{AppId, ComposeHash, Mrtd, Rtmr};

/// The name of the entry for peers like this process.
const SAME_AS_THIS: &str = "members of the cluster";
/// The name of the entry that admits no peer.
const NO_MEMBERS: &str = "no members yet";

/// What a process has proved about itself, and the other members have to prove as well: firmware, kernel, initrd,
/// application and build. RTMR0 is not among them, because it depends on the size of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnMeasurements {
    /// The firmware.
    pub mrtd: Mrtd,
    /// The kernel.
    pub rtmr1: Rtmr,
    /// The command line and the initrd.
    pub rtmr2: Rtmr,
    /// The application.
    pub app_id: AppId,
    /// Its build.
    pub compose_hash: ComposeHash,
}

impl OwnMeasurements {
    fn entry(&self) -> PeerEntry {
        let os = OsEntry {
            name: None,
            mrtd: vec![self.mrtd],
            rtmr: [Vec::new(), vec![self.rtmr1], vec![self.rtmr2]],
            ..OsEntry::default()
        };
        PeerEntry {
            name: Some(SAME_AS_THIS.into()),
            app_id: vec![self.app_id],
            compose_hash: vec![self.compose_hash],
            os: vec![Arc::new(os)],
            member: true,
            ..PeerEntry::default()
        }
    }
}

impl Policy {
    /// The policy for members, whose entries are peers like this process, and those of this policy with
    /// `member = true`. Its conditions on the platform are those of this policy. The second value is whether it can
    /// admit a peer at all.
    #[must_use]
    pub fn of_members(&self, own: Option<&OwnMeasurements>) -> (Self, bool) {
        let listed = self.entries().filter(|entry| entry.member);
        let listed = listed.map(|entry| PeerEntry::clone(entry));
        let mut peers: Vec<_> = own.map(OwnMeasurements::entry).into_iter().collect();
        peers.extend(listed);
        let admits = !peers.is_empty();
        if !admits {
            peers.push(matches_no_peer());
        }
        let policy = Self::new(Settings {
            peers,
            allow_unpinned_os: self.settings.allow_unpinned_os,
            max_certificate_age: self.settings.max_certificate_age,
            ..self.platform_settings()
        });
        (policy.with_own_root(self.own_root.clone()), admits)
    }
}

/// An entry that no peer matches: no chain ends in one of no roots.
fn matches_no_peer() -> PeerEntry {
    PeerEntry {
        name: Some(NO_MEMBERS.into()),
        kms_root: KmsRootPin::Roots(Vec::new()),
        ..PeerEntry::default()
    }
}
