//! Patroni's answers to `GET /primary` and `GET /cluster`, parsed.
//!
//! `GET /primary` has the body of `GET /patroni`, and its status says whether this member holds the leader lock: 200, or
//! else 503 [Patroni's `api.py`, `do_GET`]. The role in the body is that of Postgres only. Patroni 2.1 to 4 are
//! understood; `testdata` has answers of each.
//!
//! The answers are not authenticated. What they say is a claim, and nothing is guessed where they contradict themselves.

use serde_json::Value;

use super::view::{MemberRole, MemberView, WatchError};

#[cfg(test)]
mod tests;

/// Maximum size of an answer in bytes. That of `/cluster` is about 200 bytes a member, and that of `/primary` 150 bytes
/// a replica.
pub(crate) const MAX_ANSWER: usize = 64 * 1024;
/// Maximum length of Patroni's word for a state; the longest is `in archive recovery`, or with a reason `custom
/// bootstrap failed`.
const MAX_STATE: usize = 40;
/// The first version of Patroni that compares the leader key of etcd's API v3 before it writes it. An earlier one overwrites
/// it when its own lease has expired, for instance after its VM was paused: writes that the new leader
/// has acknowledged are rewound [Patroni's pull requests 2689 and 2693].
pub(crate) const LEAST_VERSION: [u32; 3] = [3, 0, 3];
/// Maximum number of members in an answer: more than a cluster can have, because there may be members without a sidecar.
const MAX_ANSWERED_MEMBERS: usize = 128;

/// The names by which an answer is checked to be about this member.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    /// Patroni's scope.
    pub(crate) cluster: &'a str,
    pub(crate) member: &'a str,
}

/// What `GET /primary` says about this member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PatroniStatus {
    /// Patroni holds the leader lock, and leads no standby cluster.
    pub(crate) holds_lock: bool,
    pub(crate) role: MemberRole,
    /// No member holds the leader lock.
    pub(crate) unlocked: bool,
    pub(crate) paused: bool,
    pub(crate) timeline: Option<u64>,
    /// It is older than [`LEAST_VERSION`].
    pub(crate) unsafe_version: bool,
}

/// What `GET /cluster` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterAnswer {
    /// The position of the leader in `cluster_members`. A standby leader is none.
    pub(crate) leader: Option<usize>,
    /// As `cluster_members`.
    pub(crate) members: Vec<MemberView>,
}

/// Parses the answer to `GET /primary`.
///
/// # Errors
/// It is not an answer of Patroni about this member.
pub(crate) fn parse_status(
    http_status: u16,
    body: &[u8],
    expected: Expected<'_>,
) -> Result<PatroniStatus, WatchError> {
    let ok = match http_status {
        200 => true,
        503 => false,
        _ => return Err(WatchError::PatroniStatus),
    };
    let answer = object(body)?;
    let text = |key: &str| answer.get(key).and_then(Value::as_str);
    // Every version has both.
    let (Some(_), Some(role)) = (text("state"), text("role")) else {
        return Err(WatchError::PatroniMalformed);
    };
    let about = |key: &str| answer.get("patroni")?.get(key)?.as_str();
    if about("scope").is_some_and(|scope| scope != expected.cluster)
        // Since Patroni 4.
        || about("name").is_some_and(|name| name != expected.member)
    {
        return Err(WatchError::PatroniWrongCluster);
    }
    let role = own_role(role)?;
    Ok(PatroniStatus {
        holds_lock: ok && role == MemberRole::Leader,
        role,
        unlocked: is_true(answer.get("cluster_unlocked")),
        paused: is_true(answer.get("pause")),
        timeline: answer.get("timeline").and_then(Value::as_u64),
        unsafe_version: about("version").is_some_and(is_unsafe),
    })
}

/// Whether a version is older than [`LEAST_VERSION`].
pub(crate) fn is_unsafe(version: &str) -> bool {
    let mut numbers = version.split('.').map(|part| {
        let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        part.get(..digits)?.parse::<u32>().ok()
    });
    let version = [(); 3].map(|()| numbers.next().flatten());
    version.first().is_some_and(Option::is_some)
        && version.map(Option::unwrap_or_default) < LEAST_VERSION
}

