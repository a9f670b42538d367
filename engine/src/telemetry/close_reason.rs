//! Why a connection ended: one closed list, from which the log's reason code
//! and level and the client's error text are derived.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use attest::Denial;
use attest::denial::Fault;
use wire::backend::BackendError;
use wire::error::SqlState;
use wire::frontend::FrontendError;
use wire::local_opening::LocalOpeningError;
use wire::opening::OpeningError;

use crate::io::target::TargetError;
use crate::tls::session::TlsError;

/// How a connection came to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseReason {
    /// The client closed a running session.
    #[error("client closed the session")]
    ClientClosed,
    /// Postgres closed a running session.
    #[error("Postgres closed the session")]
    UpstreamClosed,
    /// A CancelRequest was handed to Postgres, which answers by closing.
    #[error("cancel request forwarded")]
    Cancelled,
    /// The client went away before it was logged in.
    #[error("client hung up during the login")]
    ClientGone,
    /// The plaintext bytes before TLS were refused.
    #[error("{0}")]
    Opening(#[from] OpeningError),
    /// TLS could not be agreed on.
    #[error("TLS handshake failed: {0}")]
    TlsHandshake(TlsError),
    /// The setting asks for ALPN `postgresql` and the client offered none.
    #[error("client offered no ALPN protocol")]
    AlpnMissing,
    /// The TLS session broke after its handshake.
    #[error("TLS session failed: {0}")]
    TlsSession(TlsError),
    /// The gate refused the client.
    #[error("client attestation rejected: {0}")]
    Denied(#[from] Denial),
    /// The gate would refuse the client now: policy or collateral has changed.
    /// The reason code.
    #[error("client attestation no longer accepted: {0}")]
    Revoked(&'static str),
    /// The client's login messages were refused.
    #[error("{0}")]
    Frontend(#[from] FrontendError),
    /// Wrong secret, wrong role, unknown role: nobody can tell which.
    #[error("password authentication failed")]
    AuthenticationFailed,
    /// The connection limit is reached.
    #[error("connection limit reached")]
    TooManyConnections,
    /// Postgres could not be connected to.
    #[error("cannot connect to Postgres: {0}")]
    UpstreamUnreachable(io::Error),
    /// The login injected into Postgres failed.
    #[error("pg_auth_inject failed: {0}")]
    Inject(#[from] BackendError),
    /// Postgres accepted the password and then refused the session; its own
    /// ErrorResponse has reached the client.
    #[error("Postgres refused the session: SQLSTATE {0}")]
    UpstreamRefused(SqlState),
    /// The login deadline passed.
    #[error("login not completed in time")]
    LoginTimeout,
    /// The idle timeout passed.
    #[error("session idle for too long")]
    IdleTimeout,
    /// The sidecar is going down and its grace time is over.
    #[error("sidecar is shutting down")]
    Shutdown,
    /// A socket failed.
    #[error("connection to the client failed: {0}")]
    ClientIo(io::Error),
    /// A socket failed.
    #[error("connection to Postgres failed: {0}")]
    UpstreamIo(io::Error),
    /// A peer that was told to go did not read, and was cut off.
    #[error("peer did not take the last bytes in time")]
    Stuck,
    /// A bug of ours; only this connection ends.
    #[error("panic")]
    Panic,
    /// A forwarder's driver sent no PostgreSQL.
    #[error("{0}")]
    Local(LocalOpeningError),
    /// A forwarder does not know where its server is.
    #[error("{0}")]
    Target(TargetError),
    /// A forwarder's server cannot be connected to.
    #[error("cannot connect to {0}: {1}")]
    ServerUnreachable(String, io::Error),
    /// It hung up in the middle of the handshake.
    #[error("the server closed the connection during the TLS handshake")]
    ServerHungUp,
    /// The connection to it failed.
    #[error("connection to the server lost: {0}")]
    ServerIo(io::Error),
    /// All that comes before the first byte took too long.
    #[error("the server did not prove itself within the login timeout")]
    ServerTimeout,
    /// It did not answer. The text that users know.
    #[error("upstream TLS handshake timed out after {}ms", .0.as_millis())]
    HandshakeTimeout(Duration),
    /// TLS with it failed.
    #[error("{}", server_tls_text(.0))]
    ServerTls(TlsError),
    /// It did not prove itself.
    #[error("{}", server_denied_text(.0))]
    ServerDenied(Denial),
}

/// Every reason code of an [`CloseReason`] but those of [`Denial`]: label values, and
/// the entries of docs/reference/reason-codes.md.
#[rustfmt::skip]
pub(crate) const REASONS: &[&str] = &[
    // Ends.
    "client_closed", "upstream_closed", "cancel_forwarded", "client_gone", "alpn_missing",
    "authentication_failed", "too_many_connections", "upstream_unreachable",
    "upstream_refused_session", "login_timeout", "idle_timeout", "shutdown", "client_io",
    "upstream_io", "peer_stuck", "panic", "attestation_revoked",
    // TLS.
    "tls_fragmented_message", "tls_keys_exhausted", "tls_internal", "tls_invalid_message",
    "tls_unexpected_message", "tls_incompatible", "tls_misbehaved", "tls_alert_received",
    "tls_no_application_protocol", "tls_decrypt", "tls_oversized_record", "tls_certificate",
    "tls_other",
    // A forwarder's.
    "direct_tls", "dns_failed", "no_address", "no_manifest", "many_manifests",
    "server_unreachable", "server_hung_up", "server_io", "server_timeout",
    "handshake_timeout",
    // `wire::opening`.
    "garbage", "not_tls", "early_bytes", "repeated_request", "plaintext_startup",
    "plaintext_cancel", "proxy_not_allowed", "proxy_misplaced", "proxy_malformed",
    "proxy_too_long",
    // `wire::frontend`.
    "invalid_startup_length", "encryption_request_in_tls", "unsupported_protocol",
    "malformed_startup", "missing_user", "repeated_user", "user_not_utf8", "malformed_cancel",
    "unexpected_message", "password_too_long", "malformed_password",
    // `wire::backend`.
    "postgres_early_eof", "no_randomness", "overloaded", "postgres_refused",
    "postgres_negotiated_down", "postgres_auth_method", "postgres_password_missing",
    "postgres_unexpected_message", "postgres_message_too_long", "postgres_malformed",
    "postgres_too_many_notices", "postgres_scram_iterations", "postgres_scram_nonce",
    "postgres_scram_signature", "postgres_scram_no_proof",
];

/// Whose doing an end was; decides how loud the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorOrigin {
    /// Nobody's: business as usual.
    None,
    /// The client's, which an operator need not act on.
    Client,
    /// Postgres' or the machine's, which an operator may want to act on.
    Upstream,
    /// Ours.
    Sidecar,
}

impl CloseReason {
    /// The reason code for logs and metric labels.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            CloseReason::ClientClosed => "client_closed",
            CloseReason::UpstreamClosed => "upstream_closed",
            CloseReason::Cancelled => "cancel_forwarded",
            CloseReason::ClientGone => "client_gone",
            CloseReason::Opening(error) => error.code(),
            CloseReason::TlsHandshake(error) | CloseReason::TlsSession(error) => tls_code(error),
            CloseReason::AlpnMissing => "alpn_missing",
            CloseReason::Denied(denial) => denial.code(),
            CloseReason::Revoked(code) => code,
            CloseReason::Frontend(error) => error.code(),
            CloseReason::AuthenticationFailed => "authentication_failed",
            CloseReason::TooManyConnections => "too_many_connections",
            CloseReason::UpstreamUnreachable(_) => "upstream_unreachable",
            CloseReason::Inject(error) => error.code(),
            CloseReason::UpstreamRefused(_) => "upstream_refused_session",
            CloseReason::LoginTimeout => "login_timeout",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::Shutdown => "shutdown",
            CloseReason::ClientIo(_) => "client_io",
            CloseReason::UpstreamIo(_) => "upstream_io",
            CloseReason::Stuck => "peer_stuck",
            CloseReason::Panic => "panic",
            CloseReason::Local(error) => error.code(),
            CloseReason::Target(error) => error.code(),
            CloseReason::ServerUnreachable(..) => "server_unreachable",
            CloseReason::ServerHungUp => "server_hung_up",
            CloseReason::ServerIo(_) => "server_io",
            CloseReason::ServerTimeout => "server_timeout",
            CloseReason::HandshakeTimeout(_) => "handshake_timeout",
            CloseReason::ServerTls(error) => tls_code(error),
            CloseReason::ServerDenied(denial) => denial.code(),
        }
    }

    pub(crate) fn origin(&self) -> ErrorOrigin {
        match self {
            CloseReason::ClientClosed
            | CloseReason::UpstreamClosed
            | CloseReason::Cancelled
            | CloseReason::IdleTimeout
            | CloseReason::Shutdown => ErrorOrigin::None,
            CloseReason::Denied(denial) if denial.fault() == Fault::Ours => ErrorOrigin::Upstream,
            CloseReason::Revoked(_) => ErrorOrigin::Upstream,
            CloseReason::Denied(_)
            | CloseReason::ClientGone
            | CloseReason::Opening(_)
            | CloseReason::TlsHandshake(_)
            | CloseReason::AlpnMissing
            | CloseReason::TlsSession(_)
            | CloseReason::Frontend(_)
            | CloseReason::AuthenticationFailed
            | CloseReason::LoginTimeout
            | CloseReason::Local(_)
            | CloseReason::ClientIo(_)
            | CloseReason::Stuck => ErrorOrigin::Client,
            CloseReason::TooManyConnections
            | CloseReason::UpstreamUnreachable(_)
            | CloseReason::Inject(_)
            | CloseReason::UpstreamRefused(_)
            | CloseReason::Target(_)
            | CloseReason::ServerUnreachable(..)
            | CloseReason::ServerHungUp
            | CloseReason::ServerIo(_)
            | CloseReason::ServerTimeout
            | CloseReason::HandshakeTimeout(_)
            | CloseReason::ServerTls(_)
            | CloseReason::ServerDenied(_)
            | CloseReason::UpstreamIo(_) => ErrorOrigin::Upstream,
            CloseReason::Panic => ErrorOrigin::Sidecar,
        }
    }
}

impl CloseReason {
    /// What the relay says, where the side in TLS is the server and the plain
    /// one the driver.
    pub(crate) fn swap_sides(self) -> Self {
        match self {
            CloseReason::ClientClosed => CloseReason::UpstreamClosed,
            CloseReason::UpstreamClosed => CloseReason::ClientClosed,
            CloseReason::ClientGone => CloseReason::ServerHungUp,
            CloseReason::ClientIo(error) => CloseReason::ServerIo(error),
            CloseReason::UpstreamIo(error) => CloseReason::ClientIo(error),
            CloseReason::TlsSession(error) => CloseReason::ServerTls(error),
            end => end,
        }
    }
}

/// What went wrong with the server's TLS, in words that say what to do.
pub(super) fn server_tls_text(error: &TlsError) -> Cow<'static, str> {
    use rustls::{AlertDescription, Error};
    match error {
        TlsError::Rustls(Error::InvalidMessage(_)) => {
            "the server does not speak TLS: is the target a TeeSQL sidecar?".into()
        }
        TlsError::Rustls(Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            // Its signature, or ours with its key.
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        )) => "the server refused the client certificate".into(),
        error => format!("TLS with the server failed: {error}").into(),
    }
}

