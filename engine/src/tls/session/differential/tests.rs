//! The comparison with random scripts, with every split of one, and with each deviation; and
//! conversations with rustls as the peer.

use proptest::collection::vec;
use proptest::prelude::*;

use super::script::strategy::script;
use super::script::{Action, MAX_ACTIONS, SUITES, Script};
use super::*;
use crate::tls::session::pair::{feed, sealed, update_keys};

/// Scripts of one run. All tests of this file together take about 3 seconds of CPU time.
const CASES: u32 = 300;

/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: default.cases.max(CASES),
        failure_persistence: None,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn same_plaintext_outcome_and_answers(script in script()) {
        compare(script);
    }

    /// The fuzz target's reading of its input, which it must not run out of.
    #[test]
    fn any_bytes_are_a_script(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(Script::from_bytes(&bytes).actions.len() <= MAX_ACTIONS);
        against_rustls(&bytes);
    }
}

fn all(actions: &[Action], reads: &[usize]) -> Vec<Ended> {
    let mut ended = Vec::new();
    for suite in SUITES {
        for side in [Side::Client, Side::Server] {
            ended.push(compare(Script {
                suite,
                side,
                actions: actions.to_vec(),
                reads: reads.to_vec(),
            }));
        }
    }
    ended
}

/// One read ends, and the next begins, at each byte of data, KeyUpdates and the close.
#[test]
fn same_for_every_split() {
    let actions = [
        Action::Data {
            length: 3,
            padding: 2,
        },
        Action::KeyUpdate { request: true },
        Action::Data {
            length: 0,
            padding: 0,
        },
        Action::KeyUpdate { request: false },
        Action::Data {
            length: 5,
            padding: 0,
        },
        Action::Alert(vec![1, 0]),
        Action::Answer(10),
    ];
    // Six records of 22 bytes and their contents.
    let length = 6 * 22 + (3 + 2) + 5 + 5 + 5 + 2;
    for at in 1..length {
        for ended in all(&actions, &[at, length - at]) {
            assert_eq!(ended.own, Outcome::Closed, "split at {at}");
        }
    }
}

/// Lengths up to the maximum, and more, with padding and without.
#[test]
fn same_for_lengths_around_the_maximum() {
    for (length, padding) in [(16_383, 0), (16_384, 0), (16_383, 1), (0, 16_384)] {
        for ended in all(
            &[Action::Data { length, padding }, Action::Answer(1)],
            &[65_000],
        ) {
            assert_eq!(ended.own, Outcome::Open, "{length} + {padding}");
        }
    }
    for (length, padding) in [(16_385, 0), (16_384, 1), (0, 16_385), (17_000, 0)] {
        for ended in all(&[Action::Data { length, padding }], &[65_000]) {
            let overflow = Outcome::Refused(Some(AlertDescription::RecordOverflow));
            assert_eq!(ended.own, overflow, "{length} + {padding}");
        }
    }
}

fn handshake(bytes: &[u8]) -> Action {
    Action::Handshake(bytes.to_vec())
}

fn header(header: [u8; 3]) -> Action {
    Action::Header {
        header,
        length: None,
    }
}

/// Each deviation by its name, what reaches it, and what rustls does exactly.
fn deviations() -> Vec<(&'static str, Vec<Action>, Outcome)> {
    use AlertDescription as Alert;
    let open = Outcome::Open;
    let silent = Outcome::Refused(None);
    let refused = |alert| Outcome::Refused(Some(alert));
    let decode = refused(Alert::DecodeError);
    let illegal = refused(Alert::IllegalParameter);
    let alert = |bytes: [u8; 2]| vec![Action::Alert(bytes.to_vec())];
    let overlong = |length| Action::Header {
        header: [23, 3, 3],
        length: Some(length),
    };
    let inner = Action::Inner {
        kind: 24,
        content: vec![1],
    };
    let empty = |count| {
        let (length, padding) = (0, 0);
        vec![Action::Data { length, padding }; count]
    };
    let updates = |count| vec![Action::KeyUpdate { request: false }; count];
    let very_long = Action::Data {
        length: 18_432 - 17,
        padding: 0,
    };
    vec![
        ("long ciphertext", vec![overlong(16_641)], open),
        ("long ciphertext", vec![overlong(18_431)], open),
        ("long ciphertext", vec![overlong(18_432)], decode),
        ("very long ciphertext", vec![very_long], decode),
        ("changed version", vec![header([23, 3, 1])], open),
        ("changed version", vec![header([23, 2, 3])], decode),
        ("outer type", vec![header([22, 3, 3])], open),
        ("outer type", vec![header([21, 3, 3])], open),
        ("outer type", vec![header([25, 3, 3])], decode),
        ("no inner type", vec![Action::Zeros(5)], silent),
        ("unknown inner type", vec![inner], decode),
        ("empty alert", vec![Action::Alert(vec![])], decode),
        ("close with unknown level", alert([3, 0]), illegal),
        (
            "user_canceled too often",
            vec![Action::Alert(vec![1, 90]); 5],
            silent,
        ),
        ("records without data", empty(33), silent),
        ("records without data", updates(33), silent),
        (
            "records without data",
            [empty(17), updates(16)].concat(),
            open,
        ),
        ("fatal user_canceled", alert([2, 90]), silent),
        ("user_canceled of unknown level", alert([3, 90]), illegal),
        ("warning", alert([1, 48]), decode),
        ("alert of unknown level", alert([9, 48]), illegal),
        ("empty handshake record", vec![handshake(&[])], silent),
        ("fragment", vec![handshake(&[24, 0, 0])], silent),
        ("fragment", vec![handshake(&[24, 0, 0, 1])], silent),
        (
            "message after KeyUpdate",
            vec![handshake(&[24, 0, 0, 1, 0, 0, 0, 0, 0])],
            refused(Alert::UnexpectedMessage),
        ),
    ]
}

