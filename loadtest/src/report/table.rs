//! The table for a terminal, in Markdown.

use std::fmt::Write as _;

use super::{Bound, Case, Report, Target, Verdict};
use crate::stats::{Spread, format_figure};

/// Ratios are relative to this arm.
const BASELINE: &str = "tokio-baseline";
/// What two runs may be apart.
const NEAR: f64 = 0.1;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        text,
        "{}: {} cores of {}, {} GB, Linux {}, TCP {}, busy before {:.1} %",
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
        let _ = writeln!(text, "without {arm}: {why}");
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
        "\n### Idle connections: KB of the process for each (PSS)\n"
    );
    let _ = writeln!(
        text,
        "| | connections | KB each | after a rest | process before, KB |"
    );
    let _ = writeln!(text, "|---|---:|---:|---:|---:|");
    for climb in &report.idle {
        let Some(top) = climb.outcome.steps.last() else {
            continue;
        };
        let each = |point| format_figure(climb.outcome.per_connection(point));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            climb.arm,
            top.connections,
            each(*top),
            each(climb.outcome.after_idle),
            format_figure(climb.outcome.before.pss),
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

/// The targets of two runs, and by how much their medians are apart.
pub(super) fn agreement(first: &Report, second: &Report) -> String {
    let mut text = String::from("| What | Target | First | Second | Apart |\n");
    text.push_str("|---|---:|---:|---:|---:|\n");
    let (mut near, mut measured) = (0, 0);
    for one in &first.targets {
        let other = second.targets.iter().find(|other| other.what == one.what);
        let (mine, theirs) = (one.measured, other.and_then(|other| other.measured));
        let apart = mine.zip(theirs).map(|(mine, theirs)| {
            let apart = apart(mine.median, theirs.median);
            measured += 1;
            near += u32::from(apart <= NEAR);
            format!("{:.1} %", apart * 100.0)
        });
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            one.what,
            bound(one.bound),
            spread(mine),
            spread(theirs),
            apart.as_deref().unwrap_or("–"),
        );
    }
    let _ = writeln!(
        text,
        "\n{near} of {measured} within {:.0} % of each other.",
        NEAR * 100.0
    );
    text
}

/// The distance of two figures, over the greater one.
fn apart(one: f64, other: f64) -> f64 {
    match one.abs().max(other.abs()) {
        0.0 => 0.0,
        most => (one - other).abs() / most,
    }
}

pub(super) fn bound(bound: Bound) -> String {
    match bound {
        Bound::AtMost(most) => format!("≤ {}", format_figure(most)),
        Bound::AtLeast(least) => format!("≥ {}", format_figure(least)),
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
