//! Tests of the request that opens a link, and of its answer.

use std::collections::BTreeSet;

use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;
use wire::link::{
    AwaitRequest, BOOT_ID_LEN, BootId, BootIdError, LINK_ALPN, LinkAnswerStep, LinkError,
    LinkRefusal, LinkRequest, LinkRequestStep, MAX_LINK_ANSWER, MAX_LINK_REQUEST, MAX_MEMBER_NAME,
    MAX_SERVICE_NAME, MemberName, NameError, NameKind, ServiceName,
};

use crate::link_harness::{
    await_answer, check_link, check_link_answer, check_link_request, is_member_name,
    is_service_name,
};
use crate::table;

/// The services that a cluster has by default.
const DEFAULT_SERVICES: [&str; 4] = ["postgres", "patroni", "etcd-client", "etcd-peer"];

const BOOT: [u8; BOOT_ID_LEN] = *b"boot id 16 bytes";

fn prefixed(name: &[u8]) -> Vec<u8> {
    [&[u8::try_from(name.len()).unwrap()], name].concat()
}

/// A whole request with any bytes as names.
fn frame(from: &[u8], to: &[u8], service: &[u8]) -> Vec<u8> {
    let names = [from, to, service].map(prefixed).concat();
    [&names[..], &BOOT].concat()
}

/// A request from `a` to `b`, with any bytes as the service's name.
fn to_service(service: &[u8]) -> Vec<u8> {
    frame(b"a", b"b", service)
}

fn request(service: &str) -> LinkRequest {
    LinkRequest {
        from: "a".parse().unwrap(),
        to: "b".parse().unwrap(),
        service: service.parse().unwrap(),
        boot_id: BootId::new(BOOT),
    }
}

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let whole = to_service(b"postgres");
    let part = |end: usize| whole[..end].to_vec();
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("nothing", vec![]),
        ("postgres", whole.clone()),
        (
            "etcd-peer and 2 bytes",
            [&to_service(b"etcd-peer")[..], b"GE"].concat(),
        ),
        ("without its last byte", part(whole.len() - 1)),
        ("without the boot id", part(whole.len() - BOOT_ID_LEN)),
        ("without the service", part(4)),
        ("the name of the opener alone", part(2)),
        ("length 1 alone", vec![1]),
        ("length 63 alone", vec![63]),
        ("length 64 alone", vec![64]),
        ("length 255 alone", vec![255]),
        ("service of 32", to_service(&[b'a'; 32])),
        ("service of 33", to_service(&[b'a'; 33])),
        ("members of 63", frame(&[b'a'; 63], &[b'b'; 63], b"x")),
        ("opener of 64", frame(&[b'a'; 64], b"b", b"x")),
        ("member meant of 64", frame(b"a", &[b'b'; 64], b"x")),
        ("no opener", frame(b"", b"b", b"x")),
        ("no member meant", frame(b"a", b"", b"x")),
        ("no service", to_service(b"")),
        ("digit first, member", frame(b"1", b"2b", b"x")),
        ("digit first, service", to_service(b"3s")),
        ("digit inside", to_service(b"s3")),
        ("hyphens inside", frame(b"a--b", b"c--d", b"e--f")),
        ("hyphen first, member", frame(b"-a", b"b", b"x")),
        ("hyphen last, member", frame(b"a", b"b-", b"x")),
        ("hyphen last, service", to_service(b"a-")),
        ("hyphen, not yet last", vec![3, b'a', b'-']),
        ("capital, opener", frame(b"A", b"b", b"x")),
        ("capital, member meant", frame(b"a", b"bB", b"x")),
        ("capital in a partial name", vec![32, b'a', b'B']),
        ("underscore", to_service(b"etcd_peer")),
        ("dot", frame(b"a.example", b"b", b"x")),
        ("slash", to_service(b"../etc")),
        ("colon", to_service(b"localhost:22")),
        ("blank", frame(b"a b", b"b", b"x")),
        ("NUL", to_service(b"a\0b")),
        ("line end", frame(b"a\n", b"b", b"x")),
        ("not ASCII", to_service("é".as_bytes())),
        ("refusal 8 alone", vec![8]),
        ("9 alone", vec![9]),
        ("accepted, then 5", vec![0, 5]),
        ("accepted", [&[0], &BOOT[..]].concat()),
        ("accepted, and 2 bytes", [&[0], &BOOT[..], b"OK"].concat()),
        ("SSLRequest", b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec()),
        ("HTTP", text("GET / HTTP/1.1\r\n")),
        ("ClientHello", b"\x16\x03\x01\x02\x00".to_vec()),
    ]
}

