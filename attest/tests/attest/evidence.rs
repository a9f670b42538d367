//! Envelopes of evidence: accepted and refused encodings.

use attest::Denial;
use attest::certificate::Leaf;
use attest::event_log::MAX_EVENTS;
use attest::evidence::{EvidenceFormat, MAX_ENVELOPE_LEN, UnboundEvidence};
use attest::mock::{
    DigestVersion, Envelope, Event, Evidence, Fixture, PayloadForm, Platform, TdReport,
};
use attest::quote::{MAX_QUOTE_LEN, TdQuote};

use crate::certificates::leaf_with;

pub(crate) fn quote() -> Vec<u8> {
    let fixture = Fixture::default();
    let platform = Platform::new(&fixture.pki, &fixture.platform).unwrap();
    platform.quote(&TdReport::default()).unwrap()
}

fn open(envelope: &[u8]) -> Result<EvidenceFormat, Denial> {
    UnboundEvidence::from_envelope(envelope).map(|evidence| evidence.format())
}

fn code(envelope: &[u8]) -> &'static str {
    open(envelope).map_or_else(|denial| denial.code(), EvidenceFormat::as_str)
}

fn error(envelope: &[u8]) -> String {
    open(envelope).unwrap_err().to_string()
}

fn v0(evidence: &Evidence) -> Vec<u8> {
    evidence.v0(&quote(), [0; 64])
}

fn v1(evidence: &Evidence) -> Vec<u8> {
    evidence.v1(&quote(), [0; 64]).unwrap()
}

#[test]
fn every_digest_version_and_payload_form_is_admitted() {
    for digests in [DigestVersion::V1, DigestVersion::V2] {
        for payloads in [PayloadForm::Bin, PayloadForm::Base64] {
            let fixture = Fixture::with(|f| {
                f.evidence.digests = digests;
                f.evidence.payloads = payloads;
            });
            assert_eq!(fixture.outcome(), "admitted", "{digests:?} {payloads:?}");
        }
    }
    // V0 has no field for the digest version, so digests of version 2 do not replay.
    let fixture = Fixture::with(|f| {
        f.evidence.digests = DigestVersion::V2;
        f.evidence.envelope = Envelope::V0;
    });
    assert_eq!(fixture.outcome(), "event_log_mismatch");
}

#[test]
fn first_byte_selects_the_form() {
    assert_eq!(code(&v0(&Evidence::default())), "V0 (SCALE)");
    assert_eq!(code(&v1(&Evidence::default())), "V1 (msgpack)");
    assert!(error(&[]).contains("empty"));
    for first in (0x01..=0x7f).chain(0x90..=0xdd).chain(0xe0..=0xff) {
        let mut envelope = v1(&Evidence::default());
        envelope[0] = first;
        assert!(error(&envelope).contains("neither V0 nor V1"), "{first:#x}");
    }
    assert!(error(&vec![0; MAX_ENVELOPE_LEN + 1]).contains("too large"));
}

#[test]
fn trailing_missing_and_leading_bytes_are_refused() {
    for good in [v0(&Evidence::default()), v1(&Evidence::default())] {
        let longer = [&good[..], &[0]].concat();
        assert!(error(&longer).contains("after the envelope"));
        let shifted = [&[1], &good[..]].concat();
        assert_eq!(code(&shifted), "malformed_evidence");
        for len in 0..good.len() {
            assert_eq!(code(&good[..len]), "malformed_evidence", "cut at {len}");
        }
    }
}

#[test]
fn other_tees_are_refused() {
    for kind in 1..=4 {
        assert_eq!(code(&[0, kind]), "not_tdx");
    }
    assert_eq!(code(&[0, 5]), "malformed_evidence");
    for kind in ["gcp-tdx", "nitro-enclave", "sev-snp"] {
        let mut envelope = vec![0x83];
        push_text(&mut envelope, "platform");
        envelope.push(0x82);
        for text in ["kind", kind, "data"] {
            push_text(&mut envelope, text);
        }
        assert_eq!(code(&envelope), "not_tdx", "{kind}");
    }
}

fn push_text(msgpack: &mut Vec<u8>, text: &str) {
    msgpack.push(0xa0 | u8::try_from(text.len()).unwrap());
    msgpack.extend(text.as_bytes());
}

/// `{version, platform, stack}` with the given event log and runtime events.
fn v1_of(version: &[u8], log: &[u8], events: &[u8]) -> Vec<u8> {
    let quote = quote();
    let mut out = vec![0x83];
    push_text(&mut out, "version");
    out.extend(version);
    push_text(&mut out, "platform");
    out.push(0x82);
    ["kind", "tdx", "data"]
        .into_iter()
        .for_each(|text| push_text(&mut out, text));
    out.push(0x82);
    push_text(&mut out, "quote");
    out.extend(integers(&quote));
    push_text(&mut out, "event_log");
    out.extend(log);
    push_text(&mut out, "stack");
    out.push(0x82);
    ["kind", "dstack", "data"]
        .into_iter()
        .for_each(|text| push_text(&mut out, text));
    out.push(0x83);
    push_text(&mut out, "report_data");
    out.extend(integers(&[0; 64]));
    push_text(&mut out, "runtime_events");
    out.extend(events);
    push_text(&mut out, "config");
    push_text(&mut out, "{}");
    out
}

