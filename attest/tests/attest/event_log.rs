//! Event digests, replay, and the identity that a log proves.

use attest::Denial;
use attest::event_log::{
    DigestVersion, Event, EventLog, MAX_EVENT_NAME_LEN, MAX_EVENT_PAYLOAD_LEN, MAX_EVENTS,
};
use attest::values::{AppId, Rtmr};
use sha2::{Digest, Sha384};

fn log(events: &[(&'static str, &'static [u8])]) -> EventLog<'static> {
    let mut log = EventLog::with_capacity(events.len()).unwrap();
    for (name, payload) in events {
        log.push(Event::new(*name, *payload, DigestVersion::V1).unwrap())
            .unwrap();
    }
    log
}

fn prove(log: &EventLog<'_>) -> Result<attest::event_log::Identity, Denial> {
    log.prove(log.replay().unwrap())
}

#[test]
fn digest_v1_hashes_type_name_and_payload() {
    let event = Event::new("app-id", &[0xde, 0xad][..], DigestVersion::V1).unwrap();
    let expected = Sha384::digest(b"\x01\x00\x00\x08:app-id:\xde\xad");
    assert_eq!(event.digest().unwrap(), *expected);
}

/// Test vector from dstack's `cc-eventlog/src/tdx.rs`.
#[test]
fn digest_v2_hashes_canonical_json() {
    let event = Event::new("compose-hash", &[0xab, 0xcd][..], DigestVersion::V2).unwrap();
    let expected = Sha384::digest(br#"{"name":"compose-hash","payload":"abcd","type":134217729}"#);
    assert_eq!(event.digest().unwrap(), *expected);
    let event = Event::new("a\"\u{1}é\u{1f980}", &[][..], DigestVersion::V2).unwrap();
    let expected =
        Sha384::digest("{\"name\":\"a\\\"\\u0001é\u{1f980}\",\"payload\":\"\",\"type\":134217729}");
    assert_eq!(event.digest().unwrap(), *expected);
}

#[test]
fn replay_extends_from_zeros() {
    assert_eq!(log(&[]).replay().unwrap(), Rtmr([0; 48]));
    let two = log(&[("a", b"1"), ("b", b"2")]);
    let register = two.events().iter().fold([0; 48], |register, event| {
        let extended = Sha384::new()
            .chain_update(register)
            .chain_update(event.digest().unwrap());
        extended.finalize().into()
    });
    assert_eq!(two.replay().unwrap(), Rtmr(register));
    assert_ne!(
        log(&[("b", b"2"), ("a", b"1")]).replay().unwrap(),
        Rtmr(register)
    );
}

#[test]
fn log_that_does_not_replay_proves_nothing() {
    let log = log(&[("app-id", &[1; 20]), ("system-ready", b"")]);
    assert_eq!(
        log.prove(Rtmr([0; 48])).unwrap_err(),
        Denial::EventLogMismatch
    );
}

#[test]
fn only_events_before_system_ready_are_trusted() {
    let late = log(&[
        ("app-id", &[1; 20]),
        ("system-ready", b""),
        ("app-id", &[2; 20]),
    ]);
    assert_eq!(prove(&late).unwrap().app_id(), Some(AppId([1; 20])));
    let only_late = log(&[
        ("system-ready", b""),
        ("app-id", &[2; 20]),
        ("system-ready", b""),
    ]);
    assert_eq!(prove(&only_late).unwrap().app_id(), None);
    let never_ready = log(&[("app-id", &[1; 20])]);
    assert_eq!(prove(&never_ready).unwrap().app_id(), None);
}

#[test]
fn duplicate_identity_event_is_refused() {
    for name in ["app-id", "instance-id"] {
        let twice = log(&[(name, &[1; 20]), (name, &[1; 20]), ("system-ready", b"")]);
        assert!(
            matches!(prove(&twice), Err(Denial::MalformedEvidence(_))),
            "{name}"
        );
    }
    let others = log(&[
        ("storage-fs", b"zfs"),
        ("storage-fs", b"zfs"),
        ("system-ready", b""),
    ]);
    assert!(prove(&others).is_ok());
}

#[test]
fn lengths_of_identity_events_are_enforced() {
    for (name, payload) in [
        ("app-id", &[1; 19][..]),
        ("app-id", b""),
        ("instance-id", &[1; 21]),
        ("compose-hash", &[1; 31]),
        ("os-image-hash", &[1; 33]),
        ("key-provider", &[0xff]),
    ] {
        let log = log(&[(name, payload.to_vec().leak()), ("system-ready", b"")]);
        assert!(
            matches!(prove(&log), Err(Denial::MalformedEvidence(_))),
            "{name}"
        );
    }
    let without_instance = log(&[("instance-id", b""), ("system-ready", b"")]);
    assert_eq!(prove(&without_instance).unwrap().instance_id(), None);
}

#[test]
fn counts_and_lengths_are_capped() {
    let mut log = EventLog::with_capacity(MAX_EVENTS).unwrap();
    let event = Event::new("e", &[][..], DigestVersion::V1).unwrap();
    for _ in 0..MAX_EVENTS {
        log.push(event.clone()).unwrap();
    }
    assert!(log.push(event).is_err());
    assert!(EventLog::with_capacity(MAX_EVENTS + 1).is_err());
    let name = |len| Event::new("n".repeat(len), &[][..], DigestVersion::V1);
    assert!(name(MAX_EVENT_NAME_LEN).is_ok());
    assert!(name(MAX_EVENT_NAME_LEN + 1).is_err());
    let payload = |len| Event::new("n", vec![0; len], DigestVersion::V1);
    assert!(payload(MAX_EVENT_PAYLOAD_LEN).is_ok());
    assert!(payload(MAX_EVENT_PAYLOAD_LEN + 1).is_err());
}