/// Parses the answer to `GET /cluster`. `names` are those of `cluster_members`.
///
/// # Errors
/// It is not an answer of Patroni, names two leaders, or one that is not a member.
pub(crate) fn parse_cluster(
    http_status: u16,
    body: &[u8],
    cluster: &str,
    names: &[&str],
) -> Result<ClusterAnswer, WatchError> {
    if http_status != 200 {
        return Err(WatchError::PatroniStatus);
    }
    let answer = object(body)?;
    // Since Patroni 4.
    let scope = answer.get("scope").and_then(Value::as_str);
    if scope.is_some_and(|scope| scope != cluster) {
        return Err(WatchError::PatroniWrongCluster);
    }
    let members = answer.get("members").and_then(Value::as_array);
    let members = members.ok_or(WatchError::PatroniMalformed)?;
    if members.len() > MAX_ANSWERED_MEMBERS {
        return Err(WatchError::PatroniTooLarge);
    }
    let mut found = vec![MemberView::default(); names.len()];
    let mut leaders = Vec::new();
    for member in members {
        let name = member.get("name").and_then(Value::as_str);
        let name = name.ok_or(WatchError::PatroniMalformed)?;
        let view = member_view(member)?;
        let position = names.iter().position(|known| *known == name);
        if view.role == Some(MemberRole::Leader) {
            leaders.push(position);
        }
        if let Some(slot) = position.and_then(|position| found.get_mut(position)) {
            *slot = view;
        }
    }
    let leader = match *leaders {
        [] => None,
        [Some(leader)] => Some(leader),
        [None] => return Err(WatchError::PatroniUnknownLeader),
        _ => return Err(WatchError::PatroniTwoLeaders),
    };
    Ok(ClusterAnswer {
        leader,
        members: found,
    })
}

/// Patroni's `ttl` in seconds in the answer to `GET /config`.
pub(crate) fn parse_ttl(http_status: u16, body: &[u8]) -> Option<u64> {
    let answer = object(body).ok().filter(|_| http_status == 200)?;
    answer.get("ttl")?.as_u64()
}

fn object(body: &[u8]) -> Result<serde_json::Map<String, Value>, WatchError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) | Err(_) => Err(WatchError::PatroniMalformed),
    }
}

fn is_true(value: Option<&Value>) -> bool {
    value.and_then(Value::as_bool).unwrap_or_default()
}

/// The role in the status of a member, which is that of its Postgres.
fn own_role(role: &str) -> Result<MemberRole, WatchError> {
    match role {
        // Until 3.x, since 4.0.
        "master" | "primary" => Ok(MemberRole::Leader),
        "replica" | "sync_standby" | "quorum_standby" | "demoted" | "promoted" => {
            Ok(MemberRole::Replica)
        }
        "standby_leader" => Ok(MemberRole::StandbyLeader),
        "uninitialized" => Ok(MemberRole::Uninitialized),
        _ => Err(WatchError::PatroniUnknownRole),
    }
}

fn member_view(member: &Value) -> Result<MemberView, WatchError> {
    let text = |key: &str| member.get(key).and_then(Value::as_str);
    let role = match text("role").ok_or(WatchError::PatroniMalformed)? {
        "leader" => MemberRole::Leader,
        "replica" | "sync_standby" | "quorum_standby" => MemberRole::Replica,
        "standby_leader" => MemberRole::StandbyLeader,
        _ => return Err(WatchError::PatroniUnknownRole),
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == ' ' || c == '_';
    let state =
        text("state").filter(|state| state.len() <= MAX_STATE && state.chars().all(is_word));
    Ok(MemberView {
        role: Some(role),
        state: state.map(str::to_owned),
        timeline: member.get("timeline").and_then(Value::as_u64),
        // The text `unknown` where Patroni does not know it.
        lag_bytes: member.get("lag").and_then(Value::as_u64),
    })
}
