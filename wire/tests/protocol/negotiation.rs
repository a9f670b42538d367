//! Tests of NegotiateProtocolVersion, compared with recorded responses of real servers.

use wire::startup::ProtocolVersion;

use crate::harness::{check_forwarded, check_startup, request_client_password, startup_packet};
use crate::packets::recorded;

const V: fn(u16) -> ProtocolVersion = |minor| ProtocolVersion { major: 3, minor };

/// AuthenticationCleartextPassword.
const PASSWORD_REQUEST: &str = "520000000800000003";

/// Requested minor version and options, and the recorded NegotiateProtocolVersion of PostgreSQL
/// 15.18 (which supports 3.0) and 18.4 (3.2).
const RECORDED: [(u16, &[&str], &str, &str); 6] = [
    (0, &[], "", ""),
    (1, &[], "760000000c0003000000000000", ""),
    (2, &[], "760000000c0003000000000000", ""),
    (
        9999,
        &[],
        "760000000c0003000000000000",
        "760000000c0003000200000000",
    ),
    (
        0,
        &["_pq_.foo"],
        "760000001500030000000000015f70715f2e666f6f00",
        "760000001500030000000000015f70715f2e666f6f00",
    ),
    (
        2,
        &["_pq_.foo", "_pq_.bar"],
        "760000001e00030000000000025f70715f2e666f6f005f70715f2e62617200",
        "760000001e00030002000000025f70715f2e666f6f005f70715f2e62617200",
    ),
];

#[test]
fn negotiates_byte_for_byte_like_postgres() {
    for (minor, options, pg15, pg18) in RECORDED {
        let mut parameters = vec![("user", "me")];
        parameters.extend(options.iter().map(|name| (*name, "x")));
        let (startup, _) = check_startup(&startup_packet(V(minor), &parameters)).unwrap();
        for (newest, negotiation) in [(V(0), pg15), (V(2), pg18)] {
            let (response, _, version) = request_client_password(&startup, newest);
            assert_eq!(version, V(minor).min(newest));
            let expected = [recorded(negotiation), recorded(PASSWORD_REQUEST)].concat();
            assert_eq!(response, expected, "3.{minor} {options:?} on {newest}");
        }
        check_forwarded(&startup);
    }
}

#[test]
fn protocol_options_are_not_forwarded_and_parameters_keep_their_order() {
    let parameters = [
        ("_pq_.test_protocol_negotiation", ""),
        ("user", "me"),
        ("_pq_.", "x"),
        ("b", "2"),
        ("_pq", "kept"),
        ("a", "1"),
    ];
    let (startup, _) = check_startup(&startup_packet(V(9999), &parameters)).unwrap();
    let mut out = Vec::new();
    let _ = wire::backend::BackendLogin::start(&startup, V(2), [0; 18], &mut out);
    let expected = [("user", "me"), ("b", "2"), ("_pq", "kept"), ("a", "1")];
    assert_eq!(out, startup_packet(V(2), &expected));
}

#[test]
fn version_conversions() {
    assert_eq!(
        ProtocolVersion::from_u32(0x0003_0002),
        ProtocolVersion::V3_2
    );
    assert_eq!(ProtocolVersion::V3_0.to_u32(), 196_608);
    assert_eq!(V(9999).to_string(), "3.9999");
    assert_eq!(ProtocolVersion::from_u32(u32::MAX).to_u32(), u32::MAX);
}
