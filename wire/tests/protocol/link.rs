//! Tests of the request that opens a link, and of its answer.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use wire::link::{
    AwaitRequest, LINK_ALPN, LinkAnswerStep, LinkError, LinkRefusal, LinkRequestStep,
    MAX_LINK_REQUEST, MAX_SERVICE_NAME, ServiceName, ServiceNameError,
};

use crate::link_harness::{
    await_answer, check_link, check_link_answer, check_link_request, is_service_name,
};
use crate::table;

/// The services that a cluster has by default.
const DEFAULT_SERVICES: [&str; 4] = ["postgres", "patroni", "etcd-client", "etcd-peer"];

fn frame(name: &[u8]) -> Vec<u8> {
    [&[u8::try_from(name.len()).unwrap()], name].concat()
}

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![]),
        ("postgres", frame(b"postgres")),
        (
            "etcd-peer and 2 bytes",
            [&frame(b"etcd-peer")[..], b"GE"].concat(),
        ),
        (
            "postgres without its last byte",
            frame(b"postgres")[..8].to_vec(),
        ),
        ("length 1 alone", vec![1]),
        ("x", frame(b"x")),
        ("length 32 alone", vec![32]),
        ("name of 32", frame(&[b'a'; 32])),
        ("name of 33", frame(&[b'a'; 33])),
        ("length 33 alone", vec![33]),
        ("length 255 alone", vec![255]),
        ("empty name", vec![0]),
        ("empty name and a byte", vec![0, b'a']),
        ("digit inside", frame(b"s3")),
        ("digit first", frame(b"3s")),
        ("hyphens inside", frame(b"a--b")),
        ("hyphen first", frame(b"-a")),
        ("hyphen last", frame(b"a-")),
        ("hyphen, not yet last", vec![3, b'a', b'-']),
        ("capital", frame(b"Postgres")),
        ("capital in a partial name", vec![32, b'a', b'B']),
        ("underscore", frame(b"etcd_peer")),
        ("dot", frame(b"a.b")),
        ("slash", frame(b"../etc")),
        ("colon", frame(b"localhost:22")),
        ("blank", frame(b"a b")),
        ("NUL", frame(b"a\0b")),
        ("line end", frame(b"a\n")),
        ("DEL", frame(b"a\x7f")),
        ("not ASCII", frame("é".as_bytes())),
        ("refusal 2 alone", vec![2]),
        ("refusal 3 alone", vec![3]),
        ("refusal 4 alone", vec![4]),
        ("refusal 5 alone", vec![5]),
        ("6 alone", vec![6]),
        ("accepted, then 5", vec![0, 5]),
        ("SSLRequest", b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\n".to_vec()),
        ("ClientHello", b"\x16\x03\x01\x02\x00".to_vec()),
    ]
}

fn describe_request(bytes: &[u8]) -> String {
    match AwaitRequest::new().advance(bytes) {
        LinkRequestStep::Read(_) => "Read".to_owned(),
        LinkRequestStep::Requested { request, consumed } => {
            format!("{} of {consumed} bytes", request.service())
        }
        LinkRequestStep::Refuse(error) => format!("{error:?}, answer {}", error.answer().to_byte()),
    }
}

fn describe_answer(bytes: &[u8]) -> String {
    match await_answer().advance(bytes) {
        LinkAnswerStep::Read(_) => "Read".to_owned(),
        LinkAnswerStep::Opened { consumed } => format!("Opened by {consumed} byte"),
        LinkAnswerStep::Refuse(error) => format!("{error:?}"),
    }
}

#[test]
fn transition_table() {
    let head = ["AwaitRequest", "AwaitAnswer"].map(str::to_owned);
    let rows = inputs().into_iter().map(|(input, bytes)| {
        let cells = vec![describe_request(&bytes), describe_answer(&bytes)];
        (input, cells)
    });
    insta::assert_snapshot!(table(head.to_vec(), rows));
}

#[test]
fn every_input_split_at_every_byte() {
    let (mut requested, mut refused, mut waiting) = (0, 0, 0);
    for (_, bytes) in inputs() {
        match check_link_request(&bytes) {
            Ok(Some(_)) => requested += 1,
            Ok(None) => waiting += 1,
            Err(_) => refused += 1,
        }
        check_link_answer(&bytes);
    }
    assert_eq!((requested, refused, waiting), (6, 23, 10));
}

