//! A connection as the control socket describes it. The names of the fields are those of the audit log.

use std::time::SystemTime;

use humantime::format_rfc3339_seconds;
use serde_json::{Value, json};

use crate::auth::role::Role;
use crate::session::control::Activity;
use crate::shard::sessions::SessionReport;
use crate::telemetry::link_info::LinkDirection;

/// The JSON object. A field that does not apply is null.
pub(super) fn document(report: &SessionReport) -> Value {
    let (state, idle) = state(report.activity);
    let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).ok();
    // By the present clock of this machine, which may have been set since the accept.
    let since = SystemTime::now().checked_sub(report.age);
    let peer = report.peer.as_deref();
    let link = report.link.as_deref();
    // For an opened link this is the instance that was called, for an accepted one the instance that has called.
    let instance = link.and_then(|link| link.instance);
    let instance = instance.or(peer.and_then(attest::AttestedPeer::instance_id));
    json!({
        "id": report.number,
        "kind": if link.is_some() { "link" } else { "client" },
        "state": state,
        "since": since.map(|since| format_rfc3339_seconds(since).to_string()),
        "age_ms": milliseconds(report.age),
        "idle_ms": idle.and_then(milliseconds),
        "address": report.address.to_string(),
        "client": report.client.map(|client| client.to_string()),
        "certificate": peer.map(|peer| peer.fingerprint().to_string()),
        "peer": peer.and_then(|peer| peer.entry().name.as_deref()),
        "os": peer.and_then(attest::AttestedPeer::os_name),
        "app_id": peer.and_then(attest::AttestedPeer::app_id).map(|id| id.to_string()),
        "compose_hash": peer.and_then(attest::AttestedPeer::compose_hash).map(|hash| hash.to_string()),
        "instance_id": instance.map(|id| id.to_string()),
        "tcb_status": peer.map(|peer| peer.tcb_status().to_string()),
        "role": report.role.map(Role::name),
        "database": report.database,
        "direction": link.map(|link| LinkDirection::name(link.direction)),
        "member": link.and_then(|link| link.member.as_deref()),
        "service": link.and_then(|link| link.service).map(|service| service.to_string()),
        "received": report.received,
        "sent": report.sent,
    })
}

/// The state, and how long ago the last byte was transferred.
fn state(activity: Activity) -> (&'static str, Option<std::time::Duration>) {
    match activity {
        Activity::Login => ("login", None),
        Activity::Active(last) => ("active", Some(last)),
        Activity::Idle(last) => ("idle", Some(last)),
        Activity::Closing => ("closing", None),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::io::peer::Peer;

    #[test]
    fn a_client_without_evidence_has_no_identity() {
        let report = SessionReport {
            number: 17,
            activity: Activity::Idle(Duration::from_millis(1_500)),
            age: Duration::from_secs(60),
            address: Peer::Tcp(([192, 0, 2, 7], 50_000).into()),
            client: None,
            peer: None,
            role: Some(Role::Read),
            database: Some("orders".to_owned()),
            link: None,
            received: 5,
            sent: 7,
        };
        let document = document(&report);
        for (key, value) in [
            ("id", json!(17)),
            ("kind", json!("client")),
            ("state", json!("idle")),
            ("idle_ms", json!(1_500)),
            ("age_ms", json!(60_000)),
            ("address", json!("192.0.2.7:50000")),
            ("app_id", Value::Null),
            ("certificate", Value::Null),
            ("role", json!("teesql_read")),
            ("service", Value::Null),
            ("sent", json!(7)),
        ] {
            assert_eq!(document[key], value, "{key}");
        }
    }
}
