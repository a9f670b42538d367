//! A ring of samples of the last ten minutes, and when each reason was last counted.
//!
//! Its size is bounded by the number of samples and by the closed list of reasons: some 100 KB.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use admin::status::{Chart, Line, Refusal, Unit};

use super::exposition::Exposition;
use super::histogram::Histogram;
use crate::telemetry::reason_help::{ReasonContext, reason_help};

/// Between two samples.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How many intervals the charts show.
const INTERVALS: usize = 60;
/// What they show: ten minutes.
const SPAN: Duration = SAMPLE_INTERVAL.saturating_mul(INTERVALS as u32);

/// The values of one moment.
struct Sample {
    at: Instant,
    received: f64,
    sent: f64,
    accepted: f64,
    refused: f64,
    sessions: f64,
    login: Histogram,
}

impl Sample {
    fn of(sample: &Exposition<'_>, at: Instant) -> Self {
        let bytes = |direction| sample.sum("teesql_bytes_total", &[("direction", direction)]);
        let logins = |outcome| sample.sum("teesql_logins_total", &[("outcome", outcome)]);
        let accepted = logins("accepted");
        Self {
            at,
            received: bytes("received"),
            sent: bytes("sent"),
            accepted,
            refused: logins("refused"),
            // A forwarder knows no roles, and has no gauge of its sessions. The counters are not read at the same moment, so that
            // the difference may be negative for a sample.
            sessions: (accepted - sample.sum("teesql_sessions_ended_total", &[])).max(0.0),
            login: Histogram::of(sample, "teesql_login_seconds_bucket"),
        }
    }
}

/// A count, and when it has last changed.
struct Counted {
    count: u64,
    changed: Option<Instant>,
}

/// Where connections are counted by their reasons.
struct Source {
    family: &'static str,
    /// A label that the series must have.
    only: Option<(&'static str, &'static str)>,
    what: &'static str,
    context: ReasonContext,
    /// Reasons that are no refusal: ordinary ends.
    ordinary: &'static [&'static str],
}

impl Source {
    /// Where the reasons of this sample have occurred: a forwarder counts its logins under the same name.
    fn context(&self, sample: &Exposition<'_>) -> ReasonContext {
        match self.context {
            // Only a sidecar has this gauge.
            ReasonContext::Login if !sample.has("teesql_mode_info") => {
                ReasonContext::ForwarderLogin
            }
            context => context,
        }
    }
}

const SOURCES: [Source; 4] = [
    Source {
        family: "teesql_logins_total",
        only: Some(("outcome", "refused")),
        what: "login refused",
        context: ReasonContext::Login,
        ordinary: &[],
    },
    Source {
        family: "teesql_sessions_ended_total",
        only: None,
        what: "session ended",
        context: ReasonContext::Session,
        ordinary: &["client_closed", "upstream_closed"],
    },
    Source {
        family: "teesql_links_refused_total",
        only: None,
        what: "link not opened",
        context: ReasonContext::Link,
        ordinary: &[],
    },
    Source {
        family: "teesql_forward_target_failures_total",
        only: None,
        what: "server not reached",
        context: ReasonContext::Server,
        ordinary: &[],
    },
];

/// A reason and the position of its source.
type Key = (usize, String);

#[derive(Default)]
pub(super) struct History {
    samples: VecDeque<Sample>,
    reasons: HashMap<Key, Counted>,
}

/// The counts of all reasons that are not zero and no ordinary ends. What several series have in common, such as the direction of links,
/// is added up.
fn reasons(sample: &Exposition<'_>) -> HashMap<Key, u64> {
    let mut counts = HashMap::new();
    for (position, source) in SOURCES.iter().enumerate() {
        for series in sample.family(source.family) {
            let wanted = source.only;
            let is_wanted = wanted.is_none_or(|(name, value)| series.label(name) == Some(value));
            let Some(reason) = series.label("reason") else {
                continue;
            };
            if is_wanted && series.value > 0.0 && !source.ordinary.contains(&reason) {
                let count = counts.entry((position, reason.to_owned())).or_insert(0_u64);
                // A counter is a whole number.
                *count = count.saturating_add(series.value as u64);
            }
        }
    }
    counts
}