#[test]
fn codes_and_answers() {
    let mut table = String::new();
    for refusal in LinkRefusal::ALL {
        table += &format!(
            "{:<25} | {} | {refusal}\n",
            refusal.code(),
            refusal.to_byte()
        );
    }
    for error in [
        LinkError::Refused(LinkRefusal::Draining),
        LinkError::UnknownAnswer { byte: b'H' },
        LinkError::EarlyEof,
    ] {
        table += &format!("{:<25} |   | {error}\n", error.code());
    }
    for error in [
        ServiceNameError::Empty,
        ServiceNameError::TooLong { length: 33 },
        ServiceNameError::InvalidByte { position: 2 },
    ] {
        let answer = error.answer().to_byte();
        table += &format!("{:<25} | {answer} | {error}\n", error.code());
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_answer_has_one_byte_and_one_code() {
    let mut bytes = BTreeSet::from([0]);
    let mut codes = BTreeSet::from([
        ServiceNameError::Empty.code(),
        LinkError::EarlyEof.code(),
        LinkError::UnknownAnswer { byte: 6 }.code(),
    ]);
    for refusal in LinkRefusal::ALL {
        let mut out = Vec::new();
        refusal.encode(&mut out);
        assert_eq!(out, [refusal.to_byte()]);
        assert_eq!(
            check_link_answer(&out),
            LinkAnswerStep::Refuse(LinkError::Refused(refusal))
        );
        assert!(bytes.insert(refusal.to_byte()));
        assert!(codes.insert(refusal.code()));
    }
    assert_eq!(bytes, (0..=6).collect());
    assert_eq!(codes.len(), 9);
    for byte in 7..=255 {
        assert_eq!(LinkRefusal::from_byte(byte), None);
        assert_eq!(
            check_link_answer(&[byte, 0]),
            LinkAnswerStep::Refuse(LinkError::UnknownAnswer { byte })
        );
    }
    assert_eq!(LinkRefusal::from_byte(0), None);
}

#[test]
fn the_first_byte_decides_about_the_length() {
    for length in 0..=255_u8 {
        let expected = match length {
            0 => Err(ServiceNameError::Empty),
            1..=32 => Ok(None),
            _ => Err(ServiceNameError::TooLong {
                length: length.into(),
            }),
        };
        assert_eq!(check_link_request(&[length]), expected);
    }
    assert_eq!((MAX_SERVICE_NAME, MAX_LINK_REQUEST), (32, 33));
}

#[test]
fn every_byte_at_every_position_of_a_name() {
    for length in [1, 2, 3, MAX_SERVICE_NAME] {
        for index in 0..length {
            for byte in 0..=255_u8 {
                let mut name = vec![b'a'; length];
                name[index] = byte;
                let result = check_link_request(&frame(&name));
                if is_service_name(&name) {
                    let service = ServiceName::new(&name).unwrap();
                    assert_eq!(result, Ok(Some((service, 1 + length))));
                    continue;
                }
                let error = ServiceNameError::InvalidByte {
                    position: index + 1,
                };
                assert_eq!(result, Err(error));
                assert_eq!(ServiceName::new(&name), Err(error));
                // Refused as soon as the byte was read.
                assert_eq!(check_link_request(&frame(&name)[..index + 2]), Err(error));
            }
        }
    }
}

#[test]
fn names_of_every_length() {
    for length in 0..100 {
        let expected = match length {
            0 => Err(ServiceNameError::Empty),
            1..=32 => Ok("a".repeat(length)),
            _ => Err(ServiceNameError::TooLong { length }),
        };
        let parsed = "a".repeat(length).parse::<ServiceName>();
        assert_eq!(parsed.map(|name| name.to_string()), expected);
    }
    // A length that would be valid if it were cut to a byte.
    let length = 256 + 8;
    assert_eq!(
        ServiceName::new(&vec![b'a'; length]),
        Err(ServiceNameError::TooLong { length })
    );
}

#[test]
fn names_that_differ_in_length_are_different_and_ordered() {
    let names = ["a", "aa", "ab", "b"].map(|name| name.parse::<ServiceName>().unwrap());
    assert!(names.is_sorted());
    assert_eq!(BTreeSet::from(names).len(), 4);
    assert_eq!(format!("{:?}", names[1]), "ServiceName(aa)");
}

#[test]
fn whole_links_to_the_default_services() {
    for name in DEFAULT_SERVICES {
        let service = name.parse().unwrap();
        let [to_service, from_service] = check_link(&service, b"early", b"\0\x01reply");
        assert_eq!(to_service, b"early");
        assert_eq!(from_service, b"\0\x01reply");
    }
}

#[test]
fn the_bytes_on_the_wire_do_not_change() {
    assert_eq!(LINK_ALPN, b"teesql-link/1");
    let mut sent = Vec::new();
    let opener = wire::link::request_link(&"etcd-peer".parse().unwrap(), &mut sent);
    assert_eq!(sent, b"\x09etcd-peer");
    assert_eq!(
        opener.advance(b"\0HTTP"),
        LinkAnswerStep::Opened { consumed: 1 }
    );
}

proptest! {
    #[test]
    fn link_invariants_hold_for_any_bytes(
        bytes in vec(any::<u8>(), 0..64),
        length in 0..40_u8,
        text in "[a-z0-9-]{0,40}[^a-z]?",
    ) {
        for input in [&bytes[..], &[&[length], &bytes[..]].concat(), &[&[length], text.as_bytes()].concat()] {
            let _ = check_link_request(input);
            check_link_answer(input);
        }
        prop_assert_eq!(ServiceName::new(&bytes).is_ok(), is_service_name(&bytes));
        prop_assert_eq!(text.parse::<ServiceName>().is_ok(), is_service_name(text.as_bytes()));
    }

    #[test]
    fn link_round_trip(
        name in "[a-z]([a-z0-9-]{0,30}[a-z0-9])?",
        early in vec(any::<u8>(), 0..40),
        reply in vec(any::<u8>(), 0..40),
    ) {
        let service: ServiceName = name.parse().unwrap();
        prop_assert_eq!(service.as_str(), &name);
        prop_assert_eq!(check_link(&service, &early, &reply), [early, reply]);
    }
}
