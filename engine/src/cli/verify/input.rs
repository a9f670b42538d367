//! What is to be judged: by structure, never by trial.
//!
//! | First bytes | Is |
//! | --- | --- |
//! | `-----BEGIN CERTIFICATE-----` somewhere, as text | certificates |
//! | `30`, and one DER value in all | a certificate |
//! | a version of 3 to 5 and a key type, both 16 bits little endian | a quote |
//! | `00`, or a msgpack map | an attestation |
//! | hex digits and white space alone | one of the last two, in hex |
//!
//! No two of these begin alike. A name is a server's if it ends in a colon and a
//! port and no file is called so.

use std::fs::File;
use std::io::Read;

use attest::quote::QuoteHeader;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Mistake;
use super::server::Address;

/// Most bytes of a file. An attestation has at most 512 KiB.
const MAX_FILE: u64 = 1 << 20;

/// What a file holds, or that it is none.
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

/// What a file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Material {
    /// In DER, leaf first.
    Certificates(Vec<Vec<u8>>),
    /// A bare quote.
    Quote(Vec<u8>),
    /// dstack's envelope.
    Attestation(Vec<u8>),
}

/// What is to be judged.
#[derive(Debug)]
pub(super) enum Input {
    Server(Address),
    File { name: String, material: Material },
}

impl Input {
    /// As it was named.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Server(address) => &address.shown,
            Self::File { name, .. } => name,
        }
    }

    /// Finds out what `name` is, and reads it if it is a file.
    pub(super) fn find(name: &str, kind: Option<Kind>) -> Result<Self, Mistake> {
        let address = name.parse();
        let is_server = match kind {
            Some(kind) => kind == Kind::Server,
            None => address.is_ok() && !std::path::Path::new(name).exists(),
        };
        if is_server {
            return address
                .map(Self::Server)
                .map_err(|why: String| Mistake::usage(vec![format!("{name}: {why}")]));
        }
        let wrong = |why: &str| Mistake::no_input(format!("{name}: {why}"));
        let bytes = read(name).map_err(|why| wrong(&why))?;
        let material = recognise(bytes, kind).map_err(wrong)?;
        Ok(Self::File {
            name: name.to_owned(),
            material,
        })
    }
}

fn read(name: &str) -> Result<Vec<u8>, String> {
    let wrong = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    File::open(name)
        .map_err(wrong)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(wrong)?;
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
        Some(Kind::Server) | None => {
            Err("holds neither certificates nor a quote nor an attestation; --as says which it is")
        }
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
        // A technology, of which there are five, and then a quote with its length.
        [0x00, 0..=4, ..] | [0x80..=0x8f | 0xde | 0xdf, ..] => Some(Kind::Attestation),
        _ => None,
    }
}

fn has_pem(bytes: &[u8]) -> bool {
    const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
    bytes.windows(BEGIN.len()).any(|window| window == BEGIN) && std::str::from_utf8(bytes).is_ok()
}

/// One SEQUENCE with a length of two or three bytes, and nothing behind it.
fn is_der(bytes: &[u8]) -> bool {
    let length = match bytes {
        [0x30, 0x82, a, b, ..] => 4 + u32::from_be_bytes([0, 0, *a, *b]),
        [0x30, 0x83, a, b, c, ..] => 5 + u32::from_be_bytes([0, *a, *b, *c]),
        _ => return false,
    };
    usize::try_from(length).is_ok_and(|length| length == bytes.len())
}

/// The bytes that the text of a file spells, if it is nothing but hex.
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
        .map_err(|_| "its PEM cannot be read")?;
    match chain.is_empty() {
        true => Err("there is no certificate in its PEM"),
        false => Ok(chain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_known_by_its_bytes() {
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
    fn hex_is_read_and_nothing_else_is_taken_for_it() {
        assert_eq!(from_hex(b" 0x04 00\n02 00\n"), Some(vec![4, 0, 2, 0]));
        assert_eq!(from_hex(b"0400020"), None);
        assert_eq!(from_hex(b"0400020g"), None);
        assert_eq!(from_hex(b" \n"), None);
        assert_eq!(from_hex(&[4, 0, 2, 0]), None);
    }
}
