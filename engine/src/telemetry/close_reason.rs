//! The closed list of reasons why a connection closed, each with its code and its origin.
//!
//! The level of the log line follows from the origin, the labels of the metrics are the codes,
//! and the client's error message is made in `client_error.rs`.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use attest::Denial;
use attest::denial::Fault;
use wire::backend::BackendError;
use wire::error::SqlState;
use wire::frontend::FrontendError;
use wire::link::{LinkError, LinkRefusal, NameError};
use wire::local_opening::LocalOpeningError;
use wire::opening::OpeningError;

use crate::auth::grants::NotGranted;
use crate::io::target::TargetError;
use crate::tls::session::TlsError;

/// Why a connection closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseReason {
    /// The client closed a running session.
    #[error("client closed the session")]
    ClientClosed,
    /// Postgres closed a running session.
    #[error("Postgres closed the session")]
    UpstreamClosed,
    /// A CancelRequest was forwarded to Postgres, which responds by closing.
    #[error("cancel request forwarded")]
    Cancelled,
    /// Postgres, or the server of a forwarder, did not answer in time for a CancelRequest, which was dropped.
    #[error("cancel request dropped: the server did not answer in time")]
    CancelExpired,
    /// The client closed the connection before it was logged in.
    #[error("client hung up during the login")]
    ClientGone,
    /// The plaintext bytes before TLS were refused.
    #[error("{0}")]
    Opening(#[from] OpeningError),
    /// The TLS handshake with the client failed.
    #[error("TLS handshake failed: {0}")]
    TlsHandshake(TlsError),
    /// `require_alpn` is set and the client offered no protocol.
    #[error("client offered no ALPN protocol")]
    AlpnMissing,
    /// The TLS session failed after its handshake.
    #[error("TLS session failed: {0}")]
    TlsSession(TlsError),
    /// The attestation of the client was refused.
    #[error("client attestation rejected: {0}")]
    Denied(#[from] Denial),
    /// The attestation of the client is no longer accepted, because the policy or collateral
    /// has changed.
    #[error("client attestation no longer accepted: {}", .0.code)]
    Revoked(Revocation),
    /// The policy entry of the client does not grant the role or the database.
    #[error("role_not_granted: {}", not_granted_text(*.0))]
    NotGranted(NotGranted),
    /// The policy entry of the client has as many sessions as it may have.
    #[error("the policy entry of the client has reached its max_sessions")]
    PeerSessionLimit,
    /// A login message of the client was refused.
    #[error("{0}")]
    Frontend(#[from] FrontendError),
    /// Wrong secret, wrong role or unknown role. The client must not learn which.
    #[error("password authentication failed")]
    AuthenticationFailed,
    /// The connection limit is reached.
    #[error("connection limit reached")]
    TooManyConnections,
    /// Too many attested clients are logging in, or too many of this app id.
    #[error("too many clients are logging in")]
    TooManyLogins,
    /// Too many connections of clients that are not attested yet, and this one was the oldest.
    #[error("displaced by newer connections before the client was attested")]
    TooManyUnattested,
    /// `audit_required` is set, and the audit log cannot be written.
    #[error("the audit log cannot be written, and audit_required is set")]
    AuditUnavailable,
    /// No member of the cluster took writes for `cluster_leader_wait`.
    #[error("no leader of the cluster takes writes")]
    NoLeader,
    /// `cluster_writes_on_standby = refuse`, and another member leads.
    #[error("this member of the cluster takes no writes: the leader is {0}")]
    ReadOnlyMember(Box<str>),
    /// This member may not take writes: it does not hold the leader lock.
    #[error("this member of the cluster has lost the leader lock")]
    Fenced,
    /// The session was carried to a leader that leads no more. In a forwarder with `follow`: the session is with the
    /// old leader, and the new one answers.
    #[error("the cluster has a new leader")]
    LeaderChanged,
    /// The connection to Postgres could not be opened.
    #[error("cannot connect to Postgres: {0}")]
    UpstreamUnreachable(io::Error),
    /// Postgres was reached, and the login deadline passed while it was awaited.
    #[error("Postgres did not answer within the login timeout")]
    UpstreamTimeout,
    /// The login to Postgres failed. Users of the public clients know the text.
    #[error("pg_auth_inject failed: {0}")]
    UpstreamLoginFailed(#[from] BackendError),
    /// Postgres accepted the password and then refused the session. Its ErrorResponse was
    /// forwarded to the client.
    #[error("Postgres refused the session: SQLSTATE {0}")]
    UpstreamRefused(SqlState),
    /// The login deadline passed.
    #[error("login not completed in time")]
    LoginTimeout,
    /// The idle timeout passed.
    #[error("session idle for too long")]
    IdleTimeout,
    /// The process stops and the drain timeout is over.
    #[error("sidecar is shutting down")]
    Shutdown,
    /// An operator has ended it (`teesql-sidecar kill`).
    #[error("ended by an operator")]
    Killed,
    /// The connection to the client failed.
    #[error("connection to the client failed: {0}")]
    ClientIo(io::Error),
    /// The connection to Postgres failed.
    #[error("connection to Postgres failed: {0}")]
    UpstreamIo(io::Error),
    /// The peer did not read the final message in time and was disconnected.
    #[error("peer did not read the final message in time")]
    PeerStuck,
    /// A bug. Only this connection ends.
    #[error("panic")]
    Panic,
    /// Forwarder: the first bytes of the driver were refused.
    #[error("{0}")]
    LocalOpening(LocalOpeningError),
    /// Forwarder: the address of the server is unknown.
    #[error("{0}")]
    Target(TargetError),
    /// Forwarder: the connection to the server could not be opened.
    #[error("cannot connect to {0}: {1}")]
    ServerUnreachable(String, io::Error),
    /// Forwarder: the server closed the connection during the handshake.
    #[error("the server closed the connection during the TLS handshake")]
    ServerHungUp,
    /// Forwarder: the connection to the server failed.
    #[error("connection to the server lost: {0}")]
    ServerIo(io::Error),
    /// Forwarder: the server was not verified within the login timeout.
    #[error("the server was not verified within the login timeout")]
    ServerTimeout,
    /// Forwarder: the server did not answer. Users of the public clients know this text.
    #[error("upstream TLS handshake timed out after {}ms", .0.as_millis())]
    HandshakeTimeout(Duration),
    /// Forwarder: TLS with the server failed.
    #[error("{}", server_tls_text(.0))]
    ServerTls(TlsError),
    /// Forwarder: the attestation of the server was refused.
    #[error("{}", server_denied_text(denial, *.allow_simulator))]
    ServerDenied {
        /// Why.
        denial: Denial,
        /// The setting: servers without evidence are accepted.
        allow_simulator: bool,
    },
    /// A link is refused, by this member or for want of a place here.
    #[error("{}", link_refusal_text(*.0))]
    LinkRefused(#[from] LinkRefusal),
    /// The request for a link has something else than a name.
    #[error("{0}")]
    LinkRequest(#[from] NameError),
    /// The peer of a link is attested, and no member of the cluster.
    #[error("the peer is not a member of the cluster: {0}")]
    NotAMember(Denial),
    /// The peer of a link cannot be told apart from other members.
    #[error(
        "the peer proves no instance id, by which members are told apart: remove no_instance_id from the application's \
         compose file"
    )]
    NoInstanceId,
    /// The name of the other member belongs to another VM. The text says to which.
    #[error("{0}")]
    MemberConflict(Box<str>),
    /// The service of a link does not accept connections.
    #[error("cannot connect to the service on this machine: {0}")]
    LinkServiceUnreachable(io::Error),
    /// A link that this member requested was not opened.
    #[error("{}", link_error_text(.0))]
    Link(#[from] LinkError),
    /// The server at a member's address does not know links.
    #[error(
        "the server at the member's address does not know links: it must be the sidecar of a member, with \
         cluster_members set"
    )]
    LinkNotSupported,
    /// A link has reached another member than it was opened to.
    #[error(
        "another member has answered: the member's host name leads to the wrong machine, or differs between the \
         members' cluster_members"
    )]
    LinkWrongMember,
    /// Forwarder: the server is not the instance that the manifest names.
    #[error(
        "the leader manifest names instance {expected}, but the server proves {}",
        .proven.as_deref().unwrap_or("no instance id")
    )]
    LeaderMismatch {
        /// The leader's instance id in the manifest.
        expected: String,
        /// What the server's event log proves.
        proven: Option<String>,
    },
}

