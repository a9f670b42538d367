//! The cluster as HTTP shows it: `/cluster`, and a part of `/attestation`.
//!
//! It needs no authentication, so that it has names, instance ids and numbers of members only.

use std::time::Instant;

use admin::{ClusterStatus, Role};
use serde_json::{Value, json};

use crate::cluster::state::ClusterState;
use crate::cluster::view::{ClusterView, MemberRole, WatchError};

/// What the role checks and `/cluster` answer with.
pub(super) fn status(state: &ClusterState, now: Instant) -> ClusterStatus {
    let view = state.view();
    let leads = view.leader_at(now) == Some(state.config.own);
    let role = match view.role {
        _ if view.fenced.is_some() || now >= view.valid_until => Role::Other,
        MemberRole::Leader if leads => Role::Primary,
        MemberRole::Replica => Role::Replica,
        MemberRole::StandbyLeader => Role::StandbyLeader,
        MemberRole::Leader | MemberRole::Uninitialized | MemberRole::Unknown => Role::Other,
    };
    ClusterStatus {
        role,
        lag: view.lag.bytes,
        document: document(state, &view, now),
    }
}

fn document(state: &ClusterState, view: &ClusterView, now: Instant) -> Value {
    let mut document = member(state, view);
    let members: Vec<_> = (0..)
        .zip(&state.config.members)
        .map(|(position, member)| {
            let known = view.members.get(position);
            json!({
                "name": member.name.as_str(),
                "instance": state.member_names.instance_of(member.name, now).map(|id| id.to_string()),
                "role": known.and_then(|known| known.role).map(MemberRole::name),
                "state": known.and_then(|known| known.state.as_deref()),
                "timeline": known.and_then(|known| known.timeline),
                "lag": known.and_then(|known| known.lag_bytes),
                "links": state.open_links_to(position),
            })
        })
        .collect();
    let name = |position: Option<usize>| position.and_then(|position| state.name_of(position));
    let refusing = state.member_names.refusing(now);
    let refusing: Vec<_> = refusing.filter_map(|member| name(Some(member))).collect();
    let more = json!({
        "leader": name(view.leader_at(now)),
        "named_leader": name(view.named_leader),
        "fenced": view.fenced.map(|cause| cause.code()),
        "name_refused_by": refusing,
        "pause": view.paused,
        "lag": view.lag.bytes,
        "lag_seconds": view.lag.seconds,
        "errors": view.errors.iter().map(|error| WatchError::code(*error)).collect::<Vec<_>>(),
        "members": members,
    });
    if let (Value::Object(document), Value::Object(more)) = (&mut document, more) {
        document.extend(more);
    }
    document
}

/// This member.
pub(super) fn member(state: &ClusterState, view: &ClusterView) -> Value {
    json!({
        "name": state.config.name,
        "member": state.config.own_member().name.as_str(),
        "role": view.role.name(),
        "timeline": view.timeline,
        // A 64-bit number, of which JavaScript would lose digits.
        "system_identifier": view.system_identifier.map(|identifier| identifier.to_string()),
    })
}
