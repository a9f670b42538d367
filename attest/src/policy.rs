//! The policy: allow-lists of measurements and identities, accepted TCB statuses, maximum ages.
//!
//! A policy is immutable. Its [`PolicyEpoch`] is the hash of all settings, and cached verdicts are valid for one
//! epoch only. An empty allow-list means "any", and [`Policy::warnings`] reports it at start. Settings that
//! weaken the policy are named `allow_…` and are off by default.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::chain::KmsRoot;
use crate::denial::Denial;
use crate::event_log::Identity;
use crate::quote::TdReport;
pub use crate::tcb::{Advisory, AdvisoryError, TcbStatus, TcbStatusError, TcbStatuses};
use crate::values::{AppId, ComposeHash, Mrtd, OsImageHash, Rtmr};

/// The settings of a [`Policy`]. The default allows any genuine production TD with an acceptable TCB.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Allowed MRTDs (`EXPECTED_MRTD`). Empty: any.
    pub mrtd: Vec<Mrtd>,
    /// Allowed values of RTMR0 to RTMR3. Empty: any.
    pub rtmr: [Vec<Rtmr>; 4],
    /// Allowed app ids. Empty: any, also a TD without one.
    pub app_id: Vec<AppId>,
    /// Allowed compose hashes. Empty: any, also a TD without one.
    pub compose_hash: Vec<ComposeHash>,
    /// Allowed OS image hashes. Empty: any, also a TD without one.
    pub os_image_hash: Vec<OsImageHash>,
    /// Accepted TCB statuses.
    pub tcb_statuses: TcbStatuses,
    /// Advisories that are refused even if the TCB status is accepted.
    pub refused_advisories: Vec<Advisory>,
    /// Accept TDs in debug mode. The operator of such a TD's host can read all of its memory.
    pub allow_debug_td: bool,
    /// Maximum age of a certificate, from notBefore. dstack's default notBefore is in 1975, so this works only
    /// with certificates that were requested with dates.
    pub max_certificate_age: Option<Duration>,
    /// Roots of which one must have signed the chain. Empty: the chain is not verified, which is sound, since
    /// the quote is bound to the key and not to the issuer.
    pub kms_roots: Vec<KmsRoot>,
}

/// The hash of a whole policy. Policies with the same epoch give the same verdicts.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PolicyEpoch([u8; 32]);

impl PolicyEpoch {
    /// All 64 hex digits: for an audit trail.
    #[must_use]
    pub fn full(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for PolicyEpoch {
    /// The first 16 hex digits, to distinguish policies in a log or metric.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyEpoch({self})")
    }
}

/// A checked policy.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    epoch: PolicyEpoch,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Settings::default())
    }
}

