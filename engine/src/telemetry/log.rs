//! What is written where: start-up and faults line by line, and one line for
//! each connection's end. Never a secret, SQL or a start-up parameter.

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;

use crate::config::log_format::LogFormat;

/// Sends the log to stderr through a thread of its own: a shard must not wait
/// for a terminal or a full pipe. Lines are lost rather than waited for.
/// The guard writes what is left when it is dropped.
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
        // The place only: a panic's text may hold what a peer sent.
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "panic");
    }));
    guard
}

/// The filter of `dev`: that of the environment, or else warnings and errors, without the
/// sidecar's warnings at start, which are about settings that `dev` uses on purpose.
#[cfg(feature = "mock")]
#[must_use]
pub fn quiet() -> EnvFilter {
    EnvFilter::try_from_env("TEESQL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("warn,engine::app::sidecar=error"))
}
