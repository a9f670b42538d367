//! Sets up the log of the process: text or JSON lines on stderr.
//!
//! A line must never contain a secret, SQL or a startup parameter.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::log_format::LogFormat;

/// Sends the log to stderr through a dedicated thread, because a shard must not wait for a
/// terminal or a full pipe. If that thread cannot keep up, lines are lost. The guard writes
/// the remaining lines when it is dropped.
pub fn init(format: LogFormat, filter: EnvFilter) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(WrittenLines(io::stderr()));
    // Only the first log of a process is counted.
    let _ = LOST.set(writer.error_counter());
    let builder = tracing_subscriber::fmt()
        .with_writer(QueuedLines(writer))
        .with_env_filter(filter)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    std::panic::set_hook(Box::new(|panic| {
        // Without the panic's message, which may contain data that a peer sent.
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "panic");
    }));
    guard
}

/// Lines given to the thread that writes, lines that it has written, and lines that found its queue full.
static QUEUED: AtomicUsize = AtomicUsize::new(0);
static WRITTEN: AtomicUsize = AtomicUsize::new(0);
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// A position in the log, after the lines of this thread so far.
#[derive(Clone, Copy)]
pub(crate) struct Position(usize);

impl Position {
    pub(crate) fn now() -> Self {
        Self(QUEUED.load(Ordering::SeqCst))
    }

    /// Whether all lines up to here have been written or are lost.
    pub(crate) fn is_written(self) -> bool {
        let lost = LOST.get().map_or(0, ErrorCounter::dropped_lines);
        WRITTEN.load(Ordering::SeqCst).saturating_add(lost) >= self.0
    }
}

/// Counts the lines on their way to the thread that writes them. An event is one call of `write`.
struct QueuedLines(NonBlocking);

impl<'a> MakeWriter<'a> for QueuedLines {
    type Writer = QueuedLine;

    fn make_writer(&'a self) -> QueuedLine {
        QueuedLine(self.0.clone())
    }
}

struct QueuedLine(NonBlocking);

impl Write for QueuedLine {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUED.fetch_add(1, Ordering::SeqCst);
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Counts the lines that have been written, or that cannot be.
struct WrittenLines<W>(W);

impl<W: Write> Write for WrittenLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let result = self.0.write_all(line);
        WRITTEN.fetch_add(1, Ordering::SeqCst);
        result.map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The filter of `dev`: the value of `TEESQL_LOG`, or else warnings and errors. The sidecar's
/// warnings at start are left out, because `dev` uses weak settings on purpose.
#[cfg(feature = "mock")]
#[must_use]
pub fn dev_filter() -> EnvFilter {
    EnvFilter::try_from_env("TEESQL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,engine::app::sidecar=error"))
}
