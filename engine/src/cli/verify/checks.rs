//! The story: every check of the gate in its order, and the verdict.
//!
//! The verdict about a chain is what [`attest::examine`] and
//! [`attest::Verifier::verify`] say. The steps are told beside it by the public
//! checks that those two are made of; that the first failed step and the verdict
//! agree is held by tests. What a quote says is compared with the policy only
//! when the quote's signatures hold: before, it is a claim.

use attest::certificate::Leaf;
use attest::chain::{Chain, KmsRoot};
use attest::collateral::Collateral;
use attest::denial::Denial;
use attest::evidence::UnboundEvidence;
use attest::quote::{QuoteHeader, TdQuote};
use attest::verify::Appraisal;
use attest::{Policy, TrustedRoot, Verifier, examine};

use super::report::{Fact, Report, State, Step, Verdict};
use super::server::{Presented, Trouble};
use super::verifier::Origin;
use crate::attestation::verifier::check_issuer;

mod appraise;
mod claims;
mod evidence;

/// All steps behind `server`, in the order of the gate's checks.
const STEPS: [&str; 21] = [
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

const NO_CERTIFICATE: &str = "there is no certificate with it";

/// What judges, and with what.
pub(super) struct Judge {
    policy: Policy,
    verifier: Verifier,
    issuer: Option<KmsRoot>,
    origin: Origin,
    now: u64,
}

/// The steps and how they end.
pub(super) struct Told {
    steps: Vec<Step>,
    verdict: Verdict,
}

/// Why the quote cannot be judged, as the gate would say it, and in more words.
struct NoCollateral {
    denial: Denial,
    why: String,
}

impl Judge {
    pub(super) fn new(policy: Policy, root: TrustedRoot, origin: Origin, now: u64) -> Self {
        Self {
            policy,
            issuer: KmsRoot::from_der(root.der()).ok(),
            verifier: Verifier::new(root),
            origin,
            now,
        }
    }

    pub(super) fn report(&self, kind: &'static str, name: &str, told: Told) -> Report {
        Report {
            kind,
            name: super::report::printable(name),
            at: self.now,
            policy: self.policy.epoch().to_string(),
            dangerous_root: self.verifier.root().is_dangerous(),
            steps: told.steps,
            verdict: told.verdict,
        }
    }

    /// A server that showed no certificate.
    pub(super) fn unreached(&self, trouble: Trouble) -> Told {
        let failed = State::Failed {
            code: trouble.code(),
            text: super::report::printable(&trouble.to_string()),
        };
        Told {
            steps: complete(
                vec![Step::new("server", failed)],
                "the server showed no certificate",
            ),
            verdict: Verdict::NoCertificate(trouble),
        }
    }

    /// A server and its chain.
    pub(super) fn server(&self, presented: &Presented) -> Told {
        let mut told = self.chain(&presented.chain);
        told.steps.insert(0, evidence::server(presented));
        told
    }

    /// A presented chain, leaf first.
    pub(super) fn chain(&self, chain: &[Vec<u8>]) -> Told {
        let examined = examine(chain, self.now, &self.policy);
        let leaf = evidence::leaf(chain);
        let mut steps = vec![evidence::certificate(chain, &leaf)];
        let Ok(leaf) = leaf else {
            return refused(steps, "the certificate cannot be read", examined.err());
        };
        steps.push(evidence::dates(&leaf, &self.policy, self.now));
        let evidence = UnboundEvidence::from_extensions(leaf.extensions());
        steps.push(evidence::evidence(Some(leaf.extensions()), &evidence));
        let Ok(evidence) = evidence else {
            return refused(
                steps,
                "there is no evidence that can be read",
                examined.err(),
            );
        };
        steps.push(evidence::quote(evidence.quote()));
        steps.push(evidence::binding(&evidence, leaf.spki()));
        let collateral = self.collateral(evidence.quote());
        let appraisal = self.appraise(&mut steps, evidence.quote(), &collateral);
        let vouched = appraisal.is_some();
        claims::measurements(&mut steps, &self.policy, evidence.quote().report(), vouched);
        let rtmr3 = evidence.quote().report().rtmr3();
        claims::identity(
            &mut steps,
            &self.policy,
            Some(evidence.events()),
            rtmr3,
            vouched,
        );
        steps.push(claims::kms_root(chain, &self.policy, self.now));
        let verdict = match (examined, collateral) {
            (Err(denial), _) => Verdict::Refused(denial),
            (Ok(_), Err(lack)) => Verdict::Refused(lack.denial),
            (Ok(bound), Ok(collateral)) => {
                match (self.verifier).verify(&bound, &collateral, &self.policy, self.now) {
                    Ok(peer) => Verdict::Accepted(peer.valid_until()),
                    Err(denial) => Verdict::Refused(denial),
                }
            }
        };
        Told { steps, verdict }
    }

    /// dstack's envelope without a certificate round it.
    pub(super) fn attestation(&self, envelope: &[u8]) -> Told {
        let evidence = UnboundEvidence::from_envelope(envelope);
        let mut steps = no_certificate();
        steps.push(evidence::evidence(None, &evidence));
        match evidence {
            Err(denial) => refused(steps, "there is no evidence that can be read", Some(denial)),
            Ok(evidence) => self.unbound(steps, evidence.quote(), Some(&evidence)),
        }
    }

    /// A bare quote.
    pub(super) fn quote(&self, bytes: &[u8]) -> Told {
        let mut steps = no_certificate();
        steps.push(Step::new("evidence", State::Ok).with("form", Fact::text("a bare quote")));
        match TdQuote::parse(bytes) {
            Ok(quote) => self.unbound(steps, &quote, None),
            Err(denial) => {
                let header = QuoteHeader::read(bytes).ok();
                steps.push(evidence::bad_quote(&denial, header));
                refused(steps, "the quote cannot be read", Some(denial))
            }
        }
    }

    /// What has no certificate to be bound to: the first failed step is the verdict.
    fn unbound(
        &self,
        mut steps: Vec<Step>,
        quote: &TdQuote,
        evidence: Option<&UnboundEvidence<'_>>,
    ) -> Told {
        steps.push(evidence::quote(quote));
        steps.push(Step::new("binding", State::not_checked(NO_CERTIFICATE)));
        let collateral = self.collateral(quote);
        let verdict = self.judge_unbound(quote, evidence, &collateral);
        let vouched = self.appraise(&mut steps, quote, &collateral).is_some();
        claims::measurements(&mut steps, &self.policy, quote.report(), vouched);
        let events = evidence.map(UnboundEvidence::events);
        claims::identity(
            &mut steps,
            &self.policy,
            events,
            quote.report().rtmr3(),
            vouched,
        );
        Told {
            steps: complete(steps, NO_CERTIFICATE),
            verdict: match verdict {
                Ok(until) => Verdict::NotBound(until),
                Err(denial) => Verdict::Refused(denial),
            },
        }
    }

    /// Until when it holds: the checks of [`Verifier::verify`], without those of a
    /// certificate. A bare quote proves no identity.
    fn judge_unbound(
        &self,
        quote: &TdQuote,
        evidence: Option<&UnboundEvidence<'_>>,
        collateral: &Result<Collateral, NoCollateral>,
    ) -> Result<u64, Denial> {
        let collateral = collateral.as_ref().map_err(|lack| lack.denial.clone())?;
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

    /// What the gate would judge with. A PCCS is asked only about platforms of the
    /// trusted root, and without collateral the others are forged, not unlucky.
    fn collateral(&self, quote: &TdQuote) -> Result<Collateral, NoCollateral> {
        let refused = |why: &str| {
            let why = why.to_owned();
            move |denial| NoCollateral { denial, why }
        };
        let key = quote
            .collateral_key()
            .map_err(refused("nothing says which collateral it needs"))?;
        let stranger = "its PCK chain does not lead to the trusted root";
        let issued = check_issuer(self.issuer.as_ref(), quote, self.now);
        if self.origin.is_remote() {
            issued.clone().map_err(refused(stranger))?;
        }
        let root = self.verifier.root().der();
        match self.origin.get(key, root, self.now) {
            Ok(collateral) => Ok(collateral),
            Err(lack) => {
                issued.map_err(refused(stranger))?;
                Err(NoCollateral {
                    denial: Denial::CollateralUnavailable,
                    why: lack.to_string(),
                })
            }
        }
    }
}

fn no_certificate() -> Vec<Step> {
    ["certificate", "dates"]
        .map(|name| Step::new(name, State::not_checked(NO_CERTIFICATE)))
        .into()
}

/// The end where nothing more can be looked at.
fn refused(steps: Vec<Step>, why: &str, denial: Option<Denial>) -> Told {
    Told {
        steps: complete(steps, why),
        verdict: Verdict::Refused(denial.unwrap_or(Denial::NoCertificate)),
    }
}

/// With every step that is left, not checked.
fn complete(mut steps: Vec<Step>, why: &str) -> Vec<Step> {
    for name in STEPS {
        if !steps.iter().any(|step| step.name == name) {
            steps.push(Step::new(name, State::not_checked(why)));
        }
    }
    steps
}