impl History {
    pub(super) fn record(&mut self, sample: &Exposition<'_>, now: Instant) {
        let is_first = self.samples.is_empty();
        for (key, count) in reasons(sample) {
            let known = self.reasons.entry(key).or_insert(Counted {
                count: 0,
                changed: None,
            });
            if known.count != count {
                known.count = count;
                // When it was counted before the first sample is not known.
                known.changed = (!is_first).then_some(now);
            }
        }
        if self.samples.len() > INTERVALS {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample::of(sample, now));
    }

    /// Those of `sample`, the most frequent first.
    pub(super) fn refusals(&self, sample: &Exposition<'_>, now: Instant) -> Vec<Refusal> {
        let mut refusals: Vec<_> = reasons(sample)
            .into_iter()
            .filter_map(|(key, count)| self.refusal(key, count, sample, now))
            .collect();
        refusals.sort_by(|one, other| {
            let order = other.count.cmp(&one.count);
            order.then_with(|| (&one.code, one.what).cmp(&(&other.code, other.what)))
        });
        refusals
    }

    fn refusal(
        &self,
        key: Key,
        count: u64,
        sample: &Exposition<'_>,
        now: Instant,
    ) -> Option<Refusal> {
        let source = SOURCES.get(key.0)?;
        let last = match self.reasons.get(&key) {
            Some(known) if known.count == count => known.changed,
            // Since the last sample.
            Some(_) | None => Some(now),
        };
        let help = reason_help(&key.1, source.context(sample));
        Some(Refusal {
            what: source.what,
            count,
            last: last.map(|last| now.saturating_duration_since(last)),
            meaning: help.map(|help| help.meaning.clone()).unwrap_or_default(),
            remedy: help.map(|help| help.remedy.clone()).unwrap_or_default(),
            code: key.1,
        })
    }

    pub(super) fn charts(&self) -> Vec<Chart> {
        let line = |name, value: &dyn Fn(&Sample, &Sample) -> Option<f64>| Line {
            name,
            points: self.points(value),
        };
        let rate = |name, value: fn(&Sample) -> f64| {
            line(name, &move |before: &Sample, after: &Sample| {
                let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
                let change = (value(after) - value(before)).max(0.0);
                (seconds > 0.0).then(|| change / seconds)
            })
        };
        let quantile = |name, quantile| {
            line(name, &move |before: &Sample, after: &Sample| {
                after.login.quantile_since(&before.login, quantile)
            })
        };
        let chart = |title, unit, lines: Vec<Line>| Chart {
            title,
            unit,
            span: SPAN,
            lines,
        };
        vec![
            chart(
                "Throughput",
                Unit::BytesPerSecond,
                vec![
                    rate("from clients", |sample| sample.received),
                    rate("to clients", |sample| sample.sent),
                ],
            ),
            chart(
                "Sessions",
                Unit::Count,
                vec![line("open", &|_, after| Some(after.sessions))],
            ),
            chart(
                "Logins",
                Unit::PerSecond,
                vec![
                    rate("accepted", |sample| sample.accepted),
                    rate("refused", |sample| sample.refused),
                ],
            ),
            chart(
                "Login latency",
                Unit::Seconds,
                vec![quantile("median", 0.5), quantile("95th percentile", 0.95)],
            ),
        ]
    }

    /// A value for each interval, the newest last; as many as the charts show.
    fn points(&self, value: &dyn Fn(&Sample, &Sample) -> Option<f64>) -> Vec<Option<f64>> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        let known: Vec<_> = pairs.map(|(before, after)| value(before, after)).collect();
        let missing = INTERVALS.saturating_sub(known.len());
        std::iter::repeat_n(None, missing).chain(known).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "teesql_logins_total{outcome=\"accepted\",reason=\"none\"} 1\n\
        teesql_logins_total{outcome=\"refused\",reason=\"authentication_failed\"} 2\n\
        teesql_sessions_ended_total{reason=\"client_closed\"} 1\n\
        teesql_bytes_total{direction=\"sent\",shard=\"0\"} 100\n\
        teesql_bytes_total{direction=\"sent\",shard=\"1\"} 100\n";
    const LATER: &str = "teesql_logins_total{outcome=\"accepted\",reason=\"none\"} 11\n\
        teesql_logins_total{outcome=\"refused\",reason=\"authentication_failed\"} 2\n\
        teesql_logins_total{outcome=\"refused\",reason=\"unbound_key\"} 3\n\
        teesql_sessions_ended_total{reason=\"client_closed\"} 5\n\
        teesql_sessions_ended_total{reason=\"killed\"} 1\n\
        teesql_bytes_total{direction=\"sent\",shard=\"0\"} 1100\n\
        teesql_bytes_total{direction=\"sent\",shard=\"1\"} 100\n";