fn integers(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0xdc];
    out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
    for byte in bytes {
        if *byte > 0x7f {
            out.push(0xcc);
        }
        out.push(*byte);
    }
    out
}

const NONE: [u8; 1] = [0x90];

#[test]
fn unknown_envelope_versions_are_refused() {
    assert_eq!(code(&v1_of(&[1], &NONE, &NONE)), "V1 (msgpack)");
    for version in [&[0][..], &[2], &[0xcd, 1, 1]] {
        assert!(error(&v1_of(version, &NONE, &NONE)).contains("version is not 1"));
    }
    assert!(error(&v1_of(&[0xa1, b'1'], &NONE, &NONE)).contains("unexpected type"));
}

#[test]
fn declared_lengths_beyond_the_caps_are_refused() {
    let huge = [0xdd, 0xff, 0xff, 0xff, 0xff];
    assert!(error(&v1_of(&[1], &huge, &NONE)).contains("too large"));
    assert!(error(&v1_of(&[1], &NONE, &huge)).contains("too large"));
    let huge_map_in_the_log = [&[0x91, 0xdf, 0xff, 0xff, 0xff, 0xff][..]].concat();
    assert!(error(&v1_of(&[1], &huge_map_in_the_log, &NONE)).contains("cut short"));
    // A map of 2^32 - 1 keys.
    assert!(error(&[0xdf, 0xff, 0xff, 0xff, 0xff]).contains("too large"));
    // SCALE: a quote of 2^30 - 1 bytes, and of 2^32 - 1.
    assert!(error(&[0, 0, 0xfe, 0xff, 0xff, 0xff]).contains("too large"));
    assert!(error(&[0, 0, 0x03, 0xff, 0xff, 0xff, 0xff]).contains("too large"));
    // A length that is not in the shortest form.
    assert!(error(&[0, 0, 0x01, 0x00]).contains("length"));
}

#[test]
fn number_of_events_is_capped() {
    let evidence = |count| Evidence {
        after_ready: vec![Event::new("e", b""); count],
        ..Evidence::default()
    };
    // The system has nine runtime events, and the log has a boot event in addition.
    let (few, many) = (MAX_EVENTS - 10, 10_000);
    assert_eq!(code(&v0(&evidence(few))), "V0 (SCALE)");
    assert!(error(&v0(&evidence(few + 1))).contains("too many events"));
    assert!(error(&v0(&evidence(many))).contains("too many events"));
    assert_eq!(code(&v1(&evidence(few))), "V1 (msgpack)");
    assert!(error(&v1(&evidence(many))).contains("too large"));
    let legacy = |count: usize| {
        let fixture = Fixture::with(|f| {
            f.evidence = Evidence {
                envelope: Envelope::Legacy,
                ..evidence(count)
            };
        });
        let log = fixture.evidence.legacy_event_log().unwrap();
        let leaf = leaf_with(&[(1, quote()), (2, log)]);
        let leaf = Leaf::parse(&leaf).map_err(|denial| denial.code())?;
        UnboundEvidence::from_extensions(leaf.extensions())
            .map(|_| ())
            .map_err(|denial| denial.code())
    };
    assert_eq!(legacy(500), Ok(()));
    assert_eq!(
        legacy(many),
        Err("malformed_certificate"),
        "the certificate is already too large"
    );
    assert_eq!(legacy(2_000), Err("malformed_evidence"));
}

/// Skipped values are counted, without recursion.
#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let mut log = vec![0x91];
    log.extend([0x91; 100_000]);
    log.push(0xc0);
    assert_eq!(code(&v1_of(&[1], &log, &NONE)), "V1 (msgpack)");
    log.pop();
    assert_eq!(code(&v1_of(&[1], &log, &NONE)), "malformed_evidence");
}

