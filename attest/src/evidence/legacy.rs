//! The legacy format: `.1` has the raw quote, `.2` its event log in JSON.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::{EvidenceFormat, UnboundEvidence};
use crate::denial::Denial;
use crate::event_log::{DigestVersion, Event, EventLog, RUNTIME_EVENT_TYPE};
use crate::limits::{MAX_ENVELOPE_LEN, MAX_EVENTS};
use crate::quote::TdQuote;

/// The register of runtime events.
const RTMR3: u32 = 3;

/// Without a log there are no events, so the replay succeeds only for an RTMR3 that was never extended.
pub(super) fn read<'a>(quote: &[u8], log: Option<&'a [u8]>) -> Result<UnboundEvidence<'a>, Denial> {
    Ok(UnboundEvidence {
        quote: TdQuote::parse(quote)?,
        events: log.map_or_else(|| EventLog::with_capacity(0), read_log)?,
        stated_report_data: None,
        format: EvidenceFormat::Legacy,
    })
}

/// `digest` is not parsed: it is computed from the other fields.
#[derive(Deserialize)]
struct LoggedEvent<'a> {
    imr: u32,
    event_type: u32,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    event_payload: Cow<'a, str>,
    version: Option<u64>,
}

fn read_log(json: &[u8]) -> Result<EventLog<'_>, Denial> {
    if json.len() > MAX_ENVELOPE_LEN {
        return Err(Denial::MalformedEvidence("the event log is too large"));
    }
    let wrong = Denial::MalformedEvidence("the event log is not the JSON of one");
    let Log(logged) = serde_json::from_slice(json).map_err(|_| wrong)?;
    let mut events = EventLog::with_capacity(0)?;
    for event in logged.into_iter().filter(|event| event.imr == RTMR3) {
        if event.event_type != RUNTIME_EVENT_TYPE {
            return Err(Denial::MalformedEvidence(
                "RTMR3 has an event that is no runtime event",
            ));
        }
        let payload = hex::decode(event.event_payload.as_bytes())
            .map_err(|_| Denial::MalformedEvidence("an event's payload is not hex"))?;
        let version = event
            .version
            .map_or(Ok(DigestVersion::V1), DigestVersion::from_number)?;
        events.push(Event::new(event.event, payload, version)?)?;
    }
    Ok(events)
}

/// At most [`MAX_EVENTS`] events.
struct Log<'a>(Vec<LoggedEvent<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Log<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LogVisitor)
    }
}

struct LogVisitor;

impl<'de> Visitor<'de> for LogVisitor {
    type Value = Log<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_EVENTS} events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut events = Vec::new();
        while let Some(event) = seq.next_element()? {
            if events.len() == MAX_EVENTS {
                return Err(serde::de::Error::invalid_length(MAX_EVENTS + 1, &self));
            }
            events.push(event);
        }
        Ok(Log(events))
    }
}
