//! V0: an envelope in SCALE. Borrows from the input.
//!
//! parity-scale-codec decodes the lengths and refuses all but the shortest encoding. Fields are borrowed, so a
//! wrong length cannot cause an allocation.

use parity_scale_codec::{Compact, Decode};

use super::{EvidenceFormat, UnboundEvidence};
use crate::denial::Denial;
use crate::event_log::{DigestVersion, Event, EventLog, check_count};
use crate::limits::{
    MAX_EVENT_DIGEST_LEN, MAX_EVENT_NAME_LEN, MAX_EVENT_PAYLOAD_LEN, MAX_QUOTE_LEN,
    MAX_VM_CONFIG_LEN,
};
use crate::quote::TdQuote;

pub(super) fn read(envelope: &[u8]) -> Result<UnboundEvidence<'_>, Denial> {
    let mut scale = Scale { rest: envelope };
    if scale.byte()? != 0 {
        return Err(Denial::MalformedEvidence("the envelope is not V0"));
    }
    match scale.byte()? {
        0 => {}
        // GCP-TDX, Nitro, SEV-SNP, Nitro TPM.
        1..=4 => return Err(Denial::NotTdx),
        _ => {
            return Err(Denial::MalformedEvidence(
                "the envelope is of an unknown technology",
            ));
        }
    }
    let quote = scale.bytes(MAX_QUOTE_LEN)?;
    for _ in 0..scale.count()? {
        skip_boot_event(&mut scale)?;
    }
    let count = scale.count()?;
    let mut events = EventLog::with_capacity(count)?;
    for _ in 0..count {
        let name = scale.text(MAX_EVENT_NAME_LEN)?;
        let payload = scale.bytes(MAX_EVENT_PAYLOAD_LEN)?;
        // The SCALE encoding omits the version: such events are V1. [dstack `cc-eventlog`, `codec(skip)`]
        events.push(Event::new(name, payload, DigestVersion::V1)?)?;
    }
    let stated = *scale.array()?;
    scale.text(MAX_VM_CONFIG_LEN)?;
    if !scale.rest.is_empty() {
        return Err(Denial::MalformedEvidence(
            "there are bytes after the envelope",
        ));
    }
    Ok(UnboundEvidence {
        quote: TdQuote::parse(quote)?,
        events,
        stated_report_data: Some(stated),
        format: EvidenceFormat::V0,
    })
}

fn skip_boot_event(scale: &mut Scale<'_>) -> Result<(), Denial> {
    // imr and event type
    scale.array::<8>()?;
    scale.bytes(MAX_EVENT_DIGEST_LEN)?;
    scale.text(MAX_EVENT_NAME_LEN)?;
    scale.bytes(MAX_EVENT_PAYLOAD_LEN)?;
    Ok(())
}

struct Scale<'a> {
    rest: &'a [u8],
}

const TRUNCATED: Denial = Denial::MalformedEvidence("the V0 envelope is cut short");

impl<'a> Scale<'a> {
    fn byte(&mut self) -> Result<u8, Denial> {
        let (byte, rest) = self.rest.split_first().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(*byte)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Denial> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(array)
    }

    fn len(&mut self) -> Result<usize, Denial> {
        let wrong = Denial::MalformedEvidence("a length in the V0 envelope is malformed");
        let Compact(len) = Compact::<u32>::decode(&mut self.rest).map_err(|_| wrong.clone())?;
        usize::try_from(len).map_err(|_| wrong)
    }

    /// The number of events that follow.
    fn count(&mut self) -> Result<usize, Denial> {
        let count = self.len()?;
        check_count(count)?;
        Ok(count)
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], Denial> {
        let len = self.len()?;
        if len > max {
            return Err(Denial::MalformedEvidence(
                "a field of the V0 envelope is too large",
            ));
        }
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn text(&mut self, max: usize) -> Result<&'a str, Denial> {
        std::str::from_utf8(self.bytes(max)?)
            .map_err(|_| Denial::MalformedEvidence("a text of the V0 envelope is not UTF-8"))
    }
}
