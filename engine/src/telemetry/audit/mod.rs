//! The audit log: one JSON line for each admission, refusal, revocation, role grant and end of a
//! session, in a hash chain that `teesql-sidecar audit verify` checks.
//!
//! An append-only log with a single writer: shards put events into bounded queues, and a thread
//! makes lines of them ([`writer`]), because a shard must not wait for a disk. No event is lost
//! silently: what finds no place is counted, and the count becomes a line.
//! docs/reference/audit-log.md describes the format, docs/adr/0024-audit-log.md the reasons.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use attest::policy::PolicyEpoch;

use crate::config::AuditConfig;
use crate::telemetry::metrics::Metrics;
use chain::LineHash;
pub(crate) use event::Kill;
use event::{Event, Gap, Record};
use queue::{Producer, ShardAudit, Shared};
use sink::{Sink, SinkError};
use writer::Writer;

mod budget;
pub(crate) mod chain;
pub(crate) mod connection;
pub(crate) mod event;
pub(crate) mod queue;
pub(crate) mod sink;
#[cfg(test)]
mod tests;
mod writer;

/// How long a process that ends waits for its last lines. A pipe may be full, and its reader gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the audit log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file or descriptor.
    #[error(transparent)]
    Sink(#[from] SinkErrorText),
    /// The first line.
    #[error("audit_log: cannot be written: {0}")]
    Write(io::Error),
    /// The system has no thread left.
    #[error("cannot start the audit thread: {0}")]
    Thread(io::Error),
}

/// The text of an error of the file or descriptor.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkErrorText(String);

impl From<SinkError> for AuditError {
    fn from(error: SinkError) -> Self {
        Self::Sink(SinkErrorText(error.to_string()))
    }
}

/// The audit log of a process. Dropping it writes the last line.
pub(crate) struct AuditLog {
    shared: Arc<Shared>,
    /// The queue of the control thread.
    control: Arc<Producer>,
    closed: Receiver<()>,
}

/// Access to the audit log of a process, for its shards and for `/ready`.
#[derive(Clone)]
pub(crate) struct AuditHandle(Arc<Shared>);

/// Access to the audit log for the control socket.
pub(crate) struct OperatorAudit(Arc<Producer>);

impl OperatorAudit {
    /// Records that an operator has ended connections.
    pub(crate) fn killed(&self, kill: Kill) {
        self.0.push(Event::Kill(Box::new(kill)));
    }
}

/// Why events cannot be written, for `/ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AuditState {
    pub(crate) failure: Option<&'static str>,
    /// Whether this keeps new sessions out.
    pub(crate) required: bool,
}

impl AuditLog {
    /// Opens the log, continues its chain, and writes its first line.
    ///
    /// # Errors
    /// It cannot be opened or written.
    pub(crate) fn open(
        config: &AuditConfig,
        policy: Option<PolicyEpoch>,
        metrics: &Metrics,
    ) -> Result<Self, AuditError> {
        let shared = Shared::new(config.required, metrics);
        let (sink, tail) = Sink::open(&config.target)?;
        let torn = tail.torn.as_ref().map(|torn| Gap::Torn {
            bytes: torn.len(),
            hash: LineHash::of(torn),
        });
        if let Some(torn) = &tail.torn {
            tracing::warn!(
                bytes = torn.len(),
                "the last line of the audit log is incomplete"
            );
        }
        let mut writer = Writer::new(Arc::clone(&shared), sink, tail.head);
        writer.note_torn(tail.ends_line, torn);
        writer.append(&Record::new(Event::Started { policy }));
        // The thread tries again, and says so.
        if let (Err(error), true) = (writer.write_now(), config.required) {
            return Err(AuditError::Write(error));
        }
        tracing::info!(
            audit_log = %config.target,
            line = tail.head.seq,
            hash = %tail.head.hash,
            "the audit log continues after this line"
        );
        let control = Arc::new(shared.register());
        let (done, closed) = sync_channel(1);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let handle = thread
            .spawn(move || {
                writer.run();
                let _ = done.send(());
            })
            .map_err(AuditError::Thread)?;
        let _ = shared.thread.set(handle.thread().clone());
        shared.wake();
        Ok(Self {
            shared,
            control,
            closed,
        })
    }

    pub(crate) fn handle(&self) -> AuditHandle {
        AuditHandle(Arc::clone(&self.shared))
    }

    /// The audit log of the control socket.
    pub(crate) fn operators(&self) -> OperatorAudit {
        OperatorAudit(Arc::clone(&self.control))
    }

    /// Opens the file again, after log rotation has renamed it.
    pub(crate) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Records a new policy.
    pub(crate) fn policy_changed(&self, policy: PolicyEpoch) {
        self.control.push(Event::Policy(policy));
    }
}

impl AuditHandle {
    /// The audit log of one more shard.
    pub(crate) fn shard(&self) -> ShardAudit {
        ShardAudit::new(self.0.register())
    }

    /// Whether events can be written now. Updates the metric.
    pub(crate) fn state(&self) -> AuditState {
        let failure = self.0.failure();
        let gauge = f64::from(u8::from(failure.is_some()));
        self.0.metrics.failing.set(gauge);
        AuditState {
            failure: failure.map(event::Cause::code),
            required: self.0.required,
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake();
        if self.closed.recv_timeout(CLOSE_TIMEOUT).is_err() {
            tracing::error!("the audit log was not closed in time, its last lines may be missing");
        }
    }
}
