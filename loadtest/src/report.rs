//! The measurements as data, and their output: Markdown table, JSON and HTML page.
//!
//! The data contains every single measurement, so that a reader can compute other ratios.

mod chart;
mod page;
mod table;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, io_context};
use crate::latency::Summary;
use crate::load::idle;
use crate::machine::Machine;
use crate::peers::current_name;
use crate::stats::{Spread, ratios};

/// The results of a whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine it ran on.
    pub machine: Machine,
    /// Settings of the run, as name and value.
    pub settings: Vec<(String, String)>,
    /// The arms that ran, in order.
    pub arms: Vec<Arm>,
    /// The arms that did not run, with the reason.
    pub missing: Vec<(String, String)>,
    /// Cases that were measured for all arms in turn.
    pub cases: Vec<Case>,
    /// Memory of idle connections.
    pub idle: Vec<IdleMemory>,
    /// The targets, with what was measured.
    pub targets: Vec<Target>,
    /// Remarks on the reliability of the results.
    pub remarks: Vec<String>,
}

/// An arm that ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Name.
    pub name: String,
    /// Version of its program.
    pub version: String,
}

/// One case that was measured for several arms, round by round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Identifier.
    pub key: String,
    /// Title for display.
    pub title: String,
    /// Columns of each sample, in order.
    pub columns: Vec<Column>,
    /// Samples by arm, in order.
    pub arms: Vec<Samples>,
}

/// A column of a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Identifier.
    pub key: String,
    /// Title for display, with the unit.
    pub title: String,
}

/// The samples of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Name of the arm.
    pub arm: String,
    /// By round. `None` where the measurement failed.
    pub rounds: Vec<Option<Sample>>,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the order of the case's columns. `None` where a column does not apply, e.g. the proxy's
    /// CPU in the direct arm.
    pub figures: Vec<Option<f64>>,
    /// Latency distribution, if latencies were measured.
    pub latency: Option<Summary>,
}

/// The memory of an arm by number of idle connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleMemory {
    /// Name of the arm.
    pub arm: String,
    /// The memory samples.
    pub outcome: idle::Outcome,
}

/// A performance target and its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The measured quantity.
    pub what: String,
    /// The bound.
    pub bound: Bound,
    /// The measured value over the rounds.
    pub measured: Option<Spread>,
    /// Explanation for the reader.
    pub note: String,
}

/// Bound of a target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Bound {
    /// At most this value.
    #[serde(alias = "Most")]
    AtMost(f64),
    /// At least this value.
    #[serde(alias = "Least")]
    AtLeast(f64),
}

/// Result of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median is within the bound.
    Met,
    /// The median is outside the bound.
    Missed,
    /// There is no measurement.
    NotMeasured,
}

impl Target {
    /// Compares the median with the bound.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let met = self.measured.map(|spread| match self.bound {
            Bound::AtMost(most) => spread.median <= most,
            Bound::AtLeast(least) => spread.median >= least,
        });
        match met {
            Some(true) => Verdict::Met,
            Some(false) => Verdict::Missed,
            None => Verdict::NotMeasured,
        }
    }
}

impl Verdict {
    /// Text for display.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Case {
    /// Values of one column of an arm, by round.
    #[must_use]
    pub fn figures(&self, arm: &str, column: &str) -> Vec<Option<f64>> {
        let index = self.columns.iter().position(|known| known.key == column);
        let samples = self.arms.iter().find(|samples| samples.arm == arm);
        let (Some(index), Some(samples)) = (index, samples) else {
            return Vec::new();
        };
        let value = |sample: &Sample| sample.figures.get(index).copied().flatten();
        let rounds = samples.rounds.iter();
        rounds
            .map(|sample| sample.as_ref().and_then(value))
            .collect()
    }

    /// Median and range of one column of an arm.
    #[must_use]
    pub fn spread(&self, arm: &str, column: &str) -> Option<Spread> {
        Spread::of(self.figures(arm, column).into_iter().flatten())
    }

