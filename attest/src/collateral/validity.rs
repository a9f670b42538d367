//! Parses the parts of collateral, and their validity.

use std::time::UNIX_EPOCH;

use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::error::{CollateralError, Part};

/// The error of a part that cannot be parsed.
pub(super) fn malformed(part: Part, why: &'static str) -> CollateralError {
    CollateralError::Malformed { part, why }
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The first certificate of a PEM chain, without the text around it.
pub(super) fn first_of_chain(part: Part, chain: &str) -> Result<String, CollateralError> {
    let no_pem = || malformed(part, "no certificate in the PEM chain");
    let (_, rest) = chain.split_once(BEGIN).ok_or_else(no_pem)?;
    let (body, _) = rest.split_once(END).ok_or_else(no_pem)?;
    Ok(format!("{BEGIN}{body}{END}\n"))
}

/// Parses a PEM certificate.
pub(super) fn pem(part: Part, text: &str) -> Result<Pem, CollateralError> {
    let first = Pem::iter_from_buffer(text.as_bytes()).next();
    first.and_then(Result::ok).ok_or(malformed(part, "no PEM"))
}

/// Parses one DER certificate. Refuses trailing bytes.
pub(super) fn certificate(part: Part, der: &[u8]) -> Result<X509Certificate<'_>, CollateralError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(malformed(part, "no X.509 certificate")),
    }
}

/// Parses one DER CRL. Refuses trailing bytes.
pub(super) fn crl(
    part: Part,
    der: &[u8],
) -> Result<CertificateRevocationList<'_>, CollateralError> {
    match CertificateRevocationList::from_der(der) {
        Ok(([], crl)) => Ok(crl),
        _ => Err(malformed(part, "no X.509 CRL")),
    }
}

/// A half-open interval in Unix seconds: the intersection of all dates that were added. `from` is
/// included, `until` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: u64,
    pub(super) until: u64,
}

impl Default for Validity {
    fn default() -> Self {
        Self {
            from: 0,
            until: u64::MAX,
        }
    }
}

impl Validity {
    /// Whether `now` is inside.
    pub(super) fn contains(self, now: u64) -> bool {
        (self.from..self.until).contains(&now)
    }

    /// Intersects it with another interval.
    pub(super) fn add(&mut self, from: u64, until: u64) {
        self.from = self.from.max(from);
        self.until = self.until.min(until);
    }

    /// Adds the dates of a signed JSON document. Gives the date of issue.
    pub(super) fn json(
        &mut self,
        part: Part,
        issue_date: &str,
        next_update: &str,
    ) -> Result<u64, CollateralError> {
        let issued = rfc3339(part, issue_date)?;
        self.add(issued, rfc3339(part, next_update)?);
        Ok(issued)
    }

    /// Adds the dates of a CRL. Gives thisUpdate.
    pub(super) fn crl(&mut self, part: Part, der: &[u8]) -> Result<u64, CollateralError> {
        let crl = crl(part, der)?;
        let issued = unix_seconds(crl.last_update());
        let next = crl.next_update().ok_or(malformed(part, "no nextUpdate"))?;
        self.add(issued, unix_seconds(next));
        Ok(issued)
    }

    /// Adds the dates of a PEM certificate.
    pub(super) fn pem(&mut self, part: Part, text: &str) -> Result<(), CollateralError> {
        self.certificate(&certificate(part, &pem(part, text)?.contents)?);
        Ok(())
    }

    /// Adds the dates of a certificate.
    pub(super) fn certificate(&mut self, certificate: &X509Certificate<'_>) {
        let validity = certificate.validity();
        // notAfter itself is still inside. [RFC 5280, section 4.1.2.5]
        let until = unix_seconds(validity.not_after).saturating_add(1);
        self.add(unix_seconds(validity.not_before), until);
    }
}

fn unix_seconds(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

/// Parses a date such as `2025-06-19T10:16:03Z`, the form that Intel writes.
fn rfc3339(part: Part, text: &str) -> Result<u64, CollateralError> {
    let wrong = malformed(part, "a date is not of the form 2025-06-19T10:16:03Z");
    let time = humantime::parse_rfc3339(text).map_err(|_| wrong.clone())?;
    Ok(time
        .duration_since(UNIX_EPOCH)
        .map_err(|_| wrong)?
        .as_secs())
}
