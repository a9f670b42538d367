//! Quotes that the guest agent makes on demand.

use serde::de::IgnoredAny;

use super::AgentError;
use super::response::ResponseFields;
use crate::evidence::UnboundEvidence;
use crate::limits::{MAX_AGENT_RESPONSE_LEN, MAX_AGENT_TEXT_LEN, MAX_ENVELOPE_LEN, MAX_QUOTE_LEN};
use crate::quote::{REPORT_DATA_LEN, TdQuote};

/// A quote over the report data that was asked for, with what explains it. Its signatures have not been
/// looked at: a verifier will.
#[derive(Clone, Debug)]
pub struct Quote {
    /// The quote.
    pub quote: TdQuote,
    /// The report data, filled up with zeros on the right.
    pub report_data: [u8; REPORT_DATA_LEN],
    /// The event log: JSON, as the agent wrote it.
    pub event_log: String,
    /// The VM's configuration: JSON, empty from agents that do not say.
    pub vm_config: String,
    /// The same quote in an envelope; `None` from agents that give none.
    pub attestation: Option<Vec<u8>>,
}

impl Quote {
    pub(super) fn from_response(
        response: &ResponseFields<'_>,
        expected: &[u8; REPORT_DATA_LEN],
    ) -> Result<Self, AgentError> {
        let malformed = |field, why| response.malformed(field, why);
        let quote = TdQuote::parse(&response.hex("quote", MAX_QUOTE_LEN)?)
            .map_err(|_| malformed("quote", "is no TDX quote"))?;
        if quote.report().report_data() != expected {
            return Err(malformed(
                "quote",
                "is over other report data than asked for",
            ));
        }
        if response.hex("report_data", REPORT_DATA_LEN)? != expected {
            return Err(malformed("report_data", "is not what was asked for"));
        }
        let event_log = response.text("event_log", MAX_AGENT_RESPONSE_LEN)?;
        serde_json::from_str::<IgnoredAny>(&event_log)
            .map_err(|_| malformed("event_log", "holds no JSON"))?;
        let attestation = match response.raw("attestation") {
            None | Some(r#""""#) => None,
            Some(_) => Some(response.hex("attestation", MAX_ENVELOPE_LEN)?),
        };
        Ok(Self {
            quote,
            report_data: *expected,
            event_log,
            vm_config: response.text_or_empty("vm_config", MAX_AGENT_TEXT_LEN)?,
            attestation,
        })
    }
}

/// The envelope that `Attest` answers, if it is over `expected`.
pub(super) fn envelope(
    response: &ResponseFields<'_>,
    expected: &[u8; REPORT_DATA_LEN],
) -> Result<Vec<u8>, AgentError> {
    const FIELD: &str = "attestation";
    let envelope = response.hex(FIELD, MAX_ENVELOPE_LEN)?;
    let evidence = UnboundEvidence::from_envelope(&envelope)
        .map_err(|_| response.malformed(FIELD, "is no attestation of a TD"))?;
    let stated = evidence.stated_report_data.unwrap_or(*expected);
    if evidence.quote().report().report_data() != expected || stated != *expected {
        return Err(response.malformed(FIELD, "is over other report data than asked for"));
    }
    Ok(envelope)
}
