//! What is allowed: entries of reference values, TCB statuses, ages.
//!
//! A policy is made once from the configuration and never changed: its [`PolicyEpoch`] is the hash of
//! all of it, and verdicts are only remembered for the epoch in which they were reached. A peer is
//! admitted if one [`PeerEntry`] matches in whole. What a policy leaves open is in
//! [`Policy::warnings`]. What weakens the policy is named `allow_…` and is off by default.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::chain::KmsRoot;
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::quote::TdReport;
pub use crate::tcb::{Advisory, AdvisoryError, TcbStatus, TcbStatusError, TcbStatuses};
use crate::values::{AppId, ComposeHash, InstanceId, Mrtd, OsImageHash, Rtmr};

mod entry;
mod epoch;
pub mod file;
mod members;
mod platform;
mod select;
mod warning;

pub use entry::{Grants, KmsRootPin, OsEntry, PeerEntry, PlatformPins};
pub use epoch::PolicyEpoch;
pub use members::OwnMeasurements;
pub use platform::PlatformClaims;
pub use select::{Claims, Selected};
pub use warning::Warning;

/// What a [`Policy`] is made of. The default allows any genuine, production TD with an acceptable TCB.
///
/// The allow-lists here make one entry without a name. They are used only if `peers` is empty.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The entries of a policy file.
    pub peers: Vec<PeerEntry>,
    /// Allowed MRTDs (`EXPECTED_MRTD`). Empty: any.
    pub mrtd: Vec<Mrtd>,
    /// Allowed values of RTMR0 to RTMR3. Empty: any.
    pub rtmr: [Vec<Rtmr>; 4],
    /// Allowed app ids. Empty: any, also a TD without one.
    pub app_id: Vec<AppId>,
    /// Allowed compose hashes. Empty: any, also a TD without one.
    pub compose_hash: Vec<ComposeHash>,
    /// Allowed instance ids. Empty: any, or none.
    pub instance_id: Vec<InstanceId>,
    /// Allowed OS image hashes. Empty: any, or none.
    pub os_image_hash: Vec<OsImageHash>,
    /// Roots of which one must have signed the chain.
    pub kms_root: KmsRootPin,
    /// Accepted TCB statuses.
    pub tcb_statuses: TcbStatuses,
    /// Advisories that are refused even if the TCB status is accepted.
    pub refused_advisories: Vec<Advisory>,
    /// Smallest `tcbEvaluationDataNumber` of the collateral that peers are verified with.
    pub min_tcb_evaluation: Option<u32>,
    /// Accept TDs under debug. Their hosts can read all of their memory.
    pub allow_debug_td: bool,
    /// Accept entries that compare what a guest states without knowing its operating system.
    pub allow_unpinned_os: bool,
    /// Oldest certificate, counted from notBefore. dstack's default notBefore is in 1975, so this
    /// works only with certificates that were asked for with dates, and proves something only where a
    /// KMS signs the dates.
    pub max_certificate_age: Option<Duration>,
}

/// A policy that can be believed only if the operating system is known, and it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpinnedOs {
    /// The entry's name; `None` for the flat settings.
    pub entry: Option<Arc<str>>,
}

