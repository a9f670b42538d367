//! The history of a run: what each client did, when, and what it was told.

use std::time::Duration;

/// A write that a client began: a row with the writer's next number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The writer, which has only one write at a time.
    pub writer: u32,
    /// The number that it wrote: one more than its last one, whatever became of that.
    pub number: u64,
    /// When it was sent, since the start of the run.
    pub begun: Duration,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a client learned of its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server acknowledged the commit.
    Acknowledged {
        /// When the client learned it, since the start of the run.
        at: Duration,
        /// The timeline of the server that committed it.
        timeline: u32,
    },
    /// The connection ended, or time ran out, before an answer. It may have been committed.
    Unknown,
    /// The server refused it, so that it was not committed.
    Refused,
}

/// What a reader saw of a writer: the highest number in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The connection, which is never used again after it has failed.
    pub connection: u64,
    /// The writer.
    pub writer: u32,
    /// The highest number, 0 if there is none.
    pub number: u64,
    /// When the answer arrived, since the start of the run.
    pub at: Duration,
}

/// Why a login, a statement or a session failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When it was seen, since the start of the run.
    pub at: Duration,
    /// The SQLSTATE of the error, if there was one. A connection that just ends has none.
    pub sqlstate: Option<String>,
    /// The text for the report.
    pub text: String,
}

/// Everything that the clients of a run have recorded.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order of each writer.
    pub writes: Vec<Write>,
    /// In the order of each connection.
    pub reads: Vec<Read>,
    /// In any order.
    pub failures: Vec<Failure>,
}

impl History {
    /// Adds the records of another client.
    pub fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self.failures.extend(other.failures);
    }
}
