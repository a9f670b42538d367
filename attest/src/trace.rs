//! A trace of the checks: an observer (visitor) that sees each check with its outcome and its input.
//!
//! The gate and the `verify` command run the same code. The gate passes `()`, an observer that
//! compiles to nothing, and stops at the first refusal. [`Verifier::inspect`](crate::Verifier::inspect)
//! passes a [`CheckObserver`], continues after a refusal as far as the input allows, reports every check
//! of [`Check::ALL`] exactly once and in that order, and gives the same verdict: the first refusal.
//!
//! What it must never do: let a refusal that an observer has seen end in an
//! [`AttestedPeer`](crate::AttestedPeer). `Trace::verdict` is asked before one is made.

use std::fmt;
use std::time::Duration;

use crate::certificate::Extensions;
use crate::chain::KmsRoot;
use crate::collateral::Collateral;
use crate::denial::Denial;
use crate::event_log::{EventLog, Identity};
use crate::evidence::EvidenceFormat;
use crate::policy::{OsEntry, PeerEntry, PlatformClaims, PlatformPins};
use crate::quote::{QuoteHeader, TdQuote, TdReport};
use crate::tcb::{Advisory, TcbStatus, TcbStatuses};
use crate::values::{AppId, ComposeHash, Fingerprint, InstanceId, Mrtd, OsImageHash, Rtmr};

/// A check of the gate. The declaration order is the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// The chain is within the caps, and its leaf is an X.509 certificate.
    Certificate,
    /// The leaf is in date, and not older than the policy allows.
    Dates,
    /// The leaf carries evidence in a known format, with a TDX quote in it.
    Evidence,
    /// The quote has a supported format. Checked as a part of [`Check::Evidence`], except for a bare
    /// quote.
    Quote,
    /// The quote's report data is that of the leaf's key.
    Binding,
    /// There is collateral for the platform, and it is in date.
    Collateral,
    /// The TD is not in debug mode, unless the policy allows it.
    Debug,
    /// Every signature verifies, from the quote up to the trusted root.
    Signatures,
    /// The TD's attributes are acceptable: no reserved bits, no migration, SEPT_VE_DISABLE set.
    TdAttributes,
    /// The policy accepts the TCB status.
    Tcb,
    /// The platform is not subject to a refused advisory.
    Advisories,
    /// MRTD is on the allow-list.
    Mrtd,
    /// RTMR0 is on its allow-list.
    Rtmr0,
    /// RTMR1 is on its allow-list.
    Rtmr1,
    /// RTMR2 is on its allow-list.
    Rtmr2,
    /// RTMR3 is on its allow-list.
    Rtmr3,
    /// XFAM, TD attributes, MRCONFIGID, MROWNER and MROWNERCONFIG are what the policy pins.
    Configuration,
    /// The TDX module and the machine are what the policy pins.
    Platform,
    /// Replaying the event log gives RTMR3.
    EventLog,
    /// The app id is on the allow-list.
    AppId,
    /// The compose hash is on the allow-list.
    ComposeHash,
    /// The instance id is on the allow-list.
    InstanceId,
    /// The OS image hash is on the allow-list.
    OsImageHash,
    /// The chain ends in a pinned KMS root.
    KmsRoot,
}

impl Check {
    /// All checks, in order.
    pub const ALL: [Self; 24] = [
        Self::Certificate,
        Self::Dates,
        Self::Evidence,
        Self::Quote,
        Self::Binding,
        Self::Collateral,
        Self::Debug,
        Self::Signatures,
        Self::TdAttributes,
        Self::Tcb,
        Self::Advisories,
        Self::Mrtd,
        Self::Rtmr0,
        Self::Rtmr1,
        Self::Rtmr2,
        Self::Rtmr3,
        Self::Configuration,
        Self::Platform,
        Self::EventLog,
        Self::AppId,
        Self::ComposeHash,
        Self::InstanceId,
        Self::OsImageHash,
        Self::KmsRoot,
    ];

