//! Tests of the plaintext bytes before TLS.

use wire::opening::{
    MAX_OPENING, MAX_PROXY_V1, MAX_PROXY_V2, Opening, OpeningError, OpeningPolicy, OpeningStep,
};

use crate::harness::{check_opening, opening_after};
use crate::packets::{
    CLIENT_HELLO, GSSENC_REQUEST, IPV4, PROXY_V1, SSL_REQUEST, cancel, packet, proxy_v2,
};
use crate::table;

const STRICT: OpeningPolicy = OpeningPolicy {
    plaintext_cancel: false,
    proxy_protocol: false,
};
const LENIENT: OpeningPolicy = OpeningPolicy {
    plaintext_cancel: true,
    proxy_protocol: true,
};

fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("nothing", vec![]),
        ("ClientHello", CLIENT_HELLO.to_vec()),
        ("TLS record of major version 4", b"\x16\x04\x01".to_vec()),
        ("SSLRequest", SSL_REQUEST.to_vec()),
        (
            "SSLRequest, ClientHello",
            [SSL_REQUEST, CLIENT_HELLO].concat(),
        ),
        ("GSSENCRequest", GSSENC_REQUEST.to_vec()),
        ("GSSENCRequest, 1 byte", [GSSENC_REQUEST, b"x"].concat()),
        (
            "SSLRequest of 9 bytes",
            b"\0\0\0\x09\x04\xd2\x16\x2fx".to_vec(),
        ),
        ("CancelRequest, key of 4", cancel(&[9; 4])),
        ("CancelRequest, key of 256", cancel(&[9; 256])),
        ("CancelRequest, key of 3", cancel(&[9; 3])),
        ("CancelRequest, key of 257", cancel(&[9; 257])),
        ("StartupMessage 3.0", packet(0x0003_0000, b"user\0me\0\0")),
        (
            "StartupMessage 3.9999",
            packet(0x0003_270f, b"user\0me\0\0"),
        ),
        ("StartupMessage 2.0", packet(0x0002_0000, &[0; 288])),
        ("length 7", b"\0\0\0\x07\0\x03\0\0".to_vec()),
        ("length 10,000", b"\0\0\x27\x10\0\x03\0\0".to_vec()),
        ("length 10,001", b"\0\0\x27\x11\0\x03\0\0".to_vec()),
        ("length 2^31", b"\x80\0\0\0\0\x03\0\0".to_vec()),
        ("length 2^32-1", b"\xff\xff\xff\xff\0\x03\0\0".to_vec()),
        ("PROXY v1", PROXY_V1.to_vec()),
        ("PROXY v2", proxy_v2(0x21, 0x11, IPV4)),
        ("HTTP", b"GET / HTTP/1.1\r\n".to_vec()),
        ("HTTP POST", b"POST / HTTP/1.1\r\n".to_vec()),
        ("typed message", b"Q\0\0\0\x0dSELECT 1\0".to_vec()),
    ]
}

/// The states, each with the history that leads to it.
fn states() -> Vec<(&'static str, OpeningPolicy, Vec<Vec<u8>>)> {
    let (ssl, gss) = (SSL_REQUEST.to_vec(), GSSENC_REQUEST.to_vec());
    vec![
        ("First, strict", STRICT, vec![]),
        ("First, lenient", LENIENT, vec![]),
        ("Proxied", LENIENT, vec![PROXY_V1.to_vec()]),
        ("GssRefused", LENIENT, vec![gss.clone()]),
        ("TlsAgreed", LENIENT, vec![ssl.clone()]),
        ("TlsAgreed after GssRefused", LENIENT, vec![gss, ssl]),
    ]
}

fn describe(step: &OpeningStep<'_>) -> String {
    let state = |next: &Opening| {
        let text = format!("{next:?}");
        text.split("state: ").nth(1).unwrap().replace(" }", "")
    };
    match step {
        OpeningStep::Read(_) => "Read".to_owned(),
        OpeningStep::Reply { byte, next, .. } => {
            format!("Reply {:?} -> {}", char::from(*byte), state(next))
        }
        OpeningStep::Proxied { source, next, .. } => {
            let source = source.map(|source| source.to_string());
            format!("{} -> {}", source.unwrap_or_default(), state(next))
        }
        OpeningStep::Tls => "Tls".to_owned(),
        OpeningStep::Cancel(request) => format!("{request:?}"),
        OpeningStep::Refuse(error) => error.code().to_owned(),
    }
}

