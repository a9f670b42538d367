//! etcd's answers of its JSON gateway, parsed, and the choice of a member that can take over the leadership of its Raft
//! group.
//!
//! Numbers of 64 bits are strings in that JSON, and fields with the value 0 are left out.
//! [etcd's `rpc.proto`: StatusResponse, MemberListResponse]

use serde_json::Value;

/// How many entries of the log a member may be behind and still take over: a transfer stops writes until it has caught
/// up.
const MAX_BEHIND: u64 = 100;

/// What a member of etcd says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EtcdStatus {
    /// The member's id.
    pub(crate) id: u64,
    /// The id of the member that leads, as this one knows it. `None` during an election.
    pub(crate) leader: Option<u64>,
    /// The term of the Raft group.
    pub(crate) term: u64,
    /// The last entry that this member has applied.
    pub(crate) applied: u64,
}

impl EtcdStatus {
    /// Parses the answer to `POST /v3/maintenance/status`; `None` if it is not one.
    pub(crate) fn parse(http_status: u16, body: &[u8]) -> Option<Self> {
        let answer = object(http_status, body)?;
        let number = |value: Option<&Value>| value.and_then(number);
        Some(Self {
            id: number(answer.get("header")?.get("member_id"))?,
            leader: number(answer.get("leader")),
            term: number(answer.get("raftTerm"))?,
            applied: number(answer.get("raftAppliedIndex"))?,
        })
    }

    /// Whether this member leads.
    pub(crate) fn leads(&self) -> bool {
        self.leader == Some(self.id)
    }

    /// Whether `other` can take over from this leader at once.
    pub(crate) fn can_hand_over_to(&self, other: &Self) -> bool {
        self.leads()
            && other.id != self.id
            && other.leader == self.leader
            && other.term == self.term
            && other.applied.saturating_add(MAX_BEHIND) >= self.applied
    }
}

/// The body of `POST /v3/maintenance/transfer-leadership`.
pub(crate) fn transfer_to(member: &EtcdStatus) -> String {
    serde_json::json!({ "targetID": member.id.to_string() }).to_string()
}

fn object(http_status: u16, body: &[u8]) -> Option<Value> {
    let answer = (http_status == 200).then(|| serde_json::from_slice(body).ok());
    answer.flatten().filter(Value::is_object)
}

fn number(value: &Value) -> Option<u64> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer of etcd 3.4.23, which Debian 12 has.
    const STATUS: &[u8] = br#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"1","raft_term":"2"},"version":"3.4.23","dbSize":"20480","leader":"10276657743932975437","raftIndex":"4","raftTerm":"2","raftAppliedIndex":"4","dbSizeInUse":"16384"}"#;

    #[test]
    fn reads_the_status_of_etcd_3_4() {
        let status = EtcdStatus::parse(200, STATUS).unwrap();
        let expected = EtcdStatus {
            id: 10_276_657_743_932_975_437,
            leader: Some(10_276_657_743_932_975_437),
            term: 2,
            applied: 4,
        };
        assert_eq!(status, expected);
        assert!(status.leads());
        assert_eq!(
            transfer_to(&status),
            r#"{"targetID":"10276657743932975437"}"#
        );
    }

    #[test]
    fn what_is_no_status_says_nothing() {
        assert_eq!(EtcdStatus::parse(503, STATUS), None);
        for body in [
            "",
            "[]",
            "{}",
            r#"{"header":{"member_id":"x"},"raftTerm":"1","raftAppliedIndex":"1"}"#,
            r#"{"header":{"member_id":7},"raftTerm":"1","raftAppliedIndex":"1"}"#,
        ] {
            assert_eq!(EtcdStatus::parse(200, body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn an_election_has_no_leader() {
        let body = br#"{"header":{"member_id":"7"},"raftTerm":"3","raftAppliedIndex":"9"}"#;
        let status = EtcdStatus::parse(200, body).unwrap();
        assert_eq!(status.leader, None);
        assert!(!status.leads());
    }

    #[test]
    fn only_a_follower_that_has_caught_up_takes_over() {
        let own = EtcdStatus {
            id: 1,
            leader: Some(1),
            term: 5,
            applied: 1_000,
        };
        let follower = EtcdStatus { id: 2, ..own };
        assert!(own.can_hand_over_to(&follower));
        let behind = EtcdStatus {
            applied: 1_000 - MAX_BEHIND,
            ..follower
        };
        assert!(own.can_hand_over_to(&behind));
        for other in [
            own,
            EtcdStatus {
                applied: 0,
                ..follower
            },
            EtcdStatus {
                term: 4,
                ..follower
            },
            EtcdStatus {
                leader: None,
                ..follower
            },
            EtcdStatus {
                leader: Some(2),
                ..follower
            },
        ] {
            assert!(!own.can_hand_over_to(&other), "{other:?}");
        }
        assert!(!follower.can_hand_over_to(&EtcdStatus { id: 3, ..own }));
    }
}