    /// The check's name: stable, snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Dates => "dates",
            Self::Evidence => "evidence",
            Self::Quote => "quote",
            Self::Binding => "binding",
            Self::Collateral => "collateral",
            Self::Debug => "debug",
            Self::Signatures => "signatures",
            Self::TdAttributes => "td_attributes",
            Self::Tcb => "tcb",
            Self::Advisories => "advisories",
            Self::Mrtd => "mrtd",
            Self::Rtmr0 => "rtmr0",
            Self::Rtmr1 => "rtmr1",
            Self::Rtmr2 => "rtmr2",
            Self::Rtmr3 => "rtmr3",
            Self::Configuration => "configuration",
            Self::Platform => "platform",
            Self::EventLog => "event_log",
            Self::AppId => "app_id",
            Self::ComposeHash => "compose_hash",
            Self::InstanceId => "instance_id",
            Self::OsImageHash => "os_image_hash",
            Self::KmsRoot => "kms_root",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// The check passed.
    Passed,
    /// The check refuses the peer.
    Refused(&'a Denial),
    /// The check was not made.
    Skipped(SkipReason),
}

/// Why a check was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A bare quote or envelope has no certificate.
    NoCertificate,
    /// The certificate cannot be parsed.
    UnreadableCertificate,
    /// The evidence, or the quote in it, cannot be parsed.
    UnreadableEvidence,
    /// There is no collateral for the platform.
    NoCollateral,
    /// The collateral is for another platform, or not in date.
    UnsuitableCollateral,
    /// dcap-qvl refused the quote for another reason before it had verified every signature.
    VerificationEndedEarly,
    /// The quote is not verified: its content is only what the peer claims.
    QuoteNotVerified,
    /// A bare quote carries no event log.
    NoEventLog,
    /// The event log does not prove an identity.
    NoIdentity,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "there is no certificate",
            Self::UnreadableCertificate => "the certificate cannot be read",
            Self::UnreadableEvidence => "the evidence cannot be read",
            Self::NoCollateral => "there is no collateral for the platform",
            Self::UnsuitableCollateral => "the collateral is for another platform or not in date",
            Self::VerificationEndedEarly => {
                "the verification ended before every signature was verified"
            }
            Self::QuoteNotVerified => "the quote is not verified",
            Self::NoEventLog => "a bare quote carries no event log",
            Self::NoIdentity => "the event log does not prove an identity",
        })
    }
}

