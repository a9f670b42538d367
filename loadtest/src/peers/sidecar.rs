//! The sidecar, configured as an operator would.

use std::process::Command;

use nix::sys::signal::Signal;

use super::kind::{Peer, PeerKind, Upstream};
use super::process::{Process, command};
use super::workspace::Workspace;
use crate::endpoint::{Endpoint, Opening};
use crate::error::{Error, Result};
use crate::load::MAX_CONNECTIONS;

/// Sessions of a sidecar that a storm connects to.
const STORM_SESSIONS: usize = 3_000;
/// Values of the `busy_poll` setting: without polling, and polling after every message for as long as it takes to wake a
/// core of a virtual machine.
const NEVER: &str = "off";
const ALWAYS: &str = "50us";

/// Configuration of the sidecar.
#[derive(Clone, Copy, Debug)]
pub struct SidecarMode {
    /// Use epoll instead of io_uring.
    pub epoll: bool,
    /// Require attested clients.
    pub attested: bool,
    /// One shard on each core, instead of one shard on the proxies' core.
    pub all_cores: bool,
    /// Connect to Postgres' Unix socket.
    pub unix: bool,
    /// The `busy_poll` setting.
    pub busy_poll: &'static str,
    /// Clients send the secret in cleartext, instead of SCRAM.
    pub password: bool,
}

impl Default for SidecarMode {
    /// io_uring, one shard, TCP, and clients without certificates, as with the other proxies.
    fn default() -> Self {
        Self {
            epoll: false,
            attested: false,
            all_cores: false,
            unix: false,
            busy_poll: "auto",
            password: false,
        }
    }
}

impl SidecarMode {
    /// The default, on epoll.
    #[must_use]
    pub fn epoll() -> Self {
        Self {
            epoll: true,
            ..Self::default()
        }
    }

    /// The default, with Postgres on its Unix socket.
    #[must_use]
    pub fn unix() -> Self {
        Self {
            unix: true,
            ..Self::default()
        }
    }

    /// The default, without busy polling.
    #[must_use]
    pub fn no_poll() -> Self {
        Self {
            busy_poll: NEVER,
            ..Self::default()
        }
    }

    /// The default, which always polls.
    #[must_use]
    pub fn poll() -> Self {
        Self {
            busy_poll: ALWAYS,
            ..Self::default()
        }
    }

    /// The default, with attested clients.
    #[must_use]
    pub fn attested() -> Self {
        Self {
            attested: true,
            ..Self::default()
        }
    }

    /// The default, with attested clients that send the secret in cleartext.
    #[must_use]
    pub fn attested_password() -> Self {
        Self {
            password: true,
            ..Self::attested()
        }
    }
}

/// Removes the sidecar's settings from the environment: those of this process must not affect the
/// measured one.
pub(super) fn clear_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("TEESQL_");
        if ours || text == "DSTACK_SIMULATOR_ENDPOINT" || text == "EXPECTED_MRTD" {
            command.env_remove(&name);
        }
    }
}

pub(super) fn start(workspace: &Workspace, upstream: &Upstream, mode: SidecarMode) -> Result<Peer> {
    let program = workspace.program("teesql-sidecar")?;
    let cores = match mode.all_cores {
        true => format!("{},{}", workspace.cores.others, workspace.cores.proxy),
        false => workspace.cores.proxy.clone(),
    };
    let mut serve = command(&program, &cores, false);
    clear_environment(&mut serve);
    configure(&mut serve, workspace, upstream, mode)?;
    // Two sidecars may run at the same time.
    let log = workspace.path(&format!("sidecar-{}.log", next_number()));
    let mut process = Process::start("teesql-sidecar", serve, log, Signal::SIGTERM)?;
    let address =
        process.wait_for(|process| field(&process.log_text(), "\"address\":\"127.0.0.1:"))?;
    let address: u16 = address.parse().map_err(|_| unexpected_log(&process))?;
    let driver =
        field(&process.log_text(), "\"driver\":\"").ok_or_else(|| unexpected_log(&process))?;
    let identity = match mode.attested {
        true => Some(workspace.tdx.identity("client")?),
        false => None,
    };
    let address = ([127, 0, 0, 1], address).into();
    Ok(Peer {
        kind: match mode {
            SidecarMode { epoll: true, .. } => PeerKind::SidecarEpoll,
            SidecarMode { unix: true, .. } => PeerKind::SidecarUnix,
            SidecarMode {
                busy_poll: NEVER, ..
            } => PeerKind::SidecarNoPoll,
            SidecarMode {
                busy_poll: ALWAYS, ..
            } => PeerKind::SidecarPoll,
            _ => PeerKind::Sidecar,
        },
        endpoint: Endpoint::loopback(address, Opening::SslRequest, identity.as_ref())?,
        handshake: Some(Endpoint::loopback(
            address,
            Opening::Direct,
            identity.as_ref(),
        )?),
        login: workspace.secret_login(),
        version: format!("teesql-sidecar {} ({driver})", env!("CARGO_PKG_VERSION")),
        process: Some(process),
    })
}

