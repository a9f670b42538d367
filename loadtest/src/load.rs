//! The loads, one file each.

pub mod bulk;
pub mod connect;
pub mod connection_storm;
pub mod idle;
mod open_loop;
pub mod query;

use std::time::Duration;

use crate::error::Result;
use crate::process_usage::{self, Pid};
use crate::worker_group::Edge;

/// Most connections of one load.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Longest time of one load, in seconds.
pub const MAX_SECONDS: f64 = 3_600.0;

/// CPU between the edges of a window: the measured process', and this one's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    pid: Option<Pid>,
    before: (Duration, Duration),
    /// Of the measured process.
    pub process_cpu: Option<Duration>,
    /// Of this one.
    pub load_cpu: Duration,
}

impl Meter {
    /// For the process `pid`, if there is one beside the load.
    #[must_use]
    pub fn new(pid: Option<Pid>) -> Self {
        Self {
            pid,
            ..Self::default()
        }
    }

    fn read(&self) -> Result<(Duration, Duration)> {
        let process_cpu = self.pid.map_or(Ok(Duration::ZERO), process_usage::cpu_of)?;
        Ok((process_cpu, process_usage::own_cpu()?))
    }

    /// Reads the clocks.
    ///
    /// # Errors
    /// The process is gone.
    pub fn edge(&mut self, edge: Edge) -> Result<()> {
        let now = self.read()?;
        match edge {
            Edge::Start => self.before = now,
            Edge::End => {
                self.process_cpu = self.pid.map(|_| now.0.saturating_sub(self.before.0));
                self.load_cpu = now.1.saturating_sub(self.before.1);
            }
        }
        Ok(())
    }
}
