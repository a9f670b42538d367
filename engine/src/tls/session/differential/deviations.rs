//! Where our record layer deliberately differs from rustls 0.23, and how. ADR 0013 explains
//! each deviation. On everything else the two must agree.

use rustls::{AlertDescription, Side};

use super::{Outcome, TICKET};

const UNEXPECTED: Outcome = Outcome::Refused(Some(AlertDescription::UnexpectedMessage));
const MAC: Outcome = Outcome::Refused(Some(AlertDescription::BadRecordMac));
const OVERFLOW: Outcome = Outcome::Refused(Some(AlertDescription::RecordOverflow));
const DECODE: Outcome = Outcome::Refused(Some(AlertDescription::DecodeError));
const ILLEGAL: Outcome = Outcome::Refused(Some(AlertDescription::IllegalParameter));
/// Refused without an alert: an alert was received, or rustls sends none.
const SILENT: Outcome = Outcome::Refused(None);

/// Not predicted. No data is accepted.
const UNKNOWN: Outcome = Outcome::Unknown;

/// Length of a record after its header, from which on rustls refuses the header.
const RUSTLS_MAX_CIPHERTEXT: usize = 16_384 + 2_048;
/// `MAX_CIPHERTEXT` of our record layer (RFC 8446, 5.2).
const MAX_CIPHERTEXT: usize = 16_384 + 256;
/// Warnings that rustls accepts in one connection.
const RUSTLS_MAX_WARNINGS: usize = 4;

/// A record that the two treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deviation {
    pub(super) name: &'static str,
    pub(super) own: Outcome,
    pub(super) rustls: Rustls,
}

/// What rustls does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rustls {
    Does(Outcome),
    /// Refuses; the alert depends on further details.
    Refuses,
    /// Depends on further details.
    Any,
}

use Rustls::{Any, Does, Refuses};

const fn deviation(name: &'static str, own: Outcome, rustls: Rustls) -> Option<Deviation> {
    Some(Deviation { name, own, rustls })
}

/// The header of a record that is not sealed, or was changed. `fits` says that its length is
/// that of its contents.
pub(super) fn of_header(header: [u8; 3], length: usize, fits: bool) -> Option<Deviation> {
    match header {
        [23, 3, 3] if length <= MAX_CIPHERTEXT => None,
        // RFC 8446, 5.2. rustls allows 2,048 bytes more, as TLS 1.2 does, waits for them, and
        // calls an even longer record malformed.
        [23, ..] if length > MAX_CIPHERTEXT => deviation("long ciphertext", OVERFLOW, Any),
        // RFC 8446, 5.2: the header is authenticated as it was received. rustls authenticates
        // the header that it expects and ignores this one, except for the major version.
        [23, ..] => match fits {
            true => deviation("changed version", MAC, Any),
            // Not deterministic: the record may be complete or not.
            false => deviation("changed version and length", UNKNOWN, Any),
        },
        // RFC 8446, 5. rustls opens records of any outer type, and calls a type that it does
        // not know malformed.
        _ => deviation("outer type", UNEXPECTED, Any),
    }
}

/// A sealed record. `warnings` were sent before.
pub(super) fn of_record(
    side: Side,
    kind: u8,
    content: &[u8],
    padding: usize,
    warnings: usize,
) -> Option<Deviation> {
    let inner = content.len() + 1 + padding;
    if inner + 16 >= RUSTLS_MAX_CIPHERTEXT {
        return deviation("very long ciphertext", OVERFLOW, Does(DECODE));
    }
    if inner + 16 > MAX_CIPHERTEXT {
        // As for a header: the same alert, unless the record is damaged or incomplete.
        return deviation("long ciphertext", OVERFLOW, Any);
    }
    if inner > 16_384 + 1 {
        return None;
    }
    match kind {
        // RFC 8446, 5.4 wants the alert, which rustls does not send.
        0 => deviation("no inner type", UNEXPECTED, Does(SILENT)),
        20 | 23 => None,
        21 => of_alert(content, warnings),
        22 => of_handshake(side, content),
        // RFC 8446, 5.
        _ => deviation("unknown inner type", UNEXPECTED, Does(DECODE)),
    }
}

/// The limit on consecutive records without data.
pub(super) fn of_repetition(non_data: usize) -> Option<Deviation> {
    // rustls counts some kinds of them, and each kind separately.
    (non_data > 32)
        .then(|| deviation("records without data", UNEXPECTED, Any))
        .flatten()
}

fn of_alert(content: &[u8], warnings: usize) -> Option<Deviation> {
    match content {
        // RFC 8446, 5.4.
        [] => deviation("empty alert", UNEXPECTED, Does(DECODE)),
        // RFC 8446, 6: the level can be ignored.
        [1 | 2, 0] => None,
        [_, 0] => deviation("close with unknown level", Outcome::Closed, Does(ILLEGAL)),
        [1, 90] if warnings < RUSTLS_MAX_WARNINGS => None,
        [1, 90] => deviation("user_canceled too often", Outcome::Open, Does(SILENT)),
        [2, 90] => deviation("fatal user_canceled", Outcome::Open, Does(SILENT)),
        [_, 90] => deviation(
            "user_canceled of unknown level",
            Outcome::Open,
            Does(ILLEGAL),
        ),
        [2, _] => None,
        // RFC 8446, 6.2: an error whatever the level, and an alert is not answered.
        [1, _] if warnings < RUSTLS_MAX_WARNINGS => deviation("warning", SILENT, Does(DECODE)),
        [1, _] => deviation("warning after others", SILENT, Does(SILENT)),
        [_, _] => deviation("alert of unknown level", SILENT, Does(ILLEGAL)),
        _ => None,
    }
}

fn of_handshake(side: Side, mut content: &[u8]) -> Option<Deviation> {
    if content.is_empty() {
        // RFC 8446, 5.4. rustls waits for a message, but the buffers around it do not.
        return deviation("empty handshake record", UNEXPECTED, Does(SILENT));
    }
    while !content.is_empty() {
        let message = split_message(content);
        let Some((kind, body, rest)) = message else {
            // Our record layer does not reassemble messages. rustls waits for the rest, but
            // the buffers around it do not.
            return deviation("fragment", UNEXPECTED, Does(SILENT));
        };
        match (kind, body, rest, side) {
            (24, _, [], _) => return None,
            // Both refuse it. rustls parses all messages of the record first.
            (24, ..) => return deviation("message after KeyUpdate", UNEXPECTED, Refuses),
            // rustls stores tickets, so it parses them.
            (4, _, _, Side::Client) if content.starts_with(TICKET) => {}
            (4, _, [], Side::Client) => {
                return deviation("malformed ticket", Outcome::Open, Any);
            }
            (4, _, _, Side::Client) => return deviation("malformed ticket", UNKNOWN, Any),
            // rustls parses a message before it refuses its type.
            _ => return deviation("unexpected message", UNEXPECTED, Refuses),
        }
        content = rest;
    }
    None
}

fn split_message(content: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([kind, a, b, c], rest) = content.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).ok()?;
    let (body, rest) = rest.split_at_checked(length)?;
    Some((*kind, body, rest))
}
