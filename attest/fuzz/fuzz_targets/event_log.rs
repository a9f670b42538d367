//! Event logs in each format, after a syntactically valid quote. The first byte selects the format, and the
//! rest is the log.
//!
//! A log must prove its identity for its own replay, and for no other value of RTMR3.
#![no_main]

use attest::Denial;
use attest::certificate::Extensions;
use attest::event_log::MAX_EVENTS;
use attest::evidence::UnboundEvidence;
use attest::values::Rtmr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((form, log)) = data.split_first() else {
        return;
    };
    let quote = quote();
    match form {
        0 => check(UnboundEvidence::from_envelope(&[&[0, 0], &scale(&quote)[..], log].concat())),
        1 => check(UnboundEvidence::from_envelope(&v1(&quote, log))),
        2 => check(UnboundEvidence::from_extensions(&Extensions {
            quote: Some(&quote),
            event_log: Some(log),
            ..Extensions::default()
        })),
        _ => {}
    }
});

fn check(evidence: Result<UnboundEvidence<'_>, Denial>) {
    let Ok(evidence) = evidence else {
        return;
    };
    let log = evidence.events();
    assert!(log.events().len() <= MAX_EVENTS);
    let Ok(Rtmr(mut register)) = log.replay() else {
        panic!("a parsed log can be replayed");
    };
    let proved = log.prove(Rtmr(register));
    assert!(!matches!(proved, Err(Denial::EventLogMismatch)));
    register[0] ^= 1;
    assert_eq!(log.prove(Rtmr(register)), Err(Denial::EventLogMismatch));
}

/// Bytes with their SCALE length.
fn scale(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    [&(len << 2 | 1).to_le_bytes()[..], bytes].concat()
}

/// An envelope whose runtime events are `events`.
fn v1(quote: &[u8], events: &[u8]) -> Vec<u8> {
    [
        b"\x83\xa7version\x01\xa8platform\x82\xa4kind\xa3tdx\xa4data\x82\xa5quote",
        &integers(quote)[..],
        b"\xa9event_log\x90\xa5stack\x82\xa4kind\xa6dstack\xa4data\x83\xabreport_data",
        &integers(&[0; 64]),
        b"\xa6config\xa0\xaeruntime_events",
        events,
    ]
    .concat()
}

fn integers(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    let mut out = [&[0xdc], &len.to_be_bytes()[..]].concat();
    for byte in bytes {
        if *byte > 0x7f {
            out.push(0xcc);
        }
        out.push(*byte);
    }
    out
}

/// Version 4, TDX, ECDSA P-256, without a PCK certificate. All signed parts are zeros.
fn quote() -> Vec<u8> {
    let mut quote = vec![4, 0, 2, 0, 0x81, 0, 0, 0];
    quote.resize(48 + 584, 0);
    let certification = [&[0; 384 + 64 + 2][..], &[5, 0], &[0; 4]].concat();
    let len = u32::try_from(certification.len()).unwrap();
    let signature = [&[0; 128][..], &[6, 0], &len.to_le_bytes(), &certification].concat();
    quote.extend(u32::try_from(signature.len()).unwrap().to_le_bytes());
    quote.extend(signature);
    quote
}
