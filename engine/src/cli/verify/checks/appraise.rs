//! The steps from the collateral to the advisories: what Intel vouches for.

use attest::policy::Settings;
use attest::verify::TrustedRoot;

use super::*;

/// The step that a refusal of [`Verifier::appraise`] belongs to.
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
        // Whatever else is said of a quote's signatures and certificates.
        _ => Part::Signatures,
    }
}

impl Judge {
    /// Tells the steps; gives what Intel's signatures say, if they hold.
    pub(super) fn appraise(
        &self,
        steps: &mut Vec<Step>,
        quote: &TdQuote,
        collateral: &Result<Collateral, NoCollateral>,
    ) -> Option<Appraisal> {
        let debug = self.policy.check_debug(quote.report());
        let appraised = match collateral {
            Ok(collateral) => Some(self.try_to_appraise(quote, collateral, debug.is_err())),
            Err(_) => None,
        };
        steps.push(self.collateral_step(collateral, &debug, appraised.as_ref()));
        steps.push(self.debug_step(quote, &debug));
        let root = self.verifier.root();
        steps.push(signatures_step(root, appraised.as_ref()));
        steps.push(attributes_step(quote, appraised.as_ref()));
        steps.push(self.tcb_step(appraised.as_ref()));
        steps.push(self.advisories_step(appraised.as_ref()));
        appraised.and_then(Result::ok)
    }

    /// A TD under debug is refused before its signatures are looked at. For the
    /// story they are, as if it were allowed.
    fn try_to_appraise(
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

    fn collateral_step(
        &self,
        collateral: &Result<Collateral, NoCollateral>,
        debug: &Result<(), Denial>,
        appraised: Option<&Result<Appraisal, Denial>>,
    ) -> Step {
        let state = match (collateral, appraised) {
            (Err(lack), _) => State::Failed {
                code: lack.denial.code(),
                text: super::super::report::printable(&format!("{}: {}", lack.denial, lack.why)),
            },
            (Ok(collateral), appraised) => match (collateral.check_dates(self.now), appraised) {
                (Ok(()), Some(Err(denial))) if part_of(denial) == Part::Collateral => match debug {
                    Ok(()) => State::denied(denial),
                    // The gate does not come to this.
                    Err(_) => State::not_checked("it is for another platform"),
                },
                (dates, _) => State::of(&dates),
            },
        };
        let step = Step::new("collateral", state).with("source", Fact::text(self.origin.name()));
        let Ok(collateral) = collateral else {
            return step;
        };
        let (key, number) = (collateral.key(), collateral.tcb_evaluation_number());
        step.with("fmspc", Fact::hex(key.fmspc.0))
            .with("ca", Fact::text(key.ca.as_str()))
            .with("tcb_evaluation_number", Fact::Number(number.into()))
            .with(
                "tcb_info_issued",
                Fact::Time(collateral.tcb_info_issued_at()),
            )
            .with("holds_from", Fact::Time(collateral.valid_from()))
            .with("next_update", Fact::Time(collateral.expires_at()))
    }

    fn debug_step(&self, quote: &TdQuote, checked: &Result<(), Denial>) -> Step {
        let allowed = self.policy.settings().allow_debug_td;
        Step::new("debug", State::of(checked))
            .with("under_debug", Fact::Flag(quote.report().is_under_debug()))
            .with("allowed", Fact::Flag(allowed))
    }

    fn tcb_step(&self, appraised: Option<&Result<Appraisal, Denial>>) -> Step {
        let (state, status) = match appraised {
            Some(Ok(appraisal)) => {
                let status = appraisal.tcb_status();
                (State::of(&self.policy.check_tcb(status)), Some(status))
            }
            Some(Err(denial)) if part_of(denial) == Part::Tcb => (State::denied(denial), None),
            _ => (State::not_checked(UNVERIFIED), None),
        };
        let accepted = self.policy.settings().tcb_statuses;
        Step::new("tcb", state)
            .with_some("status", status.map(Fact::text))
            .with("accepted", Fact::text(accepted))
    }

    fn advisories_step(&self, appraised: Option<&Result<Appraisal, Denial>>) -> Step {
        let refused = &self.policy.settings().refused_advisories;
        let refused = Fact::texts(refused);
        let Some(Ok(appraisal)) = appraised else {
            let state = State::not_checked(UNVERIFIED);
            return Step::new("advisories", state).with("refused", refused);
        };
        let found = appraisal.advisories();
        let checked = self
            .policy
            .check_advisories(found.iter().map(String::as_str));
        Step::new("advisories", State::of(&checked))
            .with("found", Fact::texts(found))
            .with("refused", refused)
    }
}

const UNVERIFIED: &str = "the quote is not verified";

fn signatures_step(root: &TrustedRoot, appraised: Option<&Result<Appraisal, Denial>>) -> Step {
    let state = match appraised {
        Some(Ok(_)) => State::Ok,
        Some(Err(denial)) => match part_of(denial) {
            Part::Signatures => State::denied(denial),
            Part::Collateral => State::not_checked("there is no collateral that fits"),
            // dcap-qvl looks at the enclave's level before the last signature.
            Part::Debug | Part::Attributes | Part::Tcb => {
                State::not_checked("the verification ended before the last of them")
            }
        },
        None => State::not_checked("there is no collateral"),
    };
    let name = if root.is_dangerous() {
        "DANGEROUS: not Intel's"
    } else {
        "Intel's"
    };
    Step::new("signatures", state)
        .with("root", Fact::text(name))
        .with("root_fingerprint", Fact::hex(root.fingerprint().as_bytes()))
}

fn attributes_step(quote: &TdQuote, appraised: Option<&Result<Appraisal, Denial>>) -> Step {
    let state = match appraised {
        Some(Ok(_)) => State::Ok,
        Some(Err(denial)) if matches!(part_of(denial), Part::Attributes | Part::Debug) => {
            State::denied(denial)
        }
        _ => State::not_checked(UNVERIFIED),
    };
    Step::new("td_attributes", state).with("value", Fact::hex(quote.report().attributes()))
}
