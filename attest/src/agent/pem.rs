//! PEM in the guest agent's responses: certificates and the private key. [RFC 7468]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use super::AgentError;
use super::response::ResponseFields;
use crate::certificate::Leaf;
use crate::chain::Chain;
use crate::limits::MAX_KEY_PEM_LEN;

/// Length of a line of base64 in characters. [RFC 7468, section 2]
const LINE: usize = 64;

/// The type of a PEM block.
#[derive(Clone, Copy)]
pub(super) enum Label {
    PrivateKey,
    Certificate,
}

impl Label {
    fn lines(self) -> (&'static str, &'static str) {
        match self {
            Self::PrivateKey => ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"),
            Self::Certificate => ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"),
        }
    }
}

/// Decodes the PEM block of `key`. Not with x509-parser's PEM reader, which leaves copies in memory.
pub(super) fn private_key(response: &ResponseFields<'_>) -> Result<Zeroizing<Vec<u8>>, AgentError> {
    let wrong = || response.malformed("key", "is not a PKCS#8 private key in PEM");
    let (begin, end) = Label::PrivateKey.lines();
    let pem = response.secret("key", MAX_KEY_PEM_LEN)?;
    let body = pem.trim().strip_prefix(begin);
    let body = body
        .and_then(|body| body.strip_suffix(end))
        .ok_or_else(wrong)?;
    let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
    base64.extend(body.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; base64.len()]);
    let len = BASE64_STANDARD
        .decode_slice(base64.as_slice(), &mut der)
        .map_err(|_| wrong())?;
    der.truncate(len);
    Ok(der)
}

/// Decodes the certificates in `pems`, leaf first. There is at least one, and they are within the caps
/// of a presented chain.
pub(super) fn certificates(
    response: &ResponseFields<'_>,
    field: &'static str,
    pems: impl IntoIterator<Item = String>,
) -> Result<Vec<Vec<u8>>, AgentError> {
    let malformed = |why| response.malformed(field, why);
    let mut chain = Vec::new();
    for pem in pems {
        for block in Pem::iter_from_buffer(pem.as_bytes()) {
            let block = block.map_err(|_| malformed("is not PEM"))?;
            if block.label != "CERTIFICATE" {
                return Err(malformed("holds something other than certificates"));
            }
            chain.push(block.contents);
        }
    }
    Chain::check_caps(&chain)
        .map_err(|_| malformed("holds no certificate, or too many or too large ones"))?;
    for certificate in &chain {
        // Issuers too must be of version 3 and within the caps.
        Leaf::parse(certificate).map_err(|_| malformed("holds an invalid certificate"))?;
    }
    Ok(chain)
}

/// Encodes a certificate as a PEM block.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    write(Label::Certificate, der).to_string()
}

/// Encodes one PEM block.
pub(super) fn write(label: Label, der: &[u8]) -> Zeroizing<String> {
    let (begin, end) = label.lines();
    let base64 = Zeroizing::new(BASE64_STANDARD.encode(der));
    let lines = base64.len().div_ceil(LINE);
    let mut pem = Zeroizing::new(String::with_capacity(
        begin.len() + base64.len() + lines + end.len() + 2,
    ));
    pem.push_str(begin);
    for (number, character) in base64.chars().enumerate() {
        if number % LINE == 0 {
            pem.push('\n');
        }
        pem.push(character);
    }
    pem.push('\n');
    pem.push_str(end);
    pem.push('\n');
    pem
}