/// What a refused link means to an operator of the member that refuses it.
fn link_refusal_text(refusal: LinkRefusal) -> &'static str {
    match refusal {
        LinkRefusal::UnknownService => "cluster_services names no such service",
        LinkRefusal::NotAMember => "the peer is not a member of the cluster",
        LinkRefusal::ServiceUnreachable => "the service does not accept connections",
        LinkRefusal::TooManyLinks => {
            "there are as many links as cluster_links allows, or as many members that cluster_members does not name"
        }
        LinkRefusal::Draining => "this member is shutting down",
        LinkRefusal::NotReady => {
            "members cannot be verified yet: this sidecar's own evidence is not known (the log says why), or \
             proves no app id and compose hash, and the policy file has no [[peer]] with member = true"
        }
        LinkRefusal::WrongMember => {
            "the link was opened to another member: that member's address leads here, or cluster_member and \
             cluster_members differ between the members"
        }
        LinkRefusal::MemberConflict => "the name of the member belongs to another VM",
    }
}

/// What a failed link means to an operator of the member that opens it.
fn link_error_text(error: &LinkError) -> Cow<'static, str> {
    match error {
        LinkError::Refused(LinkRefusal::UnknownService) => {
            "the member has no such service: cluster_services must be the same on all members".into()
        }
        LinkError::Refused(LinkRefusal::NotAMember) => {
            "the member does not accept this one as a member: members must run the same application, or be \
             listed with member = true in each other's policy file; the member's log names what differs"
                .into()
        }
        LinkError::Refused(LinkRefusal::MemberConflict) => {
            "the member says that the name of this one belongs to another VM: two VMs have the same cluster_member, or \
             this one was restarted or replaces a lost one, and the name is not free yet; the member's log and its \
             /cluster name the instance that has it"
                .into()
        }
        error => error.to_string().into(),
    }
}

