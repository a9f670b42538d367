//! The checks from the collateral to the advisories, which verify Intel's signatures.

use attest::policy::Settings;
use attest::verify::TrustedRoot;

use super::*;

/// The check that a denial of [`Verifier::appraise`] belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Collateral,
    Debug,
    Signatures,
    Attributes,
    Tcb,
}

fn part_of(denial: &Denial) -> Part {
    match denial {
        Denial::CollateralUnavailable
        | Denial::CollateralExpired
        | Denial::CollateralNotYetValid => Part::Collateral,
        Denial::DebugTd => Part::Debug,
        Denial::TdAttributes => Part::Attributes,
        Denial::Tcb { .. } | Denial::TcbBelowAll { .. } | Denial::TcbNotSupported => Part::Tcb,
        // All other denials are about the quote's signatures and certificates.
        _ => Part::Signatures,
    }
}

impl Checker {
    /// Makes the checks. Returns the appraisal if Intel's signatures are valid.
    pub(super) fn appraise(
        &self,
        checks: &mut Vec<Check>,
        quote: &TdQuote,
        collateral: &Result<Collateral, NoCollateral>,
    ) -> Option<Appraisal> {
        let debug = self.policy.check_debug(quote.report());
        let appraised = match collateral {
            Ok(collateral) => Some(self.try_appraise(quote, collateral, debug.is_err())),
            Err(_) => None,
        };
        checks.push(self.collateral_check(collateral, &debug, appraised.as_ref()));
        checks.push(self.debug_check(quote, &debug));
        let root = self.verifier.root();
        checks.push(signatures_check(root, appraised.as_ref()));
        checks.push(attributes_check(quote, appraised.as_ref()));
        checks.push(self.tcb_check(appraised.as_ref()));
        checks.push(self.advisories_check(appraised.as_ref()));
        appraised.and_then(Result::ok)
    }

    /// [`Verifier::appraise`] refuses a TD in debug mode before it verifies signatures. To report those
    /// as well, such a TD is appraised as if debug mode were allowed.
    fn try_appraise(
        &self,
        quote: &TdQuote,
        collateral: &Collateral,
        debug: bool,
    ) -> Result<Appraisal, Denial> {
        let lenient = Policy::new(Settings {
            allow_debug_td: true,
            ..self.policy.settings().clone()
        });
        let policy = if debug { &lenient } else { &self.policy };
        self.verifier.appraise(quote, collateral, policy, self.now)
    }

    fn collateral_check(
        &self,
        collateral: &Result<Collateral, NoCollateral>,
        debug: &Result<(), Denial>,
        appraised: Option<&Result<Appraisal, Denial>>,
    ) -> Check {
        let state = match (collateral, appraised) {
            (Err(missing), _) => Outcome::Failed {
                code: missing.denial.code(),
                text: escape(format!("{}: {}", missing.denial, missing.reason)),
            },
            (Ok(collateral), appraised) => match (collateral.check_dates(self.now), appraised) {
                (Ok(()), Some(Err(denial))) if part_of(denial) == Part::Collateral => match debug {
                    Ok(()) => Outcome::denied(denial),
                    // The gate refuses the debug mode first.
                    Err(_) => Outcome::not_checked("the collateral is for another platform"),
                },
                (dates, _) => Outcome::of(&dates),
            },
        };
        let check =
            Check::new("collateral", state).with("source", CheckValue::text(self.source.name()));
        let Ok(collateral) = collateral else {
            return check;
        };
        let (key, number) = (collateral.key(), collateral.tcb_evaluation_number());
        check
            .with("fmspc", CheckValue::hex(key.fmspc.0))
            .with("ca", CheckValue::text(key.ca.as_str()))
            .with("tcb_evaluation_number", CheckValue::Number(number.into()))
            .with(
                "tcb_info_issued",
                CheckValue::Time(collateral.tcb_info_issued_at()),
            )
            .with("holds_from", CheckValue::Time(collateral.valid_from()))
            .with("next_update", CheckValue::Time(collateral.expires_at()))
    }

    fn debug_check(&self, quote: &TdQuote, checked: &Result<(), Denial>) -> Check {
        let allowed = self.policy.settings().allow_debug_td;
        Check::new("debug", Outcome::of(checked))
            .with(
                "under_debug",
                CheckValue::Flag(quote.report().is_under_debug()),
            )
            .with("allowed", CheckValue::Flag(allowed))
    }

    fn tcb_check(&self, appraised: Option<&Result<Appraisal, Denial>>) -> Check {
        let (state, status) = match appraised {
            Some(Ok(appraisal)) => {
                let status = appraisal.tcb_status();
                (Outcome::of(&self.policy.check_tcb(status)), Some(status))
            }
            Some(Err(denial)) if part_of(denial) == Part::Tcb => (Outcome::denied(denial), None),
            _ => (Outcome::not_checked(UNVERIFIED), None),
        };
        let accepted = self.policy.settings().tcb_statuses;
        Check::new("tcb", state)
            .with_some("status", status.map(CheckValue::text))
            .with("accepted", CheckValue::text(accepted))
    }

    fn advisories_check(&self, appraised: Option<&Result<Appraisal, Denial>>) -> Check {
        let refused = &self.policy.settings().refused_advisories;
        let refused = CheckValue::texts(refused);
        let Some(Ok(appraisal)) = appraised else {
            let state = Outcome::not_checked(UNVERIFIED);
            return Check::new("advisories", state).with("refused", refused);
        };
        let found = appraisal.advisories();
        let checked = self
            .policy
            .check_advisories(found.iter().map(String::as_str));
        Check::new("advisories", Outcome::of(&checked))
            .with("found", CheckValue::texts(found))
            .with("refused", refused)
    }
}

const UNVERIFIED: &str = "the quote is not verified";

fn signatures_check(root: &TrustedRoot, appraised: Option<&Result<Appraisal, Denial>>) -> Check {
    let state = match appraised {
        Some(Ok(_)) => Outcome::Passed,
        Some(Err(denial)) => match part_of(denial) {
            Part::Signatures => Outcome::denied(denial),
            Part::Collateral => Outcome::not_checked("there is no matching collateral"),
            // dcap-qvl checks the quoting enclave's TCB level before the last signature.
            Part::Debug | Part::Attributes | Part::Tcb => {
                Outcome::not_checked("verification stopped before the last signature")
            }
        },
        None => Outcome::not_checked("there is no collateral"),
    };
    let name = if root.is_dangerous() {
        "DANGEROUS: not Intel's"
    } else {
        "Intel's"
    };
    Check::new("signatures", state)
        .with("root", CheckValue::text(name))
        .with(
            "root_fingerprint",
            CheckValue::hex(root.fingerprint().as_bytes()),
        )
}

fn attributes_check(quote: &TdQuote, appraised: Option<&Result<Appraisal, Denial>>) -> Check {
    let state = match appraised {
        Some(Ok(_)) => Outcome::Passed,
        Some(Err(denial)) if matches!(part_of(denial), Part::Attributes | Part::Debug) => {
            Outcome::denied(denial)
        }
        _ => Outcome::not_checked(UNVERIFIED),
    };
    Check::new("td_attributes", state).with("value", CheckValue::hex(quote.report().attributes()))
}
