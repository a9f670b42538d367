//! Sets up the log of the process: text or JSON lines on stderr.
//!
//! A line must never contain a secret, SQL or a startup parameter.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::config::log_format::LogFormat;

/// Sends the log to stderr through a dedicated thread, because a shard must not wait for a
/// terminal or a full pipe. If that thread cannot keep up, lines are lost. The guard writes
/// the remaining lines when it is dropped.
pub fn init(format: LogFormat, filter: EnvFilter) -> WorkerGuard {
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
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

/// The filter of `dev`: the value of `TEESQL_LOG`, or else warnings and errors. The sidecar's
/// warnings at start are left out, because `dev` uses weak settings on purpose.
#[cfg(feature = "mock")]
#[must_use]
pub fn dev_filter() -> EnvFilter {
    EnvFilter::try_from_env("TEESQL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,engine::app::sidecar=error"))
}
