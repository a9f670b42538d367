//! The claims of a token, and their comparison with the quote at hand.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::ItaError;
use crate::quote::TdQuote;
use crate::tcb::{TcbStatus, TcbStatusError};
use crate::verify::Appraisal;

/// The debug bit of TDATTRIBUTES, which both debug claims are about. Profiling, which is treated as
/// debug too, is read from the quote.
const DEBUG: u8 = 1;

/// The claims of a verified token.
pub(super) struct Claims {
    dates: Dates,
    tdx: Tdx,
}

#[derive(Deserialize)]
struct Dates {
    exp: u64,
    nbf: Option<u64>,
    iat: Option<u64>,
}

/// The member `tdx`, in which version 2 of Intel's tokens has the claims about the TD.
#[derive(Deserialize)]
struct Nested<'a> {
    #[serde(borrow)]
    tdx: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Tdx {
    attester_tcb_status: String,
    attester_advisory_ids: Option<Vec<String>>,
    tdx_mrtd: String,
    tdx_rtmr0: String,
    tdx_rtmr1: String,
    tdx_rtmr2: String,
    tdx_rtmr3: String,
    tdx_report_data: String,
    tdx_is_debuggable: bool,
    tdx_td_attributes_debug: bool,
}

impl Claims {
    /// Parses the claims about the TD, from the member `tdx` if there is one, else from the top level.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, ItaError> {
        let wrong = ItaError::MalformedToken;
        let dates = serde_json::from_slice(payload);
        let nested: Nested<'_> = serde_json::from_slice(payload)
            .map_err(|_| wrong("its claims are not a JSON object"))?;
        let tdx = match nested.tdx {
            Some(tdx) => serde_json::from_str(tdx.get()),
            None => serde_json::from_slice(payload),
        };
        Ok(Self {
            dates: dates.map_err(|_| wrong("it has no exp, or an invalid date"))?,
            tdx: tdx.map_err(|_| wrong("it lacks a claim about the TD"))?,
        })
    }

    /// Checks the dates. `exp` is the first second at which the token is invalid.
    pub(super) fn check_dates(&self, now: u64, skew: u64) -> Result<(), ItaError> {
        if self.dates.exp <= now {
            return Err(ItaError::Expired);
        }
        let begins = [self.dates.nbf, self.dates.iat];
        match begins.into_iter().flatten().max() {
            Some(from) if from > now.saturating_add(skew) => Err(ItaError::NotYetValid),
            Some(_) | None => Ok(()),
        }
    }

    /// Gives the appraisal, if the claims are those of `quote`. A bound quote has the report data of its
    /// certificate's key, so a token with the same report data is about the same key.
    pub(super) fn appraisal_of(&self, quote: &TdQuote) -> Result<Appraisal, ItaError> {
        self.check_measurements(quote)?;
        self.check_debug(quote)?;
        Ok(Appraisal {
            tcb_status: status(&self.tdx.attester_tcb_status)?,
            advisories: self
                .tdx
                .attester_advisory_ids
                .clone()
                .unwrap_or_default()
                .into(),
            valid_until: self.dates.exp.saturating_sub(1),
        })
    }

    fn check_measurements(&self, quote: &TdQuote) -> Result<(), ItaError> {
        let (tdx, report) = (&self.tdx, quote.report());
        if !is_hex_of(&tdx.tdx_report_data, report.report_data()) {
            return Err(ItaError::ReportDataMismatch);
        }
        let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs();
        let differs = [
            ("tdx_mrtd", &tdx.tdx_mrtd, report.mrtd().0),
            ("tdx_rtmr0", &tdx.tdx_rtmr0, rtmr0.0),
            ("tdx_rtmr1", &tdx.tdx_rtmr1, rtmr1.0),
            ("tdx_rtmr2", &tdx.tdx_rtmr2, rtmr2.0),
            ("tdx_rtmr3", &tdx.tdx_rtmr3, rtmr3.0),
        ]
        .into_iter()
        .find(|(_, claim, value)| !is_hex_of(claim, value));
        match differs {
            Some((name, ..)) => Err(ItaError::MeasurementMismatch(name)),
            None => Ok(()),
        }
    }

    fn check_debug(&self, quote: &TdQuote) -> Result<(), ItaError> {
        let [under_debug, ..] = quote.report().attributes();
        let debug = under_debug & DEBUG != 0;
        if self.tdx.tdx_is_debuggable != debug {
            return Err(ItaError::DebugMismatch("tdx_is_debuggable"));
        }
        if self.tdx.tdx_td_attributes_debug != debug {
            return Err(ItaError::DebugMismatch("tdx_td_attributes_debug"));
        }
        Ok(())
    }
}

fn is_hex_of(claim: &str, value: &[u8]) -> bool {
    claim.eq_ignore_ascii_case(&hex::encode(value))
}

/// Parses a status. `Revoked`, which a policy cannot accept, is parsed too, so that the refusal names it.
fn status(name: &str) -> Result<TcbStatus, ItaError> {
    match name.parse() {
        Ok(status) => Ok(status),
        Err(TcbStatusError::Revoked) => Ok(TcbStatus::Revoked),
        Err(TcbStatusError::Unknown) => Err(ItaError::UnknownTcbStatus),
    }
}
