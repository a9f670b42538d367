//! The ErrorResponse that a client, or a forwarder's driver, receives when its connection closes.
//!
//! The texts are an allow-list. Details of Postgres or of this machine that are not meant for
//! clients must never get into them.

use std::borrow::Cow;
use std::io;

use attest::denial::Fault;
use wire::error::{ErrorResponse, SqlState};

use crate::telemetry::close_reason::{CloseReason, server_tls_text};

impl CloseReason {
    /// The encode ErrorResponse for the client; `None` if the protocol does not
    /// allow one, or if it has been sent already.
    pub(crate) fn response(&self) -> Option<Vec<u8>> {
        let fatal = |sqlstate, message: Cow<'_, str>, hint| {
            let mut out = Vec::with_capacity(128);
            ErrorResponse::fatal(sqlstate, &message)
                .with_hint(hint)
                .encode(&mut out);
            Some(out)
        };
        match self {
            CloseReason::Opening(error) => error.response().map(encode),
            CloseReason::Frontend(error) => error.response().map(encode),
            // Only the code: the measured values are in the log.
            CloseReason::Denied(denial) => fatal(
                match denial.fault() {
                    // Another host may have the collateral, or the time.
                    Fault::Ours => SqlState::CANNOT_CONNECT_NOW,
                    Fault::Peer => SqlState::INVALID_AUTHORIZATION,
                },
                format!("client attestation rejected: {}", denial.peer_code()).into(),
                None,
            ),
            CloseReason::Revoked(revocation) => fatal(
                SqlState::ADMIN_SHUTDOWN,
                format!(
                    "client attestation no longer accepted: {}",
                    revocation.peer_code
                )
                .into(),
                None,
            ),
            CloseReason::NotGranted(_) => fatal(
                SqlState::INVALID_AUTHORIZATION,
                self.to_string().into(),
                None,
            ),
            CloseReason::PeerSessionLimit => fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "too many sessions of this client's policy entry".into(),
                None,
            ),
            CloseReason::AuthenticationFailed => Some(encode(wire::error::AUTHENTICATION_FAILED)),
            CloseReason::TooManyConnections => fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "sorry, too many clients already".into(),
                None,
            ),
            // It passes, and another host may be able to serve the client: libpq then tries its next one.
            CloseReason::TooManyLogins => fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "too many clients are logging in: try again".into(),
                None,
            ),
            CloseReason::AuditUnavailable => fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "no new sessions: the audit log cannot be written".into(),
                None,
            ),
            // libpq then tries its next host.
            CloseReason::NoLeader | CloseReason::ReadOnlyMember(_) => fatal(
                SqlState::CANNOT_CONNECT_NOW,
                self.to_string().into(),
                None,
            ),
            CloseReason::Fenced | CloseReason::LeaderChanged => fatal(
                SqlState::ADMIN_SHUTDOWN,
                format!("terminating connection: {self}").into(),
                None,
            ),
            CloseReason::UpstreamUnreachable(error) => fatal(
                SqlState::CANNOT_CONNECT_NOW,
                format!(
                    "pg_auth_inject failed: cannot connect to Postgres: {}",
                    io_text(error)
                )
                .into(),
                None,
            ),
            CloseReason::UpstreamLoginFailed(error) => {
                fatal(error.response_sqlstate(), self.to_string().into(), None)
            }
            CloseReason::UpstreamTimeout => fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "pg_auth_inject failed: Postgres did not answer within the login timeout".into(),
                None,
            ),
            CloseReason::UpstreamIo(_) => fatal(
                SqlState::CONNECTION_FAILURE,
                "connection to Postgres lost".into(),
                None,
            ),
            CloseReason::LoginTimeout => fatal(
                SqlState::QUERY_CANCELED,
                "canceling authentication due to timeout".into(),
                None,
            ),
            CloseReason::IdleTimeout => fatal(
                SqlState::IDLE_SESSION_TIMEOUT,
                "terminating connection due to idle-session timeout".into(),
                None,
            ),
            CloseReason::Shutdown | CloseReason::Killed => fatal(
                SqlState::ADMIN_SHUTDOWN,
                "terminating connection due to administrator command".into(),
                None,
            ),
            CloseReason::AlpnMissing => fatal(
                SqlState::PROTOCOL_VIOLATION,
                "ALPN protocol \"postgresql\" is required".into(),
                Some("Connect with sslnegotiation=direct."),
            ),
            CloseReason::LocalOpening(error) => error.response().map(encode),
            CloseReason::Target(_)
            | CloseReason::ServerUnreachable(..)
            | CloseReason::ServerHungUp
            | CloseReason::ServerIo(_)
            | CloseReason::ServerTimeout
            | CloseReason::HandshakeTimeout(_)
            | CloseReason::ServerTls(_) => {
                fatal(SqlState::UNABLE_TO_CONNECT, self.to_string().into(), None)
            }
            CloseReason::ServerDenied { .. } | CloseReason::LeaderMismatch { .. } => fatal(
                SqlState::INVALID_AUTHORIZATION,
                self.to_string().into(),
                None,
            ),
            CloseReason::ClientClosed
            | CloseReason::UpstreamClosed
            | CloseReason::Cancelled
            | CloseReason::CancelExpired
            | CloseReason::ClientGone
            | CloseReason::TlsHandshake(_)
            | CloseReason::TlsSession(_)
            | CloseReason::UpstreamRefused(_)
            // Before the TLS handshake there is no message that a client could trust.
            | CloseReason::TooManyUnattested
            // Links have other answers.
            | CloseReason::LinkRefused(_)
            | CloseReason::LinkRequest(_)
            | CloseReason::NotAMember(_)
            | CloseReason::NoInstanceId
            | CloseReason::MemberConflict(_)
            | CloseReason::LinkServiceUnreachable(_)
            | CloseReason::Link(_)
            | CloseReason::LinkNotSupported
            | CloseReason::LinkWrongMember
            | CloseReason::ClientIo(_)
            | CloseReason::PeerStuck
            | CloseReason::Panic => None,
        }
    }

    /// The encoded ErrorResponse for a client that is not logged in yet. Of a process that stops it is that of a Postgres
    /// that shuts down, and of a lost connection to Postgres that of a failed login: on both libpq tries its next host.
    pub(crate) fn login_response(&self) -> Option<Vec<u8>> {
        match self {
            CloseReason::Shutdown => Some(encode(ErrorResponse::fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "the database system is shutting down",
            ))),
            CloseReason::UpstreamIo(_) => Some(encode(ErrorResponse::fatal(
                SqlState::CANNOT_CONNECT_NOW,
                "pg_auth_inject failed: connection to Postgres lost",
            ))),
            CloseReason::Fenced | CloseReason::LeaderChanged => Some(encode(ErrorResponse::fatal(
                SqlState::CANNOT_CONNECT_NOW,
                &self.to_string(),
            ))),
            reason => reason.response(),
        }
    }

    /// The encode ErrorResponse for the driver of a forwarder's session: [`Self::response`]
    /// after [`Self::swap_sides`].
    pub(crate) fn driver_response(&self) -> Option<Vec<u8>> {
        let text = match self {
            CloseReason::Revoked(_) => {
                let text = self.to_string().replacen("client", "server", 1);
                return Some(encode(ErrorResponse::fatal(
                    SqlState::ADMIN_SHUTDOWN,
                    &text,
                )));
            }
            CloseReason::TlsSession(error) => server_tls_text(error),
            CloseReason::ClientIo(error) => {
                format!("connection to the server lost: {error}").into()
            }
            reason => return reason.response(),
        };
        Some(encode(ErrorResponse::fatal(
            SqlState::CONNECTION_FAILURE,
            &text,
        )))
    }
}