/// A checked policy.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    /// At least one entry.
    entries: (Arc<PeerEntry>, Vec<Arc<PeerEntry>>),
    /// What [`KmsRootPin::Own`] stands for, once it is known.
    own_root: Option<KmsRoot>,
    epoch: PolicyEpoch,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Policy {
    /// The policy of `settings`. The order and repetitions of its lists do not matter; the order of its
    /// peers does: the first that matches admits.
    #[must_use]
    pub fn new(mut settings: Settings) -> Self {
        sort(&mut settings.mrtd);
        settings.rtmr.iter_mut().for_each(sort);
        sort(&mut settings.app_id);
        sort(&mut settings.compose_hash);
        sort(&mut settings.instance_id);
        sort(&mut settings.os_image_hash);
        sort(&mut settings.refused_advisories);
        if let KmsRootPin::Roots(roots) = &mut settings.kms_root {
            roots.sort_by_key(KmsRoot::fingerprint);
            roots.dedup_by_key(|root| root.fingerprint());
        }
        let mut peers = settings.peers.iter().cloned().map(Arc::new);
        let first = peers
            .next()
            .unwrap_or_else(|| Arc::new(flat_entry(&settings)));
        let entries = (first, peers.collect());
        let epoch = epoch::of(&settings, None);
        Self {
            settings,
            entries,
            own_root: None,
            epoch,
        }
    }

    /// The same policy with `root` in the place of [`KmsRootPin::Own`]. Without it, an entry with that
    /// pin admits no peer.
    #[must_use]
    pub fn with_own_root(mut self, root: Option<KmsRoot>) -> Self {
        if self.needs_own_root() {
            self.epoch = epoch::of(&self.settings, root.as_ref());
            self.own_root = root;
        }
        self
    }

    /// The conditions on the platform only: patch level, debug mode, advisories. Any genuine peer passes.
    #[must_use]
    pub fn without_entries(&self) -> Self {
        Self::new(self.platform_settings())
    }

    /// The conditions on the platform, without those on the peer.
    fn platform_settings(&self) -> Settings {
        let settings = &self.settings;
        Settings {
            tcb_statuses: settings.tcb_statuses,
            refused_advisories: settings.refused_advisories.clone(),
            min_tcb_evaluation: settings.min_tcb_evaluation,
            allow_debug_td: settings.allow_debug_td,
            ..Settings::default()
        }
    }

    /// Whether an entry needs [`Policy::with_own_root`].
    #[must_use]
    pub fn needs_own_root(&self) -> bool {
        self.entries()
            .any(|entry| entry.kms_root == KmsRootPin::Own)
    }

    /// The root that [`KmsRootPin::Own`] stands for.
    #[must_use]
    pub fn own_root(&self) -> Option<&KmsRoot> {
        self.own_root.as_ref()
    }

    /// The entries, in order: those of the policy file, or the one of the flat settings.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<PeerEntry>> {
        let (first, rest) = &self.entries;
        std::iter::once(first).chain(rest)
    }

    /// The entries that compare what a guest states although its operating system is not known: any TD
    /// could have written it. Empty with `allow_unpinned_os`.
    #[must_use]
    pub fn unpinned(&self) -> Vec<UnpinnedOs> {
        if self.settings.allow_unpinned_os {
            return Vec::new();
        }
        self.unpinned_entries()
    }

    /// Whether an entry relies on `allow_unpinned_os`.
    #[must_use]
    pub fn allows_unpinned_os(&self) -> bool {
        self.settings.allow_unpinned_os && !self.unpinned_entries().is_empty()
    }

    fn unpinned_entries(&self) -> Vec<UnpinnedOs> {
        self.entries()
            .filter(|entry| entry.has_identity() && !entry.is_os_pinned())
            .map(|entry| UnpinnedOs {
                entry: entry.name.clone(),
            })
            .collect()
    }

    /// Whether every entry admits certain applications only.
    #[must_use]
    pub fn says_which_applications(&self) -> bool {
        self.entries().all(|entry| entry.says_which_application())
    }

    /// Whether the dates of certificates are checked although an entry does not say which KMS must have
    /// signed them: they are then the peer's own word.
    #[must_use]
    pub fn believes_unsigned_dates(&self) -> bool {
        self.settings.max_certificate_age.is_some()
            && self
                .entries()
                .any(|entry| entry.kms_root == KmsRootPin::Any)
    }

    /// Whether an entry pins something that the PCK certificate says.
    pub(crate) fn pins_platform(&self) -> bool {
        self.entries().any(|entry| {
            let pins = &entry.platform;
            !pins.piid.is_empty()
                || pins.smt.is_some()
                || pins.dynamic_platform.is_some()
                || pins.cached_keys.is_some()
        })
    }

    /// Refuses collateral of an older TCB evaluation than the minimum.
    ///
    /// # Errors
    /// [`Denial::TcbEvaluationTooOld`].
    pub fn check_tcb_evaluation(&self, collateral: &Collateral) -> Result<(), Denial> {
        let found = collateral.tcb_evaluation_number();
        match self.settings.min_tcb_evaluation {
            Some(minimum) if found < minimum => Err(Denial::TcbEvaluationTooOld { found, minimum }),
            Some(_) | None => Ok(()),
        }
    }

    /// The settings, with sorted lists.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The hash of all settings.
    #[must_use]
    pub fn epoch(&self) -> PolicyEpoch {
        self.epoch
    }

    /// Refuses a certificate that is older than allowed at `now`.
    ///
    /// # Errors
    /// [`Denial::TooOld`].
    pub fn check_age(&self, not_before: u64, now: u64) -> Result<(), Denial> {
        match self.max_age_reached_at(not_before) {
            Some(until) if now >= until => Err(Denial::TooOld),
            Some(_) | None => Ok(()),
        }
    }

    /// The first second at which a certificate of `not_before` is too old, if there is a maximum age.
    pub(crate) fn max_age_reached_at(&self, not_before: u64) -> Option<u64> {
        let age = self.settings.max_certificate_age?;
        Some(not_before.saturating_add(age.as_secs()).saturating_add(1))
    }

    /// Refuses debug mode and profiling, unless allowed.
    ///
    /// # Errors
    /// [`Denial::DebugTd`].
    pub fn check_debug(&self, report: &TdReport) -> Result<(), Denial> {
        if report.is_under_debug() && !self.settings.allow_debug_td {
            return Err(Denial::DebugTd);
        }
        Ok(())
    }

    /// Refuses a TCB status that is not accepted.
    ///
    /// # Errors
    /// [`Denial::Tcb`].
    pub fn check_tcb(&self, status: TcbStatus) -> Result<(), Denial> {
        let accepted = self.settings.tcb_statuses;
        if accepted.contains(status) {
            Ok(())
        } else {
            Err(Denial::Tcb { status, accepted })
        }
    }

    /// Refuses a platform that is subject to a refused advisory.
    ///
    /// # Errors
    /// [`Denial::AdvisoryRefused`].
    pub fn check_advisories<'a>(
        &self,
        mut advisories: impl Iterator<Item = &'a str>,
    ) -> Result<(), Denial> {
        let refused = &self.settings.refused_advisories;
        match advisories.find_map(|id| refused.iter().find(|refused| refused.is(id))) {
            Some(id) => Err(Denial::AdvisoryRefused(id.clone())),
            None => Ok(()),
        }
    }
}