impl Policy {
    /// The policy of `settings`. Order and repetitions in the lists do not matter.
    #[must_use]
    pub fn new(mut settings: Settings) -> Self {
        sort(&mut settings.mrtd);
        settings.rtmr.iter_mut().for_each(sort);
        sort(&mut settings.app_id);
        sort(&mut settings.compose_hash);
        sort(&mut settings.os_image_hash);
        sort(&mut settings.refused_advisories);
        settings.kms_roots.sort_by_key(KmsRoot::fingerprint);
        settings.kms_roots.dedup_by_key(|root| root.fingerprint());
        let epoch = epoch_of(&settings);
        Self { settings, epoch }
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

    /// What the policy does not restrict, for the log at start, `/attestation` and the metrics.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let s = &self.settings;
        let found = [
            (s.allow_debug_td, Warning::DebugTdAllowed),
            (
                s.tcb_statuses.goes_beyond_default(),
                Warning::WeakTcbAccepted(s.tcb_statuses),
            ),
            (s.mrtd.is_empty(), Warning::AnyMrtd),
            (
                s.os_image_hash.is_empty() && s.rtmr[..3].iter().all(Vec::is_empty),
                Warning::AnyOs,
            ),
            (s.app_id.is_empty(), Warning::AnyApp),
            (s.compose_hash.is_empty(), Warning::AnyComposeHash),
            (s.kms_roots.is_empty(), Warning::AnyIssuer),
            (s.max_certificate_age.is_none(), Warning::AnyAge),
        ];
        found
            .into_iter()
            .filter_map(|(open, warning)| open.then_some(warning))
            .collect()
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

    /// Refuses an MRTD or RTMR that is not on its list.
    ///
    /// # Errors
    /// [`Denial::MrtdNotAllowed`], [`Denial::RtmrNotAllowed`].
    pub fn check_measurements(&self, report: &TdReport) -> Result<(), Denial> {
        self.check_mrtd(report)?;
        self.check_rtmrs(report).into_iter().collect()
    }

    /// Refuses an MRTD that is not on its list.
    ///
    /// # Errors
    /// [`Denial::MrtdNotAllowed`].
    pub fn check_mrtd(&self, report: &TdReport) -> Result<(), Denial> {
        let mrtd = report.mrtd();
        allowed(&self.settings.mrtd, Some(&mrtd), || {
            Denial::MrtdNotAllowed(mrtd)
        })
    }

    /// Refuses each RTMR that is not on its list.
    ///
    /// # Errors
    /// [`Denial::RtmrNotAllowed`]. The results are in the order of the registers.
    pub fn check_rtmrs(&self, report: &TdReport) -> [Result<(), Denial>; 4] {
        let check = |index, list: &[Rtmr], value| {
            allowed(list, Some(&value), || Denial::RtmrNotAllowed {
                index,
                value,
            })
        };
        let [list0, list1, list2, list3] = &self.settings.rtmr;
        let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs();
        [
            check(0, list0, rtmr0),
            check(1, list1, rtmr1),
            check(2, list2, rtmr2),
            check(3, list3, rtmr3),
        ]
    }

    /// Refuses a proved identity that is not on the lists. If there is a list, a TD that proves no such value is
    /// refused too.
    ///
    /// # Errors
    /// [`Denial::AppNotAllowed`], [`Denial::ComposeHashNotAllowed`], [`Denial::OsImageHashNotAllowed`].
    pub fn check_identity(&self, identity: &Identity) -> Result<(), Denial> {
        self.check_app_id(identity)?;
        self.check_compose_hash(identity)?;
        self.check_os_image_hash(identity)
    }

    /// Refuses an app id that is not on its list.
    ///
    /// # Errors
    /// [`Denial::AppNotAllowed`].
    pub fn check_app_id(&self, identity: &Identity) -> Result<(), Denial> {
        let app = identity.app_id();
        allowed(&self.settings.app_id, app.as_ref(), || {
            Denial::AppNotAllowed(app)
        })
    }

    /// Refuses a compose hash that is not on its list.
    ///
    /// # Errors
    /// [`Denial::ComposeHashNotAllowed`].
    pub fn check_compose_hash(&self, identity: &Identity) -> Result<(), Denial> {
        let compose = identity.compose_hash();
        allowed(&self.settings.compose_hash, compose.as_ref(), || {
            Denial::ComposeHashNotAllowed(compose)
        })
    }

    /// Refuses an OS image hash that is not on its list.
    ///
    /// # Errors
    /// [`Denial::OsImageHashNotAllowed`].
    pub fn check_os_image_hash(&self, identity: &Identity) -> Result<(), Denial> {
        let os = identity.os_image_hash();
        allowed(&self.settings.os_image_hash, os.as_ref(), || {
            Denial::OsImageHashNotAllowed(os)
        })
    }
}

/// An empty list allows any value, and the absence of one.
fn allowed<T: PartialEq>(
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

/// SHA-256 over all settings. Each list is preceded by its length, so that no two policies have the same encoding.
/// The pattern without `..` makes the compiler reject a new setting that is not hashed.
fn epoch_of(settings: &Settings) -> PolicyEpoch {
    fn list<'a>(hash: &mut Sha256, items: impl ExactSizeIterator<Item = &'a [u8]>) {
        number(hash, items.len());
        for item in items {
            number(hash, item.len());
            hash.update(item);
        }
    }
    fn number(hash: &mut Sha256, number: usize) {
        hash.update(u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes());
    }
    let Settings {
        mrtd,
        rtmr,
        app_id,
        compose_hash,
        os_image_hash,
        tcb_statuses,
        refused_advisories,
        allow_debug_td,
        max_certificate_age,
        kms_roots,
    } = settings;
    let mut hash = Sha256::new();
    list(&mut hash, mrtd.iter().map(Mrtd::as_bytes));
    for register in rtmr {
        list(&mut hash, register.iter().map(Rtmr::as_bytes));
    }
    list(&mut hash, app_id.iter().map(AppId::as_bytes));
    list(&mut hash, compose_hash.iter().map(ComposeHash::as_bytes));
    list(&mut hash, os_image_hash.iter().map(OsImageHash::as_bytes));
    list(
        &mut hash,
        refused_advisories.iter().map(|id| id.as_str().as_bytes()),
    );
    list(&mut hash, kms_roots.iter().map(KmsRoot::der));
    hash.update(tcb_statuses.bits().to_le_bytes());
    hash.update([
        u8::from(*allow_debug_td),
        u8::from(max_certificate_age.is_some()),
    ]);
    hash.update(
        max_certificate_age
            .map_or(0, |age| age.as_secs())
            .to_le_bytes(),
    );
    PolicyEpoch(hash.finalize().into())
}

/// Something that a policy does not restrict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// TDs in debug mode are accepted.
    DebugTdAllowed,
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

impl Warning {
    /// A name from a closed list, for a metric label.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::DebugTdAllowed => "debug_td_allowed",
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
