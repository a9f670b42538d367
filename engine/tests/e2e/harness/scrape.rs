//! A parser of Prometheus' text format that is as strict as Prometheus.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::harness::http::get;
use crate::harness::process::{TIMEOUT, poll_until};

/// All samples of one scrape: each series as `/metrics` writes it, and its value.
#[derive(Debug)]
pub(crate) struct Scrape {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// Scrapes `/metrics`.
    pub(crate) fn fetch(address: SocketAddr) -> Self {
        let response = get(address, "/metrics");
        assert_eq!(response.status, 200, "{}", response.body);
        let kind = response.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        Self::parse(&response.body)
    }

    pub(crate) fn parse(text: &str) -> Self {
        let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
        let mut with_help = BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                let before = types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "a second type: {line}");
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(
                    !help.is_empty() && with_help.insert(name.to_owned()),
                    "{line}"
                );
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a sample");
                let value = parse_number(value).unwrap_or_else(|| panic!("not a number: {line}"));
                check_series(series);
                let before = samples.insert(series.to_owned(), value);
                assert!(before.is_none(), "a second sample: {line}");
            }
        }
        let scrape = Self { samples, types };
        scrape.check_types(&with_help);
        scrape
    }

    /// Checks that every sample belongs to a family with type and help, and that the names of
    /// counters, and only those, end in `_total`.
    fn check_types(&self, with_help: &BTreeSet<String>) {
        for series in self.samples.keys() {
            let name = series.split('{').next().expect("a name");
            let endings = ["_bucket", "_sum", "_count"];
            let base = endings.iter().find_map(|ending| {
                let base = name.strip_suffix(ending)?;
                (self.kind(base) == "histogram").then_some(base)
            });
            let family = base.unwrap_or(name);
            assert!(with_help.contains(family), "no help: {family}");
            let total = family.ends_with("_total");
            assert_eq!(self.kind(family) == "counter", total, "{family}");
        }
    }

    fn kind(&self, family: &str) -> &str {
        self.types.get(family).map_or("", String::as_str)
    }

    /// The value of a series, which is given as `/metrics` writes it.
    pub(crate) fn value(&self, series: &str) -> f64 {
        let value = self.samples.get(series);
        *value.unwrap_or_else(|| panic!("{series} is not in {:#?}", self.samples))
    }

    /// The sum of all series of a family whose labels contain `labels`.
    pub(crate) fn sum(&self, family: &str, labels: &str) -> f64 {
        let all = self.samples.iter();
        let found = all.filter(|(series, _)| {
            let in_family = series.split('{').next() == Some(family);
            in_family && series.contains(labels)
        });
        let values: Vec<f64> = found.map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no series {family} with {labels}");
        values.iter().sum()
    }

    pub(crate) fn series(&self) -> impl Iterator<Item = &String> {
        self.samples.keys()
    }

    pub(crate) fn families(&self) -> impl Iterator<Item = &String> {
        self.types.keys()
    }
}

/// Scrapes until `expected` accepts the result.
pub(crate) fn await_scrape(address: SocketAddr, expected: impl Fn(&Scrape) -> bool) -> Scrape {
    let mut last = None;
    poll_until(TIMEOUT, || {
        let scrape = last.insert(Scrape::fetch(address));
        expected(scrape).then_some(())
    })
    .unwrap_or_else(|| panic!("the metrics never had the expected values: {last:#?}"));
    last.expect("a scrape")
}

/// A number as Go's `ParseFloat` reads it, or one of the format's three special values.
fn parse_number(text: &str) -> Option<f64> {
    match text {
        "NaN" => Some(f64::NAN),
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        digits => digits.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

/// Checks the syntax `name{label="value",…}`.
fn check_series(series: &str) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let is_name = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(is_name(name), "{series}");
    let labels = labels.strip_suffix('}').expect("a closing brace");
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').expect("a label");
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        assert!(is_name(name) && value.is_some(), "{series}");
    }
}
