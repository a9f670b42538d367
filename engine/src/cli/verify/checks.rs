//! Verifies the input under an observer (visitor) that records every check for the report.
//!
//! [`Verifier::inspect`] and its variants make all checks and give the verdict: the code of the gate. This
//! module chooses the variant for the input, and gets the collateral as the gate would.
//!
//! What it must never do: make, repeat or reorder a check, or change a verdict.

use std::cell::OnceCell;

use attest::chain::KmsRoot;
use attest::collateral::Collateral;
use attest::denial::Denial;
use attest::quote::TdQuote;
use attest::trace::Check;
use attest::{Policy, TrustedRoot, Verifier};

use super::collateral::CollateralSource;
use super::report::{CheckReport, CheckValue, Outcome, Report, Verdict};
use crate::attestation::verifier::check_pck_chain;
use crate::cli::escape::escape;
use crate::tls::probe::{Presented, ProbeError};
use recorder::Recorder;

mod recorder;
mod values;

/// The check that precedes those of the gate if the input is a server: the TLS handshake.
const SERVER: &str = "server";

/// The policy, the root, the collateral and the time to verify with.
pub(super) struct Checker {
    policy: Policy,
    verifier: Verifier,
    pck_root: Option<KmsRoot>,
    source: CollateralSource,
    now: u64,
}

/// The checks and the verdict.
pub(super) struct CheckResult {
    checks: Vec<CheckReport>,
    verdict: Verdict,
}

/// Why there is no collateral for the quote.
struct NoCollateral {
    /// The gate's denial.
    denial: Denial,
    /// Details.
    reason: String,
}

/// Gets the collateral for a quote.
type GetCollateral<'a> = &'a dyn Fn(&TdQuote) -> Result<Collateral, Denial>;

impl Checker {
    pub(super) fn new(
        policy: Policy,
        root: TrustedRoot,
        source: CollateralSource,
        now: u64,
    ) -> Self {
        Self {
            policy,
            pck_root: KmsRoot::from_der(root.der()).ok(),
            verifier: Verifier::new(root),
            source,
            now,
        }
    }

    pub(super) fn report(&self, kind: &'static str, name: &str, result: CheckResult) -> Report {
        Report {
            kind,
            name: escape(name),
            at: self.now,
            policy: self.policy.epoch().to_string(),
            dangerous_root: self.verifier.root().is_dangerous(),
            warnings: unpinned(&self.policy),
            checks: result.checks,
            verdict: result.verdict,
        }
    }

    /// The result for a server that presented no certificate.
    pub(super) fn probe_failed(&self, error: ProbeError) -> CheckResult {
        let failed = Outcome::Failed {
            code: error.code(),
            text: escape(&error),
        };
        let not_checked = || Outcome::not_checked("the server presented no certificate");
        let others = Check::ALL.map(|check| CheckReport::new(check.as_str(), not_checked()));
        let mut checks = vec![CheckReport::new(SERVER, failed)];
        checks.extend(others);
        CheckResult {
            checks,
            verdict: Verdict::NoCertificate(error),
        }
    }

    /// Checks a server and its chain.
    pub(super) fn server(&self, presented: &Presented) -> CheckResult {
        let mut result = self.chain(&presented.chain);
        result.checks.insert(0, server(presented));
        result
    }

    /// Checks a presented chain, leaf first.
    pub(super) fn chain(&self, chain: &[Vec<u8>]) -> CheckResult {
        self.record(|collateral, recorder| {
            let (policy, now) = (&self.policy, self.now);
            let peer = (self.verifier).inspect(chain, policy, now, collateral, recorder)?;
            Ok(Verdict::Accepted(Box::new(peer)))
        })
    }

    /// Checks dstack's attestation envelope, without a certificate.
    pub(super) fn attestation(&self, envelope: &[u8]) -> CheckResult {
        self.record(|collateral, recorder| {
            let (policy, now) = (&self.policy, self.now);
            let appraisal =
                (self.verifier).inspect_envelope(envelope, policy, now, collateral, recorder)?;
            Ok(Verdict::NotBound(appraisal.valid_until()))
        })
    }

    /// Checks a bare quote.
    pub(super) fn quote(&self, quote: &[u8]) -> CheckResult {
        self.record(|collateral, recorder| {
            let (policy, now) = (&self.policy, self.now);
            let appraisal =
                (self.verifier).inspect_quote(quote, policy, now, collateral, recorder)?;
            Ok(Verdict::NotBound(appraisal.valid_until()))
        })
    }

    /// Runs `inspect` and records its checks.
    fn record(
        &self,
        inspect: impl FnOnce(GetCollateral<'_>, &mut Recorder<'_>) -> Result<Verdict, Denial>,
    ) -> CheckResult {
        let missing = OnceCell::new();
        let collateral = |quote: &TdQuote| {
            self.collateral(quote)
                .map_err(|NoCollateral { denial, reason }| {
                    // Empty, since it is called once.
                    let _ = missing.set(reason);
                    denial
                })
        };
        let mut recorder = Recorder::new(self.source.name(), &missing);
        let verdict = inspect(&collateral, &mut recorder).unwrap_or_else(Verdict::Refused);
        CheckResult {
            checks: recorder.into_checks(),
            verdict,
        }
    }

    /// Gets the collateral that the gate would use. A PCCS is asked only about platforms whose PCK chain
    /// leads to the trusted root. Without collateral, all other quotes are refused as forged.
    fn collateral(&self, quote: &TdQuote) -> Result<Collateral, NoCollateral> {
        let refused = |reason: &str| {
            let reason = reason.to_owned();
            move |denial| NoCollateral { denial, reason }
        };
        let key = quote
            .collateral_key()
            .map_err(refused("it does not identify its platform"))?;
        let untrusted = "its PCK chain does not lead to the trusted root";
        let issued = check_pck_chain(self.pck_root.as_ref(), quote, self.now);
        if self.source.is_remote() {
            issued.clone().map_err(refused(untrusted))?;
        }
        let root = self.verifier.root().der();
        match self.source.get(key, root, self.now) {
            Ok(collateral) => Ok(collateral),
            Err(error) => {
                issued.map_err(refused(untrusted))?;
                Err(NoCollateral {
                    denial: Denial::CollateralUnavailable,
                    reason: error.to_string(),
                })
            }
        }
    }
}

/// The entries whose identities any TD can claim. The sidecar and the forwarder refuse to start with them.
fn unpinned(policy: &Policy) -> Vec<String> {
    let warning = |entry: Option<&str>| {
        let of = entry
            .map(|entry| format!(" of peer {entry:?}"))
            .unwrap_or_default();
        format!(
            "the operating system{of} is not pinned, so that any TD can claim its identity: set kms_root, or MRTD, \
             RTMR1 and RTMR2"
        )
    };
    let entries = policy.unpinned();
    entries
        .iter()
        .map(|unpinned| warning(unpinned.entry.as_deref()))
        .collect()
}

/// The server's side of the handshake.
fn server(presented: &Presented) -> CheckReport {
    let requested = match (presented.requested_certificate, presented.has_identity) {
        (false, _) => "no",
        (true, false) => "yes, and none was shown",
        (true, true) => "yes, and one was shown",
    };
    CheckReport::new(SERVER, Outcome::Passed)
        .with("address", CheckValue::text(presented.address))
        .with("opening", CheckValue::text(presented.opening))
        .with("tls_version", CheckValue::text(&presented.version))
        .with("cipher_suite", CheckValue::text(&presented.cipher_suite))
        .with_some("alpn", presented.alpn.as_ref().map(CheckValue::text))
        .with("asked_for_certificate", CheckValue::text(requested))
}