/// The texts that users of the public clients know. [contract, section 2]
fn server_denied_text(denial: &Denial) -> String {
    match denial {
        Denial::NoEvidence => "upstream cert has no TDX attestation extension; set \
             allow_simulator: true for non-TEE targets"
            .to_owned(),
        denial => denial.to_string(),
    }
}

fn tls_code(error: &TlsError) -> &'static str {
    use rustls::Error;
    match error {
        TlsError::FragmentedPostHandshake => "tls_fragmented_message",
        TlsError::KeysExhausted => "tls_keys_exhausted",
        TlsError::NoRoom | TlsError::NotOpen | TlsError::Cryptography(_) => "tls_internal",
        TlsError::Rustls(error) => match error {
            Error::InvalidMessage(_) => "tls_invalid_message",
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                "tls_unexpected_message"
            }
            Error::PeerIncompatible(_) => "tls_incompatible",
            Error::PeerMisbehaved(_) => "tls_misbehaved",
            Error::AlertReceived(_) => "tls_alert_received",
            Error::NoApplicationProtocol => "tls_no_application_protocol",
            Error::DecryptError => "tls_decrypt",
            Error::PeerSentOversizedRecord => "tls_oversized_record",
            Error::NoCertificatesPresented | Error::InvalidCertificate(_) => "tls_certificate",
            _ => "tls_other",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes in `=> "code"` arms of the sources that define them.
    fn codes(source: &str) -> impl Iterator<Item = &str> {
        let shipped = source.split("#[cfg(test)]").next().unwrap();
        shipped
            .split("=> ")
            .skip(1)
            .filter_map(|rest| {
                let text = rest.trim_start_matches(|c: char| c == '{' || c.is_whitespace());
                text.strip_prefix('"')?.split('"').next()
            })
            .filter(|text| {
                let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                text.bytes().all(is_word)
            })
    }

    #[test]
    fn every_reason_code_is_listed_and_documented() {
        let page = include_str!("../../../docs/reference/reason-codes.md");
        let mut listed = REASONS.to_vec();
        for source in [
            include_str!("close_reason.rs"),
            include_str!("../io/target.rs"),
            include_str!("../../../wire/src/local_opening.rs"),
            include_str!("../../../wire/src/error.rs"),
            include_str!("../../../wire/src/error/backend.rs"),
        ] {
            for code in codes(source).filter(|code| *code != "crypt" && *code != "unknown") {
                assert!(REASONS.contains(&code), "{code} is not listed");
                listed.retain(|listed| *listed != code);
            }
        }
        assert_eq!(listed, ["attestation_revoked"], "no end has these");
        for code in REASONS {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }

    #[test]
    fn every_denial_is_documented() {
        let page = include_str!("../../../docs/reference/reason-codes.md");
        for code in Denial::CODES {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }
}
