//! COPY OUT and COPY IN, with the content verified at both ends.
//!
//! Rows are numbered, so that a lost, duplicated or reordered row is detected. COPY OUT: the load
//! compares the CRC-32 of all rows with the expected one. COPY IN: a smaller first pass is stored,
//! and Postgres compares row count and hash sum with rows that it generates itself. The timed pass
//! is parsed and discarded, since storing it would measure Postgres.

use std::time::{Duration, Instant};

use super::Meter;
use crate::client::Client;
use crate::endpoint::{Endpoint, Login, PreparedLogin};
use crate::error::{Error, Result};
use crate::message::{COPY_DONE, Event, query, tagged};
use crate::process_usage::Pid;
use crate::progress::Progress;
use crate::runtime::{Runtime, with_timeout};
use crate::worker_group::Edge;

/// Bytes of a row, including the newline.
pub const ROW: usize = 1024;
/// Maximum rows of one pass: 64 GiB.
pub const MAX_ROWS: u32 = 64 * 1024 * 1024;
/// Rows in one CopyData message: 8 KiB, as psql sends.
const ROWS_IN_MESSAGE: u32 = 8;
/// Rows in one write.
const ROWS_IN_WRITE: u32 = 64;
/// Bytes of one read.
const READ: usize = 256 * 1024;
/// Rows that are stored and verified by Postgres.
const CHECKED_ROWS: u32 = 32 * 1024;
/// Time limit for both passes.
const TIMEOUT: Duration = Duration::from_secs(600);

/// SQL expression for row `i`, without the newline. Must match [`row`].
const ROW_SQL: &str = "lpad(i::text, 8, '0') || repeat('0123456789abcde', 67) || '0123456789'";

/// Appends row `number`, with the newline.
fn row(number: u32, out: &mut Vec<u8>) {
    let mut digits = *b"00000000";
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
    }
    out.extend_from_slice(&digits);
    for _ in 0..67 {
        out.extend_from_slice(b"0123456789abcde");
    }
    out.extend_from_slice(b"0123456789\n");
}

/// Direction of the COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From Postgres.
    Out,
    /// To Postgres.
    In,
}

/// How much to copy, and in which direction.
#[derive(Clone, Debug)]
pub struct CopyLoad {
    /// The server to copy from or to.
    pub endpoint: Endpoint,
    /// The role that logs in. COPY IN creates a temporary table.
    pub login: Login,
    /// Direction of the COPY.
    pub direction: Direction,
    /// Rows of 1,024 bytes.
    pub rows: u32,
    /// COPY IN: let Postgres verify a first pass before the timed one.
    pub check: bool,
    /// The process whose CPU time is measured.
    pub pid: Option<Pid>,
}

/// Results of a COPY.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Bytes of all rows.
    pub bytes: f64,
    /// From sending the COPY statement to its completion.
    pub seconds: f64,
    /// CPU time used.
    pub meter: Meter,
}

impl Outcome {
    /// GB (10⁹ bytes) per second.
    #[must_use]
    pub fn gb_per_second(&self) -> f64 {
        self.bytes / 1e9 / self.seconds
    }

    /// CPU time of the measured process in seconds, for each GB.
    #[must_use]
    pub fn cpu_per_gb(&self) -> Option<f64> {
        Some(self.meter.process_cpu?.as_secs_f64() / (self.bytes / 1e9))
    }

    /// CPU time of the load in seconds, for each GB.
    #[must_use]
    pub fn load_cpu_per_gb(&self) -> f64 {
        self.meter.load_cpu.as_secs_f64() / (self.bytes / 1e9)
    }
}

impl CopyLoad {
    /// Runs the COPY.
    ///
    /// # Errors
    /// Any failure, including content that differs from the expected one.
    pub fn run(&self, progress: &Progress) -> Result<Outcome> {
        if self.rows > MAX_ROWS {
            return Err(Error::Usage(format!("COPY load: at most {MAX_ROWS} rows")));
        }
        let mut runtime = Runtime::new()?;
        let prepared = PreparedLogin::new(&self.login)?;
        runtime.block_on(with_timeout(TIMEOUT, "COPY", async {
            let mut client = Client::log_in(&self.endpoint, &prepared).await?;
            client.set_read_size(READ);
            let outcome = match self.direction {
                Direction::Out => self.copy_out_timed(&mut client).await?,
                Direction::In => self.copy_in_timed(&mut client, progress).await?,
            };
            client.close().await?;
            Ok(outcome)
        }))
    }