/// The values that a check looked at: one variant for each [`Check`], except that the four RTMRs share
/// one, and that a bare quote which cannot be parsed has another.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// The presented chain.
    Certificate {
        /// The leaf in DER; [`CertificateNames`](crate::certificate::CertificateNames) reads its names.
        leaf: &'a [u8],
        /// The leaf's fingerprint.
        fingerprint: Fingerprint,
        /// Number of certificates.
        chain_len: usize,
    },
    /// The leaf's dates.
    Dates {
        /// notBefore, in Unix seconds.
        not_before: u64,
        /// notAfter, in Unix seconds.
        not_after: u64,
        /// The policy's maximum age.
        max_age: Option<Duration>,
    },
    /// The evidence extensions.
    Evidence {
        /// The certificate's; `None` for a bare envelope or quote.
        extensions: Option<&'a Extensions<'a>>,
        /// The format; `None` for a bare quote, and if the evidence cannot be read.
        format: Option<EvidenceFormat>,
    },
    /// The quote.
    Quote(&'a TdQuote),
    /// The header of a bare quote that cannot be parsed, as for SGX.
    UnparsedQuote(QuoteHeader),
    /// The report data.
    Binding {
        /// The report data of the leaf's key.
        expected: [u8; 64],
        /// The report data of the quote.
        quoted: &'a [u8; 64],
        /// The one stated in the envelope; the legacy format states none.
        stated: Option<&'a [u8; 64]>,
    },
    /// The collateral.
    Collateral(&'a Collateral),
    /// Debug mode.
    Debug {
        /// Whether the TD is in debug mode or profiled.
        under_debug: bool,
        /// Whether the policy allows that.
        allowed: bool,
    },
    /// The trusted root.
    Signatures {
        /// The fingerprint of the root.
        root: Fingerprint,
        /// Whether it is another root than Intel's.
        dangerous: bool,
    },
    /// TDATTRIBUTES, little endian.
    TdAttributes([u8; 8]),
    /// The TCB.
    Tcb {
        /// The platform's status, if the quote is verified.
        status: Option<TcbStatus>,
        /// The statuses that the policy accepts.
        accepted: TcbStatuses,
    },
    /// The advisories.
    Advisories {
        /// Those that the platform is subject to, if the quote is verified.
        found: Option<&'a [String]>,
        /// Those that the policy refuses.
        refused: &'a [Advisory],
    },
    /// MRTD.
    Mrtd {
        /// The MRTD of the quote.
        value: Mrtd,
        /// The allow-list.
        allowed: &'a [Mrtd],
    },
    /// An RTMR.
    Rtmr {
        /// The value in the quote.
        value: Rtmr,
        /// The allow-list.
        allowed: &'a [Rtmr],
    },
    /// The TD's configuration.
    Configuration {
        /// The report that holds it.
        report: &'a TdReport,
        /// The operating system that the peer is compared with.
        os: Option<&'a OsEntry>,
        /// The entry that the peer is compared with.
        entry: &'a PeerEntry,
    },
    /// The TDX module and the machine.
    Platform {
        /// MRSEAM.
        mr_seam: &'a [u8; 48],
        /// What the PCK certificate says; only read if an entry pins something of it.
        claims: &'a PlatformClaims,
        /// What is pinned.
        pins: &'a PlatformPins,
    },
    /// The event log.
    EventLog {
        /// The events.
        events: &'a EventLog<'a>,
        /// The RTMR3 that the events give.
        replayed: Option<Rtmr>,
        /// The RTMR3 of the quote.
        quoted: Rtmr,
        /// The identity, if the two are equal.
        identity: Option<&'a Identity>,
    },
    /// The app id.
    AppId {
        /// The proved one.
        value: Option<AppId>,
        /// The allow-list.
        allowed: &'a [AppId],
    },
    /// The compose hash.
    ComposeHash {
        /// The proved one.
        value: Option<ComposeHash>,
        /// The allow-list.
        allowed: &'a [ComposeHash],
    },
    /// The instance id.
    InstanceId {
        /// The proved one.
        value: Option<InstanceId>,
        /// The allow-list.
        allowed: &'a [InstanceId],
    },
    /// The OS image hash.
    OsImageHash {
        /// The proved one.
        value: Option<OsImageHash>,
        /// The allow-list.
        allowed: &'a [OsImageHash],
    },
    /// The pinned KMS roots.
    KmsRoot {
        /// The roots; without any, the chain is not checked.
        allowed: &'a [KmsRoot],
    },
}

/// Sees each check.
pub trait CheckObserver {
    /// Whether to call it at all. `false` for `()`, the gate's observer: the calls and their arguments
    /// compile to nothing, and the first refusal ends the checks.
    #[doc(hidden)]
    const ENABLED: bool = true;

    /// Called once for each check of [`Check::ALL`], in that order. `values` is `None` if the check had
    /// nothing to look at.
    fn observe(&mut self, check: Check, outcome: Outcome<'_>, values: Option<Values<'_>>);
}

impl CheckObserver for () {
    const ENABLED: bool = false;

    fn observe(&mut self, _: Check, _: Outcome<'_>, _: Option<Values<'_>>) {}
}

impl<T: CheckObserver> CheckObserver for &mut T {
    const ENABLED: bool = T::ENABLED;

    fn observe(&mut self, check: Check, outcome: Outcome<'_>, values: Option<Values<'_>>) {
        (**self).observe(check, outcome, values);
    }
}

/// Reports checks to an observer, in the order of [`Check::ALL`], and keeps the first refusal.
pub(crate) struct Trace<O> {
    observer: O,
    /// Number of checks of [`Check::ALL`] that were reported.
    reported: usize,
    /// The first refusal.
    refusal: Option<Denial>,
    /// Whether the quote is not verified: its claims are reported, but not checked.
    unverified: bool,
}

impl Trace<()> {
    /// The gate's: no observer.
    pub(crate) fn off() -> Self {
        Self::new(())
    }
}

impl<O: CheckObserver> Trace<O> {
    #[inline(always)]
    pub(crate) fn new(observer: O) -> Self {
        Self {
            observer,
            reported: 0,
            refusal: None,
            unverified: false,
        }
    }

    /// Ends the checks at `denial` if there is no observer. With one, [`Trace::check_claim`] reports
    /// claims as skipped from now on.
    pub(crate) fn set_unverified(&mut self, denial: &Denial) -> Result<(), Denial> {
        if !O::ENABLED {
            return Err(denial.clone());
        }
        self.unverified = true;
        Ok(())
    }

    /// Reports a check. Without an observer the result is `result`; with one a refusal is kept, and the
    /// result is `Ok`, so that the checks continue.
    #[inline(always)]
    pub(crate) fn check<'v, V: Into<Option<Values<'v>>>>(
        &mut self,
        check: Check,
        result: Result<(), Denial>,
        values: impl FnOnce() -> V,
    ) -> Result<(), Denial> {
        if !O::ENABLED {
            return result;
        }
        let outcome = self.outcome(&result);
        self.report(check, outcome, values().into());
        Ok(())
    }

    /// Reports a check of what the quote or its event log claims: skipped if the quote is not verified.
    #[inline(always)]
    pub(crate) fn check_claim<'v, V: Into<Option<Values<'v>>>>(
        &mut self,
        check: Check,
        result: Result<(), Denial>,
        values: impl FnOnce() -> V,
    ) -> Result<(), Denial> {
        if O::ENABLED && self.unverified {
            self.skip(check, SkipReason::QuoteNotVerified, values);
            return Ok(());
        }
        self.check(check, result, values)
    }

    /// Reports a check whose value later checks need. The caller handles a refusal.
    #[inline(always)]
    pub(crate) fn require<'v, T, V: Into<Option<Values<'v>>>>(
        &mut self,
        check: Check,
        result: &'v Result<T, Denial>,
        values: impl FnOnce(Option<&'v T>) -> V,
    ) {
        if !O::ENABLED {
            return;
        }
        let outcome = self.outcome(result);
        self.report(check, outcome, values(result.as_ref().ok()).into());
    }

    /// Reports a check that cannot be made.
    #[inline(always)]
    pub(crate) fn skip<'v, V: Into<Option<Values<'v>>>>(
        &mut self,
        check: Check,
        reason: SkipReason,
        values: impl FnOnce() -> V,
    ) {
        if O::ENABLED {
            self.report(check, Outcome::Skipped(reason), values().into());
        }
    }

    /// Reports every check that is left as skipped.
    pub(crate) fn skip_rest(&mut self, reason: SkipReason) {
        for check in Check::ALL.into_iter().skip(self.reported) {
            self.report(check, Outcome::Skipped(reason), None);
        }
    }

    /// Ends the checks at a refusal if there is no observer. With one it was reported, and the checks
    /// that do not need the value continue.
    #[inline(always)]
    pub(crate) fn stop_or_continue<T>(
        &self,
        result: Result<T, Denial>,
    ) -> Result<Option<T>, Denial> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(denial) if !O::ENABLED => Err(denial),
            Err(_) => Ok(None),
        }
    }

    /// The verdict so far.
    ///
    /// # Errors
    /// The first refusal.
    #[inline(always)]
    pub(crate) fn verdict(&self) -> Result<(), Denial> {
        match &self.refusal {
            Some(denial) => Err(denial.clone()),
            None => Ok(()),
        }
    }

    /// Gives the verdict: the first refusal if there was one, else `result`.
    pub(crate) fn finish<T>(self, result: Result<T, Denial>) -> Result<T, Denial> {
        self.verdict()?;
        result
    }

    /// Keeps the first refusal.
    fn outcome<'r, T>(&mut self, result: &'r Result<T, Denial>) -> Outcome<'r> {
        match result {
            Ok(_) => Outcome::Passed,
            Err(denial) => {
                self.refusal.get_or_insert_with(|| denial.clone());
                Outcome::Refused(denial)
            }
        }
    }

    fn report(&mut self, check: Check, outcome: Outcome<'_>, values: Option<Values<'_>>) {
        debug_assert_eq!(Check::ALL.get(self.reported), Some(&check), "out of order");
        self.reported += 1;
        self.observer.observe(check, outcome, values);
    }
}
