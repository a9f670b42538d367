//! A running `teesql-sidecar serve`.

use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Command;

use crate::harness::daemon::Daemon;
use crate::harness::process::TIMEOUT;
use crate::harness::settings::Settings;

/// A running sidecar. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Sidecar {
    daemon: Daemon,
    address: SocketAddr,
}

impl Deref for Sidecar {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Sidecar {
    /// Starts it and waits until it listens.
    pub(crate) fn start(settings: &Settings) -> Self {
        Self::start_command(settings.sidecar_command(&["serve"]))
    }

    /// The same with a command that runs it.
    pub(crate) fn start_command(command: Command) -> Self {
        let mut sidecar = Self::spawn_command(command);
        let line = sidecar.await_message("listening");
        let address = line["address"]
            .as_str()
            .unwrap_or_else(|| panic!("no address: {line}"));
        sidecar.address = address.parse().unwrap_or_else(|e| panic!("{address}: {e}"));
        assert!(
            sidecar.address.ip().is_loopback(),
            "{address} is not loopback"
        );
        sidecar
    }

    /// Starts it with a log of the given format, `json` or `text`, and waits until it listens.
    pub(crate) fn start_with_log_format(settings: &Settings, format: &str) -> Self {
        if format == "json" {
            return Self::start(settings);
        }
        let mut sidecar = Self::spawn(&settings.clone().set("TEESQL_LOG_FORMAT", format));
        let port = sidecar.find_line(TIMEOUT, |line| {
            let (_, rest) = line.split_once("listening")?.1.split_once("127.0.0.1:")?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        sidecar
            .address
            .set_port(port.expect("a line with the address"));
        sidecar
    }

    /// Starts it without waiting until it listens.
    pub(crate) fn spawn(settings: &Settings) -> Self {
        Self::spawn_command(settings.sidecar_command(&["serve"]))
    }

    fn spawn_command(command: Command) -> Self {
        Self {
            daemon: Daemon::spawn("teesql-sidecar", command),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// The address that it accepts clients at.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Waits for the address of its HTTP server.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        let line = self.await_message("listening");
        let address = line["admin"].as_str().expect("an admin address");
        address.parse().expect("an address")
    }
}
