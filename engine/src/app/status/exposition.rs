//! A reader of Prometheus' text format, for the text that this process has made itself.
//!
//! A line that it does not understand is left out: it must never fail.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The series of one text, by their names.
#[derive(Default)]
pub(super) struct Exposition<'a>(BTreeMap<&'a str, Vec<Series<'a>>>);

/// One series.
#[derive(Debug, PartialEq)]
pub(super) struct Series<'a> {
    labels: Vec<(&'a str, Cow<'a, str>)>,
    pub(super) value: f64,
}

impl Series<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map(|(_, value)| &**value)
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        let mut labels = labels.iter();
        labels.all(|(name, value)| self.label(name) == Some(value))
    }
}

impl<'a> Exposition<'a> {
    pub(super) fn parse(text: &'a str) -> Self {
        let mut families = BTreeMap::<_, Vec<_>>::new();
        for (name, series) in text.lines().filter_map(parse_line) {
            families.entry(name).or_default().push(series);
        }
        Self(families)
    }

    /// All series of a name.
    pub(super) fn family(&self, name: &str) -> impl Iterator<Item = &Series<'a>> {
        self.0.get(name).into_iter().flatten()
    }

    /// The value of the first series of a name, for names that have one series.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        self.family(name).next().map(|series| series.value)
    }

    /// The sum of the series of a name that have these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.family(name).filter(|series| series.has(labels));
        series.map(|series| series.value).sum()
    }

    /// Whether there is a series of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

fn parse_line(line: &str) -> Option<(&str, Series<'_>)> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at_checked(end)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.trim().parse().ok()?;
    Some((name, Series { labels, value }))
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// The labels up to the closing brace, and what follows.
fn parse_labels(mut rest: &str) -> Option<(Labels<'_>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let end = end_of_value(after)?;
        let (value, after) = after.split_at_checked(end)?;
        labels.push((name, unescape(value)));
        rest = after.strip_prefix('"')?;
    }
}

/// The position of the quote that is not escaped.
fn end_of_value(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(other) => plain.push(other),
                None => {}
            },
            char => plain.push(char),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    #[test]
    fn series_are_read_as_they_are_written() {
        let metrics = Metrics::new().unwrap();
        let name = "a \"b\"\\ {c},\nd}";
        metrics
            .gauge("teesql_peer_sessions", &[("peer", name)])
            .set(3.0);
        let labels = [("direction", "sent"), ("shard", "0")];
        metrics
            .counter("teesql_bytes_total", &labels)
            .absolute(u64::MAX);
        let text = metrics.render();
        let read = Exposition::parse(&text);
        let peer = read.family("teesql_peer_sessions").next().unwrap();
        assert_eq!((peer.label("peer"), peer.value), (Some(name), 3.0));
        let sent = read.sum("teesql_bytes_total", &[("direction", "sent")]);
        assert_eq!(sent, u64::MAX as f64);
        assert_eq!(
            read.sum("teesql_bytes_total", &[("direction", "received")]),
            0.0
        );
        assert!(read.value("process_start_time_seconds") > Some(1e9));
    }

    #[test]
    fn what_is_no_series_is_left_out() {
        let text =
            "# HELP a b\na 1\n\nb\nc{\nc{x=\"1\nc{x=\"1\"\nc{x=\"1\"} y\nd NaN\ne +Inf\nf{} 2\n";
        let read = Exposition::parse(text);
        assert_eq!(read.value("a"), Some(1.0));
        assert_eq!(read.value("f"), Some(2.0));
        assert!(read.value("d").is_some_and(f64::is_nan));
        assert_eq!(read.value("e"), Some(f64::INFINITY));
        assert!(!read.has("b") && !read.has("c"));
    }
}
