//! Quotes that the guest agent makes on demand (`GetQuote`, `Attest`).

use serde::de::IgnoredAny;

use super::AgentError;
use super::response::ResponseFields;
use crate::evidence::UnboundEvidence;
use crate::limits::{MAX_AGENT_RESPONSE_LEN, MAX_AGENT_TEXT_LEN, MAX_ENVELOPE_LEN, MAX_QUOTE_LEN};
use crate::quote::{REPORT_DATA_LEN, TdQuote};

/// A quote over the requested report data, with the data that explains it. Its signatures are not
/// verified here.
#[derive(Clone, Debug)]
pub struct Quote {
    /// The quote.
    pub quote: TdQuote,
    /// The report data, padded with zeros on the right.
    pub report_data: [u8; REPORT_DATA_LEN],
    /// The event log: JSON, as the agent wrote it.
    pub event_log: String,
    /// The VM's configuration: JSON. Empty from agents that do not give it.
    pub vm_config: String,
    /// The same quote in an envelope; `None` from agents that do not give one.
    pub attestation: Option<Vec<u8>>,
}

impl Quote {
    pub(super) fn from_response(
        response: &ResponseFields<'_>,
        expected: &[u8; REPORT_DATA_LEN],
    ) -> Result<Self, AgentError> {
        let malformed = |field, why| response.malformed(field, why);
        let quote = TdQuote::parse(&response.hex("quote", MAX_QUOTE_LEN)?)
            .map_err(|_| malformed("quote", "is not a TDX quote"))?;
        if quote.report().report_data() != expected {
            return Err(malformed(
                "quote",
                "is over other report data than requested (a simulator of dstack needs patch_report_data = true)",
            ));
        }
        if response.hex("report_data", REPORT_DATA_LEN)? != expected {
            return Err(malformed("report_data", "is not the requested report data"));
        }
        let event_log = response.text("event_log", MAX_AGENT_RESPONSE_LEN)?;
        serde_json::from_str::<IgnoredAny>(&event_log)
            .map_err(|_| malformed("event_log", "is not JSON"))?;
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

/// Checks the envelope of an `Attest` response: it must be over `expected`.
pub(super) fn envelope(
    response: &ResponseFields<'_>,
    expected: &[u8; REPORT_DATA_LEN],
) -> Result<Vec<u8>, AgentError> {
    const FIELD: &str = "attestation";
    let envelope = response.hex(FIELD, MAX_ENVELOPE_LEN)?;
    let evidence = UnboundEvidence::from_envelope(&envelope)
        .map_err(|_| response.malformed(FIELD, "is not an attestation of a TD"))?;
    let stated = evidence.stated_report_data.unwrap_or(*expected);
    if evidence.quote().report().report_data() != expected || stated != *expected {
        return Err(response.malformed(FIELD, "is over other report data than requested (a simulator of dstack needs patch_report_data = true)"));
    }
    Ok(envelope)
}
