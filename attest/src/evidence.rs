//! The evidence in a certificate: quote and event log, in one of three formats.
//!
//! | Format | Extension | Encoding |
//! | --- | --- | --- |
//! | [`EvidenceFormat::V0`] | `.8`, first byte `0x00` | SCALE |
//! | [`EvidenceFormat::V1`] | `.8`, first byte a msgpack map | msgpack, the quote as an array of integers |
//! | [`EvidenceFormat::Legacy`] | `.1`, and `.2` if there is a log | the raw quote, and JSON |
//!
//! `.8` has precedence. If there is a `.1` too it must hold the same quote: with two quotes in one certificate,
//! two verifiers could see two different peers. The first byte of `.8` alone selects the parser, so no input is
//! parsed in two ways. Fields that are not used (boot events, VM configuration) are still parsed, so that an
//! envelope cannot contain unchecked bytes.
//!
//! Facts: contract, section 5; dstack `dstack-attest/src/attestation.rs`, `v1.rs`, and
//! `cc-eventlog/src/tdx.rs`.

use crate::certificate::Extensions;
use crate::denial::Denial;
use crate::event_log::EventLog;
pub use crate::limits::{MAX_ENVELOPE_LEN, MAX_VM_CONFIG_LEN};
use crate::quote::TdQuote;

mod legacy;
mod msgpack;
mod v0;
mod v1;

/// The format of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvidenceFormat {
    /// `.8`, SCALE.
    V0,
    /// `.8`, msgpack.
    V1,
    /// `.1` and `.2`.
    Legacy,
}

impl EvidenceFormat {
    /// The name that the command line shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0 => "V0 (SCALE)",
            Self::V1 => "V1 (msgpack)",
            Self::Legacy => "legacy (.1 and .2)",
        }
    }
}

/// Evidence whose quote may be copied from another certificate.
///
/// It can be inspected, but no verifier takes it: [`examine`](crate::examine) must bind it first.
#[derive(Debug)]
pub struct UnboundEvidence<'a> {
    pub(crate) quote: TdQuote,
    pub(crate) events: EventLog<'a>,
    /// The report data that the envelope states in addition to the quote; `None` in the legacy format.
    pub(crate) stated_report_data: Option<[u8; 64]>,
    pub(crate) format: EvidenceFormat,
}

impl<'a> UnboundEvidence<'a> {
    /// Parses the evidence of a certificate.
    ///
    /// # Errors
    /// [`Denial::NoEvidence`]; [`Denial::MalformedEvidence`]; [`Denial::NotTdx`];
    /// [`Denial::UnsupportedQuote`].
    pub fn from_extensions(extensions: &Extensions<'a>) -> Result<Self, Denial> {
        match (extensions.attestation, extensions.quote) {
            (Some(envelope), None) => Self::from_envelope(envelope),
            (Some(envelope), Some(quote)) => {
                let evidence = Self::from_envelope(envelope)?;
                if evidence.quote.as_bytes() != quote {
                    return Err(Denial::MalformedEvidence("the quotes in .1 and .8 differ"));
                }
                Ok(evidence)
            }
            (None, Some(quote)) => legacy::read(quote, extensions.event_log),
            (None, None) => Err(Denial::NoEvidence),
        }
    }

    /// Parses an envelope: the content of `.8`, or of the guest agent's response to `Attest`.
    ///
    /// # Errors
    /// As [`UnboundEvidence::from_extensions`].
    pub fn from_envelope(envelope: &'a [u8]) -> Result<Self, Denial> {
        if envelope.len() > MAX_ENVELOPE_LEN {
            return Err(Denial::MalformedEvidence("the envelope is too large"));
        }
        match envelope.first() {
            Some(0x00) => v0::read(envelope),
            Some(0x80..=0x8f | 0xde | 0xdf) => v1::read(envelope),
            Some(_) => Err(Denial::MalformedEvidence(
                "the envelope is neither V0 nor V1",
            )),
            None => Err(Denial::MalformedEvidence("the envelope is empty")),
        }
    }

    /// The quote.
    #[must_use]
    pub fn quote(&self) -> &TdQuote {
        &self.quote
    }

    /// The runtime events.
    #[must_use]
    pub fn events(&self) -> &EventLog<'a> {
        &self.events
    }

    /// The report data that the envelope states in addition to the quote; `None` in the legacy format.
    #[must_use]
    pub fn stated_report_data(&self) -> Option<&[u8; 64]> {
        self.stated_report_data.as_ref()
    }

    /// The format.
    #[must_use]
    pub fn format(&self) -> EvidenceFormat {
        self.format
    }
}
