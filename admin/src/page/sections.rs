//! The parts of the status page. maud escapes every value.

use std::time::Duration;

use maud::{Markup, html};
use serde_json::Value;

use super::format::{ago, count, duration};
use crate::readiness::Check;
use crate::role::ClusterStatus;
use crate::status::{Fact, Lifetime, Refusal, Table};

/// What each check says.
pub(super) fn readiness(checks: &[Check]) -> Markup {
    html! {
        section aria-labelledby="readiness" {
            h2 id="readiness" { "Readiness" }
            ul class="checks card" {
                @for check in by_urgency(checks) {
                    @let (class, sign, word) = sign(check);
                    li class=(class) {
                        span class="sign" aria-hidden="true" { (sign) }
                        span class="name" { (check.name) span class="only-read" { ": " (word) } }
                        @if let Some(reason) = &check.reason {
                            span class="reason" { (reason) }
                        }
                    }
                }
            }
        }
    }
}

/// What fails first, then what passes with a warning.
fn by_urgency(checks: &[Check]) -> Vec<&Check> {
    let mut checks: Vec<_> = checks.iter().collect();
    checks.sort_by_key(|check| (check.ready, check.reason.is_none()));
    checks
}

fn sign(check: &Check) -> (&'static str, &'static str, &'static str) {
    match (check.ready, &check.reason) {
        (true, None) => ("ok", "✓", "passes"),
        (true, Some(_)) => ("warn", "!", "passes, with a warning"),
        (false, _) => ("bad", "✕", "fails"),
    }
}

pub(super) fn warnings(warnings: &[String]) -> Markup {
    html! {
        @if !warnings.is_empty() {
            section aria-labelledby="warnings" {
                h2 id="warnings" { "Warnings" }
                ul class="checks card" {
                    @for warning in warnings {
                        li class="warn" {
                            span class="sign" aria-hidden="true" { "!" }
                            span class="reason" { (inline_code(warning)) }
                        }
                    }
                }
            }
        }
    }
}

/// Lifetimes and facts.
pub(super) fn facts(lifetimes: &[Lifetime], build: &[Fact], uptime: Option<Duration>) -> Markup {
    html! {
        @if !lifetimes.is_empty() {
            section aria-labelledby="lifetimes" {
                h2 id="lifetimes" { "Lifetimes" }
                dl class="card" { @for lifetime in lifetimes { (lifetime_row(lifetime)) } }
            }
        }
        section aria-labelledby="build" {
            h2 id="build" { "Build" }
            dl class="card" {
                @for fact in build {
                    div { dt { (fact.name) } dd { (fact.value) } }
                }
                @if let Some(uptime) = uptime {
                    div { dt { "Up for" } dd { (duration(uptime)) } }
                }
            }
        }
    }
}

fn lifetime_row(lifetime: &Lifetime) -> Markup {
    let (class, text) = match lifetime.seconds {
        None => ("muted", "none yet".to_owned()),
        Some(seconds) if seconds <= 0.0 => ("bad", "has expired".to_owned()),
        Some(seconds) => {
            let class = if seconds < lifetime.warn_below {
                "warn"
            } else {
                "ok"
            };
            // Far more than any certificate lasts.
            let left = Duration::try_from_secs_f64(seconds.min(1e12)).unwrap_or_default();
            (class, format!("{} left", duration(left)))
        }
    };
    html! { div { dt { (lifetime.name) } dd class=(class) { (text) } } }
}

pub(super) fn tables(tables: &[Table]) -> Markup {
    html! { @for table in tables { (self::table(table)) } }
}

fn table(table: &Table) -> Markup {
    html! {
        section {
            h2 { (table.title) }
            @if table.rows.is_empty() {
                p class="card muted" { (inline_code(table.note)) }
            } @else {
                (rows(table, None))
            }
        }
    }
}

/// A table that can be scrolled, also with the keyboard, under what is said of it as a whole.
fn rows(table: &Table, above: Option<&Markup>) -> Markup {
    html! {
        div class="card" {
            @if let Some(above) = above { (above) }
            p class="muted" { (inline_code(table.note)) }
            div class="wide" id=(format!("table-{}", table.title.replace(' ', "-"))) tabindex="0" role="region" aria-label=(table.title) {
                table {
                    thead { (headings(table)) }
                    tbody { @for row in &table.rows { (self::row(table, row)) } }
                }
            }
        }
    }
}

