//! What a policy leaves open: for the log at start, `/attestation` and the metrics.

use std::fmt;

use super::{KmsRootPin, PeerEntry, Policy};
use crate::tcb::TcbStatuses;

/// Something that a policy leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Debug TDs are accepted.
    DebugTdAllowed,
    /// Identities are compared on operating systems that are not known.
    UnpinnedOsAllowed,
    /// A TCB status beyond the default ones is accepted.
    WeakTcbAccepted(TcbStatuses),
    /// No MRTD is pinned.
    AnyMrtd,
    /// Neither the OS image hash nor RTMR0 to RTMR2 are pinned.
    AnyOs,
    /// No app id is pinned.
    AnyApp,
    /// No compose hash is pinned.
    AnyComposeHash,
    /// No KMS root is pinned.
    AnyIssuer,
    /// There is no maximum age of certificates.
    AnyAge,
}

impl Policy {
    /// What it leaves open, by one entry or by all.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let s = self.settings();
        let any = |open: fn(&PeerEntry) -> bool| self.entries().any(|entry| open(entry));
        let found = [
            (s.allow_debug_td, Warning::DebugTdAllowed),
            (self.allows_unpinned_os(), Warning::UnpinnedOsAllowed),
            (
                s.tcb_statuses.goes_beyond_default(),
                Warning::WeakTcbAccepted(s.tcb_statuses),
            ),
            (any(leaves_mrtd_open), Warning::AnyMrtd),
            (any(leaves_os_open), Warning::AnyOs),
            (any(|entry| entry.app_id.is_empty()), Warning::AnyApp),
            (
                any(|entry| entry.compose_hash.is_empty()),
                Warning::AnyComposeHash,
            ),
            (
                any(|entry| entry.kms_root == KmsRootPin::Any),
                Warning::AnyIssuer,
            ),
            (s.max_certificate_age.is_none(), Warning::AnyAge),
        ];
        found
            .into_iter()
            .filter_map(|(open, warning)| open.then_some(warning))
            .collect()
    }
}

fn leaves_mrtd_open(entry: &PeerEntry) -> bool {
    entry.os.is_empty() || entry.os.iter().any(|os| os.mrtd.is_empty())
}

fn leaves_os_open(entry: &PeerEntry) -> bool {
    entry.os_image_hash.is_empty()
        && (entry.os.is_empty()
            || entry
                .os
                .iter()
                .any(|os| os.os_image_hash.is_empty() && os.rtmr.iter().all(Vec::is_empty)))
}

impl Warning {
    /// A word from a closed list, for a metric label.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::DebugTdAllowed => "debug_td_allowed",
            Self::UnpinnedOsAllowed => "unpinned_os_allowed",
            Self::WeakTcbAccepted(_) => "weak_tcb_accepted",
            Self::AnyMrtd => "any_mrtd",
            Self::AnyOs => "any_os",
            Self::AnyApp => "any_app",
            Self::AnyComposeHash => "any_compose_hash",
            Self::AnyIssuer => "any_issuer",
            Self::AnyAge => "any_age",
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugTdAllowed => {
                f.write_str("debug TDs are accepted: their hosts can read all that is sent to them")
            }
            Self::UnpinnedOsAllowed => f.write_str(
                "allow_unpinned_os: identities are accepted from operating systems that are not \
                 pinned, so that any TD can claim them",
            ),
            Self::WeakTcbAccepted(statuses) => {
                write!(
                    f,
                    "platforms with known weaknesses are accepted: {statuses}"
                )
            }
            Self::AnyMrtd => f.write_str("any MRTD is accepted: the firmware is not pinned"),
            Self::AnyOs => {
                f.write_str("any OS image is accepted: neither its hash nor RTMR0-2 are pinned")
            }
            Self::AnyApp => {
                f.write_str("any app id is accepted: every dstack application may enter")
            }
            Self::AnyComposeHash => {
                f.write_str("any compose hash is accepted: apps may change their code")
            }
            Self::AnyIssuer => {
                f.write_str("any certificate issuer is accepted: no KMS root is pinned")
            }
            Self::AnyAge => f.write_str("certificates of any age are accepted until their end"),
        }
    }
}
