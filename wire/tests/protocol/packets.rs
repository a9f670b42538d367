//! Test input: hand-made packets, and conversations recorded from real servers.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::harness::NONCE;

pub(crate) const SSL_REQUEST: &[u8] = b"\x00\x00\x00\x08\x04\xd2\x16\x2f";
pub(crate) const GSSENC_REQUEST: &[u8] = b"\x00\x00\x00\x08\x04\xd2\x16\x30";
pub(crate) const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
pub(crate) const PROXY_V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 5433\r\n";

/// A login of role `trusty` to PostgreSQL 15.18, method trust.
pub(crate) const TRUST: &str = include_str!("recorded/pg15-trust.hex");
/// A login of role `clear` to PostgreSQL 15.18, method password.
pub(crate) const CLEARTEXT: &str = include_str!("recorded/pg15-cleartext.hex");
/// A login of role `md5er` to PostgreSQL 15.18, method md5.
pub(crate) const MD5: &str = include_str!("recorded/pg15-md5.hex");
/// A login of role `scrammer` to PostgreSQL 15.18, method scram-sha-256.
pub(crate) const SCRAM: &str = include_str!("recorded/pg15-scram.hex");
/// A login of role `scrammer` to PostgreSQL 15.18 with a wrong password.
pub(crate) const SCRAM_WRONG: &str = include_str!("recorded/pg15-scram-wrong.hex");
/// A login of role `scrammer` to PostgreSQL 18.4 on protocol 3.2, method scram-sha-256.
pub(crate) const SCRAM_18: &str = include_str!("recorded/pg18-scram-3.2.hex");

/// Decodes a recording: hex with ignored white space.
pub(crate) fn recorded(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A message with a tag.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    claimed(tag, u32::try_from(body.len() + 4).unwrap(), body)
}

/// A message with an arbitrary length word.
pub(crate) fn claimed(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// An Authentication message.
pub(crate) fn authentication(code: u32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes()[..], data].concat())
}

/// A start-up packet: length, version or request code, `rest`.
pub(crate) fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(rest.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

pub(crate) fn cancel(key: &[u8]) -> Vec<u8> {
    packet(0x04d2_162e, &[&4711_u32.to_be_bytes()[..], key].concat())
}

pub(crate) fn error(sqlstate: &str, text: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0Fauth.c\0\0");
    message(b'E', body.as_bytes())
}

/// A PROXY v2 header. `command` holds version and command, `family` holds family and protocol.
pub(crate) fn proxy_v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    [
        &b"\r\n\r\n\0\r\nQUIT\n"[..],
        &[command, family],
        &length.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// 192.0.2.7:50000 to 198.51.100.1:5433.
pub(crate) const IPV4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x15, 0x39];

/// A SCRAM server that shares no code with the crate's client. Its password is `pencil`.
pub(crate) struct ScramServer {
    pub(crate) first: String,
    /// The server-final-message for a correct client.
    pub(crate) last: String,
    /// The client-final-message that proves the password.
    pub(crate) expected: String,
}

impl ScramServer {
    pub(crate) fn new(salt: &[u8], iterations: u32) -> Self {
        let nonce = base64(&NONCE);
        let bare = format!("n=,r={nonce}");
        let first = format!("r={nonce}SERVER,s={},i={iterations}", base64(salt));
        let without_proof = format!("c=biws,r={nonce}SERVER");
        let auth = format!("{bare},{first},{without_proof}");

        let mut block = hmac(b"pencil", &[salt, &1_u32.to_be_bytes()].concat());
        let mut salted = block;
        for _ in 1..iterations {
            block = hmac(b"pencil", &block);
            salted.iter_mut().zip(block).for_each(|(s, b)| *s ^= b);
        }
        let client_key = hmac(&salted, b"Client Key");
        let mut proof = hmac(&Sha256::digest(client_key), auth.as_bytes());
        proof.iter_mut().zip(client_key).for_each(|(p, k)| *p ^= k);
        let signature = hmac(&hmac(&salted, b"Server Key"), auth.as_bytes());
        Self {
            first,
            last: format!("v={}", base64(&signature)),
            expected: format!("{without_proof},p={}", base64(&proof)),
        }
    }

    /// All messages of the server up to the start of the session.
    pub(crate) fn conversation(&self) -> Vec<u8> {
        [
            authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"),
            authentication(11, self.first.as_bytes()),
            authentication(12, self.last.as_bytes()),
            authentication(0, b""),
            message(b'S', b"server_version\x0018.4\0"),
            message(b'K', &[7; 36]),
            message(b'Z', b"I"),
        ]
        .concat()
    }
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text);
    mac.finalize().into_bytes().into()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    BASE64_STANDARD.encode(bytes)
}