/// The class of a column. Numbers have none.
fn class(table: &Table, position: usize) -> Option<&'static str> {
    (position < table.text_columns).then_some("text")
}

fn headings(table: &Table) -> Markup {
    html! {
        tr {
            @for (position, column) in table.columns.iter().enumerate() {
                th scope="col" class=[class(table, position)] { (column) }
            }
        }
    }
}

fn row(table: &Table, cells: &[String]) -> Markup {
    html! {
        tr {
            @for (position, cell) in cells.iter().enumerate() {
                @if position == 0 {
                    th scope="row" { (cell) }
                } @else {
                    td class=[class(table, position)] { (cell) }
                }
            }
        }
    }
}

/// The cluster and its members, from the document of `/cluster`.
pub(super) fn cluster(cluster: &ClusterStatus) -> Markup {
    let document = &cluster.document;
    let of = |key: &str| text(document.get(key));
    let members = document.get("members").and_then(Value::as_array);
    let columns = ["name", "role", "state", "timeline", "lag", "links"];
    let cells = |member: &Value| columns.map(|key| text(member.get(key))).to_vec();
    let members = Table {
        title: "Members",
        note: "As this member's Patroni names them. The lag is in bytes of WAL; links are those that this member has open.",
        columns: vec!["Member", "Role", "State", "Timeline", "Lag", "Links"],
        text_columns: 3,
        rows: members.into_iter().flatten().map(cells).collect(),
    };
    let errors = document.get("errors").and_then(Value::as_array);
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    let facts = html! {
        dl class="beside" {
            div { dt { "This member" } dd { (of("member")) } }
            div { dt { "Its role" } dd { (of("role")) } }
            div { dt { "Leader" } dd { (of("leader")) } }
            @if let Some(cause) = document.get("fenced").and_then(Value::as_str) {
                div { dt { "Fenced" } dd class="bad" { code { (cause) } } }
            }
            @if document.get("pause") == Some(&Value::Bool(true)) {
                div { dt { "Patroni" } dd class="warn" { "paused" } }
            }
            @for error in errors {
                div { dt { "Error" } dd class="warn" { code { (text(Some(error))) } } }
            }
        }
    };
    html! {
        section aria-labelledby="cluster" {
            h2 id="cluster" { "Cluster " (of("name")) }
            (rows(&members, Some(&facts)))
        }
    }
}

/// A value of a document as text.
fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "–".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

pub(super) fn refusals(refusals: &[Refusal]) -> Markup {
    html! {
        section aria-labelledby="refusals" {
            h2 id="refusals" { "Refusals and early ends" }
            @if refusals.is_empty() {
                p class="card muted" { "Since the start nothing was refused, and no session has ended early." }
            } @else {
                ul class="refusals" { @for refusal in refusals { (self::refusal(refusal)) } }
            }
        }
    }
}

fn refusal(refusal: &Refusal) -> Markup {
    html! {
        li class="card" {
            div class="what" {
                h3 { code { (refusal.code) } }
                p class="muted" {
                    (refusal.what) " · " b { (count(refusal.count)) "×" }
                    @if let Some(last) = refusal.last { " · last " (ago(last)) " ago" }
                }
            }
            div class="text" {
                @if !refusal.meaning.is_empty() { p { (inline_code(&sentence(&refusal.meaning))) } }
                @if !refusal.remedy.is_empty() {
                    p class="remedy" { b { "What to do: " } (inline_code(&refusal.remedy)) }
                }
            }
        }
    }
}

/// Begins with a capital letter, as the cells of the table that it comes from do not.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// Text in backticks is code.
fn inline_code(text: &str) -> Markup {
    html! {
        @for (position, part) in text.split('`').enumerate() {
            @if position % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_mark_code() {
        let html = inline_code("set `a<b` or `c`").into_string();
        assert_eq!(html, "set <code>a&lt;b</code> or <code>c</code>");
    }

    #[test]
    fn a_lifetime_is_judged() {
        let row = |seconds| {
            let lifetime = Lifetime {
                name: "certificate",
                seconds,
                warn_below: 3_600.0,
            };
            lifetime_row(&lifetime).into_string()
        };
        assert!(row(None).contains("none yet"));
        assert!(row(Some(-5.0)).contains("class=\"bad\">has expired"));
        assert!(row(Some(60.0)).contains("class=\"warn\">1 min 0 s left"));
        assert!(row(Some(7_200.0)).contains("class=\"ok\">2 h 0 min left"));
        assert!(row(Some(f64::INFINITY)).contains("ok"));
    }
}
