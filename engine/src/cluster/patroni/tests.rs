use super::*;

const ORDERS: Expected<'static> = Expected {
    cluster: "orders",
    member: "a",
};
const NAMES: [&str; 2] = ["a", "b"];

/// Answers that were recorded from Patroni with etcd and PostgreSQL 15: for each moment and member the paths, each with its
/// status and body.
fn recorded(version: &str) -> Value {
    let text = match version {
        "2.1" => include_str!("testdata/2.1.json"),
        "3.0" => include_str!("testdata/3.0.json"),
        _ => include_str!("testdata/4.0.json"),
    };
    serde_json::from_str(text).unwrap()
}

fn answer<'a>(recorded: &'a Value, moment: &str, path: &str) -> (u16, &'a [u8]) {
    let answer = &recorded[moment][path];
    let status = answer[0].as_u64().unwrap();
    (
        status.try_into().unwrap(),
        answer[1].as_str().unwrap().as_bytes(),
    )
}

fn status_at(recorded: &Value, moment: &str) -> PatroniStatus {
    let (status, body) = answer(recorded, moment, "/primary");
    let member = moment.split(' ').next().unwrap();
    parse_status(status, body, Expected { member, ..ORDERS }).unwrap()
}

fn leader_at(recorded: &Value, moment: &str) -> Option<usize> {
    let (status, body) = answer(recorded, moment, "/cluster");
    parse_cluster(status, body, "orders", &NAMES)
        .unwrap()
        .leader
}

#[test]
fn answers_of_each_version_are_understood() {
    for version in ["2.1", "3.0", "4.0"] {
        let recorded = recorded(version);
        let boots = status_at(&recorded, "a boots");
        assert_eq!(boots.role, MemberRole::Uninitialized, "{version}");
        assert!(boots.unlocked && !boots.holds_lock, "{version}");
        let leads = status_at(&recorded, "a leads");
        assert!(
            leads.holds_lock && !leads.unlocked && !leads.paused,
            "{version}"
        );
        assert_eq!((leads.role, leads.timeline), (MemberRole::Leader, Some(1)));
        let follows = status_at(&recorded, "b follows");
        assert!(!follows.holds_lock, "{version}");
        assert_eq!(follows.role, MemberRole::Replica, "{version}");
        assert!(status_at(&recorded, "a leads, paused").paused, "{version}");
        assert_eq!(leader_at(&recorded, "a leads"), Some(0), "{version}");
        assert_eq!(leader_at(&recorded, "b follows"), Some(0), "{version}");
        let (status, body) = answer(&recorded, "a leads", "/config");
        assert_eq!(parse_ttl(status, body), Some(20), "{version}");
        let (status, body) = answer(&recorded, "b follows", "/cluster");
        let members = parse_cluster(status, body, "orders", &NAMES)
            .unwrap()
            .members;
        assert_eq!(members[1].lag_bytes, Some(0), "{version}");
        assert_eq!(members[0].state.as_deref(), Some("running"), "{version}");
    }
}

#[test]
fn versions_that_overwrite_the_leader_lock_are_unsafe() {
    for (version, is_so) in [("2.1", true), ("3.0", true), ("4.0", false)] {
        let status = status_at(&recorded(version), "a leads");
        assert_eq!(status.unsafe_version, is_so, "{version}");
    }
    for version in ["0.9", "2", "2.1.7", "3", "3.0", "3.0.2", "3.0.2-1"] {
        assert!(is_unsafe(version), "{version}");
    }
    for version in [
        "3.0.3", "3.0.3rc1", "3.1", "4", "4.0.0b1", "4.1.5", "10.0", "", "unknown",
    ] {
        assert!(!is_unsafe(version), "{version}");
    }
}

#[test]
fn a_change_of_leader_is_seen() {
    for version in ["2.1", "3.0", "4.0"] {
        let recorded = recorded(version);
        let promoted = status_at(&recorded, "b leads after a died");
        assert!(promoted.holds_lock, "{version}");
        assert_eq!(
            (promoted.role, promoted.timeline),
            (MemberRole::Leader, Some(2))
        );
        assert_eq!(
            leader_at(&recorded, "b leads after a died"),
            Some(1),
            "{version}"
        );
        let demoted = status_at(&recorded, "b is demoted");
        assert!(!demoted.holds_lock, "{version}");
        assert_eq!(demoted.role, MemberRole::Replica, "{version}");
    }
}

#[test]
fn nonsense_and_contradictions_are_refused() {
    let status = |code, body: &str| parse_status(code, body.as_bytes(), ORDERS).unwrap_err();
    let html = "<!DOCTYPE HTML><html>";
    assert_eq!(status(200, html), WatchError::PatroniMalformed);
    assert_eq!(status(302, "{}"), WatchError::PatroniStatus);
    assert_eq!(status(502, html), WatchError::PatroniStatus);
    assert_eq!(status(200, "[]"), WatchError::PatroniMalformed);
    assert_eq!(
        status(200, r#"{"role":"primary"}"#),
        WatchError::PatroniMalformed
    );
    let king = r#"{"state":"running","role":"king"}"#;
    assert_eq!(status(200, king), WatchError::PatroniUnknownRole);
    let other = r#"{"state":"running","role":"primary","patroni":{"scope":"other"}}"#;
    assert_eq!(status(200, other), WatchError::PatroniWrongCluster);
    let other = r#"{"state":"running","role":"primary","patroni":{"scope":"orders","name":"b"}}"#;
    assert_eq!(status(200, other), WatchError::PatroniWrongCluster);
    let deep = "[".repeat(100_000);
    assert_eq!(status(200, &deep), WatchError::PatroniMalformed);

    let cluster =
        |code, body: &str| parse_cluster(code, body.as_bytes(), "orders", &NAMES).unwrap_err();
    let two = r#"{"members":[{"name":"a","role":"leader"},{"name":"b","role":"leader"}]}"#;
    assert_eq!(cluster(200, two), WatchError::PatroniTwoLeaders);
    let unknown = r#"{"members":[{"name":"x","role":"leader"}]}"#;
    assert_eq!(cluster(200, unknown), WatchError::PatroniUnknownLeader);
    assert_eq!(cluster(200, "{}"), WatchError::PatroniMalformed);
    assert_eq!(cluster(503, "{}"), WatchError::PatroniStatus);
    let many = format!(r#"{{"members":[{}null]}}"#, "{},".repeat(128));
    assert_eq!(cluster(200, &many), WatchError::PatroniTooLarge);
    let other = r#"{"members":[],"scope":"other"}"#;
    assert_eq!(cluster(200, other), WatchError::PatroniWrongCluster);
}

#[test]
fn a_replica_with_the_status_of_a_leader_does_not_hold_the_lock() {
    // Patroni has the lock, and is promoting Postgres.
    let body = br#"{"state":"running","role":"replica"}"#;
    assert!(!parse_status(200, body, ORDERS).unwrap().holds_lock);
}

#[test]
fn a_state_is_a_word() {
    let body = br#"{"members":[{"name":"a","role":"replica","state":"<script>","lag":"unknown"}]}"#;
    let answer = parse_cluster(200, body, "orders", &NAMES).unwrap();
    assert_eq!(answer.members[0].state, None);
    assert_eq!(answer.members[0].lag_bytes, None);
}
