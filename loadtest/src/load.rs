//! The loads, one module each, and the CPU meter that they share.

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

/// Maximum connections of one load.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Maximum duration of one load, in seconds.
pub const MAX_SECONDS: f64 = 3_600.0;

/// CPU time within the measurement window, of the measured process and of the load itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    pid: Option<Pid>,
    before: (Duration, Duration),
    /// CPU time of the measured process; `None` without one.
    pub process_cpu: Option<Duration>,
    /// CPU time of this process, i.e. of the load.
    pub load_cpu: Duration,
}

impl Meter {
    /// Creates a meter for the process `pid`, if there is one.
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

    /// Reads the CPU clocks at an edge of the window.
    ///
    /// # Errors
    /// The measured process has exited.
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
