//! The observer (visitor) that turns each check of the trace into a check of the report.

use std::cell::OnceCell;

use attest::trace::{self, Check, CheckObserver, Values};

use super::values;
use crate::cli::escape::escape;
use crate::cli::verify::report::{CheckReport, CheckValue, Outcome};

/// Records every check, in the order in which they are made.
pub(super) struct Recorder<'a> {
    checks: Vec<CheckReport>,
    /// The name of the collateral's source.
    source: String,
    /// Why there is no collateral; set before [`Check::Collateral`] is observed.
    missing: &'a OnceCell<String>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(source: String, missing: &'a OnceCell<String>) -> Self {
        Self {
            checks: Vec::with_capacity(Check::ALL.len()),
            source,
            missing,
        }
    }

    pub(super) fn into_checks(self) -> Vec<CheckReport> {
        self.checks
    }

    /// The outcome. The reason why there is no collateral is added to the denial's text.
    fn outcome(&self, check: Check, outcome: trace::Outcome<'_>) -> Outcome {
        match (outcome, self.missing.get()) {
            (trace::Outcome::Passed, _) => Outcome::Passed,
            (trace::Outcome::Refused(denial), Some(reason)) if check == Check::Collateral => {
                Outcome::Failed {
                    code: denial.code(),
                    text: escape(format!("{denial}: {reason}")),
                }
            }
            (trace::Outcome::Refused(denial), _) => Outcome::denied(denial),
            (trace::Outcome::Skipped(reason), _) => Outcome::not_checked(reason.to_string()),
        }
    }
}

impl CheckObserver for Recorder<'_> {
    fn observe(&mut self, check: Check, outcome: trace::Outcome<'_>, values: Option<Values<'_>>) {
        let mut report = CheckReport::new(check.as_str(), self.outcome(check, outcome));
        let is_reached = values.is_some() || matches!(outcome, trace::Outcome::Refused(_));
        if check == Check::Collateral && is_reached {
            report = report.with("source", CheckValue::text(&self.source));
        }
        if let Some(values) = values {
            report = values::add(report, outcome, values);
        }
        self.checks.push(report);
    }
}
