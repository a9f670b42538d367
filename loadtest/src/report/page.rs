//! Renders the HTML page: one file that includes its style and charts, without scripts.

use std::fmt::Write as _;

use super::chart::{Axis, Scale, Series, bars, escape, lines};
use super::table::{bound, spread};
use super::{Case, Report};
use crate::latency::CURVE;
use crate::stats::Spread;

const STYLE: &str = include_str!("style.css");

pub(super) fn render(report: &Report) -> String {
    let mut body = String::new();
    head(report, &mut body);
    targets(report, &mut body);
    charts(report, &mut body);
    data_tables(report, &mut body);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>TeeSQL benchmark</title><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>\n"
    )
}

fn head(report: &Report, body: &mut String) {
    let machine = &report.machine;
    let _ = write!(
        body,
        "<h1>The sidecar compared with other proxies</h1><p class=\"lead\">{} · {} cores of {} · {} GB · \
         Linux {} · TCP {} · {:.1} % of the CPU used by other processes before the run</p>",
        escape(&machine.day),
        machine.cores,
        escape(&machine.cpu),
        machine.memory_gb,
        escape(&machine.kernel),
        escape(&machine.congestion),
        machine.busy_before * 100.0,
    );
    body.push_str("<p class=\"small\">");
    for (name, value) in &report.settings {
        let _ = write!(body, "{} <b>{}</b> · ", escape(name), escape(value));
    }
    let known = report.arms.iter().filter(|arm| !arm.version.is_empty());
    let versions: Vec<_> = known.map(|arm| escape(&arm.version)).collect();
    let _ = write!(body, "{}</p>", versions.join(" · "));
    for (arm, why) in &report.missing {
        let _ = write!(
            body,
            "<p class=\"remark\">{} is left out: {}</p>",
            escape(arm),
            escape(why)
        );
    }
    for remark in &report.remarks {
        let _ = write!(body, "<p class=\"remark\">{}</p>", escape(remark));
    }
}

fn targets(report: &Report, body: &mut String) {
    if report.targets.is_empty() {
        return;
    }
    body.push_str(
        "<h2>Targets</h2><p>Ratios are taken within each round. The verdict depends on the median of \
         all rounds; the range is in brackets.</p><div class=\"wide\"><table><thead><tr><th>What</th>\
         <th>Target</th><th>Measured</th><th>Verdict</th><th></th></tr></thead><tbody>",
    );
    for target in &report.targets {
        let verdict = target.verdict().word();
        let _ = write!(
            body,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td><span class=\"verdict v-{}\">{verdict}</span></td><td class=\"small\">{}</td></tr>",
            escape(&target.what),
            bound(target.bound),
            spread(target.measured),
            verdict.replace(' ', "-"),
            escape(&target.note),
        );
    }
    body.push_str("</tbody></table></div>");
}

fn charts(report: &Report, body: &mut String) {
    figure(
        body,
        "CPU per query, 16 clients",
        "Prepared SELECT. User and system CPU time of the proxy's process; lower is better. Thin lines show the range over the rounds.",
        &bar(report, "select-16", "cpu", "µs"),
    );
    figure(
        body,
        "CPU per query by connections",
        "CPU time of the proxy's process per query, in µs; lower is better.",
        &by_connections(report, "select", "cpu", "µs per query"),
    );
    figure(
        body,
        "CPU per query by connections, dedicated core",
        "The same with Postgres and the load off the proxy's core.",
        &by_connections(report, "apart", "cpu", "µs per query"),
    );
    figure(
        body,
        "Throughput by connections",
        "Queries per second in a closed loop, with the proxy on one core; higher is better.",
        &by_connections(report, "select", "tps", "queries per second"),
    );
    for (key, title) in [
        ("select-1", "Latency, 1 client"),
        ("select-16", "Latency, 16 clients"),
    ] {
        figure(
            body,
            title,
            "Latency in µs at each percentile, median over the rounds, on a logarithmic scale. The slowest queries are on the right.",
            &distribution(report, key),
        );
    }
    rates(report, body);
    figure(
        body,
        "Memory by connections",
        "Memory (PSS) that idle connections add to the process, each after one query. Measured with a fake Postgres, because a real one has a process for each connection.",
        &memory(report),
    );
    for (key, title) in [("copy-out", "Bulk, COPY OUT"), ("copy-in", "Bulk, COPY IN")] {
        figure(
            body,
            title,
            "CPU time of the proxy in seconds per GB; lower is better.",
            &bar(report, key, "cpu", "s/GB"),
        );
    }
    figure(
        body,
        "Full mutual TLS handshakes",
        "Handshakes per second of the server's CPU time: TLS 1.3, P-256, X25519, verdict cached; higher is better.",
        &bar(report, "handshake", "per-core", "/s"),
    );
}

