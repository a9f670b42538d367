//! Renders the tables for a terminal, in Markdown.

use std::fmt::Write as _;

use super::{Bound, Case, Report, Target, Verdict};
use crate::stats::{Spread, format_figure};

/// Ratios are relative to this arm.
const BASELINE: &str = "tokio-baseline";
/// Two runs agree on a target if their medians differ by at most this share.
const MAX_DIFFERENCE: f64 = 0.1;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        text,
        "{}: {} cores of {}, {} GB, Linux {}, TCP {}, {:.1} % of the CPU used by other processes before the run",
        machine.day,
        machine.cores,
        machine.cpu,
        machine.memory_gb,
        machine.kernel,
        machine.congestion,
        machine.busy_before * 100.0,
    );
    let settings = report.settings.iter();
    let settings: Vec<_> = settings
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let _ = writeln!(text, "{}", settings.join(", "));
    for arm in report.arms.iter().filter(|arm| !arm.version.is_empty()) {
        let _ = writeln!(text, "{}: {}", arm.name, arm.version);
    }
    for (arm, why) in &report.missing {
        let _ = writeln!(text, "{arm} is left out: {why}");
    }
    report.cases.iter().for_each(|found| case(found, &mut text));
    idle(report, &mut text);
    targets(&report.targets, &mut text);
    for remark in &report.remarks {
        let _ = writeln!(text, "\n{remark}");
    }
    text
}

fn case(case: &Case, text: &mut String) {
    let _ = writeln!(text, "\n### {}\n", case.title);
    let has_baseline = case.arms.iter().any(|samples| samples.arm == BASELINE);
    let heads = case.columns.iter().flat_map(|column| {
        let ratio = has_baseline.then(|| "÷ tokio baseline".to_owned());
        [Some(column.title.clone()), ratio].into_iter().flatten()
    });
    let heads: Vec<_> = heads.collect();
    let _ = writeln!(text, "| | {} |", heads.join(" | "));
    let _ = writeln!(text, "|---{}|", "|---:".repeat(heads.len()));
    for samples in &case.arms {
        let cells = case.columns.iter().flat_map(|column| {
            let figures = spread(case.spread(&samples.arm, &column.key));
            let ratio = case.ratio(&samples.arm, BASELINE, &column.key);
            let ratio = ratio.map_or_else(|| "–".to_owned(), |ratio| format_figure(ratio.median));
            [Some(figures), has_baseline.then_some(ratio)]
                .into_iter()
                .flatten()
        });
        let cells: Vec<_> = cells.collect();
        let _ = writeln!(text, "| {} | {} |", samples.arm, cells.join(" | "));
    }
}

fn idle(report: &Report, text: &mut String) {
    if report.idle.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n### Idle connections: memory of the process for each (PSS)\n"
    );
    let _ = writeln!(
        text,
        "| | connections | KB each | after the idle time | process before, KB |"
    );
    let _ = writeln!(text, "|---|---:|---:|---:|---:|");
    for memory in &report.idle {
        let Some(top) = memory.outcome.steps.last() else {
            continue;
        };
        let each = |point| format_figure(memory.outcome.per_connection(point));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            memory.arm,
            top.connections,
            each(*top),
            each(memory.outcome.after_idle),
            format_figure(memory.outcome.before.pss),
        );
    }
}

fn targets(targets: &[Target], text: &mut String) {
    if targets.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n### Targets\n");
    let _ = writeln!(text, "| What | Target | Measured | Verdict | |");
    let _ = writeln!(text, "|---|---:|---:|---|---|");
    for target in targets {
        let verdict = match target.verdict() {
            Verdict::Missed => "**missed**",
            other => other.word(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {verdict} | {} |",
            target.what,
            bound(target.bound),
            spread(target.measured),
            target.note,
        );
    }
}

/// Compares the targets of two runs, with the difference of their medians.
pub(super) fn agreement(first: &Report, second: &Report) -> String {
    let mut text = String::from("| What | Target | First | Second | Difference |\n");
    text.push_str("|---|---:|---:|---:|---:|\n");
    let (mut agreeing, mut measured) = (0, 0);
    for one in &first.targets {
        let other = second.targets.iter().find(|other| other.what == one.what);
        let (mine, theirs) = (one.measured, other.and_then(|other| other.measured));
        let difference = mine.zip(theirs).map(|(mine, theirs)| {
            let difference = difference(mine.median, theirs.median);
            measured += 1;
            agreeing += u32::from(difference <= MAX_DIFFERENCE);
            format!("{:.1} %", difference * 100.0)
        });
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            one.what,
            bound(one.bound),
            spread(mine),
            spread(theirs),
            difference.as_deref().unwrap_or("–"),
        );
    }
    let _ = writeln!(
        text,
        "\n{agreeing} of {measured} targets agree within {:.0} %.",
        MAX_DIFFERENCE * 100.0
    );
    text
}

/// The difference of two values, relative to the larger one.
fn difference(one: f64, other: f64) -> f64 {
    match one.abs().max(other.abs()) {
        0.0 => 0.0,
        max => (one - other).abs() / max,
    }
}

pub(super) fn bound(bound: Bound) -> String {
    match bound {
        Bound::AtMost(max) => format!("≤ {}", format_figure(max)),
        Bound::AtLeast(min) => format!("≥ {}", format_figure(min)),
    }
}

pub(super) fn spread(spread: Option<Spread>) -> String {
    match spread {
        None => "–".to_owned(),
        Some(Spread { median, low, high }) if low == high => format_figure(median),
        Some(Spread { median, low, high }) => {
            format!(
                "{} [{}–{}]",
                format_figure(median),
                format_figure(low),
                format_figure(high)
            )
        }
    }
}