#[test]
fn transition_table() {
    let states = states();
    let head = states.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let rows = inputs().into_iter().map(|(input, bytes)| {
        let step =
            |policy, history: &[Vec<u8>]| describe(&opening_after(policy, history).advance(&bytes));
        let cells = states
            .iter()
            .map(|(_, policy, history)| step(*policy, history));
        (input, cells.collect())
    });
    insta::assert_snapshot!(table(head, rows));
}

#[test]
fn every_input_split_at_every_byte_in_every_state() {
    for (_, policy, history) in states() {
        for (_, bytes) in inputs() {
            let conversation = [history.concat(), bytes].concat();
            check_opening(policy, &conversation);
        }
    }
}

#[test]
fn an_impossible_first_byte_is_refused_immediately() {
    let read: Vec<u8> = (0..=255)
        .filter(|byte| matches!(Opening::new(STRICT).advance(&[*byte]), OpeningStep::Read(_)))
        .collect();
    assert_eq!(read, [0x00, b'\r', 0x16, b'P']);
}

#[test]
fn whole_conversations() {
    let proxied = "Proxied Some(192.0.2.7:50000)".to_owned();
    let (n, s, tls) = (
        "Reply 'N'".to_owned(),
        "Reply 'S'".to_owned(),
        "Tls".to_owned(),
    );
    let early = "EarlyBytes".to_owned();

    assert_eq!(check_opening(STRICT, CLIENT_HELLO).concat(), tls);
    let steps = check_opening(LENIENT, &[PROXY_V1, CLIENT_HELLO].concat());
    assert_eq!(steps, [proxied.clone(), tls.clone()]);
    let steps = check_opening(LENIENT, &[PROXY_V1, SSL_REQUEST].concat());
    let waiting = format!(
        "{:?}",
        OpeningStep::Read(opening_after(LENIENT, &[SSL_REQUEST.to_vec()]))
    );
    assert_eq!(steps, [proxied, s.clone(), waiting]);

    // In one read this is an attack; in three reads it is what libpq sends.
    let libpq = [GSSENC_REQUEST, SSL_REQUEST, CLIENT_HELLO].concat();
    assert_eq!(
        check_opening(STRICT, &libpq),
        [early.clone(), early, tls.clone()]
    );
    let state = opening_after(STRICT, &[]);
    let OpeningStep::Reply { byte, next, .. } = state.advance(GSSENC_REQUEST) else {
        panic!("no reply");
    };
    assert_eq!(format!("Reply {:?}", char::from(byte)), n);
    let OpeningStep::Reply { byte, next, .. } = next.advance(SSL_REQUEST) else {
        panic!("no reply");
    };
    assert_eq!(format!("Reply {:?}", char::from(byte)), s);
    assert_eq!(next.advance(CLIENT_HELLO), OpeningStep::Tls);
}

#[test]
fn a_plaintext_cancel_is_returned_without_trailing_bytes() {
    let packet = cancel(b"key!");
    let bytes = [&packet[..], b"more"].concat();
    match Opening::new(LENIENT).advance(&bytes) {
        OpeningStep::Cancel(request) => assert_eq!(request.as_bytes(), packet),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        Opening::new(STRICT).advance(&packet[..8]),
        OpeningStep::Refuse(OpeningError::PlaintextCancel)
    );
}

