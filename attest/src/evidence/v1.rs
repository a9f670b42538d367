//! V1: msgpack, `{version, platform: {kind, data}, stack: {kind, data}}`.
//!
//! The envelope's maps must have exactly the keys of the contract, in any order, except that `kind` comes before
//! its `data`, as serde writes it. Unknown keys in `data` and in events are skipped: dstack adds some
//! (`hash_input`) without a new version.

use super::msgpack::Msgpack;
use super::{EvidenceFormat, UnboundEvidence};
use crate::denial::Denial;
use crate::event_log::{DigestVersion, Event, EventLog};
use crate::limits::{
    MAX_EVENT_NAME_LEN, MAX_EVENT_PAYLOAD_LEN, MAX_EVENTS, MAX_MAP_KEY_LEN, MAX_MAP_KEYS,
    MAX_QUOTE_LEN, MAX_VM_CONFIG_LEN,
};
use crate::quote::TdQuote;

pub(super) fn read(envelope: &[u8]) -> Result<UnboundEvidence<'_>, Denial> {
    let mut msgpack = Msgpack::new(envelope);
    let (mut version, mut platform, mut stack) = (None, None, None);
    for _ in 0..msgpack.map(MAX_MAP_KEYS)? {
        match msgpack.text(MAX_MAP_KEY_LEN)? {
            "version" => once(&mut version, msgpack.unsigned()?)?,
            "platform" => once(&mut platform, read_platform(&mut msgpack)?)?,
            "stack" => once(&mut stack, read_stack(&mut msgpack)?)?,
            _ => {
                return Err(Denial::MalformedEvidence(
                    "the V1 envelope has an unknown key",
                ));
            }
        }
    }
    if !msgpack.is_empty() {
        return Err(Denial::MalformedEvidence(
            "there are bytes after the envelope",
        ));
    }
    if present(version)? != 1 {
        return Err(Denial::MalformedEvidence("the envelope's version is not 1"));
    }
    let (events, stated) = present(stack)?;
    Ok(UnboundEvidence {
        quote: TdQuote::parse(&present(platform)?)?,
        events,
        stated_report_data: Some(stated),
        format: EvidenceFormat::V1,
    })
}

/// `{kind: "tdx", data: {quote, event_log}}`. Returns the quote.
fn read_platform(msgpack: &mut Msgpack<'_>) -> Result<Vec<u8>, Denial> {
    match read_kind(msgpack)? {
        "tdx" => {}
        "gcp-tdx" | "nitro-enclave" | "sev-snp" | "nitro-tpm" => return Err(Denial::NotTdx),
        _ => {
            return Err(Denial::MalformedEvidence(
                "the envelope is of an unknown technology",
            ));
        }
    }
    let (mut quote, mut log) = (None, None);
    for _ in 0..msgpack.map(MAX_MAP_KEYS)? {
        match msgpack.text(MAX_MAP_KEY_LEN)? {
            "quote" => once(&mut quote, msgpack.integers(MAX_QUOTE_LEN)?)?,
            "event_log" => once(&mut log, skip_boot_events(msgpack)?)?,
            _ => msgpack.skip()?,
        }
    }
    present(log)?;
    present(quote)
}

fn skip_boot_events(msgpack: &mut Msgpack<'_>) -> Result<(), Denial> {
    for _ in 0..msgpack.array(MAX_EVENTS)? {
        msgpack.skip()?;
    }
    Ok(())
}

/// `{kind: "dstack", data: {report_data, runtime_events, config}}`.
fn read_stack<'a>(msgpack: &mut Msgpack<'a>) -> Result<(EventLog<'a>, [u8; 64]), Denial> {
    if read_kind(msgpack)? != "dstack" {
        return Err(Denial::MalformedEvidence(
            "the envelope is of an unknown stack",
        ));
    }
    let (mut report_data, mut events, mut config) = (None, None, None);
    for _ in 0..msgpack.map(MAX_MAP_KEYS)? {
        match msgpack.text(MAX_MAP_KEY_LEN)? {
            "report_data" => once(&mut report_data, msgpack.integers(64)?)?,
            "runtime_events" => once(&mut events, read_events(msgpack)?)?,
            "config" => once(&mut config, msgpack.text(MAX_VM_CONFIG_LEN)?)?,
            _ => msgpack.skip()?,
        }
    }
    present(config)?;
    let report_data = present(report_data)?
        .try_into()
        .map_err(|_| Denial::MalformedEvidence("the envelope's report data is not 64 bytes"))?;
    Ok((present(events)?, report_data))
}

fn read_events<'a>(msgpack: &mut Msgpack<'a>) -> Result<EventLog<'a>, Denial> {
    let count = msgpack.array(MAX_EVENTS)?;
    let mut events = EventLog::with_capacity(count)?;
    for _ in 0..count {
        events.push(read_event(msgpack)?)?;
    }
    Ok(events)
}

/// `{event, payload, version?}`. dstack 0.6.0 writes the payload as bin; the contract has base64 text. The type
/// selects the decoder.
fn read_event<'a>(msgpack: &mut Msgpack<'a>) -> Result<Event<'a>, Denial> {
    let (mut name, mut payload, mut version) = (None, None, None);
    for _ in 0..msgpack.map(MAX_MAP_KEYS)? {
        match msgpack.text(MAX_MAP_KEY_LEN)? {
            "event" => once(&mut name, msgpack.text(MAX_EVENT_NAME_LEN)?)?,
            "payload" => once(&mut payload, msgpack.bin_or_base64(MAX_EVENT_PAYLOAD_LEN)?)?,
            "version" => once(
                &mut version,
                DigestVersion::from_number(msgpack.unsigned()?)?,
            )?,
            _ => msgpack.skip()?,
        }
    }
    Event::new(
        present(name)?,
        present(payload)?,
        version.unwrap_or_default(),
    )
}

/// The start of `{kind, data}`. Returns the kind; the value of `data` follows.
fn read_kind<'a>(msgpack: &mut Msgpack<'a>) -> Result<&'a str, Denial> {
    let wrong = Denial::MalformedEvidence("the V1 envelope lacks a kind and its data");
    if msgpack.map(MAX_MAP_KEYS)? != 2 || msgpack.text(MAX_MAP_KEY_LEN)? != "kind" {
        return Err(wrong);
    }
    let kind = msgpack.text(MAX_MAP_KEY_LEN)?;
    if msgpack.text(MAX_MAP_KEY_LEN)? == "data" {
        Ok(kind)
    } else {
        Err(wrong)
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Denial> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Denial::MalformedEvidence("the V1 envelope has a key twice")),
    }
}

fn present<T>(value: Option<T>) -> Result<T, Denial> {
    value.ok_or(Denial::MalformedEvidence("the V1 envelope lacks a key"))
}