/// Why a session has lost its admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revocation {
    /// The code of the denial, for the log.
    pub(crate) code: &'static str,
    /// The code that the peer receives.
    pub(crate) peer_code: &'static str,
}

impl Revocation {
    /// The peer is admitted, but its policy entry no longer grants the role or the database.
    pub(crate) const NOT_GRANTED: Self = Self {
        code: "role_not_granted",
        peer_code: "role_not_granted",
    };
    /// The collateral of the peer's platform has been invalid for longer than `collateral_grace`.
    pub(crate) const COLLATERAL_EXPIRED: Self = Self {
        code: "collateral_expired",
        peer_code: "collateral_expired",
    };
}

/// Says what is not granted. The names are the client's own, and stay out of the text.
fn not_granted_text(what: NotGranted) -> &'static str {
    match what {
        NotGranted::Role => "the policy does not grant this role to this client",
        NotGranted::Database => "the policy does not grant this database to this client",
    }
}

/// Every code of a [`CloseReason`] except those of [`Denial`]. They are label values in
/// metrics, and docs/reference/reason-codes.md lists them.
#[rustfmt::skip]
pub(crate) const REASONS: &[&str] = &[
    // Connections.
    "client_closed", "upstream_closed", "cancel_forwarded", "cancel_expired", "client_gone", "alpn_missing",
    "authentication_failed", "role_not_granted", "peer_session_limit", "too_many_connections", "upstream_unreachable",
    "too_many_logins", "too_many_unattested", "audit_unavailable", "no_leader", "read_only_member", "fenced", "leader_changed",
    "upstream_refused_session", "upstream_timeout", "login_timeout", "idle_timeout", "shutdown", "killed", "client_io",
    "upstream_io", "peer_stuck", "panic", "attestation_revoked",
    // TLS.
    "tls_fragmented_message", "tls_keys_exhausted", "tls_internal", "tls_invalid_message",
    "tls_unexpected_message", "tls_incompatible", "tls_misbehaved", "tls_alert_received",
    "tls_no_application_protocol", "tls_decrypt", "tls_oversized_record", "tls_certificate",
    "tls_other",
    // Forwarder.
    "direct_tls", "dns_failed", "no_address", "no_manifest", "many_manifests",
    "server_unreachable", "server_hung_up", "server_io", "server_timeout",
    "handshake_timeout", "leader_mismatch",
    // Links, and `wire::link`.
    "link_not_supported", "link_invalid_service_name", "link_invalid_member_name", "link_unknown_service",
    "link_not_a_member", "link_service_unreachable", "link_too_many", "link_draining", "link_not_ready",
    "link_wrong_member", "link_member_conflict", "link_unknown_answer", "link_early_eof",
    // `wire::opening`.
    "garbage", "not_tls", "early_bytes", "repeated_request", "plaintext_startup",
    "plaintext_cancel", "proxy_not_allowed", "proxy_misplaced", "proxy_malformed",
    "proxy_too_long",
    // `wire::frontend`.
    "invalid_startup_length", "encryption_request_in_tls", "unsupported_protocol",
    "malformed_startup", "missing_user", "repeated_user", "user_not_utf8", "malformed_cancel",
    "unexpected_message", "password_too_long", "malformed_password",
    "password_instead_of_scram", "scram_mechanism", "scram_malformed", "scram_binding_type",
    "scram_downgrade", "scram_binding_mismatch", "scram_nonce_mismatch",
    // `wire::backend`.
    "postgres_early_eof", "no_randomness", "overloaded", "postgres_wrong_listener",
    "postgres_refused", "postgres_not_scram",
    "postgres_negotiated_down", "postgres_auth_method", "postgres_password_missing",
    "postgres_unexpected_message", "postgres_message_too_long", "postgres_malformed",
    "postgres_too_many_notices", "postgres_scram_iterations", "postgres_scram_few_iterations",
    "postgres_scram_nonce", "postgres_scram_signature", "postgres_scram_no_proof",
];

