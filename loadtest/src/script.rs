//! Pre-built queries of a load, as pgbench has them.

use std::str::FromStr;

use crate::message::{SYNC, execute, parse, query};

/// Number of different transactions that are built. They are sent in rotation.
const VARIANTS: u32 = 1024;
/// Rows of pgbench's tables for each unit of the scale factor.
const ACCOUNTS: u32 = 100_000;
const TELLERS: u32 = 10;

/// The kind of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryMode {
    /// SELECT of one row in the simple query protocol.
    Simple,
    /// The same SELECT in the extended query protocol, parsed for each execution.
    Extended,
    /// The same SELECT as a prepared statement, as most applications use it.
    Prepared,
    /// As [`QueryMode::Prepared`], pipelined with this depth.
    Pipelined(u16),
    /// [`QueryMode::Prepared`], and a result of 1 MB as every 20th transaction.
    Mixture,
    /// pgbench's default transaction (TPC-B-like): seven statements, three of them updates.
    TpcB,
}

impl FromStr for QueryMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "simple" => Ok(Self::Simple),
            "extended" => Ok(Self::Extended),
            "prepared" => Ok(Self::Prepared),
            "pipelined" => Ok(Self::Pipelined(10)),
            "tpcb" => Ok(Self::TpcB),
            _ => Err("expected simple, extended, prepared, pipelined or tpcb"),
        }
    }
}

/// Bytes to send, and the number of ReadyForQuery messages that complete them.
#[derive(Clone, Debug)]
pub struct Step {
    /// Sent in one write.
    pub bytes: Vec<u8>,
    /// ReadyForQuery messages to wait for.
    pub ready: usize,
}

/// The messages of one load.
#[derive(Clone, Debug)]
pub struct Script {
    mode: QueryMode,
    /// Sent once on each connection, before the load starts.
    pub setup: Option<Step>,
    /// Transactions, each of one or more steps. Latency is measured per transaction.
    pub transactions: Vec<Vec<Step>>,
}

impl Script {
    /// Builds the messages for pgbench's tables of this scale factor. `seed` makes threads differ.
    #[must_use]
    pub fn new(mode: QueryMode, scale: u32, seed: u64) -> Self {
        let mut rng = Rng(seed | 1);
        let accounts = ACCOUNTS * scale.max(1);
        let mut account = || rng.draw(accounts);
        let prepares = matches!(
            mode,
            QueryMode::Prepared | QueryMode::Pipelined(_) | QueryMode::Mixture
        );
        let setup = prepares.then(|| {
            let mut bytes = Vec::new();
            parse(&mut bytes, "s", SELECT);
            bytes.extend_from_slice(&SYNC);
            Step { bytes, ready: 1 }
        });
        let transactions = (0..VARIANTS).map(|number| match mode {
            QueryMode::Simple => vec![simple(&SELECT.replace("$1", &account().to_string()))],
            QueryMode::Extended => vec![extended(account())],
            QueryMode::Prepared => vec![prepared(1, &mut account)],
            QueryMode::Mixture if number.is_multiple_of(LARGE_INTERVAL) => {
                vec![simple(LARGE_RESULT)]
            }
            QueryMode::Mixture => vec![prepared(1, &mut account)],
            QueryMode::Pipelined(depth) => vec![prepared(depth, &mut account)],
            QueryMode::TpcB => tpcb(account(), scale),
        });
        Self {
            mode,
            setup,
            transactions: transactions.collect(),
        }
    }

    /// Returns the transaction for this number, in rotation.
    #[must_use]
    pub fn transaction(&self, number: usize) -> &[Step] {
        let index = number.checked_rem(self.transactions.len()).unwrap_or(0);
        self.transactions.get(index).map_or(&[], Vec::as_slice)
    }

    /// Returns whether the transaction for this number has a large result.
    #[must_use]
    pub fn is_large(&self, number: usize) -> bool {
        let index = number.checked_rem(self.transactions.len()).unwrap_or(0);
        let index = u32::try_from(index).unwrap_or(0);
        self.mode == QueryMode::Mixture && index.is_multiple_of(LARGE_INTERVAL)
    }

    /// Number of queries in a transaction, each of which yields one ReadyForQuery.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.transaction(0).iter().map(|step| step.ready).sum()
    }
}