fn configure(
    serve: &mut Command,
    workspace: &Workspace,
    upstream: &Upstream,
    mode: SidecarMode,
) -> Result<()> {
    let postgres = match (&upstream.socket, mode.unix) {
        (Some(socket), true) => socket.display().to_string(),
        (None, true) => {
            return Err(Error::Peer("the upstream has no Unix socket".to_owned()));
        }
        (_, false) => upstream.address.to_string(),
    };
    // Descriptors that sessions leave are for clients without a session, of which a storm has many.
    let max_sessions = match mode.all_cores {
        true => STORM_SESSIONS,
        false => MAX_CONNECTIONS,
    };
    serve
        .arg("serve")
        .env("TEESQL_LISTEN", "127.0.0.1:0")
        .env("TEESQL_ADMIN_LISTEN", "off")
        .env("TEESQL_POSTGRES", postgres)
        // Except for the logins, Postgres requests no password, as with the other proxies.
        .env("TEESQL_POSTGRES_AUTH", "any")
        .env(
            "TEESQL_CLIENT_AUTH",
            if mode.password { "password" } else { "scram" },
        )
        .env("TEESQL_SHARDS", if mode.all_cores { "auto" } else { "1" })
        .env("TEESQL_BUSY_POLL", mode.busy_poll)
        .env(
            "TEESQL_DRIVER",
            if mode.epoll { "epoll" } else { "io_uring" },
        )
        .env("TEESQL_TLS_CERT", workspace.path("cert.pem"))
        .env("TEESQL_TLS_KEY", workspace.path("sidecar.key"))
        .env("TEESQL_READ_SECRET", &workspace.read_secret)
        .env("TEESQL_READWRITE_SECRET", &workspace.readwrite_secret)
        .env("TEESQL_PG_PASSWORD_READ", &workspace.password)
        .env("TEESQL_PG_PASSWORD_READWRITE", &workspace.password)
        .env("TEESQL_MAX_CONNECTIONS", max_sessions.to_string())
        .env("TEESQL_LOG_FORMAT", "json")
        .env("TEESQL_DRAIN_TIMEOUT", "1s");
    if mode.attested {
        serve
            .env("TEESQL_DANGEROUS_TDX_ROOT_CA", workspace.path("root.pem"))
            .env("TEESQL_PCCS", workspace.tdx.pccs_url());
    } else {
        serve
            .env("TEESQL_REQUIRE_CLIENT_ATTESTATION", "false")
            .env("TEESQL_ALLOW_UNATTESTED_CLIENTS", "true");
    }
    Ok(())
}

/// The text between `before` and the next quote in the log.
fn field(log: &str, before: &str) -> Option<String> {
    let (_, rest) = log.split_once(before)?;
    let (value, _) = rest.split_once('"')?;
    Some(value.to_owned())
}

fn unexpected_log(process: &Process) -> Error {
    Error::Peer(format!(
        "teesql-sidecar's log has no address or driver: {}",
        process.log_text()
    ))
}

fn next_number() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_the_json_log() {
        let log = r#"{"message":"listening","address":"127.0.0.1:5433","driver":"epoll"}"#;
        let field = |before| field(log, before);
        assert_eq!(field("\"address\":\"127.0.0.1:").as_deref(), Some("5433"));
        assert_eq!(field("\"driver\":\"").as_deref(), Some("epoll"));
        assert_eq!(field("\"shards\":\""), None);
    }
}
