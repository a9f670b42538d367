//! The access log: one line for each connection, written when it closes.
//!
//! Lines about errors of clients are rate-limited with fixed one-second windows per shard: a
//! flood of bad connections must not become a flood of log lines. Each kind of error has its own budget, so that
//! a flood that anybody can cause does not hide what only an attested client can. A wrong secret of an attested
//! client is always logged; [`crate::auth::failed_logins`] bounds how many there are. A line must never contain a
//! secret, SQL or a startup parameter.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::auth::role::Role;
use crate::config::mode::Mode;
use crate::io::peer::Peer;
use crate::telemetry::close_reason::{CloseReason, ErrorOrigin};
use crate::telemetry::connection_info::ConnectionInfo;
use crate::telemetry::link_log::LinkLog;

/// Lines per second and kind about errors of clients. Further lines are counted but not written.
const CLIENT_ERRORS_PER_SECOND: u32 = 50;

/// The kinds of errors that have a budget each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    /// Before the client was attested: the first bytes, TLS, connections above the limit.
    Opening,
    /// The client's evidence was refused.
    Attestation,
    /// A wrong secret of a client that is not attested.
    Secret,
    /// Anything else: the login, and sessions.
    Client,
}

impl ErrorKind {
    /// The kind of an error of a client; `None` if its line is always written.
    fn of(info: &ConnectionInfo, close_reason: &CloseReason) -> Option<Self> {
        Some(match close_reason {
            CloseReason::AuthenticationFailed if info.attested => return None,
            CloseReason::AuthenticationFailed => Self::Secret,
            CloseReason::Denied(_) => Self::Attestation,
            _ if info.attested || info.is_session || info.role.is_some() => Self::Client,
            _ => Self::Opening,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Attestation => "attestation",
            Self::Secret => "secret",
            Self::Client => "client",
        }
    }
}

/// The lines of one kind in the present second.
#[derive(Default)]
struct Budget {
    window_start: Cell<Option<Instant>>,
    written: Cell<u32>,
    suppressed: Cell<u64>,
}

impl Budget {
    /// Takes one line from the budget of the second that `now` is in. Also returns how many lines were suppressed
    /// before, in the first call of a second.
    fn take(&self, now: Instant) -> (bool, u64) {
        let mut suppressed = 0;
        let is_over = |start| now.saturating_duration_since(start) >= Duration::from_secs(1);
        if self.window_start.get().is_none_or(is_over) {
            self.window_start.set(Some(now));
            self.written.set(0);
            suppressed = self.suppressed.replace(0);
        }
        if self.written.get() >= CLIENT_ERRORS_PER_SECOND {
            self.suppressed.set(self.suppressed.get() + 1);
            return (false, suppressed);
        }
        self.written.set(self.written.get() + 1);
        (true, suppressed)
    }
}

/// The access log of one shard.
#[derive(Default)]
pub(crate) struct AccessLog {
    /// A field of every line, except in production mode.
    mode: Option<&'static str>,
    opening: Budget,
    attestation: Budget,
    secret: Budget,
    client: Budget,
    links: LinkLog,
}

/// What distinguishes failures of links in the log: of a peer that is no member, what differs.
fn link_failure(close_reason: &CloseReason) -> &'static str {
    match close_reason {
        CloseReason::NotAMember(denial) => denial.code(),
        other => other.code(),
    }
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
        let link = info.link.as_deref();
        let mut suppressed = None;
        if let Some(link) = link.filter(|_| origin != ErrorOrigin::None && !info.is_session) {
            match self
                .links
                .take(link, link_failure(close_reason), Instant::now())
            {
                Some(lines) => suppressed = Some(lines).filter(|lines| *lines > 0),
                None => return,
            }
        }
        if origin == ErrorOrigin::Client
            && let Some(kind) = ErrorKind::of(info, close_reason)
            && !self.may_write(kind)
        {
            return;
        }
        let kind = link.map(|_| "link");
        let direction = link.map(|link| link.direction.name());
        let member = link.and_then(|link| link.member.as_deref());
        let instance = link.and_then(|link| link.instance);
        let instance = instance.as_ref().map(tracing::field::display);
        let service = link.and_then(|link| link.service);
        let service = service.as_ref().map(tracing::field::display);
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
                    kind,
                    direction,
                    member,
                    instance,
                    service,
                    role,
                    tls,
                    mode,
                    duration_ms,
                    received,
                    sent,
                    reason,
                    detail,
                    suppressed,
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
        if self.may_write(ErrorKind::Opening) {
            tracing::warn!(%peer, reason = "too_many_unattested", "connection dropped");
        }
    }

    /// Takes one line from the budget of its kind, and reports what was suppressed in an earlier second.
    fn may_write(&self, kind: ErrorKind) -> bool {
        let budget = match kind {
            ErrorKind::Opening => &self.opening,
            ErrorKind::Attestation => &self.attestation,
            ErrorKind::Secret => &self.secret,
            ErrorKind::Client => &self.client,
        };
        let (may_write, suppressed) = budget.take(Instant::now());
        if suppressed > 0 {
            let kind = kind.name();
            tracing::warn!(suppressed, kind, "log lines about client errors suppressed");
        }
        may_write
    }
}

fn message(info: &ConnectionInfo, close_reason: &CloseReason) -> &'static str {
    match (close_reason, close_reason.origin()) {
        (_, ErrorOrigin::None) if info.link.is_some() => "link ended",
        (_, ErrorOrigin::None) => "connection ended",
        (_, ErrorOrigin::Sidecar) => "connection ended by an internal error",
        (CloseReason::CancelExpired, _) => "cancel request dropped",
        _ if info.is_session && info.link.is_some() => "link ended with an error",
        _ if info.link.is_some() => "link not opened",
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
        let mut info = ConnectionInfo::new(0, Peer::Local);
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

    #[test]
    fn a_budget_is_per_second_and_reports_what_it_suppressed() {
        let (budget, now) = (Budget::default(), Instant::now());
        for line in 0..CLIENT_ERRORS_PER_SECOND + 7 {
            let written = line < CLIENT_ERRORS_PER_SECOND;
            assert_eq!(budget.take(now), (written, 0), "{line}");
        }
        let next = now + Duration::from_secs(1);
        assert_eq!(budget.take(next), (true, 7));
        assert_eq!(budget.take(next), (true, 0));
    }

    #[test]
    fn kinds_of_errors_have_budgets_of_their_own() {
        let mut info = ConnectionInfo::new(0, Peer::Local);
        let kind = |info: &ConnectionInfo, reason: CloseReason| ErrorKind::of(info, &reason);
        let denied = || CloseReason::Denied(attest::Denial::BadSignature);
        assert_eq!(kind(&info, denied()), Some(ErrorKind::Attestation));
        let gone = kind(&info, CloseReason::ClientGone);
        assert_eq!(gone, Some(ErrorKind::Opening));
        let wrong = kind(&info, CloseReason::AuthenticationFailed);
        assert_eq!(wrong, Some(ErrorKind::Secret));
        info.attested = true;
        assert_eq!(kind(&info, CloseReason::AuthenticationFailed), None);
        let gone = kind(&info, CloseReason::ClientGone);
        assert_eq!(gone, Some(ErrorKind::Client));
        let log = AccessLog::default();
        while log.may_write(ErrorKind::Opening) {}
        assert!(log.may_write(ErrorKind::Client));
        assert!(log.may_write(ErrorKind::Attestation));
        assert!(log.may_write(ErrorKind::Secret));
    }
}