/// The latency at fixed rates: one chart for each case.
fn rates(report: &Report, body: &mut String) {
    let fixed_rate = |case: &&Case| case.key.starts_with("open-") || case.key == "mixture";
    for case in report.cases.iter().filter(fixed_rate) {
        let caption = match case.key.as_str() {
            "mixture" => {
                "Latency of the short queries in µs from the intended start, by percentile."
            }
            _ => {
                "Latency in µs from the intended start, by percentile. An arm that did not keep up has no line."
            }
        };
        figure(body, &case.title, caption, &distribution(report, &case.key));
    }
}

fn figure(body: &mut String, title: &str, caption: &str, svg: &str) {
    if !svg.is_empty() {
        let _ = write!(
            body,
            "<figure><h2>{title}</h2><figcaption>{caption}</figcaption>{svg}</figure>"
        );
    }
}

fn bar(report: &Report, key: &str, column: &str, unit: &str) -> String {
    let Some(case) = report.case(key) else {
        return String::new();
    };
    let arms = case.arms.iter();
    let values: Vec<(String, Spread)> = arms
        .filter_map(|samples| Some((samples.arm.clone(), case.spread(&samples.arm, column)?)))
        .collect();
    bars(&case.title, unit, &values)
}

/// The cases `<part>-<n>`, ordered by n.
fn by_connections(report: &Report, part: &str, column: &str, unit: &'static str) -> String {
    let numbered = |case: &Case| {
        let number = case.key.strip_prefix(part)?.strip_prefix('-')?;
        number.parse::<u32>().ok()
    };
    let mut cases: Vec<(f64, &Case)> = report
        .cases
        .iter()
        .filter_map(|case| Some((f64::from(numbered(case)?), case)))
        .collect();
    cases.sort_by(|one, other| one.0.total_cmp(&other.0));
    let line = |arm: &str| -> Vec<(f64, f64)> {
        let point = |(x, case): &(f64, &Case)| Some((*x, case.spread(arm, column)?.median));
        cases.iter().filter_map(point).collect()
    };
    let series = series(report, line);
    let ticks = cases.iter().map(|(x, _)| (*x, format!("{x}"))).collect();
    let x = Axis {
        title: "connections",
        scale: Scale::Log,
        ticks,
    };
    lines(unit, &x, &linear(unit), &series)
}

fn linear(title: &'static str) -> Axis {
    Axis {
        title,
        scale: Scale::Linear,
        ticks: Vec::new(),
    }
}

fn series(report: &Report, line: impl Fn(&str) -> Vec<(f64, f64)>) -> Vec<Series> {
    let arms = report
        .arms
        .iter()
        .map(|arm| (arm.name.clone(), line(&arm.name)));
    arms.filter(|(_, points)| !points.is_empty()).collect()
}

fn distribution(report: &Report, key: &str) -> String {
    let Some(case) = report.case(key) else {
        return String::new();
    };
    let line = |arm: &str| -> Vec<(f64, f64)> {
        let point = |percent: f64| {
            let rounds = case
                .latencies(arm)
                .filter_map(|summary| summary.at(percent));
            Some((percent, Spread::of(rounds)?.median))
        };
        CURVE.into_iter().skip(1).filter_map(point).collect()
    };
    let ticks = [50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];
    let x = Axis {
        title: "percentile",
        scale: Scale::Nines,
        ticks: ticks
            .map(|percent| (percent, format!("{percent}")))
            .to_vec(),
    };
    let y = Axis {
        title: "µs",
        scale: Scale::Log,
        ticks: Vec::new(),
    };
    lines(&case.title, &x, &y, &series(report, line))
}

fn memory(report: &Report) -> String {
    let megabytes = |memory: &super::IdleMemory| -> Series {
        let before = memory.outcome.before.pss;
        let points = memory.outcome.steps.iter().map(|point| {
            let connections = u32::try_from(point.connections).unwrap_or(0);
            (
                f64::from(connections),
                (point.pss - before).max(0.0) / 1024.0,
            )
        });
        (
            memory.arm.clone(),
            [(0.0, 0.0)].into_iter().chain(points).collect(),
        )
    };
    let series: Vec<_> = report.idle.iter().map(megabytes).collect();
    lines(
        "memory by connections",
        &linear("connections"),
        &linear("MB"),
        &series,
    )
}

/// Tables with all measurements.
fn data_tables(report: &Report, body: &mut String) {
    body.push_str("<h2>All measurements</h2>");
    for case in &report.cases {
        let _ = write!(
            body,
            "<details><summary>{}</summary><div class=\"wide\"><table><thead><tr><th></th>",
            escape(&case.title)
        );
        for column in &case.columns {
            let _ = write!(body, "<th>{}</th>", escape(&column.title));
        }
        body.push_str("</tr></thead><tbody>");
        for samples in &case.arms {
            let _ = write!(body, "<tr><td>{}</td>", escape(&samples.arm));
            for column in &case.columns {
                let cell = spread(case.spread(&samples.arm, &column.key));
                let _ = write!(body, "<td class=\"n\">{cell}</td>");
            }
            body.push_str("</tr>");
        }
        body.push_str("</tbody></table></div></details>");
    }
}
