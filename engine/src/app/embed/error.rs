//! The error of a program that uses this crate as a library: its kind, its reason code from a closed list, and its text.

use std::fmt;

use attest::denial::Fault;
use attest::tcb::TcbStatus;
use attest::{Denial, manifest::ManifestError};

use crate::app::error::StartError;
use crate::config::Errors;
use crate::io::target::TargetError;
use crate::telemetry::close_reason::REASONS;
use crate::telemetry::failures::Failure;

/// The codes that connections do not have.
const OWN_CODES: [&str; 14] = [
    "configuration",
    "identity_unusable",
    "agent_not_found",
    "agent_forbidden",
    "agent_connect",
    "agent_timeout",
    "agent_failed",
    "server_no_tls",
    "tls_failed",
    "forked",
    "stopped",
    "system",
    "internal",
    "overloaded",
];

/// An error. Its text contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    code: &'static str,
    messages: Vec<String>,
    value: Option<String>,
}

/// Kinds of [`Error`]. A language's exceptions are made from these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a DSN or an argument is wrong.
    Configuration,
    /// No client certificate: no guest agent, or it refuses, or PEM cannot be used.
    Identity,
    /// The server is refused: its evidence, the policy, or a verifier's decision.
    Refused,
    /// The leader manifest is missing or refused.
    Manifest,
    /// Something that is needed for a verdict is unavailable: collateral, Trust Authority, a verifier that failed.
    Unavailable,
    /// A name cannot be resolved, a server cannot be reached, or TLS failed.
    Network,
    /// A deadline passed.
    Timeout,
    /// A limit is reached: connections, lookups, verifications.
    Overloaded,
    /// The process has forked since the forwarder was started.
    Forked,
    /// The forwarder was stopped.
    Stopped,
    /// The operating system, or a bug.
    System,
}

impl ErrorKind {
    /// Its name in the packages for other languages, which is a part of their interface.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Identity => "identity",
            Self::Refused => "refused",
            Self::Manifest => "manifest",
            Self::Unavailable => "unavailable",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Forked => "forked",
            Self::Stopped => "stopped",
            Self::System => "system",
        }
    }
}

/// Every code that [`Error::code`] and [`Failure::code`] can have.
#[must_use]
pub fn reason_codes() -> Vec<&'static str> {
    let mut codes: Vec<_> = REASONS
        .iter()
        .chain(&Denial::CODES)
        .chain(&Denial::VERIFIER_CODES)
        .chain(&attest::ita::ItaError::CODES)
        .chain(&ManifestError::CODES)
        .chain(&OWN_CODES)
        .copied()
        .collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

impl Error {
    pub(super) fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            messages: vec![message.into()],
            value: None,
        }
    }

    /// An error of [`ErrorKind::Configuration`]. The text must not contain a secret.
    #[must_use]
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Configuration, "configuration", message)
    }

    /// A task on the control thread panicked or was lost: a bug.
    pub(super) fn internal(error: impl fmt::Display) -> Self {
        Self::new(ErrorKind::System, "internal", error.to_string())
    }

    pub(super) fn forked() -> Self {
        let text = "the process has forked since this forwarder was started, and has none of its threads: start another \
                    one after the fork";
        Self::new(ErrorKind::Forked, "forked", text)
    }

    pub(super) fn stopped() -> Self {
        Self::new(ErrorKind::Stopped, "stopped", "the forwarder was stopped")
    }

    /// What kind of error it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The reason code, one of a closed list (docs/reference/reason-codes.md): `mrtd_not_allowed`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// For [`ErrorKind::Configuration`], each mistake; otherwise the one text.
    #[must_use]
    pub fn messages(&self) -> &[String] {
        &self.messages
    }

    /// The value that the policy refuses, which the text may abbreviate: an MRTD in hex, a TCB status in Intel's spelling.
    /// `None` for every other error, and for one of a connection.
    #[must_use]
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.messages.join("\n"))
    }
}

impl std::error::Error for Error {}

/// The mistakes of a configuration.
pub(super) fn configuration(errors: Errors) -> Error {
    Error {
        kind: ErrorKind::Configuration,
        code: "configuration",
        messages: errors.0,
        value: None,
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        let (kind, code) = match &error {
            StartError::Identity(_) => (ErrorKind::Identity, "identity_unusable"),
            StartError::Agent(error) | StartError::ClientCertificate(error) => {
                (ErrorKind::Identity, agent_code(error.code()))
            }
            StartError::AgentTimeout(_) => (ErrorKind::Identity, "agent_timeout"),
            StartError::Password(_) | StartError::Audit(_) | StartError::Provision(_) => {
                (ErrorKind::Configuration, "configuration")
            }
            StartError::Authority(error) => (ErrorKind::Unavailable, error.code()),
            StartError::Resolver(_) => (ErrorKind::Network, "dns_failed"),
            StartError::Collateral(_) | StartError::System { .. } => (ErrorKind::System, "system"),
            StartError::Metrics(_) | StartError::Tls(_) | StartError::Shard(_) => {
                (ErrorKind::System, "internal")
            }
        };
        Self::new(kind, code, error.to_string())
    }
}

impl From<crate::tls::certificate::IdentityError> for Error {
    fn from(error: crate::tls::certificate::IdentityError) -> Self {
        StartError::from(error).into()
    }
}