/// The party that caused a connection to close. It decides the level of the log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorOrigin {
    /// No error: a normal end.
    None,
    /// The client. An operator does not have to act.
    Client,
    /// Postgres, the network or the configuration. An operator may want to act.
    Upstream,
    /// This process: a bug.
    Sidecar,
}

impl CloseReason {
    /// The reason code for logs and metric labels.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            CloseReason::ClientClosed => "client_closed",
            CloseReason::UpstreamClosed => "upstream_closed",
            CloseReason::Cancelled => "cancel_forwarded",
            CloseReason::CancelExpired => "cancel_expired",
            CloseReason::ClientGone => "client_gone",
            CloseReason::Opening(error) => error.code(),
            CloseReason::TlsHandshake(error) | CloseReason::TlsSession(error) => tls_code(error),
            CloseReason::AlpnMissing => "alpn_missing",
            CloseReason::Denied(denial) => denial.code(),
            CloseReason::Revoked(revocation) => revocation.code,
            CloseReason::NotGranted(_) => "role_not_granted",
            CloseReason::PeerSessionLimit => "peer_session_limit",
            CloseReason::Frontend(error) => error.code(),
            CloseReason::AuthenticationFailed => "authentication_failed",
            CloseReason::TooManyConnections => "too_many_connections",
            CloseReason::TooManyLogins => "too_many_logins",
            CloseReason::TooManyUnattested => "too_many_unattested",
            CloseReason::AuditUnavailable => "audit_unavailable",
            CloseReason::NoLeader => "no_leader",
            CloseReason::ReadOnlyMember(_) => "read_only_member",
            CloseReason::Fenced => "fenced",
            CloseReason::LeaderChanged => "leader_changed",
            CloseReason::UpstreamUnreachable(_) => "upstream_unreachable",
            CloseReason::UpstreamTimeout => "upstream_timeout",
            CloseReason::UpstreamLoginFailed(error) => error.code(),
            CloseReason::UpstreamRefused(_) => "upstream_refused_session",
            CloseReason::LoginTimeout => "login_timeout",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::Shutdown => "shutdown",
            CloseReason::Killed => "killed",
            CloseReason::ClientIo(_) => "client_io",
            CloseReason::UpstreamIo(_) => "upstream_io",
            CloseReason::PeerStuck => "peer_stuck",
            CloseReason::Panic => "panic",
            CloseReason::LocalOpening(error) => error.code(),
            CloseReason::Target(error) => error.code(),
            CloseReason::ServerUnreachable(..) => "server_unreachable",
            CloseReason::ServerHungUp => "server_hung_up",
            CloseReason::ServerIo(_) => "server_io",
            CloseReason::ServerTimeout => "server_timeout",
            CloseReason::HandshakeTimeout(_) => "handshake_timeout",
            CloseReason::ServerTls(error) => tls_code(error),
            CloseReason::ServerDenied { denial, .. } => denial.code(),
            CloseReason::LeaderMismatch { .. } => "leader_mismatch",
            CloseReason::LinkRefused(refusal) => refusal.code(),
            CloseReason::LinkRequest(error) => error.code(),
            CloseReason::NotAMember(_) | CloseReason::NoInstanceId => {
                LinkRefusal::NotAMember.code()
            }
            CloseReason::MemberConflict(_) => LinkRefusal::MemberConflict.code(),
            CloseReason::LinkServiceUnreachable(_) => LinkRefusal::ServiceUnreachable.code(),
            CloseReason::Link(error) => error.code(),
            CloseReason::LinkNotSupported => "link_not_supported",
            CloseReason::LinkWrongMember => LinkRefusal::WrongMember.code(),
        }
    }

    /// The value of the label `reason`. Sessions that end because of a new policy or collateral have one value,
    /// whatever the denial.
    pub(crate) fn metric_code(&self) -> &'static str {
        match self {
            CloseReason::Revoked(_) => "attestation_revoked",
            other => other.code(),
        }
    }

    /// The party that caused this connection to close.
    pub(crate) fn origin(&self) -> ErrorOrigin {
        match self {
            CloseReason::ClientClosed
            | CloseReason::UpstreamClosed
            | CloseReason::Cancelled
            | CloseReason::IdleTimeout
            | CloseReason::LeaderChanged
            | CloseReason::Killed
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
            | CloseReason::NotGranted(_)
            | CloseReason::LoginTimeout
            | CloseReason::TooManyUnattested
            | CloseReason::LocalOpening(_)
            | CloseReason::LinkRequest(_)
            | CloseReason::ClientIo(_)
            | CloseReason::PeerStuck => ErrorOrigin::Client,
            CloseReason::CancelExpired
            | CloseReason::TooManyConnections
            | CloseReason::TooManyLogins
            | CloseReason::PeerSessionLimit
            | CloseReason::AuditUnavailable
            | CloseReason::NoLeader
            | CloseReason::ReadOnlyMember(_)
            | CloseReason::Fenced
            | CloseReason::UpstreamUnreachable(_)
            | CloseReason::UpstreamTimeout
            | CloseReason::UpstreamLoginFailed(_)
            | CloseReason::UpstreamRefused(_)
            | CloseReason::Target(_)
            | CloseReason::ServerUnreachable(..)
            | CloseReason::ServerHungUp
            | CloseReason::ServerIo(_)
            | CloseReason::ServerTimeout
            | CloseReason::HandshakeTimeout(_)
            | CloseReason::ServerTls(_)
            | CloseReason::ServerDenied { .. }
            | CloseReason::LeaderMismatch { .. }
            | CloseReason::LinkRefused(_)
            | CloseReason::NotAMember(_)
            | CloseReason::NoInstanceId
            | CloseReason::MemberConflict(_)
            | CloseReason::LinkServiceUnreachable(_)
            | CloseReason::Link(_)
            | CloseReason::LinkNotSupported
            | CloseReason::LinkWrongMember
            | CloseReason::UpstreamIo(_) => ErrorOrigin::Upstream,
            CloseReason::Panic => ErrorOrigin::Sidecar,
        }
    }

    /// Translates a reason of the relay, which names its sides after a sidecar's, for a
    /// forwarder: there the TLS side is the server and the plain side the driver.
    pub(crate) fn swap_sides(self) -> Self {
        match self {
            CloseReason::ClientClosed => CloseReason::UpstreamClosed,
            CloseReason::UpstreamClosed => CloseReason::ClientClosed,
            CloseReason::ClientGone => CloseReason::ServerHungUp,
            CloseReason::ClientIo(error) => CloseReason::ServerIo(error),
            CloseReason::UpstreamIo(error) => CloseReason::ClientIo(error),
            CloseReason::TlsSession(error) => CloseReason::ServerTls(error),
            reason => reason,
        }
    }
}

