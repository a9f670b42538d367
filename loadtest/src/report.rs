//! What was measured, as data; and from it the table, the JSON and the page.
//!
//! Every single measurement is in it, so that anybody can take other ratios than
//! these.

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

/// All of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How: one line each, name and value.
    pub settings: Vec<(String, String)>,
    /// The arms that ran, in order.
    pub arms: Vec<Arm>,
    /// The arms that did not, and why.
    pub missing: Vec<(String, String)>,
    /// What was measured in turns.
    pub cases: Vec<Case>,
    /// Memory by connections.
    pub idle: Vec<IdleMemory>,
    /// The targets, with their verdicts.
    pub targets: Vec<Target>,
    /// What a reader has to know before believing any of it.
    pub remarks: Vec<String>,
}

/// An arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// One thing that was measured of several arms, round by round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// For machines.
    pub key: String,
    /// For people.
    pub title: String,
    /// What the figures of a sample are, in their order.
    pub columns: Vec<Column>,
    /// By arm, in order.
    pub arms: Vec<Samples>,
}

/// A format_figure's name and unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// For machines.
    pub key: String,
    /// For people, with its unit.
    pub title: String,
}

/// An arm's measurements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Whose.
    pub arm: String,
    /// By round; `None` where it failed.
    pub rounds: Vec<Option<Sample>>,
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the order of the case's columns; `None` where there is none, as CPU of
    /// a proxy that is not there.
    pub figures: Vec<Option<f64>>,
    /// The distribution, where latencies were taken.
    pub latency: Option<Summary>,
}

/// An arm's memory by connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IdleMemory {
    /// Whose.
    pub arm: String,
    /// The climb.
    pub outcome: idle::Outcome,
}

/// A target and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What is asked.
    pub what: String,
    /// The bound.
    pub bound: Bound,
    /// What was measured, over the rounds.
    pub measured: Option<Spread>,
    /// What has to be known about it.
    pub note: String,
}

/// The bound of a target.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Bound {
    /// No more than.
    #[serde(alias = "Most")]
    AtMost(f64),
    /// No less than.
    #[serde(alias = "Least")]
    AtLeast(f64),
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median is with_timeout the bound.
    Met,
    /// It is not.
    Missed,
    /// There is nothing to judge.
    NotMeasured,
}

impl Target {
    /// Whether it is met, by the median.
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
    /// For people.
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
    /// An arm's figures of one column, by round.
    #[must_use]
    pub fn figures(&self, arm: &str, column: &str) -> Vec<Option<f64>> {
        let index = self.columns.iter().position(|known| known.key == column);
        let samples = self.arms.iter().find(|samples| samples.arm == arm);
        let (Some(index), Some(samples)) = (index, samples) else {
            return Vec::new();
        };
        let format_figure = |sample: &Sample| sample.figures.get(index).copied().flatten();
        let rounds = samples.rounds.iter();
        rounds
            .map(|sample| sample.as_ref().and_then(format_figure))
            .collect()
    }

    /// Median and range of an arm's figures.
    #[must_use]
    pub fn spread(&self, arm: &str, column: &str) -> Option<Spread> {
        Spread::of(self.figures(arm, column).into_iter().flatten())
    }

    /// `arm` over `peer`, with_timeout each round.
    #[must_use]
    pub fn ratio(&self, arm: &str, peer: &str, column: &str) -> Option<Spread> {
        let (mine, theirs) = (self.figures(arm, column), self.figures(peer, column));
        Spread::of(ratios(&mine, &theirs))
    }

    /// The distributions of an arm, by round.
    pub(crate) fn latencies(&self, arm: &str) -> impl Iterator<Item = &Summary> {
        let samples = self.arms.iter().filter(move |samples| samples.arm == arm);
        let rounds = samples.flat_map(|samples| &samples.rounds);
        rounds
            .flatten()
            .filter_map(|sample| sample.latency.as_ref())
    }
}

impl Report {
    /// A case by its key.
    #[must_use]
    pub fn case(&self, key: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.key == key)
    }

    /// The table for a terminal, in Markdown.
    #[must_use]
    pub fn table(&self) -> String {
        table::render(self)
    }

    /// The targets' figures beside those of a second run, in Markdown.
    #[must_use]
    pub fn agreement(&self, second: &Self) -> String {
        table::agreement(self, second)
    }

    /// The page: one file with everything in it.
    #[must_use]
    pub fn page(&self) -> String {
        page::render(self)
    }

    /// From `report.json`.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(io_context(shown()))?;
        let wrong = |error| Error::Usage(format!("{}: {error}", shown()));
        let mut report: Self = serde_json::from_str(&text).map_err(wrong)?;
        report.rename_arms();
        Ok(report)
    }

    /// Replaces names of arms that earlier versions recorded.
    fn rename_arms(&mut self) {
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
    /// The system's.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let failed = || io_context(folder.display().to_string());
        std::fs::create_dir_all(folder).map_err(failed())?;
        let json = serde_json::to_string_pretty(self);
        let json = json.map_err(|error| Error::Usage(format!("report.json: {error}")))?;
        std::fs::write(folder.join("report.json"), json).map_err(failed())?;
        std::fs::write(folder.join("report.html"), self.page()).map_err(failed())
    }
}
