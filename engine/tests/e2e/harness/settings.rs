//! Environment variables of the programs under test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;
use std::{env, fmt};

use engine::tls::record_layer::RecordLayer;

use crate::harness::certificates::Certificates;
use crate::harness::process::{lossy, pdeathsig_command};
use crate::harness::{
    READ_PASSWORD, READ_SECRET, READWRITE_PASSWORD, READWRITE_SECRET, SUPERUSER_PASSWORD,
};

const SIDECAR: &str = env!("CARGO_BIN_EXE_teesql-sidecar");
const FORWARDER: &str = env!("CARGO_BIN_EXE_teesql-forward");

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum IoDriver {
    IoUring,
    Epoll,
}

impl fmt::Display for IoDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// What a trial runs with: one of the I/O drivers and one of the TLS record layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub(crate) driver: IoDriver,
    pub(crate) record_layer: RecordLayer,
}

impl Variant {
    /// Each trial runs with both of these, and so with each driver and each record layer.
    pub(crate) const BOTH: [Self; 2] = [
        Self {
            driver: IoDriver::IoUring,
            record_layer: RecordLayer::Own,
        },
        Self {
            driver: IoDriver::Epoll,
            record_layer: RecordLayer::Rustls,
        },
    ];

    /// The other two pairs, with which only the trials of the data path run.
    pub(crate) const CROSSED: [Self; 2] = [
        Self {
            driver: IoDriver::IoUring,
            record_layer: RecordLayer::Rustls,
        },
        Self {
            driver: IoDriver::Epoll,
            record_layer: RecordLayer::Own,
        },
    ];

    fn apply(self, settings: Settings) -> Settings {
        settings
            .set("TEESQL_DRIVER", &self.driver.to_string())
            .set("TEESQL_TLS_RECORD_LAYER", &self.record_layer.to_string())
    }
}

/// The prefix of a trial's name: the driver, and the record layer if the pair is crossed.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.driver.fmt(f)?;
        match Self::BOTH.contains(self) {
            true => Ok(()),
            false => write!(f, "_tls_{}", self.record_layer),
        }
    }
}

/// The complete environment of one program, apart from `PATH`.
#[derive(Debug, Clone)]
pub(crate) struct Settings(BTreeMap<&'static str, OsString>);

impl Settings {
    /// Settings of `teesql-sidecar serve` in front of `upstream`: `host:port` or the path of a
    /// socket.
    pub(crate) fn for_sidecar(
        variant: Variant,
        upstream: &str,
        certificates: &Certificates,
    ) -> Self {
        let settings = [
            ("TEESQL_LISTEN", "127.0.0.1:0"),
            ("TEESQL_ADMIN_LISTEN", "off"),
            ("TEESQL_CONTROL_SOCKET", "off"),
            ("TEESQL_SHARDS", "2"),
            ("TEESQL_POSTGRES", upstream),
            ("TEESQL_READ_SECRET", READ_SECRET),
            ("TEESQL_READWRITE_SECRET", READWRITE_SECRET),
            ("TEESQL_PG_PASSWORD_READ", READ_PASSWORD),
            ("TEESQL_PG_PASSWORD_READWRITE", READWRITE_PASSWORD),
            ("TEESQL_PG_PASSWORD_SUPERUSER", SUPERUSER_PASSWORD),
            ("TEESQL_REQUIRE_CLIENT_ATTESTATION", "false"),
            ("TEESQL_ALLOW_UNATTESTED_CLIENTS", "true"),
            // The machine may be busy: only the tests of this deadline shorten it.
            ("TEESQL_LOGIN_TIMEOUT", "60s"),
            ("TEESQL_LOG_FORMAT", "json"),
            ("TEESQL_LOG", "info"),
            ("RUST_BACKTRACE", "1"),
        ];
        let mut settings = Self(settings.map(|(name, value)| (name, value.into())).into());
        let paths = [
            ("TEESQL_TLS_CERT", &certificates.chain),
            ("TEESQL_TLS_KEY", &certificates.key),
        ];
        settings
            .0
            .extend(paths.map(|(name, path)| (name, path.clone().into())));
        variant.apply(settings)
    }

    /// Settings of `teesql-forward`, without a target.
    pub(crate) fn for_forwarder(variant: Variant) -> Self {
        let settings = [
            ("TEESQL_LOG_FORMAT", "json"),
            ("TEESQL_LOG", "info"),
            // The machine may be busy: only the tests of these deadlines shorten them.
            ("TEESQL_CONNECT_TIMEOUT", "30s"),
            ("TEESQL_LOGIN_TIMEOUT", "60s"),
            ("RUST_BACKTRACE", "1"),
        ];
        variant.apply(Self(
            settings.map(|(name, value)| (name, value.into())).into(),
        ))
    }

    pub(crate) fn set(mut self, name: &'static str, value: &str) -> Self {
        self.0.insert(name, value.into());
        self
    }

    /// The secret in cleartext from clients, and any authentication method towards Postgres.
    pub(crate) fn with_weak_auth(self) -> Self {
        self.set("TEESQL_CLIENT_AUTH", "password")
            .set("TEESQL_POSTGRES_AUTH", "any")
    }

    pub(crate) fn without(mut self, name: &'static str) -> Self {
        self.0.remove(name);
        self
    }

    /// The value of a setting, empty if it is not set.
    pub(crate) fn get(&self, name: &str) -> String {
        let value = self.0.get(name);
        value
            .map(|value| lossy(value.as_encoded_bytes()))
            .unwrap_or_default()
    }

    pub(crate) fn sidecar_command(&self, arguments: &[&str]) -> Command {
        self.command(SIDECAR, arguments)
    }

    pub(crate) fn forwarder_command(&self, arguments: &[&str]) -> Command {
        self.command(FORWARDER, arguments)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = command_without_environment(program, arguments);
        command.envs(&self.0);
        command
    }
}

/// `teesql-sidecar` with nothing but `environment` and `PATH` in its environment.
pub(crate) fn sidecar_command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = command_without_environment(SIDECAR, arguments);
    command.envs(environment.iter().copied());
    command
}

fn command_without_environment(program: &str, arguments: &[&str]) -> Command {
    let mut command = pdeathsig_command(program, "KILL", None);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default());
    command
}