fn describe_request(bytes: &[u8]) -> String {
    match AwaitRequest::new().advance(bytes) {
        LinkRequestStep::Read(_) => "Read".to_owned(),
        LinkRequestStep::Requested { link, consumed } => {
            let LinkRequest {
                from, to, service, ..
            } = link.request();
            let short = |name: &str| match name.len() {
                0..10 => name.to_owned(),
                length => format!("[{length}]"),
            };
            let [from, to] = [from, to].map(|name| short(name.as_str()));
            let service = short(service.as_str());
            format!("{from} to {to}, {service}: {consumed} bytes")
        }
        LinkRequestStep::Refuse(error) => format!("{error:?}, answer {}", error.answer().to_byte()),
    }
}

fn describe_answer(bytes: &[u8]) -> String {
    match await_answer().advance(bytes) {
        LinkAnswerStep::Read(_) => "Read".to_owned(),
        LinkAnswerStep::Opened { consumed, .. } => format!("Opened by {consumed} bytes"),
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
    assert_eq!((requested, refused, waiting), (7, 29, 10));
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
    for kind in [NameKind::Member, NameKind::Service] {
        let length = kind.max_length() + 1;
        for error in [
            NameError::Empty { kind },
            NameError::TooLong { kind, length },
            NameError::InvalidByte { kind, position: 2 },
        ] {
            let answer = error.answer().to_byte();
            table += &format!("{:<25} | {answer} | {error}\n", error.code());
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_answer_has_one_byte_and_one_code() {
    let mut bytes = BTreeSet::from([0]);
    let mut codes = BTreeSet::from([
        LinkError::EarlyEof.code(),
        LinkError::UnknownAnswer { byte: 9 }.code(),
    ]);
    for kind in [NameKind::Member, NameKind::Service] {
        assert!(codes.insert(NameError::Empty { kind }.code()));
    }
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
    assert_eq!(bytes, (0..=8).collect());
    assert_eq!(codes.len(), 12);
    for byte in 9..=255 {
        assert_eq!(LinkRefusal::from_byte(byte), None);
        assert_eq!(
            check_link_answer(&[byte, 0]),
            LinkAnswerStep::Refuse(LinkError::UnknownAnswer { byte })
        );
    }
    assert_eq!(LinkRefusal::from_byte(0), None);
}

#[test]
fn the_first_byte_of_each_name_decides_about_its_length() {
    let sizes = (MAX_MEMBER_NAME, MAX_SERVICE_NAME, BOOT_ID_LEN);
    assert_eq!(sizes, (63, 32, 16));
    assert_eq!((MAX_LINK_REQUEST, MAX_LINK_ANSWER), (177, 17));
    let heads = [
        (vec![], NameKind::Member),
        (prefixed(b"a"), NameKind::Member),
        (
            [b"a", b"b"].map(|name| prefixed(name)).concat(),
            NameKind::Service,
        ),
    ];
    for (head, kind) in heads {
        for byte in 0..=255_u8 {
            let length = usize::from(byte);
            let expected = match length {
                0 => Err(NameError::Empty { kind }),
                length if length <= kind.max_length() => Ok(None),
                length => Err(NameError::TooLong { kind, length }),
            };
            assert_eq!(check_link_request(&[&head[..], &[byte]].concat()), expected);
        }
    }
}

/// Where a name is in a request.
#[derive(Clone, Copy)]
enum Place {
    From,
    To,
    Service,
}

impl Place {
    /// A request with `name` there, and the number of bytes before the name.
    fn frame(self, name: &[u8]) -> (Vec<u8>, usize) {
        match self {
            Self::From => (frame(name, b"b", b"x"), 1),
            Self::To => (frame(b"a", name, b"x"), 3),
            Self::Service => (frame(b"a", b"b", name), 5),
        }
    }

    fn kind(self) -> NameKind {
        match self {
            Self::From | Self::To => NameKind::Member,
            Self::Service => NameKind::Service,
        }
    }
}

/// The decision about whole bytes. Splits are tested elsewhere.
fn decide(bytes: &[u8]) -> Result<Option<(LinkRequest, usize)>, NameError> {
    match AwaitRequest::new().advance(bytes) {
        LinkRequestStep::Read(_) => Ok(None),
        LinkRequestStep::Requested { link, consumed } => Ok(Some((*link.request(), consumed))),
        LinkRequestStep::Refuse(error) => Err(error),
    }
}

#[test]
fn every_byte_at_every_position_of_a_name() {
    for place in [Place::From, Place::To, Place::Service] {
        let kind = place.kind();
        for length in [1, 2, 3, kind.max_length()] {
            for index in 0..length {
                for byte in 0..=255_u8 {
                    let mut name = vec![b'a'; length];
                    name[index] = byte;
                    let (frame, start) = place.frame(&name);
                    let (is_name, parsed) = match kind {
                        NameKind::Member => (is_member_name(&name), MemberName::new(&name).err()),
                        NameKind::Service => {
                            (is_service_name(&name), ServiceName::new(&name).err())
                        }
                    };
                    if is_name {
                        let (request, consumed) = decide(&frame).unwrap().unwrap();
                        assert_eq!(consumed, frame.len());
                        let read = match place {
                            Place::From => request.from.as_str(),
                            Place::To => request.to.as_str(),
                            Place::Service => request.service.as_str(),
                        };
                        assert_eq!(read.as_bytes(), name);
                        assert_eq!(parsed, None);
                        continue;
                    }
                    let position = index + 1;
                    let error = NameError::InvalidByte { kind, position };
                    assert_eq!(parsed, Some(error));
                    // Refused as soon as the byte was read.
                    let read = &frame[..start + index + 1];
                    assert_eq!(decide(read), Err(error));
                }
            }
        }
    }
}

#[test]
fn names_of_every_length() {
    for length in 0..100 {
        let expected = |kind: NameKind| match length {
            0 => Err(NameError::Empty { kind }),
            length if length <= kind.max_length() => Ok("a".repeat(length)),
            length => Err(NameError::TooLong { kind, length }),
        };
        let parsed = "a".repeat(length).parse::<ServiceName>();
        let parsed = parsed.map(|name| name.to_string());
        assert_eq!(parsed, expected(NameKind::Service));
        let parsed = "a".repeat(length).parse::<MemberName>();
        let parsed = parsed.map(|name| name.to_string());
        assert_eq!(parsed, expected(NameKind::Member));
    }
    // A length that would be valid if it were cut to a byte.
    let length = 256 + 8;
    let kind = NameKind::Service;
    assert_eq!(
        ServiceName::new(&vec![b'a'; length]),
        Err(NameError::TooLong { kind, length })
    );
}

#[test]
fn names_that_differ_in_length_are_different_and_ordered() {
    let names = ["a", "aa", "ab", "b"].map(|name| name.parse::<ServiceName>().unwrap());
    assert!(names.is_sorted());
    assert_eq!(BTreeSet::from(names).len(), 4);
    assert_eq!(format!("{:?}", names[1]), "ServiceName(aa)");
    let name: MemberName = "aa".parse().unwrap();
    assert_eq!(format!("{name:?}"), "MemberName(aa)");
}

#[test]
fn boot_ids_are_the_kernels_uuids() {
    let text = "0a1b2c3d-4e5f-4071-8293-a4b5c6d7e8f9";
    let id: BootId = text.parse().unwrap();
    assert_eq!(id.as_bytes()[..4], [0x0a, 0x1b, 0x2c, 0x3d]);
    assert_eq!(id.as_bytes()[15], 0xf9);
    assert_eq!(id.to_string(), text);
    assert_eq!(format!("{id:?}"), format!("BootId({text})"));
    for wrong in [
        "",
        &text[1..],
        &text.replace('-', ""),
        &text.replacen('-', "0", 1),
        &text.replacen('0', "g", 1),
        &text.replacen("0a", "é", 1),
        &format!("{text}\n"),
    ] {
        assert_eq!(wrong.parse::<BootId>(), Err(BootIdError), "{wrong:?}");
    }
}

#[test]
fn whole_links_to_the_default_services() {
    for name in DEFAULT_SERVICES {
        let [to_service, from_service] = check_link(&request(name), b"early", b"\0\x01reply");
        assert_eq!(to_service, b"early");
        assert_eq!(from_service, b"\0\x01reply");
    }
}

#[test]
fn the_bytes_on_the_wire_do_not_change() {
    assert_eq!(LINK_ALPN, b"teesql-link/1");
    let mut sent = Vec::new();
    let opener = wire::link::request_link(&request("etcd-peer"), &mut sent);
    assert_eq!(sent, b"\x01a\x01b\x09etcd-peerboot id 16 bytes");
    assert_eq!(
        opener.advance(b"\0boot id 16 bytesHTTP"),
        LinkAnswerStep::Opened {
            boot_id: BootId::new(BOOT),
            consumed: 17
        }
    );
}

proptest! {
    #[test]
    fn link_invariants_hold_for_any_bytes(
        bytes in vec(any::<u8>(), 0..64),
        lengths in (0..70_u8, 0..70_u8, 0..40_u8),
        texts in ("[a-z0-9-]{0,70}[^a-z]?", "[a-z0-9-]{0,70}[^a-z]?", "[a-z0-9-]{0,40}[^a-z]?"),
    ) {
        let part = |length: u8, text: &str| [&[length], text.as_bytes()].concat();
        let names = [
            part(lengths.0, &texts.0),
            part(lengths.1, &texts.1),
            part(lengths.2, &texts.2),
        ];
        for input in [&bytes[..], &names.concat(), &[&names.concat()[..], &bytes].concat()] {
            let _ = check_link_request(input);
            check_link_answer(input);
        }
        prop_assert_eq!(ServiceName::new(&bytes).is_ok(), is_service_name(&bytes));
        prop_assert_eq!(MemberName::new(&bytes).is_ok(), is_member_name(&bytes));
        for text in [&texts.0, &texts.2] {
            let bytes = text.as_bytes();
            prop_assert_eq!(text.parse::<ServiceName>().is_ok(), is_service_name(bytes));
            prop_assert_eq!(text.parse::<MemberName>().is_ok(), is_member_name(bytes));
        }
    }

    #[test]
    fn link_round_trip(
        from in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        to in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        service in "[a-z]([a-z0-9-]{0,30}[a-z0-9])?",
        boot in uniform16(any::<u8>()),
        early in vec(any::<u8>(), 0..40),
        reply in vec(any::<u8>(), 0..40),
    ) {
        let request = LinkRequest {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            service: service.parse().unwrap(),
            boot_id: BootId::new(boot),
        };
        prop_assert_eq!(request.boot_id.to_string().parse(), Ok(request.boot_id));
        prop_assert_eq!(check_link(&request, &early, &reply), [early, reply]);
    }
}
