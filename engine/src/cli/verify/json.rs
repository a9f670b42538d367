//! The report for programs: one JSON object, described in docs/reference/verify-report.md.

use serde_json::{Map, Value, json};

use super::report::{CheckReport, CheckValue, Outcome, Report, Verdict};

/// Changes when a field is removed or changes its meaning. Fields may be added without a change.
const VERSION: u8 = 1;

pub(super) fn render(report: &Report) -> String {
    let steps: Vec<Value> = report.checks.iter().map(check).collect();
    let mut text = json!({
        "version": VERSION,
        "input": { "kind": report.kind, "name": report.name },
        "at": report.at,
        "policy": report.policy,
        "dangerous_root": report.dangerous_root,
        "warnings": report.warnings,
        "steps": steps,
        "verdict": verdict(&report.verdict),
    })
    .to_string();
    text.push('\n');
    text
}

fn verdict(verdict: &Verdict) -> Value {
    let (code, text) = verdict.reason().unzip();
    json!({
        "result": verdict.result(),
        "code": code,
        "text": text,
        "valid_until": verdict.valid_until(),
        "exit_code": verdict.exit_code(),
    })
}

fn check(check: &CheckReport) -> Value {
    let (state, code, text) = match &check.outcome {
        Outcome::Passed => ("ok", None, None),
        Outcome::Failed { code, text } => ("failed", Some(*code), Some(text)),
        Outcome::NotChecked(reason) => ("not_checked", None, Some(reason)),
    };
    let facts: Map<String, Value> = check
        .values
        .iter()
        .map(|(name, found)| ((*name).to_owned(), value(found)))
        .collect();
    json!({ "step": check.name, "state": state, "code": code, "text": text, "facts": facts })
}

fn value(value: &CheckValue) -> Value {
    match value {
        CheckValue::Text(text) => json!(text),
        CheckValue::Texts(texts) | CheckValue::AnyOf(texts) => json!(texts),
        CheckValue::Number(number) | CheckValue::Time(number) => json!(number),
        CheckValue::Hex(bytes) => json!(hex::encode(bytes)),
        CheckValue::Flag(flag) => json!(flag),
    }
}