    /// Ratio of `arm` to `peer`, taken within each round.
    #[must_use]
    pub fn ratio(&self, arm: &str, peer: &str, column: &str) -> Option<Spread> {
        let (mine, theirs) = (self.figures(arm, column), self.figures(peer, column));
        Spread::of(ratios(&mine, &theirs))
    }

    /// Latency distributions of an arm, for all rounds that have one.
    pub(crate) fn latencies(&self, arm: &str) -> impl Iterator<Item = &Summary> {
        let samples = self.arms.iter().filter(move |samples| samples.arm == arm);
        let rounds = samples.flat_map(|samples| &samples.rounds);
        rounds
            .flatten()
            .filter_map(|sample| sample.latency.as_ref())
    }
}

/// The current identifier of a column, given its identifier in any version of the report.
fn current_column(key: &str) -> &str {
    match key {
        "own" => "load-cpu",
        "quiet" => "p99-before",
        "stormy" => "p99-during",
        "p999" => "p999-during",
        "bare" => "dcap-qvl",
        key => key,
    }
}

impl Report {
    /// Returns the case with this identifier.
    #[must_use]
    pub fn case(&self, key: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.key == key)
    }

    /// Renders the tables for a terminal, in Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        table::render(self)
    }

    /// Renders the targets of this and a second run side by side, in Markdown.
    #[must_use]
    pub fn agreement(&self, second: &Self) -> String {
        table::agreement(self, second)
    }

    /// Renders the self-contained HTML page.
    #[must_use]
    pub fn page(&self) -> String {
        page::render(self)
    }

    /// Reads a `report.json`.
    ///
    /// # Errors
    /// The file cannot be read, or has an incompatible format.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(io_context(shown()))?;
        let wrong = |error| Error::Usage(format!("{}: {error}", shown()));
        let mut report: Self = serde_json::from_str(&text).map_err(wrong)?;
        report.use_current_names();
        Ok(report)
    }

    /// Replaces the names that earlier versions of the report gave to arms and columns.
    fn use_current_names(&mut self) {
        for column in self.cases.iter_mut().flat_map(|case| &mut case.columns) {
            column.key = current_column(&column.key).to_owned();
        }
        let listed = self.arms.iter_mut().map(|arm| &mut arm.name);
        let missing = self.missing.iter_mut().map(|(arm, _)| arm);
        let samples = self.cases.iter_mut().flat_map(|case| &mut case.arms);
        let measured = samples.map(|samples| &mut samples.arm);
        let idle = self.idle.iter_mut().map(|memory| &mut memory.arm);
        for arm in listed.chain(missing).chain(measured).chain(idle) {
            // The growth case appends the number of connections: `sidecar, 16`.
            let (kind, rest) = arm.split_at(arm.find(',').unwrap_or(arm.len()));
            *arm = format!("{}{rest}", current_name(kind));
        }
    }

    /// Writes `report.html` and `report.json` into `folder`.
    ///
    /// # Errors
    /// The directory or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let failed = || io_context(folder.display().to_string());
        std::fs::create_dir_all(folder).map_err(failed())?;
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| Error::Usage(format!("report.json: {error}")))?;
        std::fs::write(folder.join("report.json"), json).map_err(failed())?;
        std::fs::write(folder.join("report.html"), self.page()).map_err(failed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_equal_to_the_bound_meets_the_target() {
        let verdict = |bound, measured: &[f64]| {
            let target = Target {
                what: String::new(),
                bound,
                measured: Spread::of(measured.iter().copied()),
                note: String::new(),
            };
            target.verdict()
        };
        assert_eq!(verdict(Bound::AtMost(0.5), &[0.5]), Verdict::Met);
        assert_eq!(verdict(Bound::AtMost(0.5), &[0.6]), Verdict::Missed);
        assert_eq!(verdict(Bound::AtLeast(0.5), &[0.5]), Verdict::Met);
        assert_eq!(verdict(Bound::AtLeast(0.5), &[0.4]), Verdict::Missed);
        // The range does not matter.
        assert_eq!(verdict(Bound::AtMost(0.5), &[0.1, 0.5, 9.0]), Verdict::Met);
        assert_eq!(verdict(Bound::AtMost(0.5), &[]), Verdict::NotMeasured);
    }
}