/// Describes a TLS error of the server in terms of what to do about it.
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
            // A signature: of the certificate, or of this client's CertificateVerify.
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        )) => "the server refused the client certificate".into(),
        error => format!("TLS with the server failed: {error}").into(),
    }
}

/// Describes a denial in the words that users of the public TeeSQL clients know.
fn server_denied_text(denial: &Denial, allow_simulator: bool) -> String {
    match denial {
        denial if allow_simulator && denial.fault() == Fault::Peer => format!(
            "{denial} (allow_simulator accepts servers without evidence, and this one presents some: to accept a \
             simulator's as well, set verifier = none)"
        ),
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

    /// The codes in the `=> "code"` arms of a source file.
    fn codes(source: &str) -> impl Iterator<Item = &str> {
        let production = source.split("#[cfg(test)]").next().unwrap();
        production
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
            include_str!("../../../wire/src/link/names.rs"),
            include_str!("../../../wire/src/link/refusal.rs"),
            include_str!("../../../wire/src/error.rs"),
            include_str!("../../../wire/src/error/backend.rs"),
        ] {
            for code in codes(source).filter(|code| *code != "crypt" && *code != "unknown") {
                assert!(REASONS.contains(&code), "{code} is not listed");
                listed.retain(|listed| *listed != code);
            }
        }
        assert!(listed.is_empty(), "codes without a reason: {listed:?}");
        for code in REASONS {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }

    #[test]
    fn every_denial_is_documented() {
        let page = include_str!("../../../docs/reference/reason-codes.md");
        for code in Denial::CODES.into_iter().chain(Denial::VERIFIER_CODES) {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }
}
