//! Recognises what the argument is, by its structure and never by trying parsers.
//!
//! | First bytes | Meaning |
//! | --- | --- |
//! | text that contains `-----BEGIN CERTIFICATE-----` | certificates |
//! | `30`, and the file is one DER value | a certificate |
//! | a version of 3 to 5 and a key type, both 16 bits little endian | a quote |
//! | `00`, or a msgpack map | an attestation |
//! | only hex digits and whitespace | one of the last two, in hex |
//!
//! These are disjoint. The argument is a server if it ends in a colon and a port and no file has that
//! name.

use std::fs::File;
use std::io::Read;

use attest::quote::QuoteHeader;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::address::Address;
use super::error::UsageError;

/// Maximum bytes of a file. An attestation has at most 512 KiB.
const MAX_FILE: u64 = 1 << 20;

/// The kind of the argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Certificate,
    Quote,
    Attestation,
    Server,
}

impl Kind {
    pub(super) const NAMES: [&'static str; 4] = ["cert", "quote", "attestation", "server"];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "cert" => Some(Self::Certificate),
            "quote" => Some(Self::Quote),
            "attestation" => Some(Self::Attestation),
            "server" => Some(Self::Server),
            _ => None,
        }
    }
}

/// The contents of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Material {
    /// DER, leaf first.
    Certificates(Vec<Vec<u8>>),
    /// A bare quote.
    Quote(Vec<u8>),
    /// dstack's attestation envelope.
    Attestation(Vec<u8>),
}

/// What to verify.
#[derive(Debug)]
pub(super) enum Input {
    Server(Address),
    File { name: String, material: Material },
}

impl Input {
    /// The name as given.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Server(address) => &address.name,
            Self::File { name, .. } => name,
        }
    }

    /// Finds out what `name` is, and reads it if it is a file.
    pub(super) fn find(name: &str, kind: Option<Kind>) -> Result<Self, UsageError> {
        let address = name.parse();
        let is_server = match kind {
            Some(kind) => kind == Kind::Server,
            None => address.is_ok() && !std::path::Path::new(name).exists(),
        };
        if is_server {
            return address
                .map(Self::Server)
                .map_err(|why: String| UsageError::usage(vec![format!("{name}: {why}")]));
        }
        let error = |why: &str| UsageError::no_input(format!("{name}: {why}"));
        let bytes = read(name).map_err(|why| error(&why))?;
        let material = recognise(bytes, kind).map_err(error)?;
        Ok(Self::File {
            name: name.to_owned(),
            material,
        })
    }
}

fn read(name: &str) -> Result<Vec<u8>, String> {
    let error = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    File::open(name)
        .map_err(error)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX_FILE) {
        Ok(bytes)
    } else {
        Err(format!("has more than {MAX_FILE} bytes"))
    }
}

fn recognise(bytes: Vec<u8>, kind: Option<Kind>) -> Result<Material, &'static str> {
    let bytes = from_hex(&bytes).unwrap_or(bytes);
    match kind.or_else(|| kind_of(&bytes)) {
        Some(Kind::Certificate) => certificates(bytes).map(Material::Certificates),
        Some(Kind::Quote) => Ok(Material::Quote(bytes)),
        Some(Kind::Attestation) => Ok(Material::Attestation(bytes)),
        Some(Kind::Server) | None => Err(
            "contains neither certificates nor a quote nor an attestation; specify its kind with --as",
        ),
    }
}

fn kind_of(bytes: &[u8]) -> Option<Kind> {
    if has_pem(bytes) || is_der(bytes) {
        return Some(Kind::Certificate);
    }
    if QuoteHeader::read(bytes).is_ok_and(|header| header.is_plausible()) {
        return Some(Kind::Quote);
    }
    match bytes {
        // V0: a TEE technology, of which there are five, then a quote with its length.
        [0x00, 0..=4, ..] | [0x80..=0x8f | 0xde | 0xdf, ..] => Some(Kind::Attestation),
        _ => None,
    }
}

fn has_pem(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN) && std::str::from_utf8(bytes).is_ok()
}

/// Whether this is exactly one SEQUENCE with a length of two or three bytes.
fn is_der(bytes: &[u8]) -> bool {
    let length = match bytes {
        [0x30, 0x82, a, b, ..] => 4 + u32::from_be_bytes([0, 0, *a, *b]),
        [0x30, 0x83, a, b, c, ..] => 5 + u32::from_be_bytes([0, *a, *b, *c]),
        _ => return false,
    };
    usize::try_from(length).is_ok_and(|length| length == bytes.len())
}

/// Decodes a text of hex digits and whitespace.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"0x").unwrap_or(text);
    let digits: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    if digits.is_empty() {
        return None;
    }
    hex::decode(digits).ok()
}

fn certificates(bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, &'static str> {
    if !has_pem(&bytes) {
        return Ok(vec![bytes]);
    }
    let chain: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(&bytes)
        .map(|der| der.map(|der| der.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| "invalid PEM")?;
    match chain.is_empty() {
        true => Err("the PEM contains no certificate"),
        false => Ok(chain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_each_kind_by_its_bytes() {
        let mut quote = vec![4, 0, 2, 0, 0x81, 0, 0, 0];
        quote.resize(48, 0);
        let der = [&[0x30, 0x82, 0x01, 0x00][..], &[0; 256]].concat();
        for (bytes, kind) in [
            (quote.clone(), Some(Kind::Quote)),
            ([&[5, 0, 2, 0][..], &[0; 44]].concat(), Some(Kind::Quote)),
            ([&[3, 0, 2, 0][..], &[0; 44]].concat(), Some(Kind::Quote)),
            ([&[6, 0, 2, 0][..], &[0; 44]].concat(), None),
            (quote[..47].to_vec(), None),
            (vec![0x00, 0x00, 0x49], Some(Kind::Attestation)),
            (vec![0x00, 0x05, 0x49], None),
            (vec![0x83, 0xa7], Some(Kind::Attestation)),
            (der.clone(), Some(Kind::Certificate)),
            (der[..200].to_vec(), None),
            (
                b"-----BEGIN CERTIFICATE-----".to_vec(),
                Some(Kind::Certificate),
            ),
            (b"-----BEGIN PRIVATE KEY-----".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(kind_of(&bytes), kind, "{bytes:02x?}");
        }
    }

    #[test]
    fn decodes_hex_and_rejects_other_text() {
        assert_eq!(from_hex(b" 0x04 00\n02 00\n"), Some(vec![4, 0, 2, 0]));
        assert_eq!(from_hex(b"0400020"), None);
        assert_eq!(from_hex(b"0400020g"), None);
        assert_eq!(from_hex(b" \n"), None);
        assert_eq!(from_hex(&[4, 0, 2, 0]), None);
    }
}
