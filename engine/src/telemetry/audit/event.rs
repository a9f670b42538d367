//! The closed list of audit events, and their fields in JSON.
//!
//! An event must never contain a secret, SQL or a startup parameter other than the role and the
//! database. A role is named only if it is one of the three: a user may have typed a password
//! instead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attest::AttestedPeer;
use attest::policy::PolicyEpoch;
use attest::tcb::TcbStatus;
use attest::values::{AppId, ComposeHash, Fingerprint, InstanceId, OsImageHash};
use serde_json::Value;
use wire::link::ServiceName;

use super::chain::{Fields, GAP, LineHash, TORN_LINE};
use crate::auth::role::Role;
use crate::io::clock::LAST_READABLE;
use crate::io::peer::Peer;
use crate::telemetry::close_reason::CloseReason;

/// The names of all events, which docs/reference/audit-log.md lists.
#[cfg(test)]
#[rustfmt::skip]
const EVENTS: &[&str] = &[
    "started", "policy", "reopened", "stopped",
    "admission", "admissions", "refusal", "refusals", "role_grant", "link_grant", "cancel", "revocation", "session_end", "kill", GAP,
];

/// An event and when it happened.
pub(crate) struct Record {
    pub(super) time: SystemTime,
    pub(super) event: Event,
}

pub(super) enum Event {
    /// The process has opened the log.
    Started {
        policy: Option<PolicyEpoch>,
    },
    /// A reload has replaced the policy.
    Policy(PolicyEpoch),
    /// The file was opened again, and is another one now.
    Reopened,
    /// The process ends.
    Stopped,
    /// Boxed, so that an empty place in a queue is small.
    Connection(Box<ConnectionEvent>),
    /// Admissions of clients without evidence that had no line each.
    Admissions {
        count: u64,
        since: SystemTime,
    },
    /// Refusals that had no line each.
    Refusals {
        reason: &'static str,
        count: u64,
        since: SystemTime,
    },
    /// An operator has ended connections.
    Kill(Box<Kill>),
    Gap(Gap),
}

/// What an operator has ended by `teesql-sidecar kill`.
pub(crate) struct Kill {
    /// The user and the process that have asked, as the kernel says.
    pub(crate) uid: u32,
    pub(crate) pid: Option<i32>,
    /// The connections that were named.
    pub(crate) connections: Option<Vec<u64>>,
    /// The application that was named.
    pub(crate) app_id: Option<AppId>,
    /// How many have ended.
    pub(crate) sessions: u64,
}

/// Why lines are missing.
pub(super) enum Gap {
    Lost {
        cause: Cause,
        lost: u64,
        since: SystemTime,
    },
    /// The last line of the file was not written completely.
    Torn { bytes: usize, hash: LineHash },
}

/// Why events had no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// More events than could be written.
    QueueFull,
    /// The disk, the quota or the size limit of the file.
    NoSpace,
    /// Another error of the file or descriptor.
    IoError,
}

impl Cause {
    pub(crate) const ALL: [Self; 3] = [Self::QueueFull, Self::NoSpace, Self::IoError];

    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::NoSpace => "no_space",
            Self::IoError => "io_error",
        }
    }
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Admission,
    Refusal,
    RoleGrant,
    LinkGrant,
    Cancel,
    Revocation,
    SessionEnd,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Refusal => "refusal",
            Self::RoleGrant => "role_grant",
            Self::LinkGrant => "link_grant",
            Self::Cancel => "cancel",
            Self::Revocation => "revocation",
            Self::SessionEnd => "session_end",
        }
    }

    /// The verdict on the client that the event stands for.
    fn verdict(self, is_attested: bool) -> Option<&'static str> {
        match self {
            Self::Admission if is_attested => Some("attested"),
            Self::Admission => Some("unattested"),
            Self::Refusal => Some("refused"),
            Self::RoleGrant | Self::LinkGrant => Some("granted"),
            Self::Revocation => Some("revoked"),
            Self::Cancel | Self::SessionEnd => None,
        }
    }
}

/// An event of one connection.
pub(super) struct ConnectionEvent {
    pub(super) kind: Kind,
    pub(super) connection: u64,
    pub(super) address: Peer,
    pub(super) client: Option<SocketAddr>,
    pub(super) peer: Option<PeerIdentity>,
    /// The certificate of a client without an identity.
    pub(super) certificate: Option<Fingerprint>,
    pub(super) policy: Option<PolicyEpoch>,
    pub(super) reason: Option<&'static str>,
    pub(super) role: Option<Role>,
    pub(super) database: Option<Box<str>>,
    pub(super) traffic: Option<Traffic>,
    /// Whether the connection is a link of another member.
    pub(super) is_link: bool,
    /// The service that a link leads to.
    pub(super) service: Option<ServiceName>,
}

/// Plaintext bytes from and to the client, and how long the connection lasted.
pub(super) struct Traffic {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) duration: Duration,
}

/// What an attested peer has proved. A copy: a record in a queue must not keep the peer's
/// certificates in memory.
pub(super) struct PeerIdentity {
    certificate: Fingerprint,
    /// The name of the `[[peer]]` entry that admitted it.
    entry: Option<Arc<str>>,
    /// The name of the `[[os]]` entry that it runs.
    os: Option<Box<str>>,
    app_id: Option<AppId>,
    compose_hash: Option<ComposeHash>,
    instance_id: Option<InstanceId>,
    os_image_hash: Option<OsImageHash>,
    tcb_status: TcbStatus,
}

