//! The content of the status page, apart from readiness and the cluster, which the server has anyway: a view model.
//!
//! It exists so that the server need not know what the process measures, and the process need not know HTML. Every text
//! may come from a peer, and is escaped. It must tell nothing that `/ready`, `/metrics` and `/cluster` do not tell: like them the page
//! needs no authentication.

use std::time::Duration;

/// What the page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// The name of the program.
    pub program: String,
    /// When this was made, in RFC 3339.
    pub made_at: String,
    /// The build and how it runs.
    pub build: Vec<Fact>,
    /// The time since the start of the process, if it is known.
    pub uptime: Option<Duration>,
    /// What weakens the process, and what it has lost. One sentence each.
    pub warnings: Vec<String>,
    /// What expires.
    pub lifetimes: Vec<Lifetime>,
    /// Measurements of the last minutes.
    pub charts: Vec<Chart>,
    /// Sessions, links and the like.
    pub tables: Vec<Table>,
    /// Why connections were refused or have ended, the most frequent first.
    pub refusals: Vec<Refusal>,
}

/// A name and a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is.
    pub name: &'static str,
    /// The value.
    pub value: String,
}

/// Something that expires.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifetime {
    /// What it is.
    pub name: &'static str,
    /// The seconds that are left, negative if it has expired; `None` if there is nothing yet.
    pub seconds: Option<f64>,
    /// With fewer seconds left, something is wrong.
    pub warn_below: f64,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its heading.
    pub title: &'static str,
    /// What it is about, in a sentence.
    pub note: &'static str,
    /// The headings of the columns. The first column names the row.
    pub columns: Vec<&'static str>,
    /// How many of the first columns are text. The others are numbers.
    pub text_columns: usize,
    /// The cells of each row.
    pub rows: Vec<Vec<String>>,
}

/// Connections that were refused, or sessions that have ended, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason code.
    pub code: String,
    /// What was refused or has ended, such as `login refused`.
    pub what: &'static str,
    /// How often, since the start.
    pub count: u64,
    /// How long ago the last one was, as far as it is known.
    pub last: Option<Duration>,
    /// The meaning of the code. Text in backticks is code.
    pub meaning: String,
    /// What to do about it; empty if there is nothing to do.
    pub remedy: String,
}

/// Lines over the last minutes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Its heading.
    pub title: &'static str,
    /// The unit of the values.
    pub unit: Unit,
    /// The time from the first to the last point.
    pub span: Duration,
    /// At most two can be told apart.
    pub lines: Vec<Line>,
}

/// A line of a [`Chart`].
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it shows.
    pub name: &'static str,
    /// Values at equal distances, the newest last. `None` where nothing was measured.
    pub points: Vec<Option<f64>>,
}

/// The unit of a [`Chart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number.
    Count,
    /// A number per second.
    PerSecond,
    /// Bytes per second.
    BytesPerSecond,
    /// Seconds.
    Seconds,
}
