//! Progress display on stderr, and the stop flag that SIGINT and SIGTERM set.

use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::{Error, Result, io_context};

/// Interval at which signals and counters are polled while a load runs.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Writes a status line that is overwritten on a terminal, and log lines that stay.
#[derive(Clone)]
pub struct Progress {
    terminal: bool,
    enabled: bool,
    stop: Arc<AtomicBool>,
    /// Operations that the running load has completed.
    pub done: Arc<AtomicU64>,
}

impl Progress {
    /// Shows progress if stderr is a terminal, and handles SIGINT and SIGTERM.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn new() -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop))
                .map_err(io_context("cannot install signal handlers"))?;
        }
        Ok(Self {
            terminal: std::io::stderr().is_terminal(),
            enabled: true,
            stop,
            done: Arc::default(),
        })
    }

    /// Shows nothing and handles no signals: for tests.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            terminal: false,
            enabled: false,
            stop: Arc::default(),
            done: Arc::default(),
        }
    }

    /// Writes a line that stays.
    pub fn log(&self, text: &str) {
        if self.enabled {
            let clear = if self.terminal { "\r\x1b[2K" } else { "" };
            let _ = writeln!(std::io::stderr(), "{clear}{text}");
        }
    }

    /// Overwrites the status line, if stderr is a terminal.
    pub fn status(&self, text: &str) {
        if self.terminal {
            let mut stderr = std::io::stderr();
            let _ = write!(stderr, "\r\x1b[2K{text}");
            let _ = stderr.flush();
        }
    }

    /// Checks whether a signal was received.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a signal.
    pub fn check_signal(&self) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Stopped),
            false => Ok(()),
        }
    }

    /// Sleeps until `then`, showing the rate of completed operations.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a signal.
    pub fn sleep_until(&self, then: Instant, what: &str) -> Result<()> {
        let mut before = (self.done.load(Ordering::Relaxed), Instant::now());
        while Instant::now() < then {
            self.check_signal()?;
            std::thread::sleep(POLL_INTERVAL.min(then.saturating_duration_since(Instant::now())));
            if self.terminal {
                let now = (self.done.load(Ordering::Relaxed), Instant::now());
                self.status(&format!("{what}: {}", format_rate(before, now)));
                before = now;
            }
        }
        Ok(())
    }
}

fn format_rate(before: (u64, Instant), now: (u64, Instant)) -> String {
    let seconds = (now.1 - before.1).as_secs_f64().max(1e-3);
    let done = u32::try_from(now.0.saturating_sub(before.0)).unwrap_or(u32::MAX);
    format!(
        "{}/s",
        crate::stats::format_figure(f64::from(done) / seconds)
    )
}