fn encode(response: ErrorResponse<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    response.encode(&mut out);
    out
}

/// Fixed texts for the kinds of error that occur, instead of the operating system's texts.
fn io_text(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::NotFound => "no such socket",
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::TimedOut => "timed out",
        _ => "connection failed",
    }
}

#[cfg(test)]
mod tests {
    use wire::backend::BackendError;

    use super::*;

    #[test]
    fn texts_that_users_know_are_unchanged() {
        let text = |reason: CloseReason| String::from_utf8(reason.response().unwrap()).unwrap();
        assert!(
            text(CloseReason::AuthenticationFailed)
                .contains("C28P01\0Mauthentication_failed: password authentication failed\0")
        );
        assert!(
            text(CloseReason::UpstreamLoginFailed(BackendError::EarlyEof))
                .contains("Mpg_auth_inject failed: early eof\0")
        );
        assert!(text(CloseReason::Shutdown).contains("C57P01\0"));
        assert!(text(CloseReason::TooManyConnections).contains("C53300\0"));
        assert!(text(CloseReason::TooManyLogins).contains("C57P03\0"));
        assert!(
            text(CloseReason::UpstreamUnreachable(
                io::ErrorKind::ConnectionRefused.into()
            ))
            .contains(
                "C57P03\0Mpg_auth_inject failed: cannot connect to Postgres: connection refused\0"
            )
        );
    }

    /// `pg_auth_inject failed` is about the login: an established session has it behind it.
    #[test]
    fn a_lost_session_is_not_said_to_be_a_failed_login() {
        let lost = CloseReason::UpstreamIo(io::ErrorKind::ConnectionReset.into());
        let text = |response: Option<Vec<u8>>| String::from_utf8(response.unwrap()).unwrap();
        let session = text(lost.response());
        assert!(session.contains("C08006\0Mconnection to Postgres lost\0"));
        let login = text(lost.login_response());
        assert!(login.contains("C57P03\0Mpg_auth_inject failed: connection to Postgres lost\0"));
    }
}