#[test]
fn fields_of_v1_events_are_validated() {
    let event = |fields: &[(&str, &[u8])]| {
        let mut out = vec![0x91, 0x80 | u8::try_from(fields.len()).unwrap()];
        for (key, value) in fields {
            push_text(&mut out, key);
            out.extend(*value);
        }
        code(&v1_of(&[1], &NONE, &out))
    };
    let name = ("event", &[0xa1, b'e'][..]);
    let bin = ("payload", &[0xc4, 1, 7][..]);
    assert_eq!(event(&[name, bin]), "V1 (msgpack)");
    assert_eq!(event(&[bin, name]), "V1 (msgpack)", "in any order");
    assert_eq!(event(&[name, bin, ("version", &[2])]), "V1 (msgpack)");
    assert_eq!(event(&[name, bin, ("version", &[3])]), "malformed_evidence");
    assert_eq!(
        event(&[name, ("payload", &[0xa4, b'B', b'w', b'=', b'='])]),
        "V1 (msgpack)"
    );
    assert_eq!(
        event(&[name, ("payload", &[0xa3, b'B', b'w', b'='])]),
        "malformed_evidence"
    );
    assert_eq!(
        event(&[name, ("payload", &[0x91, 7])]),
        "malformed_evidence"
    );
    assert_eq!(event(&[name, bin, ("hash_input", &[0xa0])]), "V1 (msgpack)");
    assert_eq!(
        event(&[name, bin, ("x", &[0xc7, 0, 0])]),
        "malformed_evidence",
        "extension type"
    );
    assert_eq!(event(&[name]), "malformed_evidence");
    assert_eq!(event(&[bin]), "malformed_evidence");
    assert_eq!(event(&[name, name, bin]), "malformed_evidence");
    assert_eq!(
        event(&[("event", &[0xa1, 0xff]), bin]),
        "malformed_evidence",
        "not UTF-8"
    );
}

#[test]
fn quote_of_v1_is_an_array_of_integers() {
    let good = v1_of(&[1], &NONE, &NONE);
    let integers = integers(&quote());
    let at = good
        .windows(integers.len())
        .position(|window| window == integers)
        .unwrap();
    let with = |replacement: &[u8]| {
        code(&[&good[..at], replacement, &good[at + integers.len()..]].concat())
    };
    assert_eq!(with(&integers), "V1 (msgpack)");
    let quote = quote();
    let len = u16::try_from(quote.len()).unwrap().to_be_bytes();
    assert_eq!(
        with(&[&[0xc5], &len[..], &quote].concat()),
        "malformed_evidence",
        "bin"
    );
    let mut wide = integers.clone();
    wide.splice(3..4, [0xcd, 0, 4]);
    assert_eq!(with(&wide), "malformed_evidence", "an integer of two bytes");
    let mut long = integers.clone();
    long.splice(3..4, [0xcc, 4]);
    assert_eq!(
        with(&long),
        "malformed_evidence",
        "a small integer in the long form"
    );
}

#[test]
fn quote_headers_and_lengths_are_validated() {
    let good = quote();
    let parse = |quote: &[u8]| {
        TdQuote::parse(quote)
            .map(|_| ())
            .map_err(|denial| denial.code())
    };
    let changed = |at: usize, byte: u8| {
        let mut quote = good.clone();
        quote[at] = byte;
        parse(&quote)
    };
    assert_eq!(parse(&good), Ok(()));
    assert_eq!(changed(0, 3), Err("not_tdx"));
    assert_eq!(changed(0, 6), Err("unsupported_quote"));
    assert_eq!(
        changed(2, 3),
        Err("unsupported_quote"),
        "attestation key type"
    );
    assert_eq!(changed(4, 0), Err("not_tdx"), "SGX");
    assert_eq!(changed(4, 0x82), Err("unsupported_quote"));
    assert_eq!(
        changed(632, 0),
        Err("malformed_evidence"),
        "shorter signature data"
    );
    assert_eq!(
        changed(635, 0xff),
        Err("malformed_evidence"),
        "4 GiB of signature data"
    );
    assert_eq!(
        changed(636 + 128, 5),
        Err("unsupported_quote"),
        "certification data"
    );
    assert_eq!(
        parse(&[&good[..], &[0; 70]].concat()),
        Ok(()),
        "zero padding"
    );
    assert_eq!(
        parse(&[&good[..], &[0, 1]].concat()),
        Err("malformed_evidence")
    );
    let padded = |len| [&good[..], &vec![0; len - good.len()]].concat();
    assert_eq!(parse(&padded(MAX_QUOTE_LEN)), Ok(()));
    assert_eq!(parse(&padded(MAX_QUOTE_LEN + 1)), Err("malformed_evidence"));
    for len in 0..good.len() {
        assert_eq!(
            parse(&good[..len]),
            Err("malformed_evidence"),
            "cut at {len}"
        );
    }
}

#[test]
fn report_data_of_envelope_and_quote_must_agree() {
    for envelope in [Envelope::V0, Envelope::V1] {
        let fixture = Fixture::with(|f| f.evidence.envelope = envelope);
        let certificate = fixture.certificate();
        let quote = certificate.quote().unwrap();
        let attestation = match envelope {
            Envelope::V0 => fixture.evidence.v0(quote, [0; 64]),
            _ => fixture.evidence.v1(quote, [0; 64]).unwrap(),
        };
        let fixture = Fixture::with(|f| f.leaf.attestation = Some(attestation));
        assert_eq!(fixture.outcome(), "unbound_key", "{envelope:?}");
    }
}
