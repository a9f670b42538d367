//! The report's table as a snapshot, and the well-formedness of its page.
// A test fails by panicking.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

use loadtest::latency::LatencyHistogram;
use loadtest::load::idle::{MemorySample, Outcome};
use loadtest::machine::Machine;
use loadtest::report::{
    Arm, Bound, Case, Column, IdleMemory, Report, Sample, Samples, Target, Verdict,
};
use loadtest::stats::Spread;

fn columns(names: &[(&str, &str)]) -> Vec<Column> {
    let column = |(key, title): &(&str, &str)| Column {
        key: (*key).to_owned(),
        title: (*title).to_owned(),
    };
    names.iter().map(column).collect()
}

fn sample(cpu: Option<f64>, tps: f64) -> Option<Sample> {
    let mut latencies = LatencyHistogram::new().unwrap();
    for step in 1..=1000 {
        latencies.record(std::time::Duration::from_micros(100 + step));
    }
    Some(Sample {
        figures: vec![cpu, Some(tps), Some(8.0)],
        latency: Some(latencies.summary()),
    })
}

fn select(clients: u32) -> Case {
    let arm = |arm: &str, rounds| Samples {
        arm: arm.to_owned(),
        rounds,
    };
    Case {
        key: format!("select-{clients}"),
        title: format!("SELECT, prepared, {clients} clients"),
        columns: columns(&[
            ("cpu", "CPU µs/query"),
            ("tps", "queries/s"),
            ("load-cpu", "load CPU µs/query"),
        ]),
        arms: vec![
            arm(
                "direct",
                vec![sample(None, 50_000.0), sample(None, 52_000.0)],
            ),
            // Slower in the second round, like the sidecar: the ratio is not affected.
            arm(
                "tokio-baseline",
                vec![sample(Some(20.0), 25_000.0), sample(Some(40.0), 12_500.0)],
            ),
            arm(
                "sidecar",
                vec![sample(Some(10.0), 30_000.0), sample(Some(20.0), 15_000.0)],
            ),
            arm("haproxy", vec![None, None]),
        ],
    }
}

fn target(what: &str, bound: Bound, measured: Option<f64>) -> Target {
    Target {
        what: what.to_owned(),
        bound,
        measured: measured.and_then(|value| Spread::of([value])),
        note: "<b>&\"".to_owned(),
    }
}

fn report() -> Report {
    let point = |connections, pss| MemorySample {
        connections,
        pss,
        rss: pss + 500.0,
    };
    let names = ["direct", "tokio-baseline", "sidecar", "haproxy"];
    Report {
        machine: Machine {
            cpu: "A <processor>".to_owned(),
            cores: 2,
            memory_gb: 24.0,
            kernel: "6.18".to_owned(),
            congestion: "cubic".to_owned(),
            busy_before: 0.25,
            day: "2026-11-20".to_owned(),
        },
        settings: vec![("rounds".to_owned(), "2".to_owned())],
        arms: names
            .map(|name| Arm {
                name: name.to_owned(),
                version: format!("{name} 1.0"),
            })
            .into(),
        missing: vec![("stunnel".to_owned(), "stunnel is not installed".to_owned())],
        cases: vec![select(1), select(16)],
        idle: vec![IdleMemory {
            arm: "sidecar".to_owned(),
            outcome: Outcome {
                before: point(0, 10_000.0),
                steps: vec![point(1_000, 18_000.0), point(5_000, 50_000.0)],
                after_idle: point(5_000, 45_000.0),
            },
        }],
        targets: vec![
            target("met", Bound::AtMost(0.6), Some(0.5)),
            target("missed", Bound::AtLeast(0.95), Some(0.5)),
            target("not measured", Bound::AtMost(8.0), None),
        ],
        remarks: vec!["The machine was not idle.".to_owned()],
    }
}

#[test]
fn table_snapshot() {
    insta::assert_snapshot!(report().table());
}

#[test]
fn the_median_decides_the_verdict() {
    let verdicts: Vec<_> = report().targets.iter().map(Target::verdict).collect();
    assert_eq!(
        verdicts,
        [Verdict::Met, Verdict::Missed, Verdict::NotMeasured]
    );
}

#[test]
fn agreement_compares_two_runs_by_target() {
    let (first, mut second) = (report(), report());
    second.targets.remove(2);
    second.targets[0].measured = Spread::of([0.55]);
    second.targets[1].measured = Spread::of([0.4]);
    let text = first.agreement(&second);
    let differences: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_suffix(" |")?.rsplit_once("| "))
        .map(|(_, differences)| differences)
        .collect();
    assert_eq!(
        differences,
        ["Difference", "9.1 %", "20.0 %", "–"],
        "{text}"
    );
    assert!(
        text.ends_with("1 of 2 targets agree within 10 %.\n"),
        "{text}"
    );
    assert!(first.agreement(&first).contains("2 of 2"));
}

#[test]
fn case_ratios_are_taken_within_a_round() {
    let ratio = select(16)
        .ratio("sidecar", "tokio-baseline", "cpu")
        .unwrap();
    assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 0.5, 0.5));
    assert_eq!(select(16).ratio("sidecar", "haproxy", "cpu"), None);
    assert_eq!(select(16).ratio("sidecar", "direct", "cpu"), None);
}

#[test]
fn json_round_trip() {
    let folder = tempfile::tempdir().unwrap();
    report().write(folder.path()).unwrap();
    let back = Report::read(&folder.path().join("report.json")).unwrap();
    assert_eq!(back, report());
    assert_eq!(
        std::fs::read_to_string(folder.path().join("report.html")).unwrap(),
        back.page()
    );
}

#[test]
fn a_report_with_earlier_names_is_read() {
    let json = serde_json::to_string(&report()).unwrap();
    let renamed = [
        ("\"tokio-baseline\"", "\"twin\""),
        ("\"load-cpu\"", "\"own\""),
        ("\"AtMost\"", "\"Most\""),
        ("\"AtLeast\"", "\"Least\""),
        ("\"steps\"", "\"climb\""),
        ("\"after_idle\"", "\"rested\""),
        ("\"max\"", "\"most\""),
    ];
    let earlier = renamed.iter().fold(json, |json, (now, earlier)| {
        assert!(json.contains(now), "{now}");
        json.replace(now, earlier)
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    std::fs::write(&file, earlier.replace("twin 1.0", "tokio-baseline 1.0")).unwrap();
    assert_eq!(Report::read(&file).unwrap(), report());
}

/// All tags are closed in order, all drawn values are finite, and nothing is loaded from elsewhere.
#[test]
fn the_page_is_well_formed_and_self_contained() {
    let page = report().page();
    assert!(page.matches("<svg").count() >= 6, "charts are missing");
    assert!(page.contains("A &lt;processor&gt;") && page.contains("&lt;b&gt;&amp;&quot;"));
    assert!(
        !page.contains("NaN") && !page.contains("inf"),
        "a value is not finite"
    );
    for foreign in ["<script", "<link", "src=", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    well_formed(&page);
}

#[test]
fn an_empty_report_renders() {
    let page = Report::default().page();
    assert_eq!(page.matches("<svg").count(), 0);
    well_formed(&page);
    assert!(!Report::default().table().is_empty());
}

fn well_formed(page: &str) {
    const VOID: [&str; 2] = ["meta", "!doctype"];
    let mut open = Vec::new();
    for piece in page.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in {tag}");
        let name = tag.trim_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closed in the wrong order");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0], "not closed");
}