    fn chart(history: &History, title: &str) -> Chart {
        let mut charts = history.charts().into_iter();
        charts.find(|chart| chart.title == title).unwrap()
    }

    #[test]
    fn charts_show_rates_between_samples() {
        let (mut history, start) = (History::default(), Instant::now());
        history.record(&Exposition::parse(START), start);
        history.record(&Exposition::parse(LATER), start + Duration::from_secs(10));
        let last = |title, line: usize| chart(&history, title).lines[line].points[INTERVALS - 1];
        assert_eq!(last("Throughput", 0), Some(0.0));
        assert_eq!(last("Throughput", 1), Some(100.0));
        assert_eq!(last("Logins", 0), Some(1.0));
        assert_eq!(last("Logins", 1), Some(0.3));
        assert_eq!(last("Sessions", 0), Some(5.0));
        assert_eq!(last("Login latency", 0), None);
        assert_eq!(chart(&history, "Logins").lines[0].points[0], None);
    }

    #[test]
    fn the_number_of_sessions_is_never_negative() {
        let (mut history, start) = (History::default(), Instant::now());
        let text = "teesql_sessions_ended_total{reason=\"client_closed\"} 1\n";
        for seconds in [0, 5] {
            let at = start + Duration::from_secs(seconds);
            history.record(&Exposition::parse(text), at);
        }
        let points = &chart(&history, "Sessions").lines[0].points;
        assert_eq!(points[INTERVALS - 1], Some(0.0));
    }

    #[test]
    fn the_ring_is_bounded() {
        let (mut history, start) = (History::default(), Instant::now());
        for number in 0..3 * INTERVALS {
            let at = start + SAMPLE_INTERVAL * u32::try_from(number).unwrap();
            history.record(&Exposition::parse(START), at);
        }
        assert_eq!(history.samples.len(), INTERVALS + 1);
        assert_eq!(chart(&history, "Sessions").lines[0].points.len(), INTERVALS);
        assert_eq!(history.reasons.len(), 1);
    }

    #[test]
    fn refusals_have_their_meaning_and_their_last_time() {
        let (mut history, start) = (History::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        history.record(&Exposition::parse(START), at(0));
        history.record(&Exposition::parse(LATER), at(5));
        let refusals = history.refusals(&Exposition::parse(LATER), at(65));
        let codes: Vec<_> = refusals
            .iter()
            .map(|one| {
                (
                    one.code.as_str(),
                    one.count,
                    one.last.map(|last| last.as_secs()),
                )
            })
            .collect();
        let expected = [
            ("unbound_key", 3, Some(60)),
            // It was counted before the first sample.
            ("authentication_failed", 2, None),
            ("killed", 1, Some(60)),
        ];
        assert_eq!(codes, expected);
        assert!(refusals[0].remedy.contains("an attack"), "{refusals:?}");
        assert!(refusals[1].meaning.contains("wrong secret"), "{refusals:?}");
        assert_eq!(refusals[2].what, "session ended");
        // One that no sample has seen yet was counted just now.
        let more = LATER.replace("unbound_key\"} 3", "unbound_key\"} 4");
        let refusals = history.refusals(&Exposition::parse(&more), at(66));
        assert_eq!(refusals[0].last, Some(Duration::ZERO));
    }

    #[test]
    fn a_forwarder_has_other_meanings() {
        let refused = "teesql_logins_total{outcome=\"refused\",reason=\"overloaded\"} 1\n";
        let meaning = |text: &str| {
            let sample = Exposition::parse(text);
            let refusals = History::default().refusals(&sample, Instant::now());
            refusals[0].meaning.clone()
        };
        let forwarder = meaning(refused);
        assert!(forwarder.contains("the server's address"), "{forwarder}");
        let sidecar = format!("teesql_mode_info{{mode=\"production\"}} 1\n{refused}");
        let sidecar = meaning(&sidecar);
        assert!(sidecar.contains("SCRAM key derivations"), "{sidecar}");
    }
}
