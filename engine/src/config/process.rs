//! What the sidecar and the forwarder are told alike: threads, times, limits, the log.

use std::net::SocketAddr;
use std::time::Duration;

use attest::agent::AgentAddresses;
use tracing_subscriber::EnvFilter;

use super::identity::read_places;
use super::layers::Reader;
use super::values;
use crate::config::log_format::LogFormat;
use crate::io::driver::DriverChoice;
use crate::sched::busy_poll::Polling;
use crate::tls::record_layer::RecordLayer;

/// What a process of the engine needs, whatever it serves.
pub struct Process {
    /// Threads that serve connections.
    pub shards: usize,
    /// Whether each shard is tied to a core of its own.
    pub pin: bool,
    /// io_uring or epoll.
    pub driver: DriverChoice,
    /// When a shard looks for more before it sleeps.
    pub busy_poll: Polling,
    /// The implementation of the TLS 1.3 record layer.
    pub tls_record_layer: RecordLayer,
    /// Where the guest agent is looked for.
    pub guest_agent: AgentAddresses,
    /// Where HTTP is served.
    pub admin_listen: Option<SocketAddr>,
    /// From a change of policy or collateral to the end of the sessions that it
    /// refuses.
    pub revocation_grace: Duration,
    /// For everything before a session's first byte goes on.
    pub login_timeout: Duration,
    /// For a session without a byte either way; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// Sessions at a time.
    pub max_connections: usize,
    /// How long sessions may go on after the order to stop.
    pub drain_timeout: Duration,
    /// Text or JSON lines.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: EnvFilter,
}

impl Process {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        // Each is read before any is unwrapped, so that all are checked.
        let shards = reader.get("shards", values::shards);
        let pin = reader.get("pin", values::boolean);
        let driver = reader.get("driver", values::from_str);
        let busy_poll = reader.get("busy_poll", values::busy_poll);
        let tls_record_layer = reader.get("tls_record_layer", values::from_str);
        let guest_agent = read_places(reader);
        let admin_listen = reader.get("admin_listen", values::listen_or_off);
        let revocation_grace = reader.get("revocation_grace", values::duration_or_off);
        let login_timeout = reader.get("login_timeout", values::duration);
        let idle_timeout = reader.get("idle_timeout", values::duration_or_off);
        let max_connections = reader.get("max_connections", values::count);
        let drain_timeout = reader.get("drain_timeout", values::duration);
        let log_format = reader.get("log_format", values::from_str);
        let log = reader.get("log", values::log_filter);
        Some(Self {
            shards: shards?,
            pin: pin?,
            driver: driver?,
            busy_poll: busy_poll?,
            tls_record_layer: tls_record_layer?,
            guest_agent: guest_agent?,
            admin_listen: admin_listen?,
            revocation_grace: revocation_grace?.unwrap_or_default(),
            login_timeout: login_timeout?,
            idle_timeout: idle_timeout?,
            max_connections: max_connections?,
            drain_timeout: drain_timeout?,
            log_format: log_format?,
            log: log?,
        })
    }
}
