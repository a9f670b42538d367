//! The report for people. The last line is the verdict.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::report::{Fact, Report, State, Step, Verdict};

/// Where facts' values begin, so that they stand below each other.
const COLUMN: usize = 24;
/// The last second of the year 9999: what RFC 3339 can write.
const LAST_DATE: u64 = 253_402_300_799;

pub(super) fn render(report: &Report) -> String {
    let mut text = format!(
        "{} {}, judged as of {}, policy {}\n\n",
        report.kind,
        report.name,
        date(report.at),
        report.policy
    );
    let mut steps = report.steps.as_slice();
    while let Some((first, rest)) = steps.split_first() {
        let alike = rest.iter().take_while(|step| is_bare_repeat(first, step));
        let (alike, others) = rest.split_at(alike.count());
        render_step(&mut text, first, alike);
        steps = others;
    }
    text.push('\n');
    if report.dangerous_root {
        text.push_str(
            "warning: judged under a DANGEROUS root, not Intel's: \
             whoever holds its key can make any quote\n",
        );
    }
    if let Some(until) = report.verdict.valid_until() {
        let _ = writeln!(text, "holds until {}", date(until));
    }
    text.push_str(&verdict(&report.verdict));
    text.push('\n');
    text
}

/// Whether `step` was not checked either, for the same reason, and found nothing:
/// such steps share a line.
fn is_bare_repeat(first: &Step, step: &Step) -> bool {
    match (&first.state, &step.state) {
        (State::NotChecked(before), State::NotChecked(why)) => {
            before == why && first.facts.is_empty() && step.facts.is_empty()
        }
        _ => false,
    }
}

fn render_step(text: &mut String, step: &Step, alike: &[Step]) {
    let names: Vec<&str> = [step]
        .into_iter()
        .chain(alike)
        .map(|step| step.name)
        .collect();
    let names = names.join(", ");
    let _ = match &step.state {
        State::Ok => writeln!(text, "[ ok ] {names}"),
        State::Failed { code, text: why } => writeln!(text, "[FAIL] {names}: {code}: {why}"),
        State::NotChecked(why) => writeln!(text, "[ -- ] {names}: not checked: {why}"),
    };
    for (name, fact) in &step.facts {
        let name = name.replace('_', " ");
        let _ = writeln!(text, "       {name:COLUMN$} {}", value(fact));
    }
}

fn value(fact: &Fact) -> String {
    match fact {
        Fact::Text(text) => text.clone(),
        Fact::Texts(texts) if texts.is_empty() => "none".to_owned(),
        Fact::AnyOf(texts) if texts.is_empty() => "any".to_owned(),
        Fact::Texts(texts) | Fact::AnyOf(texts) => texts.join(", "),
        Fact::Number(number) => number.to_string(),
        Fact::Hex(bytes) => hex::encode(bytes),
        Fact::Time(at) => date(*at),
        Fact::Flag(true) => "yes".to_owned(),
        Fact::Flag(false) => "no".to_owned(),
    }
}

/// `2027-01-15T08:00:00Z (1800000000)`.
fn date(at: u64) -> String {
    if at > LAST_DATE {
        return at.to_string();
    }
    let time = UNIX_EPOCH + Duration::from_secs(at);
    format!("{} ({at})", humantime::format_rfc3339_seconds(time))
}

fn verdict(verdict: &Verdict) -> String {
    match (verdict, verdict.reason()) {
        (_, Some((code, text))) => format!("REFUSED: {code}: {text}"),
        (Verdict::NotBound(_), None) => {
            "ACCEPTED, NOT BOUND: genuine and allowed, but whose it is was not checked: \
             there is no certificate with it"
                .to_owned()
        }
        (_, None) => "ACCEPTED".to_owned(),
    }
}