fn proxy(bytes: &[u8]) -> Result<Option<String>, OpeningError> {
    check_opening(LENIENT, bytes);
    match Opening::new(LENIENT).advance(bytes) {
        OpeningStep::Proxied {
            source, consumed, ..
        } => {
            assert_eq!(consumed, bytes.len());
            Ok(source.map(|source| source.to_string()))
        }
        OpeningStep::Refuse(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn proxy_v1_headers() {
    let v1 = |text: &str| proxy(format!("PROXY {text}\r\n").as_bytes());
    let some = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(
        v1("TCP4 192.0.2.7 198.51.100.1 1 65535"),
        some("192.0.2.7:1")
    );
    assert_eq!(
        v1("TCP6 2001:db8::7 ::1 50000 5433"),
        some("[2001:db8::7]:50000")
    );
    assert_eq!(v1("UNKNOWN"), Ok(None));
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let longest = format!("UNKNOWN {longest} {longest} 65535 65535");
    assert_eq!("PROXY \r\n".len() + longest.len(), MAX_PROXY_V1);
    assert_eq!(v1(&longest), Ok(None));
    assert_eq!(v1(&(longest + "5")), Err(OpeningError::ProxyTooLong));

    for text in [
        "",
        " ",
        "TCP4",
        "TCP4 192.0.2.7 198.51.100.1 1",
        "TCP4 192.0.2.7 198.51.100.1 1 65536",
        "TCP4 192.0.2.7 198.51.100.1 01 2",
        "TCP4 192.0.2.7 198.51.100.1 1 2 ",
        "TCP4 192.0.2.7  198.51.100.1 1 2",
        "TCP4 2001:db8::7 ::1 1 2",
        "TCP6 192.0.2.7 198.51.100.1 1 2",
        "TCP5 192.0.2.7 198.51.100.1 1 2",
        "tcp4 192.0.2.7 198.51.100.1 1 2",
        "TCP4 192.0.2.7 198.51.100.1 1 2\0",
        "TCP4 192.0.2.7 198.51.100.1 1 2\n",
        "TCP4 192.0.2.7 198.51.100.1 1 2\rx",
        "TCP4 192.0.2.7 198.51.100.1 1 \u{e9}",
    ] {
        assert_eq!(v1(text), Err(OpeningError::ProxyMalformed), "{text:?}");
    }
}

#[test]
fn proxy_v2_headers() {
    let some = |text: &str| Ok(Some(text.to_owned()));
    let ipv6 = [
        &[0x20, 1, 0xd, 0xb8][..],
        &[0; 11],
        &[7],
        &[0; 16],
        &[0xc3, 0x50, 0, 1],
    ]
    .concat();
    assert_eq!(proxy(&proxy_v2(0x21, 0x11, IPV4)), some("192.0.2.7:50000"));
    assert_eq!(
        proxy(&proxy_v2(0x21, 0x21, &ipv6)),
        some("[2001:db8::7]:50000")
    );
    // The proxy's own health check, an unknown peer, a Unix socket.
    assert_eq!(proxy(&proxy_v2(0x20, 0x00, b"")), Ok(None));
    assert_eq!(proxy(&proxy_v2(0x20, 0x11, IPV4)), Ok(None));
    assert_eq!(proxy(&proxy_v2(0x21, 0x00, b"\x04\0\x02ab")), Ok(None));
    assert_eq!(proxy(&proxy_v2(0x21, 0x31, &[b'/'; 216])), Ok(None));

    let room = MAX_PROXY_V2 - 16;
    let padded = |len: usize| proxy(&proxy_v2(0x21, 0x11, &[IPV4, &vec![4; len - 12]].concat()));
    assert_eq!(padded(room), some("192.0.2.7:50000"));
    assert_eq!(padded(room + 1), Err(OpeningError::ProxyTooLong));
    assert_eq!(padded(65_535), Err(OpeningError::ProxyTooLong));
    // The header alone shows that it is too long.
    let head = &proxy_v2(0x21, 0x11, &[0; 65_535])[..16];
    assert_eq!(proxy(head), Err(OpeningError::ProxyTooLong));

    for (command, family, payload) in [
        (0x11, 0x11, IPV4),
        (0x22, 0x11, IPV4),
        (0x21, 0x41, IPV4),
        (0x21, 0x13, IPV4),
        (0x21, 0x12, IPV4),
        (0x21, 0x11, &IPV4[..11]),
        (0x21, 0x21, IPV4),
    ] {
        let header = proxy_v2(command, family, payload);
        let refused = Err(OpeningError::ProxyMalformed);
        assert_eq!(proxy(&header), refused, "{command:x} {family:x}");
    }
}

#[test]
fn the_longest_opening_fits_the_documented_buffer() {
    let longest = proxy_v2(0x21, 0x11, &[0; MAX_PROXY_V2 - 16]);
    assert_eq!(longest.len(), MAX_OPENING);
    let almost = Opening::new(LENIENT).advance(&longest[..MAX_OPENING - 1]);
    assert!(matches!(almost, OpeningStep::Read(_)));
}