/// Every 20th transaction of a mixture has a large result.
const LARGE_INTERVAL: u32 = 20;
/// 1,000 rows with a text of 1,000 bytes, made without reading a table.
const LARGE_RESULT: &str = "SELECT repeat('0123456789', 100) FROM generate_series(1, 1000)";
const SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";

fn simple(sql: &str) -> Step {
    Step {
        bytes: query(sql),
        ready: 1,
    }
}

fn extended(account: u32) -> Step {
    let mut bytes = Vec::new();
    parse(&mut bytes, "", SELECT);
    execute(&mut bytes, "", &account.to_string());
    bytes.extend_from_slice(&SYNC);
    Step { bytes, ready: 1 }
}

/// Each query has its own Sync, as in libpq's pipeline mode when an error must not affect other
/// queries.
fn prepared(depth: u16, account: &mut impl FnMut() -> u32) -> Step {
    let mut bytes = Vec::new();
    for _ in 0..depth {
        execute(&mut bytes, "s", &account().to_string());
        bytes.extend_from_slice(&SYNC);
    }
    Step {
        bytes,
        ready: usize::from(depth),
    }
}

/// [pgbench.c, built-in script `tpcb-like`]
fn tpcb(account: u32, scale: u32) -> Vec<Step> {
    let branch = 1 + account % scale.max(1);
    let teller = 1 + account % (TELLERS * scale.max(1));
    let delta = i64::from(account % 10_001) - 5_000;
    [
        "BEGIN".to_owned(),
        format!("UPDATE pgbench_accounts SET abalance = abalance + {delta} WHERE aid = {account}"),
        format!("SELECT abalance FROM pgbench_accounts WHERE aid = {account}"),
        format!("UPDATE pgbench_tellers SET tbalance = tbalance + {delta} WHERE tid = {teller}"),
        format!("UPDATE pgbench_branches SET bbalance = bbalance + {delta} WHERE bid = {branch}"),
        format!(
            "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
             VALUES ({teller}, {branch}, {account}, {delta}, CURRENT_TIMESTAMP)"
        ),
        "END".to_owned(),
    ]
    .iter()
    .map(|sql| simple(sql))
    .collect()
}

/// xorshift64 random number generator. The rows only have to differ.
struct Rng(u64);

impl Rng {
    /// Returns a number from 1 to `max`.
    fn draw(&mut self, max: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let drawn = self.0.checked_rem(u64::from(max)).unwrap_or(0);
        1 + u32::try_from(drawn).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_rows_are_within_the_table_and_differ() {
        let mut rng = Rng(1);
        let drawn: Vec<u32> = (0..10_000).map(|_| rng.draw(100)).collect();
        assert_eq!(
            (drawn.iter().min(), drawn.iter().max()),
            (Some(&1), Some(&100))
        );
        let script = Script::new(QueryMode::Prepared, 1, 3);
        assert_ne!(
            script.transaction(0)[0].bytes,
            script.transaction(1)[0].bytes
        );
        assert_eq!(
            script.transaction(0)[0].bytes,
            script.transaction(1024)[0].bytes
        );
    }

    #[test]
    fn a_twentieth_of_a_mixture_is_large() {
        let mixture = Script::new(QueryMode::Mixture, 1, 3);
        let large = |number: &usize| mixture.is_large(*number);
        assert_eq!((0..1_000).filter(large).count(), 50);
        for number in 0..2_000 {
            let sent = &mixture.transaction(number)[0].bytes;
            let has_rows = sent.windows(15).any(|text| text == b"generate_series");
            assert_eq!(mixture.is_large(number), has_rows, "{number}");
        }
        let short = Script::new(QueryMode::Prepared, 1, 3);
        assert!(!(0..100).any(|number| short.is_large(number)));
    }

    #[test]
    fn queries_of_a_transaction_are_counted() {
        let queries = |mode| Script::new(mode, 1, 1).queries();
        assert_eq!(queries(QueryMode::Prepared), 1);
        assert_eq!(queries(QueryMode::Pipelined(10)), 10);
        assert_eq!(queries(QueryMode::TpcB), 7);
        assert_eq!(queries(QueryMode::Mixture), 1);
    }
}
