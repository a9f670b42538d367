//! The access log: one line for each connection, written when it closes.
//!
//! Lines about errors of clients are rate-limited with a fixed one-second window per shard: a
//! flood of bad connections must not become a flood of log lines. A line must never contain
//! a secret, SQL or a startup parameter.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::auth::role::Role;
use crate::config::mode::Mode;
use crate::io::peer::Peer;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};
use crate::telemetry::connection_info::ConnectionInfo;

/// Lines per second about errors of clients. Further lines are counted but not written.
const CLIENT_ERRORS_PER_SECOND: u32 = 50;

/// The access log of one shard.
#[derive(Default)]
pub(crate) struct AccessLog {
    /// A field of every line, except in production mode.
    mode: Option<&'static str>,
    window_start: RefCell<Option<Instant>>,
    written: Cell<u32>,
    suppressed: Cell<u64>,
}

impl AccessLog {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            mode: (mode != Mode::Production).then(|| mode.name()),
            ..Self::default()
        }
    }

    /// Writes the line of a connection that has closed. `received` and `sent` are plaintext
    /// bytes from and to the client.
    pub(crate) fn ended(
        &self,
        info: &ConnectionInfo,
        (received, sent): (u64, u64),
        close_reason: &CloseReason,
    ) {
        let origin = close_reason.origin();
        if origin == ErrorOrigin::Client && !self.may_write() {
            return;
        }
        let (peer, mode) = (info.peer, self.mode);
        let client = info.proxied_client.map(tracing::field::display);
        let role = info.role.map(Role::name);
        let tls = info.tls.and_then(|version| version.as_str());
        let reason = close_reason.code();
        let duration = info.accepted.elapsed().as_millis();
        let duration_ms = u64::try_from(duration).unwrap_or(u64::MAX);
        let message = message(info, close_reason);
        let detail = (origin != ErrorOrigin::None).then(|| tracing::field::display(close_reason));
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    %peer,
                    client,
                    role,
                    tls,
                    mode,
                    duration_ms,
                    received,
                    sent,
                    reason,
                    detail,
                    "{message}"
                )
            };
        }
        match (close_reason, origin) {
            (_, ErrorOrigin::Sidecar) => line!(error),
            (CloseReason::TlsHandshake(_), _) | (_, ErrorOrigin::Upstream) => line!(warn),
            (_, ErrorOrigin::Client | ErrorOrigin::None) => line!(info),
        }
    }

    /// Writes the line of a connection that was closed immediately, since there was no place for it.
    pub(crate) fn dropped_over_limit(&self, peer: Peer) {
        if self.may_write() {
            tracing::warn!(%peer, reason = "too_many_unattested", "connection dropped");
        }
    }

    /// Takes one line from the budget of this second.
    fn may_write(&self) -> bool {
        let mut window_start = self.window_start.borrow_mut();
        let now = Instant::now();
        if window_start.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            *window_start = Some(now);
            self.written.set(0);
            let suppressed = self.suppressed.replace(0);
            if suppressed > 0 {
                tracing::warn!(suppressed, "log lines about client errors suppressed");
            }
        }
        if self.written.get() >= CLIENT_ERRORS_PER_SECOND {
            self.suppressed.set(self.suppressed.get() + 1);
            return false;
        }
        self.written.set(self.written.get() + 1);
        true
    }
}

fn message(info: &ConnectionInfo, close_reason: &CloseReason) -> &'static str {
    match (close_reason, close_reason.origin()) {
        (_, ErrorOrigin::None) => "connection ended",
        (_, ErrorOrigin::Sidecar) => "connection ended by an internal error",
        (CloseReason::CancelExpired, _) => "cancel request dropped",
        _ if info.is_session => "session ended with an error",
        (CloseReason::TlsHandshake(_), _) => "TLS handshake failed",
        (CloseReason::ClientGone | CloseReason::ClientIo(_), _) => {
            "connection lost before the login"
        }
        (CloseReason::TlsSession(_), _) => "TLS failed before the login",
        _ => "connection refused",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::telemetry::close_reason::Revocation;
    use crate::tls::session::TlsError;

    #[test]
    fn only_a_connection_without_a_session_is_refused() {
        let mut info = ConnectionInfo::new(Peer::Local);
        let broken = || CloseReason::UpstreamIo(io::ErrorKind::BrokenPipe.into());
        assert_eq!(message(&info, &broken()), "connection refused");
        assert_eq!(
            message(&info, &CloseReason::LoginTimeout),
            "connection refused"
        );
        let lost = "connection lost before the login";
        assert_eq!(message(&info, &CloseReason::ClientGone), lost);
        let broken_tls = || CloseReason::TlsSession(TlsError::KeysExhausted);
        assert_eq!(message(&info, &broken_tls()), "TLS failed before the login");
        info.is_session = true;
        for reason in [
            broken(),
            CloseReason::Revoked(Revocation::NOT_GRANTED),
            CloseReason::PeerStuck,
            broken_tls(),
        ] {
            assert_eq!(message(&info, &reason), "session ended with an error");
        }
        assert_eq!(
            message(&info, &CloseReason::ClientClosed),
            "connection ended"
        );
    }
}
