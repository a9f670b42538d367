//! The configuration that the sidecar and the forwarder share: threads, timeouts, limits and the log.

use std::net::SocketAddr;
use std::time::Duration;

use attest::agent::AgentAddresses;
use tracing_subscriber::EnvFilter;

use super::identity::read_guest_agent;
use super::log_format::LogFormat;
use super::reader::Reader;
use super::settings;
use crate::io::driver::DriverChoice;
use crate::sched::busy_poll::BusyPollMode;
use crate::tls::record_layer::RecordLayer;

/// Threads, timeouts, limits and the log.
pub struct ProcessConfig {
    /// Number of threads that serve connections.
    pub shards: usize,
    /// Whether that is set, and not the default.
    pub sets_shards: bool,
    /// Pin each of these threads to its own core.
    pub pin: bool,
    /// io_uring or epoll.
    pub driver: DriverChoice,
    /// When a thread polls for more data before it sleeps.
    pub busy_poll: BusyPollMode,
    /// The implementation of the TLS 1.3 record layer.
    pub tls_record_layer: RecordLayer,
    /// The addresses of the guest agent.
    pub guest_agent: AgentAddresses,
    /// The address of the HTTP server. `None` starts none.
    pub admin_listen: Option<SocketAddr>,
    /// Whether the HTTP server has the status page.
    pub status_page: bool,
    /// How long a session may continue after its peer has become unacceptable.
    pub revocation_grace: Duration,
    /// How long a session may continue after the collateral of its peer's platform has expired. `None` sets no limit.
    pub collateral_grace: Option<Duration>,
    /// For setting up a session, from accept until it forwards data.
    pub login_timeout: Duration,
    /// For a session that transfers no data. `None` sets no limit.
    pub idle_timeout: Option<Duration>,
    /// Maximum number of concurrent sessions.
    pub max_connections: usize,
    /// Which limits on connections the operator has set.
    pub set_limits: SetLimits,
    /// How long sessions may continue after SIGTERM.
    pub drain_timeout: Duration,
    /// Text or JSON lines.
    pub log_format: LogFormat,
    /// Which events are logged.
    pub log: EnvFilter,
}

/// Which limits on connections are set, and not the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetLimits {
    /// `max_connections`.
    pub sessions: bool,
    /// `max_unattested_connections`.
    pub unattested: bool,
}

impl ProcessConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let shards = reader.read(&settings::SHARDS);
        let pin = reader.read(&settings::PIN);
        let driver = reader.read(&settings::DRIVER);
        let busy_poll = reader.read(&settings::BUSY_POLL);
        let tls_record_layer = reader.read(&settings::TLS_RECORD_LAYER);
        let guest_agent = read_guest_agent(reader);
        let admin_listen = reader.read(&settings::ADMIN_LISTEN);
        let status_page = reader.read(&settings::STATUS_PAGE);
        let revocation_grace = reader.read(&settings::REVOCATION_GRACE);
        let collateral_grace = reader.read(&settings::COLLATERAL_GRACE);
        let login_timeout = reader.read(&settings::LOGIN_TIMEOUT);
        let idle_timeout = reader.read(&settings::IDLE_TIMEOUT);
        let max_connections = reader.read(&settings::MAX_CONNECTIONS);
        let set_limits = SetLimits {
            sessions: reader.source(&settings::MAX_CONNECTIONS.spec).is_some(),
            unattested: reader
                .source(&settings::MAX_UNATTESTED_CONNECTIONS.spec)
                .is_some(),
        };
        let drain_timeout = reader.read(&settings::DRAIN_TIMEOUT);
        let log_format = reader.read(&settings::LOG_FORMAT);
        let log = reader.read(&settings::LOG);
        Some(Self {
            shards: shards?,
            sets_shards: reader.source(&settings::SHARDS.spec).is_some(),
            pin: pin?,
            driver: driver?,
            busy_poll: busy_poll?,
            tls_record_layer: tls_record_layer?,
            guest_agent: guest_agent?,
            admin_listen: admin_listen?,
            status_page: status_page?,
            revocation_grace: revocation_grace?.unwrap_or_default(),
            collateral_grace: collateral_grace?,
            login_timeout: login_timeout?,
            idle_timeout: idle_timeout?,
            max_connections: max_connections?,
            set_limits,
            drain_timeout: drain_timeout?,
            log_format: log_format?,
            log: log?,
        })
    }
}