impl PeerIdentity {
    pub(super) fn of(peer: &AttestedPeer) -> Self {
        Self {
            certificate: peer.fingerprint(),
            entry: peer.entry().name.clone(),
            os: peer.os_name().map(Into::into),
            app_id: peer.app_id(),
            compose_hash: peer.compose_hash(),
            instance_id: peer.instance_id(),
            os_image_hash: peer.os_image_hash(),
            tcb_status: peer.tcb_status(),
        }
    }
}

impl Record {
    pub(super) fn new(event: Event) -> Self {
        Self {
            time: SystemTime::now(),
            event,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match &self.event {
            Event::Started { .. } => "started",
            Event::Policy(_) => "policy",
            Event::Reopened => "reopened",
            Event::Stopped => "stopped",
            Event::Connection(event) => event.kind.name(),
            Event::Admissions { .. } => "admissions",
            Event::Refusals { .. } => "refusals",
            Event::Kill(_) => "kill",
            Event::Gap(_) => GAP,
        }
    }

    pub(super) fn fields(&self) -> Fields {
        let mut fields = Fields::default();
        match &self.event {
            Event::Started { policy } => {
                fields.set("version", env!("CARGO_PKG_VERSION"));
                fields.set("pid", std::process::id());
                fields.set("policy", policy.as_ref().map(PolicyEpoch::full));
            }
            Event::Policy(policy) => fields.set("policy", policy.full()),
            Event::Reopened | Event::Stopped => {}
            Event::Connection(event) => event.write(&mut fields),
            Event::Admissions { count, since } => {
                fields.set("verdict", "unattested");
                fields.set("count", *count);
                fields.set("since", format_time(*since));
            }
            Event::Refusals {
                reason,
                count,
                since,
            } => {
                // CancelRequests are counted in the same way, and are no refusals.
                if *reason != CloseReason::Cancelled.code() {
                    fields.set("verdict", "refused");
                }
                fields.set("reason", *reason);
                fields.set("count", *count);
                fields.set("since", format_time(*since));
            }
            Event::Kill(kill) => {
                fields.set("uid", kill.uid);
                fields.set("pid", kill.pid);
                fields.set("connections", kill.connections.clone());
                fields.set("app_id", text(kill.app_id.as_ref()));
                fields.set("sessions", kill.sessions);
            }
            Event::Gap(Gap::Lost { cause, lost, since }) => {
                fields.set("cause", cause.code());
                fields.set("lost", *lost);
                fields.set("since", format_time(*since));
            }
            Event::Gap(Gap::Torn { bytes, hash }) => {
                fields.set("cause", TORN_LINE);
                fields.set("lost", 1);
                fields.set("torn_bytes", *bytes);
                fields.set("torn_sha256", hash.to_string());
            }
        }
        fields
    }
}

impl ConnectionEvent {
    fn write(&self, fields: &mut Fields) {
        let peer = self.peer.as_ref();
        if let Some(verdict) = self.kind.verdict(peer.is_some()) {
            fields.set("verdict", verdict);
        }
        if let Some(reason) = self.reason {
            fields.set("reason", reason);
        }
        fields.set("connection", self.connection);
        fields.set("address", self.address.to_string());
        fields.set("client", text(self.client.as_ref()));
        let certificate = peer.map(|peer| peer.certificate).or(self.certificate);
        fields.set("certificate", text(certificate.as_ref()));
        fields.set("peer", peer.and_then(|peer| peer.entry.as_deref()));
        fields.set("os", peer.and_then(|peer| peer.os.as_deref()));
        fields.set("app_id", text(peer.and_then(|peer| peer.app_id.as_ref())));
        let compose_hash = peer.and_then(|peer| peer.compose_hash.as_ref());
        fields.set("compose_hash", text(compose_hash));
        let instance_id = peer.and_then(|peer| peer.instance_id.as_ref());
        fields.set("instance_id", text(instance_id));
        let os_image_hash = peer.and_then(|peer| peer.os_image_hash.as_ref());
        fields.set("os_image_hash", text(os_image_hash));
        fields.set(
            "tcb_status",
            text(peer.map(|peer| peer.tcb_status).as_ref()),
        );
        fields.set("policy", self.policy.as_ref().map(PolicyEpoch::full));
        if self.is_link {
            fields.set("kind", "link");
            fields.set("service", text(self.service.as_ref()));
        } else if self.kind != Kind::Admission {
            fields.set("role", self.role.map(Role::name));
            fields.set("database", self.database.as_deref());
        }
        if let Some(traffic) = &self.traffic {
            let milliseconds = u64::try_from(traffic.duration.as_millis());
            fields.set("received", traffic.received);
            fields.set("sent", traffic.sent);
            fields.set("duration_ms", milliseconds.unwrap_or(u64::MAX));
        }
    }
}

fn text<T: ToString>(value: Option<&T>) -> Value {
    value.map_or(Value::Null, |value| value.to_string().into())
}

/// RFC 3339, UTC, with microseconds.
pub(super) fn format_time(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = UNIX_EPOCH + since.min(Duration::from_secs(LAST_READABLE));
    humantime::format_rfc3339_micros(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_and_cause_is_documented() {
        let page = include_str!("../../../../docs/reference/audit-log.md");
        let causes = Cause::ALL.map(Cause::code);
        for name in EVENTS.iter().chain(&causes).chain(&[TORN_LINE]) {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_time_can_be_formatted_whatever_the_clock_says() {
        let after = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(format_time(after(0)), "1970-01-01T00:00:00.000000Z");
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(format_time(before), format_time(after(0)));
        assert_eq!(
            format_time(after(LAST_READABLE + 5)),
            "9999-12-31T23:59:59.000000Z"
        );
    }
}
