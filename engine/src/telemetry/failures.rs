//! The newest failures of a forwarder's connections, for the program that it is part of: a bounded list behind an atomic
//! pointer.
//!
//! A driver shows its own error, from which a program cannot tell why. A shard must not wait for a lock, so the list is
//! copied on a failure. It must never contain what the access log may not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;

use crate::io::peer::Peer;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};

/// How many are kept.
pub(crate) const MAX_FAILURES: usize = 32;
/// What a message is cut to, in bytes. Texts of peers in it are limited separately.
const MAX_MESSAGE: usize = 1_024;

/// A connection that was refused, or a session that was ended by an error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// Grows by one with each failure of a forwarder, from 1.
    pub sequence: u64,
    /// The reason code (docs/reference/reason-codes.md).
    pub code: &'static str,
    /// What happened, for people.
    pub message: String,
    /// The SQLSTATE that the driver receives, if it receives an error.
    pub sqlstate: Option<String>,
    /// Whether a session had been established.
    pub in_session: bool,
    /// The address of the driver's socket, unless it is a Unix socket.
    pub client: Option<SocketAddr>,
    /// When it happened.
    pub at: SystemTime,
}

/// The newest failures, oldest first.
#[derive(Default)]
pub(crate) struct Failures(ArcSwap<Vec<Arc<Failure>>>);

impl Failures {
    /// Adds a failure, of which the driver receives `response`. An end without an error for anybody is none.
    pub(crate) fn record(
        &self,
        reason: &CloseReason,
        response: Option<&[u8]>,
        peer: Peer,
        in_session: bool,
    ) {
        if reason.origin() == ErrorOrigin::None && response.is_none() {
            return;
        }
        let failure = Failure {
            sequence: 0,
            code: reason.code(),
            message: truncated(reason.to_string()),
            sqlstate: response.and_then(sqlstate_of),
            in_session,
            client: peer.address(),
            at: SystemTime::now(),
        };
        self.0.rcu(|all| {
            let sequence = all.last().map_or(0, |last| last.sequence).saturating_add(1);
            let kept = all
                .iter()
                .skip((all.len() + 1).saturating_sub(MAX_FAILURES));
            let mut next: Vec<_> = kept.cloned().collect();
            next.push(Arc::new(Failure {
                sequence,
                ..failure.clone()
            }));
            next
        });
    }

    /// Those after the one with this number, oldest first.
    pub(crate) fn after(&self, sequence: u64) -> Vec<Failure> {
        let all = self.0.load();
        let newer = all.iter().filter(|failure| failure.sequence > sequence);
        newer.map(|failure| Failure::clone(failure)).collect()
    }

    /// The newest one.
    pub(crate) fn last(&self) -> Option<Failure> {
        self.0.load().last().map(|failure| Failure::clone(failure))
    }
}

fn truncated(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let mut ends = (0..=MAX_MESSAGE).rev();
        let end = ends.find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

/// The field `C` of an ErrorResponse of this process: after the tag and the length, each field is a letter and a text that
/// ends with a zero byte.
fn sqlstate_of(response: &[u8]) -> Option<String> {
    let fields = response.get(5..)?.split(|byte| *byte == 0);
    let mut codes = fields.filter_map(|field| field.strip_prefix(b"C"));
    String::from_utf8(codes.next()?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 40_000)))
    }

    #[test]
    fn keeps_the_newest_and_counts_all() {
        let failures = Failures::default();
        assert!(failures.last().is_none());
        for _ in 0..100 {
            failures.record(&CloseReason::ServerHungUp, None, peer(), false);
        }
        let all = failures.after(0);
        assert_eq!(all.len(), MAX_FAILURES);
        assert!(all.iter().map(|f| f.sequence).eq(100 - 31..=100));
        assert_eq!(failures.after(99).len(), 1);
        assert!(failures.after(100).is_empty());
    }

    #[test]
    fn a_failure_says_what_the_driver_receives() {
        let failures = Failures::default();
        let denied = CloseReason::ServerDenied {
            denial: attest::Denial::UnboundKey,
            allow_simulator: false,
        };
        failures.record(&denied, denied.response().as_deref(), peer(), false);
        let last = failures.last().unwrap();
        assert_eq!(last.code, "unbound_key");
        assert_eq!(last.sqlstate.as_deref(), Some("28000"));
        assert_eq!(last.client, peer().address());
        assert!(!last.in_session);
        let lost = CloseReason::ClientIo(std::io::ErrorKind::ConnectionReset.into());
        let response = lost.driver_response();
        let lost = lost.swap_sides();
        failures.record(&lost, response.as_deref(), Peer::Local, true);
        let last = failures.last().unwrap();
        assert_eq!((last.code, last.sequence), ("server_io", 2));
        assert_eq!(last.sqlstate.as_deref(), Some("08006"));
        assert_eq!(last.client, None);
        assert!(last.in_session);
    }

    #[test]
    fn a_normal_end_is_no_failure() {
        let failures = Failures::default();
        failures.record(&CloseReason::ClientClosed, None, peer(), true);
        failures.record(&CloseReason::Cancelled, None, peer(), false);
        assert!(failures.last().is_none());
        // No side is at fault, but the driver gets an error.
        let shutdown = CloseReason::Shutdown;
        failures.record(
            &shutdown,
            shutdown.driver_response().as_deref(),
            peer(),
            true,
        );
        let last = failures.last().unwrap();
        assert_eq!(last.code, "shutdown");
        assert_eq!(last.sqlstate.as_deref(), Some("57P01"));
    }
}