#[test]
fn deviates_as_documented() {
    let in_adr = include_str!("../../../../../docs/adr/0013-own-tls-record-layer.md");
    for (name, actions, rustls) in deviations() {
        for ended in all(&actions, &[65_000]) {
            let deviation = ended.deviation.expect(name);
            assert_eq!(deviation.name, name);
            assert_eq!(ended.own, deviation.own, "{name}");
            assert_eq!(ended.rustls, rustls, "{name}");
        }
        assert!(in_adr.contains(&format!("| {name} |")), "{name}");
    }
}

/// These depend on the side of the session.
#[test]
fn deviates_in_handshake_messages_as_documented() {
    let one = |side, bytes: &[u8]| {
        compare(Script {
            suite: SUITES[0],
            side,
            actions: vec![handshake(bytes)],
            reads: vec![65_000],
        })
    };
    let decode = Outcome::Refused(Some(AlertDescription::DecodeError));
    let ended = one(Side::Client, &[4, 0, 0, 2, 7, 7]);
    assert_eq!(ended.deviation.unwrap().name, "malformed ticket");
    assert_eq!((ended.own, ended.rustls), (Outcome::Open, decode));
    let ended = one(Side::Server, &[4, 0, 0, 2, 7, 7]);
    let unexpected = Outcome::Refused(Some(AlertDescription::UnexpectedMessage));
    assert_eq!(ended.deviation.unwrap().name, "unexpected message");
    assert_eq!((ended.own, ended.rustls), (unexpected, decode));
    // The complete ticket differs only on servers, and not in the outcome.
    for side in [Side::Client, Side::Server] {
        let ended = one(side, TICKET);
        assert_eq!(ended.own, ended.rustls);
    }
}

/// A record that cannot be opened, after which rustls must not have said more.
#[test]
fn same_alert_for_damage_in_transit() {
    let data = |length| Action::Data { length, padding: 0 };
    let damage = [
        vec![data(9), Action::FlipBit(0)],
        vec![data(9), Action::FlipBit(usize::MAX)],
        vec![data(9), Action::Duplicate],
        vec![data(1), data(2), Action::Swap],
        vec![data(1), Action::Lose, data(2)],
        vec![data(40), Action::Truncate(7), data(40)],
        vec![Action::KeyUpdate { request: true }, Action::Lose, data(1)],
        vec![Action::KeyUpdate { request: true }, Action::Duplicate],
    ];
    for actions in damage {
        for ended in all(&actions, &[65_000]) {
            let mac = Outcome::Refused(Some(AlertDescription::BadRecordMac));
            assert_eq!(ended.own, mac, "{actions:?}");
        }
    }
    // The rest of a truncated record is awaited.
    for ended in all(&[data(40), Action::Truncate(7)], &[65_000]) {
        assert_eq!(ended.own, Outcome::Open);
    }
}

/// What one side of a conversation does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Own(usize),
    Rustls(usize),
    /// rustls changes its key, and requests the same.
    Update,
}

fn step() -> impl Strategy<Value = Step> {
    let length = || prop_oneof![0..100_usize, 0..50_000_usize];
    prop_oneof![
        2 => length().prop_map(Step::Own),
        2 => length().prop_map(Step::Rustls),
        1 => Just(Step::Update),
    ]
}

/// A conversation of our record layer on one side with rustls on the other.
fn converse<O: TlsSide, R: TlsSide>(
    (mut own, mut rustls): (Session<O>, Session<R>),
    steps: &[Step],
    read: usize,
) {
    for step in steps {
        match *step {
            Step::Own(length) => {
                let record = sealed(&mut own, &data(length));
                assert!(feed(&mut rustls, &record, read).unwrap() == data(length));
            }
            Step::Rustls(length) => {
                let record = sealed(&mut rustls, &data(length));
                assert!(feed(&mut own, &record, read).unwrap() == data(length));
            }
            Step::Update => update_keys(&mut rustls),
        }
    }
    let mut out = Buffer::take(Size::Small);
    own.close(&mut out).unwrap();
    feed(&mut rustls, out.filled(), read).unwrap();
    assert!(rustls.peer_closed());
    let mut out = Buffer::take(Size::Small);
    rustls.close(&mut out).unwrap();
    feed(&mut own, out.filled(), read).unwrap();
    assert!(own.peer_closed());
}

proptest! {
    #![proptest_config(config())]

    /// With limits that make both update their keys often.
    #[test]
    fn converses_with_rustls(
        suite in prop::sample::select(SUITES.to_vec()),
        own_is_server in any::<bool>(),
        record_limit in prop_oneof![Just(None), (3..20_u64).prop_map(Some)],
        steps in vec(step(), 1..20),
        read in prop_oneof![1..100_usize, Just(65_000)],
    ) {
        let (server, client) = Setup {
            suite: Some(suite),
            record_limit,
            server_is_own: own_is_server,
            client_is_own: !own_is_server,
            ..BOTH_OWN
        }
        .established(65_000);
        match own_is_server {
            true => converse((server, client), &steps, read),
            false => converse((client, server), &steps, read),
        }
    }
}

#[test]
fn a_truncated_record_is_not_completed_by_the_next_one() {
    let record = |ciphertext: &[u8]| [&[23, 3, 3, 0, 4][..], ciphertext].concat();
    assert_eq!(cut(&record(&[1, 2, 3, 4]), 1), HEADER_LEN + 3);
    assert_eq!(cut(&record(&[1, 2, 23, 23]), 1), HEADER_LEN + 1);
    assert_eq!(cut(&record(&[23, 23, 23, 23]), 2), HEADER_LEN);
}
