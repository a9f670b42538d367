//! Makes every check of the gate in its order, and the verdict.
//!
//! The verdict about a chain is the result of [`attest::examine`] and [`attest::Verifier::verify`].
//! The checks are made separately, with the public functions that these two consist of. Tests compare
//! the first failed check with the verdict. The values in a quote are compared with the policy only if
//! the quote's signatures are valid; otherwise they are mere claims.

use attest::certificate::Leaf;
use attest::chain::{Chain, KmsRoot};
use attest::collateral::Collateral;
use attest::denial::Denial;
use attest::evidence::UnboundEvidence;
use attest::quote::{QuoteHeader, TdQuote};
use attest::verify::Appraisal;
use attest::{Policy, TrustedRoot, Verifier, examine};

use super::collateral::CollateralSource;
use super::escape::escape;
use super::report::{Check, CheckValue, Outcome, Report, Verdict};
use super::server::{Presented, ProbeError};
use crate::attestation::verifier::check_issuer;

mod appraise;
mod claims;
mod evidence;

/// The names of all checks after `server`, in the gate's order.
const CHECKS: [&str; 21] = [
    "certificate",
    "dates",
    "evidence",
    "quote",
    "binding",
    "collateral",
    "debug",
    "signatures",
    "td_attributes",
    "tcb",
    "advisories",
    "mrtd",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "event_log",
    "app_id",
    "compose_hash",
    "os_image_hash",
    "kms_root",
];

const NO_CERTIFICATE: &str = "there is no certificate";

/// The policy, the root, the collateral and the time to verify with.
pub(super) struct Checker {
    policy: Policy,
    verifier: Verifier,
    issuer: Option<KmsRoot>,
    source: CollateralSource,
    now: u64,
}

/// The checks and the verdict.
pub(super) struct CheckResult {
    checks: Vec<Check>,
    verdict: Verdict,
}

/// Why there is no collateral for the quote.
struct NoCollateral {
    /// The gate's denial.
    denial: Denial,
    /// Details.
    reason: String,
}