/// An empty list allows any value, and none.
pub(crate) fn allowed<T: PartialEq>(
    list: &[T],
    value: Option<&T>,
    denial: impl FnOnce() -> Denial,
) -> Result<(), Denial> {
    let found = value.is_some_and(|value| list.contains(value));
    if list.is_empty() || found {
        Ok(())
    } else {
        Err(denial())
    }
}

fn sort<T: Ord>(list: &mut Vec<T>) {
    list.sort();
    list.dedup();
}

/// The flat settings as an entry.
fn flat_entry(settings: &Settings) -> PeerEntry {
    let [rtmr0, rtmr1, rtmr2, rtmr3] = settings.rtmr.clone();
    let os = OsEntry {
        mrtd: settings.mrtd.clone(),
        rtmr: [rtmr0, rtmr1, rtmr2],
        ..OsEntry::default()
    };
    PeerEntry {
        app_id: settings.app_id.clone(),
        compose_hash: settings.compose_hash.clone(),
        instance_id: settings.instance_id.clone(),
        os_image_hash: settings.os_image_hash.clone(),
        rtmr3,
        os: vec![Arc::new(os)],
        kms_root: settings.kms_root.clone(),
        ..PeerEntry::default()
    }
}

/// Reads a list from configuration text: values separated by commas or white space.
///
/// # Errors
/// The error of the first value that cannot be parsed.
pub fn parse_list<T: FromStr>(text: &str) -> Result<Vec<T>, T::Err> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|value| !value.is_empty())
        .map(str::parse)
        .collect()
}
