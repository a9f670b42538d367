//! Why the leader manifest was not published: a closed list, each with its remedy.

use std::time::Duration;

/// A failed attempt. Never contains a key; a text of a name server or of the command is escaped and cut.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("this member's own evidence proves no instance id: {0}")]
    Instance(String),
    #[error("there is no key to sign it with: {0}")]
    Key(String),
    #[error("timeline {timeline} plus manifest_epoch_offset {offset} exceeds what an epoch can be")]
    Epoch { timeline: u64, offset: u64 },
    #[error("a manifest of epoch {standing} stands there, and this one would have epoch {own}")]
    HigherEpoch { standing: u64, own: u64 },
    #[error("a valid manifest of epoch {epoch} stands there that names another leader")]
    EpochTaken { epoch: u64 },
    #[error("no answer from the name server {server}: {why}")]
    NoAnswer { server: String, why: String },
    #[error("the name server has no zone for the name")]
    NoZone,
    #[error("the name server refuses the update (REFUSED)")]
    Refused,
    #[error(
        "the name server is not authoritative for the zone, or does not allow this key to change it (NOTAUTH)"
    )]
    NotAuth,
    #[error("the name is outside of the zone (NOTZONE)")]
    NotZone,
    #[error("the name server does not know the TSIG key, or refuses it (BADKEY)")]
    BadKey,
    #[error("the name server has another secret for the TSIG key (BADSIG)")]
    BadSignature,
    #[error("the clocks of this machine and the name server differ (BADTIME)")]
    BadTime,
    #[error("the name server answers {0}")]
    ServerFailure(String),
    #[error("the answer of the name server cannot be trusted: {0}")]
    Unverified(String),
    #[error("the name server confirms the update, but does not have the record")]
    NotApplied,
    #[error("manifest_command cannot be started: {0}")]
    CommandNotStarted(String),
    #[error("manifest_command has ended with {status}, and the log has what it printed")]
    CommandFailed { status: String },
    #[error("manifest_command has not ended within {0:?}, and was killed")]
    CommandTimedOut(Duration),
}

impl PublishError {
    /// Every value of [`Self::code`].
    pub(crate) const CODES: [&'static str; 19] = [
        "manifest_no_instance",
        "manifest_no_key",
        "manifest_epoch",
        "manifest_higher_epoch",
        "manifest_epoch_taken",
        "manifest_no_answer",
        "manifest_no_zone",
        "manifest_refused",
        "manifest_not_auth",
        "manifest_not_zone",
        "manifest_bad_key",
        "manifest_bad_signature",
        "manifest_bad_time",
        "manifest_server_failure",
        "manifest_unverified",
        "manifest_not_applied",
        "manifest_command_not_started",
        "manifest_command_failed",
        "manifest_command_timeout",
    ];

    /// The reason code.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Instance(_) => "manifest_no_instance",
            Self::Key(_) => "manifest_no_key",
            Self::Epoch { .. } => "manifest_epoch",
            Self::HigherEpoch { .. } => "manifest_higher_epoch",
            Self::EpochTaken { .. } => "manifest_epoch_taken",
            Self::NoAnswer { .. } => "manifest_no_answer",
            Self::NoZone => "manifest_no_zone",
            Self::Refused => "manifest_refused",
            Self::NotAuth => "manifest_not_auth",
            Self::NotZone => "manifest_not_zone",
            Self::BadKey => "manifest_bad_key",
            Self::BadSignature => "manifest_bad_signature",
            Self::BadTime => "manifest_bad_time",
            Self::ServerFailure(_) => "manifest_server_failure",
            Self::Unverified(_) => "manifest_unverified",
            Self::NotApplied => "manifest_not_applied",
            Self::CommandNotStarted(_) => "manifest_command_not_started",
            Self::CommandFailed { .. } => "manifest_command_failed",
            Self::CommandTimedOut(_) => "manifest_command_timeout",
        }
    }

    /// What an operator can do.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Instance(_) => {
                "the check `evidence` of /ready says what is wrong with the evidence"
            }
            Self::Key(_) => "start the guest agent, or set manifest_key",
            Self::Epoch { .. } => "lower manifest_epoch_offset",
            Self::HigherEpoch { .. } => {
                "clients follow the higher epoch: after a restore from an old backup, raise manifest_epoch_offset"
            }
            Self::EpochTaken { .. } => {
                "after a restore onto another instance, raise manifest_epoch_offset: clients that have seen that manifest refuse this one"
            }
            Self::NoAnswer { .. } => {
                "check manifest_server, the name server and the firewall: updates use TCP"
            }
            Self::NoZone => {
                "set manifest_zone, or add the zone of manifest_domain to the name server"
            }
            Self::Refused => {
                "allow the TSIG key to update this name, in the zone's ACL or update-policy"
            }
            Self::NotAuth => {
                "check that manifest_server is the zone's primary, manifest_zone, and what the TSIG key may change"
            }
            Self::NotZone => "check manifest_zone and manifest_domain",
            Self::BadKey => {
                "check manifest_tsig_name, manifest_tsig_algorithm, and that the name server's ACL has this key"
            }
            Self::BadSignature => "set the same secret in manifest_tsig_key and in the name server",
            Self::BadTime => "synchronize the clocks",
            Self::ServerFailure(_) => "the log of the name server says why",
            Self::Unverified(_) => {
                "something between this machine and the name server changes answers, or the server does not sign them"
            }
            Self::NotApplied => {
                "PowerDNS answers like that if its update policy refuses the record: the log of the name server says why"
            }
            Self::CommandNotStarted(_) => "manifest_command must be an executable file",
            Self::CommandFailed { .. } => {
                "run the command by hand with the variables that the documentation lists"
            }
            Self::CommandTimedOut(_) => {
                "find out what it waits for; it must end, and close its output"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_and_documented() {
        let page = include_str!("../../../../docs/reference/reason-codes.md");
        for code in PublishError::CODES {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
        let source = include_str!("error.rs");
        let arms = source.matches("=> \"manifest_").count();
        // One of them is in this test.
        assert_eq!(arms, PublishError::CODES.len() + 1);
    }
}
