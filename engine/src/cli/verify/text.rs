//! The report for people. The last line is the verdict.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use attest::AttestedPeer;

use crate::io::clock::LAST_READABLE;

use super::report::{CheckReport, CheckValue, Outcome, Report, Verdict};

/// The width of the names of values.
const NAME_WIDTH: usize = 24;

pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "{} {}, verified as of {}, policy {}\n\n",
        report.kind,
        report.name,
        date(report.at),
        report.policy
    );
    render_checks(&mut text, &report.checks);
    text.push('\n');
    if report.dangerous_root {
        text.push_str(
            "warning: verified against a DANGEROUS root, not Intel's: \
             the owner of its key can forge any quote\n",
        );
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if let Some(until) = report.verdict.valid_until() {
        let _ = writeln!(text, "valid until {}", date(until));
    }
    text.push_str(&verdict(&report.verdict));
    text.push('\n');
    text
}

/// The entries of a policy file that admit `peer`.
pub(super) fn render_policy(report: &Report, peer: &AttestedPeer) -> String {
    let mut text = format!(
        "# What {} proved, as of {}. Compare the values with those of the image and the build\n\
         # that you expect: they are what runs there, not what should run.\n",
        report.name,
        date(report.at)
    );
    if report.dangerous_root {
        text.push_str("# DANGEROUS: verified against another root than Intel's.\n");
    }
    if peer.is_debug() {
        text.push_str("# DANGEROUS: the TD is in debug mode.\n");
    }
    text + &attest::policy::file::print(peer)
}

/// Consecutive checks that were not made for the same reason, and have no values, share a line.
fn render_checks(text: &mut String, mut checks: &[CheckReport]) {
    while let Some((first, rest)) = checks.split_first() {
        let similar = rest.iter().take_while(|check| same_line(first, check));
        let (similar, others) = rest.split_at(similar.count());
        render_check(text, first, similar);
        checks = others;
    }
}

fn same_line(first: &CheckReport, other: &CheckReport) -> bool {
    match (&first.outcome, &other.outcome) {
        (Outcome::NotChecked(one), Outcome::NotChecked(two)) => {
            one == two && first.values.is_empty() && other.values.is_empty()
        }
        _ => false,
    }
}

fn render_check(text: &mut String, check: &CheckReport, similar: &[CheckReport]) {
    let names: Vec<&str> = [check]
        .into_iter()
        .chain(similar)
        .map(|check| check.name)
        .collect();
    let names = names.join(", ");
    let _ = match &check.outcome {
        Outcome::Passed => writeln!(text, "[ ok ] {names}"),
        Outcome::Failed { code, text: why } => writeln!(text, "[FAIL] {names}: {code}: {why}"),
        Outcome::NotChecked(why) => writeln!(text, "[ -- ] {names}: not checked: {why}"),
    };
    for (name, found) in &check.values {
        let name = name.replace('_', " ");
        let _ = writeln!(text, "       {name:NAME_WIDTH$} {}", value(found));
    }
}

fn value(value: &CheckValue) -> String {
    match value {
        CheckValue::Text(text) => text.clone(),
        CheckValue::Texts(texts) if texts.is_empty() => "none".to_owned(),
        CheckValue::AnyOf(texts) if texts.is_empty() => "any".to_owned(),
        CheckValue::Texts(texts) | CheckValue::AnyOf(texts) => texts.join(", "),
        CheckValue::Number(number) => number.to_string(),
        CheckValue::Hex(bytes) => hex::encode(bytes),
        CheckValue::Time(at) => date(*at),
        CheckValue::Flag(true) => "yes".to_owned(),
        CheckValue::Flag(false) => "no".to_owned(),
    }
}

/// `2027-01-15T08:00:00Z (1800000000)`.
fn date(at: u64) -> String {
    if at > LAST_READABLE {
        return at.to_string();
    }
    let time = UNIX_EPOCH + Duration::from_secs(at);
    format!("{} ({at})", humantime::format_rfc3339_seconds(time))
}

fn verdict(verdict: &Verdict) -> String {
    match (verdict, verdict.reason()) {
        (_, Some((code, text))) => format!("REFUSED: {code}: {text}"),
        (Verdict::NotBound(_), None) => {
            "ACCEPTED, NOT BOUND: genuine and allowed, but there is no certificate that it is bound \
             to, so it may be a copy"
                .to_owned()
        }
        (_, None) => "ACCEPTED".to_owned(),
    }
}
