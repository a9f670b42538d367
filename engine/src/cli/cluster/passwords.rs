//! The passwords of a member's programs, and the two files that hold them.
//!
//! They are never arguments of a process, which every user of the machine can read.

use attest::agent::{Agent, AgentAddresses, AgentError, AgentOptions};
use wire::cluster_key::PasswordLabel;
use wire::scram::Password;
use zeroize::Zeroizing;

use super::Member;
use crate::auth::postgres_passwords::{PostgresPasswords, password_from_agent};

/// The passwords, configured or derived.
pub(super) struct MemberPasswords {
    superuser: Password,
    replicator: Password,
    rewind: Password,
    backup: Password,
}

impl MemberPasswords {
    /// # Errors
    /// The guest agent cannot be reached or refuses.
    pub(super) async fn resolve(
        configured: PostgresPasswords,
        addresses: AgentAddresses,
    ) -> Result<Self, AgentError> {
        let PostgresPasswords {
            cluster_key,
            superuser,
            ..
        } = configured;
        let agent = Agent::new(addresses, AgentOptions::default())?;
        let derive = async |label: PasswordLabel| match &cluster_key {
            Some(key) => Ok(key.password(label)),
            None => password_from_agent(&agent, label).await,
        };
        Ok(Self {
            superuser: match superuser {
                Some(password) => password,
                None => derive(PasswordLabel::Superuser).await?,
            },
            replicator: derive(PasswordLabel::Replicator).await?,
            rewind: derive(PasswordLabel::Rewind).await?,
            backup: derive(PasswordLabel::BackupEncryption).await?,
        })
    }

    /// Patroni's environment, as systemd's `EnvironmentFile=` and a shell read it.
    ///
    /// # Errors
    /// A password has a character that the two read differently.
    pub(super) fn patroni_environment(
        &self,
        member: &Member<'_>,
    ) -> Result<Zeroizing<String>, String> {
        let mut text = Zeroizing::new(String::with_capacity(1024));
        for (name, password) in [
            ("PATRONI_SUPERUSER_PASSWORD", &self.superuser),
            ("PATRONI_REPLICATION_PASSWORD", &self.replicator),
            ("PATRONI_REWIND_PASSWORD", &self.rewind),
        ] {
            push(&mut text, &[name, "='", plain(name, password)?, "'\n"]);
        }
        // Patroni leaves it to Postgres, and Postgres to pgBackRest.
        let folder = &member.options.config_dir;
        push(&mut text, &["PGPASSFILE='", folder, "/pgpass'\n"]);
        Ok(text)
    }

    /// libpq's password file, for pgBackRest.
    ///
    /// # Errors
    /// A password has a character that the file cannot hold.
    pub(super) fn passfile(&self) -> Result<Zeroizing<String>, String> {
        let mut text = Zeroizing::new(String::with_capacity(256));
        let password = plain("the password of postgres", &self.superuser)?;
        push(&mut text, &["*:*:*:postgres:", password, "\n"]);
        Ok(text)
    }

    /// The passphrase of the backups.
    ///
    /// # Errors
    /// It has a character that the file cannot hold.
    pub(super) fn backup(&self) -> Result<&str, String> {
        plain("the passphrase of backups", &self.backup)
    }
}

/// Does not reallocate, which would leave a copy: the capacity is sufficient for passwords of up to 200 bytes.
fn push(text: &mut Zeroizing<String>, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

/// The password, if it needs no escaping in any of the files.
fn plain<'a>(name: &str, password: &'a Password) -> Result<&'a str, String> {
    const MAX_LEN: usize = 200;
    let text = std::str::from_utf8(password.as_bytes()).ok();
    let special = |letter: char| letter.is_control() || "'\\:\"$`".contains(letter);
    let text = text.filter(|text| text.len() <= MAX_LEN && !text.contains(special));
    text.ok_or_else(|| {
        format!(
            "{name}: the files need a password of up to {MAX_LEN} bytes of UTF-8 without control characters and ' \" \\ : $ `"
        )
    })
}

#[cfg(test)]
impl MemberPasswords {
    /// The passwords of the superuser, `replicator` and `rewind`, and the passphrase.
    pub(super) fn of_test([superuser, replicator, rewind, backup]: [Password; 4]) -> Self {
        Self {
            superuser,
            replicator,
            rewind,
            backup,
        }
    }
}