/// The code of an error of the guest agent among the codes of this list.
fn agent_code(code: &str) -> &'static str {
    match code {
        "not_found" => "agent_not_found",
        "forbidden" => "agent_forbidden",
        "connect" => "agent_connect",
        "timeout" => "agent_timeout",
        _ => "agent_failed",
    }
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        let kind = match (&denial, denial.code(), denial.fault()) {
            (Denial::Overloaded, _, _) => ErrorKind::Overloaded,
            (_, Denial::VERIFIER_TIMEOUT, _) => ErrorKind::Timeout,
            (_, _, Fault::Ours) => ErrorKind::Unavailable,
            (_, _, Fault::Peer) => ErrorKind::Refused,
        };
        Self {
            value: refused_value(&denial),
            ..Self::new(kind, denial.code(), denial.to_string())
        }
    }
}

/// The value that a denial is about, for [`Error::value`].
fn refused_value(denial: &Denial) -> Option<String> {
    match denial.without_entry() {
        Denial::MrtdNotAllowed(mrtd) => Some(mrtd.to_string()),
        Denial::Tcb { status, .. } => Some(status.to_string()),
        Denial::TcbBelowAll { .. } => Some(TcbStatus::OutOfDate.to_string()),
        _ => None,
    }
}

impl From<ManifestError> for Error {
    fn from(error: ManifestError) -> Self {
        Self::new(ErrorKind::Manifest, error.code(), error.to_string())
    }
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        let kind = match &error {
            TargetError::Dns { .. } | TargetError::NoAddress(_) => ErrorKind::Network,
            TargetError::NoManifest(_)
            | TargetError::ManyManifests(_)
            | TargetError::Manifest(_) => ErrorKind::Manifest,
            TargetError::Overloaded => ErrorKind::Overloaded,
        };
        Self::new(kind, error.code(), error.to_string())
    }
}

impl Failure {
    /// The failure as an error, of the kind that its code belongs to.
    #[must_use]
    pub fn to_error(&self) -> Error {
        Error::new(kind_of(self.code), self.code, self.message.clone())
    }
}

/// The kind that a connection's reason code belongs to.
fn kind_of(code: &str) -> ErrorKind {
    match code {
        "overloaded"
        | "too_many_connections"
        | "too_many_logins"
        | "too_many_unattested"
        | "peer_session_limit" => ErrorKind::Overloaded,
        "handshake_timeout" | "server_timeout" | "login_timeout" | "idle_timeout"
        | "verifier_timeout" | "ita_timeout" => ErrorKind::Timeout,
        "no_manifest" | "many_manifests" => ErrorKind::Manifest,
        "collateral_unavailable"
        | "collateral_expired"
        | "collateral_not_yet_valid"
        | "tcb_evaluation_too_old"
        | "verifier_failed" => ErrorKind::Unavailable,
        "leader_mismatch" | "attestation_revoked" => ErrorKind::Refused,
        "shutdown" => ErrorKind::Stopped,
        "panic" => ErrorKind::System,
        code if ManifestError::CODES.contains(&code) => ErrorKind::Manifest,
        code if attest::ita::ItaError::CODES.contains(&code) => ErrorKind::Unavailable,
        code if Denial::CODES.contains(&code) || Denial::VERIFIER_CODES.contains(&code) => {
            ErrorKind::Refused
        }
        _ => ErrorKind::Network,
    }
}

#[cfg(test)]
mod tests {
    use attest::tcb::TcbStatuses;
    use attest::values::Mrtd;

    use super::*;

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../../docs/reference/reason-codes.md");
        for code in reason_codes() {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }

    #[test]
    fn a_denial_is_refused_unless_this_side_is_at_fault() {
        let kind = |denial: Denial| Error::from(denial).kind();
        assert_eq!(kind(Denial::UnboundKey), ErrorKind::Refused);
        let unavailable = kind(Denial::CollateralUnavailable);
        assert_eq!(unavailable, ErrorKind::Unavailable);
        assert_eq!(kind(Denial::Overloaded), ErrorKind::Overloaded);
        for code in ["unbound_key", "verifier_refused", "kms_root_mismatch"] {
            assert_eq!(kind_of(code), ErrorKind::Refused, "{code}");
        }
        assert_eq!(kind_of("verifier_failed"), ErrorKind::Unavailable);
        assert_eq!(kind_of("server_unreachable"), ErrorKind::Network);
    }

    #[test]
    fn a_refused_value_is_there_in_full() {
        let denial = Denial::MrtdNotAllowed(Mrtd([0xab; Mrtd::LEN]));
        let of_an_entry = Denial::Entry {
            entry: "orders".into(),
            os: None,
            denial: Box::new(denial.clone()),
        };
        for denial in [denial, of_an_entry] {
            let error = Error::from(denial);
            assert_eq!(error.value(), Some(&*"ab".repeat(Mrtd::LEN)), "{error}");
        }
        let accepted = TcbStatuses::new([]);
        let status = TcbStatus::SwHardeningNeeded;
        let error = Error::from(Denial::Tcb { status, accepted });
        assert_eq!(error.value(), Some("SWHardeningNeeded"));
        let error = Error::from(Denial::TcbBelowAll { accepted });
        assert_eq!(error.value(), Some("OutOfDate"));
        for denial in [Denial::UnboundKey, Denial::TcbNotSupported] {
            assert_eq!(Error::from(denial).value(), None);
        }
    }

    #[test]
    fn each_mistake_of_a_configuration_is_a_message() {
        let error = configuration(Errors(vec!["one".to_owned(), "two".to_owned()]));
        assert_eq!(error.messages(), ["one", "two"]);
        assert_eq!(error.to_string(), "one\ntwo");
        assert_eq!(error.code(), "configuration");
    }
}
