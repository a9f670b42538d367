//! The part of the sidecar's configuration that concerns the roles inside Postgres: provisioning, and the
//! settings of their sessions.

use std::time::Duration;

use super::postgres::read_provision_options;
use super::reader::Reader;
use super::settings;
use crate::postgres::provision::ProvisionOptions;
use crate::postgres::session_settings::SessionPolicy;

/// How the roles are kept, and what their sessions begin with.
#[derive(Clone)]
pub struct RolesConfig {
    /// Set up the roles in Postgres at start, and keep them so.
    pub provision: bool,
    /// How often they are compared. `None` compares at start only.
    pub interval: Option<Duration>,
    /// How long another session may block provisioning.
    pub blocker_timeout: Duration,
    /// What the roles get.
    pub options: ProvisionOptions,
    /// The settings of new sessions.
    pub sessions: SessionPolicy,
}

impl RolesConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let provision = reader.read(&settings::PROVISION);
        let interval = reader.read(&settings::PROVISION_INTERVAL);
        let blocker_timeout = reader.read(&settings::PROVISION_BLOCKER_TIMEOUT);
        let options = read_provision_options(reader);
        let allow_stored = reader.read(&settings::ALLOW_STORED_ROLE_SETTINGS);
        let read = reader.read(&settings::ROLE_SETTINGS_READ);
        let readwrite = reader.read(&settings::ROLE_SETTINGS_READWRITE);
        let operator_search_path = reader.read(&settings::OPERATOR_SEARCH_PATH);
        let client_check_interval = reader.read(&settings::CLIENT_CHECK_INTERVAL);
        Some(Self {
            provision: provision?,
            interval: interval?,
            blocker_timeout: blocker_timeout?,
            options: options?,
            sessions: SessionPolicy {
                allow_stored: allow_stored?,
                read: read?,
                readwrite: readwrite?,
                operator_search_path: operator_search_path?,
                client_check_interval: client_check_interval?,
            },
        })
    }

    /// What weakens security, for the log at start.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.sessions.allow_stored {
            warnings.push(
                "allow_stored_role_settings is on: any client can change the settings of all \
                 sessions of its role"
                    .to_owned(),
            );
        }
        if self.provision && self.options.allow_other_databases {
            warnings.push(
                "allow_other_databases is on: clients can enter databases that are not provisioned"
                    .to_owned(),
            );
        }
        warnings
    }
}
