//! The report for programs: one object, described in docs/reference/verify-report.md.

use serde_json::{Map, Value, json};

use super::report::{Fact, Report, State, Step, Verdict};

/// Changes when a field changes its meaning or goes; new fields may come.
const VERSION: u8 = 1;

pub(super) fn render(report: &Report) -> String {
    let steps: Vec<Value> = report.steps.iter().map(step).collect();
    let mut text = json!({
        "version": VERSION,
        "input": { "kind": report.kind, "name": report.name },
        "at": report.at,
        "policy": report.policy,
        "dangerous_root": report.dangerous_root,
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
        "result": verdict.word(),
        "code": code,
        "text": text,
        "valid_until": verdict.valid_until(),
        "exit_code": verdict.exit_code(),
    })
}

fn step(step: &Step) -> Value {
    let (state, code, text) = match &step.state {
        State::Ok => ("ok", None, None),
        State::Failed { code, text } => ("failed", Some(*code), Some(text)),
        State::NotChecked(why) => ("not_checked", None, Some(why)),
    };
    let facts: Map<String, Value> = step
        .facts
        .iter()
        .map(|(name, fact)| ((*name).to_owned(), value(fact)))
        .collect();
    json!({ "step": step.name, "state": state, "code": code, "text": text, "facts": facts })
}

fn value(fact: &Fact) -> Value {
    match fact {
        Fact::Text(text) => json!(text),
        Fact::Texts(texts) | Fact::AnyOf(texts) => json!(texts),
        Fact::Number(number) | Fact::Time(number) => json!(number),
        Fact::Hex(bytes) => json!(hex::encode(bytes)),
        Fact::Flag(flag) => json!(flag),
    }
}
