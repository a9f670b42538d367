//! The settings by which a sidecar knows the role of its member, and what it does about it.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use super::Reader;
use crate::config::settings;
use crate::config::values::{self, Parsed};

/// Patroni is asked once a second, so that less than this could be one slow answer.
const MIN_FENCE_AFTER: Duration = Duration::from_secs(2);

/// How the sidecar learns who leads, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleConfig {
    /// The REST API of this member's Patroni. `None` if a Postgres that is not in recovery leads.
    pub patroni: Option<SocketAddr>,
    /// What a standby does with logins that want to write.
    pub writes_on_standby: WritesOnStandby,
    /// How long a login waits for a leader; zero does not wait.
    pub leader_wait: Duration,
    /// How long Patroni may be silent while Postgres takes writes.
    pub fence_after: Duration,
    /// Whether the member that leads the database hands etcd's leadership to another one.
    pub move_etcd_leader: bool,
}

/// What a standby does with logins as `teesql_readwrite` and `postgres`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritesOnStandby {
    /// The leader's Postgres serves them.
    Leader,
    /// The standby's own Postgres serves them, read-only.
    Local,
    /// They are refused with the leader's name.
    Refuse,
}

impl FromStr for WritesOnStandby {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "leader" => Ok(Self::Leader),
            "local" => Ok(Self::Local),
            "refuse" => Ok(Self::Refuse),
            _ => Err("expected leader, local or refuse"),
        }
    }
}

impl RoleConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let patroni = reader.read(&settings::CLUSTER_PATRONI);
        let writes_on_standby = reader.read(&settings::CLUSTER_WRITES_ON_STANDBY);
        let leader_wait = reader.read(&settings::CLUSTER_LEADER_WAIT);
        let fence_after = reader.read(&settings::CLUSTER_FENCE_AFTER);
        let move_etcd_leader = reader.read(&settings::CLUSTER_MOVE_ETCD_LEADER);
        Some(Self {
            patroni: patroni?,
            writes_on_standby: writes_on_standby?,
            leader_wait: leader_wait?.unwrap_or_default(),
            fence_after: fence_after?,
            move_etcd_leader: move_etcd_leader?,
        })
    }
}

/// `http://IP:PORT`, or `off`. Not a name: what DNS answers must not decide who leads.
pub(in crate::config) fn patroni(text: &str) -> Parsed<Option<SocketAddr>> {
    if text == "off" {
        return Ok(None);
    }
    let address = text
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'));
    let address = address.and_then(|address| values::listen(address).ok());
    match address {
        Some(address) if address.port() != 0 => Ok(Some(address)),
        _ => Err(
            "expected http:// with an IP address and a port, e.g. http://127.0.0.1:8008, or off"
                .to_owned(),
        ),
    }
}

pub(in crate::config) fn fence_after(text: &str) -> Parsed<Duration> {
    match values::duration(text)? {
        time if time >= MIN_FENCE_AFTER => Ok(time),
        _ => Err("expected at least 2s".to_owned()),
    }
}