impl Checker {
    pub(super) fn new(
        policy: Policy,
        root: TrustedRoot,
        source: CollateralSource,
        now: u64,
    ) -> Self {
        Self {
            policy,
            issuer: KmsRoot::from_der(root.der()).ok(),
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
        CheckResult {
            checks: complete(
                vec![Check::new("server", failed)],
                "the server presented no certificate",
            ),
            verdict: Verdict::NoCertificate(error),
        }
    }

    /// Checks a server and its chain.
    pub(super) fn server(&self, presented: &Presented) -> CheckResult {
        let mut result = self.chain(&presented.chain);
        result.checks.insert(0, evidence::server(presented));
        result
    }

    /// Checks a presented chain, leaf first.
    pub(super) fn chain(&self, chain: &[Vec<u8>]) -> CheckResult {
        let examined = examine(chain, self.now, &self.policy);
        let leaf = evidence::leaf(chain);
        let mut checks = vec![evidence::certificate(chain, &leaf)];
        let Ok(leaf) = leaf else {
            return refused(checks, "the certificate cannot be read", examined.err());
        };
        checks.push(evidence::dates(&leaf, &self.policy, self.now));
        let evidence = UnboundEvidence::from_extensions(leaf.extensions());
        checks.push(evidence::evidence(Some(leaf.extensions()), &evidence));
        let Ok(evidence) = evidence else {
            return refused(checks, "there is no readable evidence", examined.err());
        };
        checks.push(evidence::quote(evidence.quote()));
        checks.push(evidence::binding(&evidence, leaf.spki()));
        let collateral = self.collateral(evidence.quote());
        let appraisal = self.appraise(&mut checks, evidence.quote(), &collateral);
        let verified = appraisal.is_some();
        claims::measurements(
            &mut checks,
            &self.policy,
            evidence.quote().report(),
            verified,
        );
        let rtmr3 = evidence.quote().report().rtmr3();
        claims::identity(
            &mut checks,
            &self.policy,
            Some(evidence.events()),
            rtmr3,
            verified,
        );
        checks.push(claims::kms_root(chain, &self.policy, self.now));
        let verdict = match (examined, collateral) {
            (Err(denial), _) => Verdict::Refused(denial),
            (Ok(_), Err(missing)) => Verdict::Refused(missing.denial),
            (Ok(bound), Ok(collateral)) => {
                match (self.verifier).verify(&bound, &collateral, &self.policy, self.now) {
                    Ok(peer) => Verdict::Accepted(peer.valid_until()),
                    Err(denial) => Verdict::Refused(denial),
                }
            }
        };
        CheckResult { checks, verdict }
    }

    /// Checks dstack's attestation envelope, without a certificate.
    pub(super) fn attestation(&self, envelope: &[u8]) -> CheckResult {
        let evidence = UnboundEvidence::from_envelope(envelope);
        let mut checks = no_certificate();
        checks.push(evidence::evidence(None, &evidence));
        match evidence {
            Err(denial) => refused(checks, "there is no readable evidence", Some(denial)),
            Ok(evidence) => self.unbound(checks, evidence.quote(), Some(&evidence)),
        }
    }

    /// Checks a bare quote.
    pub(super) fn quote(&self, bytes: &[u8]) -> CheckResult {
        let mut checks = no_certificate();
        checks.push(
            Check::new("evidence", Outcome::Passed).with("form", CheckValue::text("a bare quote")),
        );
        match TdQuote::parse(bytes) {
            Ok(quote) => self.unbound(checks, &quote, None),
            Err(denial) => {
                let header = QuoteHeader::read(bytes).ok();
                checks.push(evidence::bad_quote(&denial, header));
                refused(checks, "the quote cannot be read", Some(denial))
            }
        }
    }

    /// Checks evidence without a certificate. The verdict is the first failed check.
    fn unbound(
        &self,
        mut checks: Vec<Check>,
        quote: &TdQuote,
        evidence: Option<&UnboundEvidence<'_>>,
    ) -> CheckResult {
        checks.push(evidence::quote(quote));
        checks.push(Check::new("binding", Outcome::not_checked(NO_CERTIFICATE)));
        let collateral = self.collateral(quote);
        let verdict = self.verify_unbound(quote, evidence, &collateral);
        let verified = self.appraise(&mut checks, quote, &collateral).is_some();
        claims::measurements(&mut checks, &self.policy, quote.report(), verified);
        let events = evidence.map(UnboundEvidence::events);
        claims::identity(
            &mut checks,
            &self.policy,
            events,
            quote.report().rtmr3(),
            verified,
        );
        CheckResult {
            checks: complete(checks, NO_CERTIFICATE),
            verdict: match verdict {
                Ok(until) => Verdict::NotBound(until),
                Err(denial) => Verdict::Refused(denial),
            },
        }
    }

    /// Makes the checks of [`Verifier::verify`] without those of the certificate. Returns the last
    /// second at which they hold. A bare quote proves no identity.
    fn verify_unbound(
        &self,
        quote: &TdQuote,
        evidence: Option<&UnboundEvidence<'_>>,
        collateral: &Result<Collateral, NoCollateral>,
    ) -> Result<u64, Denial> {
        let collateral = collateral
            .as_ref()
            .map_err(|missing| missing.denial.clone())?;
        let policy = &self.policy;
        let appraisal = (self.verifier).appraise(quote, collateral, policy, self.now)?;
        policy.check_tcb(appraisal.tcb_status())?;
        policy.check_advisories(appraisal.advisories().iter().map(String::as_str))?;
        policy.check_measurements(quote.report())?;
        let identity = match evidence {
            Some(evidence) => evidence.events().prove(quote.report().rtmr3())?,
            None => attest::event_log::Identity::default(),
        };
        policy.check_identity(&identity)?;
        Ok(appraisal
            .valid_until()
            .min(collateral.expires_at().saturating_sub(1)))
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
        let issued = check_issuer(self.issuer.as_ref(), quote, self.now);
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

fn no_certificate() -> Vec<Check> {
    ["certificate", "dates"]
        .map(|name| Check::new(name, Outcome::not_checked(NO_CERTIFICATE)))
        .into()
}

/// The result if no further check can be made.
fn refused(checks: Vec<Check>, reason: &str, denial: Option<Denial>) -> CheckResult {
    CheckResult {
        checks: complete(checks, reason),
        verdict: Verdict::Refused(denial.unwrap_or(Denial::NoCertificate)),
    }
}

/// Adds all remaining checks as not made.
fn complete(mut checks: Vec<Check>, reason: &str) -> Vec<Check> {
    for name in CHECKS {
        if !checks.iter().any(|check| check.name == name) {
            checks.push(Check::new(name, Outcome::not_checked(reason)));
        }
    }
    checks
}