    async fn copy_out_timed(&self, client: &mut Client) -> Result<Outcome> {
        let expected = checksum(self.rows);
        let rows = format!("SELECT {ROW_SQL} FROM generate_series(1, {}) i", self.rows);
        let sql = query(&format!("COPY ({rows}) TO STDOUT"));
        let (mut meter, started) = (self.start()?, Instant::now());
        let mut hasher = crc32fast::Hasher::new();
        client.send(&sql).await?;
        client
            .wait_ready(1, |event| {
                if let Event::CopyData(bytes) = event {
                    hasher.update(bytes);
                }
            })
            .await?;
        let seconds = started.elapsed().as_secs_f64();
        meter.edge(Edge::End)?;
        match hasher.finalize() == expected {
            true => Ok(self.outcome(seconds, meter)),
            false => Err(mismatch(
                "COPY OUT: the received rows differ from the expected ones",
            )),
        }
    }

    async fn copy_in_timed(&self, client: &mut Client, progress: &Progress) -> Result<Outcome> {
        // Sessions of teesql_read begin read-only behind the sidecar.
        let writable = query("SET default_transaction_read_only = off");
        client.request(&writable, 1).await?;
        let table = query("CREATE TEMPORARY TABLE sink (line text)");
        client.request(&table, 1).await?;
        if self.check {
            let rows = CHECKED_ROWS.min(self.rows);
            copy_in(client, "COPY sink FROM STDIN", rows, progress).await?;
            check_stored(client, rows).await?;
        }
        let (mut meter, started) = (self.start()?, Instant::now());
        let sql = "COPY sink FROM STDIN WHERE false";
        copy_in(client, sql, self.rows, progress).await?;
        let seconds = started.elapsed().as_secs_f64();
        meter.edge(Edge::End)?;
        Ok(self.outcome(seconds, meter))
    }

    fn start(&self) -> Result<Meter> {
        let mut meter = Meter::new(self.pid);
        meter.edge(Edge::Start)?;
        Ok(meter)
    }

    #[expect(clippy::cast_precision_loss, reason = "a row is 1,024 bytes")]
    fn outcome(&self, seconds: f64, meter: Meter) -> Outcome {
        Outcome {
            bytes: f64::from(self.rows) * ROW as f64,
            seconds,
            meter,
        }
    }
}

fn mismatch(what: &str) -> Error {
    Error::Server(what.to_owned())
}

/// CRC-32 of rows 1 to `rows`, with their newlines.
fn checksum(rows: u32) -> u32 {
    let (mut hasher, mut block) = (crc32fast::Hasher::new(), Vec::new());
    for number in 1..=rows {
        row(number, &mut block);
        if number % ROWS_IN_WRITE == 0 || number == rows {
            hasher.update(&block);
            block.clear();
        }
    }
    hasher.finalize()
}

async fn copy_in(client: &mut Client, sql: &str, rows: u32, progress: &Progress) -> Result<()> {
    client.send(&query(sql)).await?;
    client.wait_copy_in().await?;
    let (mut bytes, mut next) = (Vec::new(), 1);
    while next <= rows {
        progress.check_signal()?;
        bytes.clear();
        let last = rows.min(next + ROWS_IN_WRITE - 1);
        while next <= last {
            let until = last.min(next + ROWS_IN_MESSAGE - 1);
            tagged(&mut bytes, b'd', |out| {
                (next..=until).for_each(|number| row(number, out));
            });
            next = until + 1;
        }
        client.send(&bytes).await?;
    }
    client.request(&COPY_DONE, 1).await
}

/// Compares the stored rows with rows that Postgres generates itself.
async fn check_stored(client: &mut Client, rows: u32) -> Result<()> {
    let sum = "SELECT count(*) || ' ' || sum(hashtextextended(line, 0)) FROM";
    let generated_rows =
        format!("(SELECT {ROW_SQL} FROM generate_series(1, {rows}) i) AS generated (line)");
    let stored = client.query_value(&format!("{sum} sink")).await?;
    let generated = client
        .query_value(&format!("{sum} {generated_rows}"))
        .await?;
    match stored == generated && stored.starts_with(&format!("{rows} ")) {
        true => Ok(()),
        false => Err(mismatch(
            "COPY IN: the stored rows differ from the sent ones",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_contains_its_number_and_has_the_fixed_size() {
        let mut bytes = Vec::new();
        row(1_234_567, &mut bytes);
        assert_eq!(bytes.len(), ROW);
        assert!(bytes.starts_with(b"012345670123456789abcde0"));
        assert!(bytes.ends_with(b"abcde0123456789\n"));
    }

    #[test]
    fn swapped_rows_change_the_checksum() {
        let (mut right, mut wrong) = (Vec::new(), Vec::new());
        [1, 2, 3].iter().for_each(|number| row(*number, &mut right));
        [1, 3, 2].iter().for_each(|number| row(*number, &mut wrong));
        assert_eq!(crc32fast::hash(&right), checksum(3));
        assert_ne!(crc32fast::hash(&wrong), checksum(3));
    }
}
