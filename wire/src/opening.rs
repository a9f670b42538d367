//! The plaintext bytes on the port, up to the first byte of TLS.
//!
//! It exists because everything here comes from anybody on the network and decides whether a
//! connection is encrypted at all. It must never let a plaintext byte through to what reads inside
//! TLS (CVE-2021-23214), and never wait for a byte more than it takes to decide.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ppp::{PartialResult, v1, v2};

pub use crate::error::OpeningError;
use crate::message::Cursor;
use crate::startup::{
    CANCEL_LENGTHS, CANCEL_REQUEST, CancelRequest, GSSENC_REQUEST, MAX_STARTUP_PACKET,
    MIN_STARTUP_PACKET, SSL_REQUEST,
};

/// Most bytes of a PROXY v1 header, CRLF included. [HAProxy `proxy-protocol.txt`, section 2.1]
pub const MAX_PROXY_V1: usize = 107;

/// Most bytes of a PROXY v2 header. A receiver has to take 16 + 216 [HAProxy `proxy-protocol.txt`,
/// section 2.2]; the rest is for TLVs, up to the segment size that every TCP peer accepts, as the
/// header has to fit into one segment [RFC 9293, section 3.7.1: 536].
pub const MAX_PROXY_V2: usize = 536;

/// Most bytes that [`Openings`] ever needs to see at once: the longest opening.
pub const MAX_OPENING: usize = MAX_PROXY_V2;

/// Fixed part of a PROXY v2 header.
const PROXY_V2_HEAD: usize = 16;

const PROXY_V1_SIGNATURE: &[u8] = b"PROXY ";
const PROXY_V2_SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;

/// TLS record type "handshake", and the major version that every TLS record has.
/// [RFC 8446, section 5.1]
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_MAJOR: u8 = 0x03;

/// Length word and request code: all that tells start-up packets apart.
const PACKET_HEAD: usize = 8;
/// What a client sends to be asked for TLS.
pub const SSL_REQUEST_PACKET: [u8; PACKET_HEAD] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What this listener allows from this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Take a CancelRequest without TLS.
    pub plaintext_cancel: bool,
    /// Take a PROXY header, if one comes.
    pub proxy_protocol: bool,
}

/// Where a connection is between its first byte and TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    First,
    Proxied,
    GssRefused,
    TlsAgreed,
}

/// The state of a connection that is not yet in TLS.
#[derive(Debug, PartialEq, Eq)]
pub struct Openings {
    policy: Policy,
    stage: Stage,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Read more bytes behind the same ones. Nothing was consumed.
    Read(Openings),
    /// Drop `consumed` bytes, send `byte` (`S` or `N`) in plaintext, then read on.
    Answer {
        /// The one byte to send.
        byte: u8,
        /// Bytes dealt with: all that were given.
        consumed: usize,
        /// The state to go on with.
        next: Openings,
    },
    /// Drop `consumed` bytes: a PROXY header.
    Proxied {
        /// The client's address; `None` if the proxy speaks for itself or does not know.
        source: Option<SocketAddr>,
        /// Bytes of the header.
        consumed: usize,
        /// The state to go on with. There may be bytes left to advance over.
        next: Openings,
    },
    /// A TLS record begins at the first byte. Nothing was consumed.
    Tls,
    /// Forward this and close. What follows it is of no interest.
    Cancel(CancelRequest<'a>),
    /// Send [`OpeningError::response`], if there is one, and close.
    Refuse(OpeningError),
}

/// The start-up packets that may stand here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packet {
    Ssl,
    Gss,
    Cancel,
    Startup,
}

struct Pattern {
    packet: Packet,
    lengths: RangeInclusive<usize>,
    code: &'static [u8],
}

const PATTERNS: [Pattern; 4] = [
    Pattern {
        packet: Packet::Ssl,
        lengths: PACKET_HEAD..=PACKET_HEAD,
        code: &SSL_REQUEST.to_be_bytes(),
    },
    Pattern {
        packet: Packet::Gss,
        lengths: PACKET_HEAD..=PACKET_HEAD,
        code: &GSSENC_REQUEST.to_be_bytes(),
    },
    Pattern {
        packet: Packet::Cancel,
        lengths: CANCEL_LENGTHS,
        code: &CANCEL_REQUEST.to_be_bytes(),
    },
    Pattern {
        packet: Packet::Startup,
        lengths: MIN_STARTUP_PACKET..=MAX_STARTUP_PACKET,
        code: &[0, 3],
    },
];

impl Openings {
    /// A connection of which nothing was read.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            stage: Stage::First,
        }
    }

    /// Looks at everything read and not yet consumed. Never needs more than [`MAX_OPENING`] bytes.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> Step<'_> {
        let Some(first) = bytes.first() else {
            return Step::Read(self);
        };
        match (self.stage, *first) {
            (Stage::TlsAgreed, _) => self.after_agreement(bytes),
            (_, TLS_HANDSHAKE) => self.tls(bytes, OpeningError::Garbage),
            (_, 0) => self.packet(bytes),
            (_, b'P') => self.proxy_v1(bytes),
            (_, b'\r') => self.proxy_v2(bytes),
            _ => Step::Refuse(OpeningError::Garbage),
        }
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn tls(self, bytes: &[u8], otherwise: OpeningError) -> Step<'_> {
        match bytes.get(1) {
            None => Step::Read(self),
            Some(&TLS_MAJOR) => Step::Tls,
            Some(_) => Step::Refuse(otherwise),
        }
    }

    fn after_agreement(self, bytes: &[u8]) -> Step<'_> {
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            return self.tls(bytes, OpeningError::NotTls);
        }
        match match_prefix(bytes, &SSL_REQUEST_PACKET) {
            Prefix::Whole => Step::Refuse(OpeningError::RepeatedRequest),
            Prefix::SoFar => Step::Read(self),
            Prefix::Differs => Step::Refuse(OpeningError::NotTls),
        }
    }

    fn packet(self, bytes: &[u8]) -> Step<'_> {
        let head = bytes.get(..PACKET_HEAD).unwrap_or(bytes);
        let Some(pattern) = PATTERNS.iter().find(|pattern| pattern.may_be(head)) else {
            return Step::Refuse(OpeningError::Garbage);
        };
        if head.len() < PACKET_HEAD {
            return Step::Read(self);
        }
        match pattern.packet {
            Packet::Ssl => self.answer(b'S', bytes),
            Packet::Gss if self.stage == Stage::GssRefused => {
                Step::Refuse(OpeningError::RepeatedRequest)
            }
            Packet::Gss => self.answer(b'N', bytes),
            Packet::Cancel if self.policy.plaintext_cancel => self.cancel(bytes),
            Packet::Cancel => Step::Refuse(OpeningError::PlaintextCancel),
            Packet::Startup => Step::Refuse(OpeningError::PlaintextStartup),
        }
    }

    fn answer(self, byte: u8, bytes: &[u8]) -> Step<'_> {
        // A man in the middle could have put them there, and TLS would then vouch for them.
        if bytes.len() > PACKET_HEAD {
            return Step::Refuse(OpeningError::EarlyBytes);
        }
        let stage = match byte {
            b'S' => Stage::TlsAgreed,
            _ => Stage::GssRefused,
        };
        Step::Answer {
            byte,
            consumed: bytes.len(),
            next: self.at(stage),
        }
    }

    fn cancel(self, bytes: &[u8]) -> Step<'_> {
        let length = Cursor::new(bytes).u32().unwrap_or_default();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match bytes.get(..length) {
            None => Step::Read(self),
            Some(packet) => match CancelRequest::new(packet) {
                Some(request) => Step::Cancel(request),
                None => Step::Refuse(OpeningError::Garbage),
            },
        }
    }

    fn proxied(self, header: &[u8], source: Option<SocketAddr>) -> Step<'static> {
        Step::Proxied {
            source,
            consumed: header.len(),
            next: self.at(Stage::Proxied),
        }
    }

    /// Whether a PROXY header may stand here.
    fn check_proxy(&self) -> Result<(), OpeningError> {
        match self.stage {
            Stage::First if self.policy.proxy_protocol => Ok(()),
            Stage::First => Err(OpeningError::ProxyNotAllowed),
            Stage::Proxied | Stage::GssRefused | Stage::TlsAgreed => {
                Err(OpeningError::ProxyMisplaced)
            }
        }
    }

    fn proxy_v1(self, bytes: &[u8]) -> Step<'_> {
        match match_prefix(bytes, PROXY_V1_SIGNATURE) {
            Prefix::Differs => return Step::Refuse(OpeningError::Garbage),
            Prefix::SoFar => return Step::Read(self),
            Prefix::Whole => {}
        }
        if let Err(error) = self.check_proxy() {
            return Step::Refuse(error);
        }
        let header = match v1_line(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Step::Read(self),
            Err(error) => return Step::Refuse(error),
        };
        match v1::Header::try_from(header) {
            Ok(parsed) => self.proxied(header, v1_source(&parsed.addresses)),
            Err(_) => Step::Refuse(OpeningError::ProxyMalformed),
        }
    }

    fn proxy_v2(self, bytes: &[u8]) -> Step<'_> {
        match match_prefix(bytes, PROXY_V2_SIGNATURE) {
            Prefix::Differs => return Step::Refuse(OpeningError::Garbage),
            Prefix::SoFar => return Step::Read(self),
            Prefix::Whole => {}
        }
        if let Err(error) = self.check_proxy() {
            return Step::Refuse(error);
        }
        // The length is the last of the fixed part's 16 bytes.
        if let Some([high, low]) = bytes.get(PROXY_V2_HEAD - 2..PROXY_V2_HEAD) {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if PROXY_V2_HEAD + length > MAX_PROXY_V2 {
                return Step::Refuse(OpeningError::ProxyTooLong);
            }
        }
        match v2::Header::try_from(bytes) {
            Ok(parsed) if parsed.protocol == v2::Protocol::Datagram => {
                Step::Refuse(OpeningError::ProxyMalformed)
            }
            Ok(parsed) => {
                let source = v2_source(&parsed);
                self.proxied(parsed.as_bytes(), source)
            }
            Err(error) if error.is_incomplete() => Step::Read(self),
            Err(_) => Step::Refuse(OpeningError::ProxyMalformed),
        }
    }
}

impl Pattern {
    /// Whether some packet of this kind starts with `head`, which is at most 8 bytes.
    fn may_be(&self, head: &[u8]) -> bool {
        let (length, code) = head.split_at_checked(4).unwrap_or((head, &[]));
        // The lengths that the bytes read so far leave possible.
        let (mut low, mut high) = ([0x00; 4], [0xff; 4]);
        for ((low, high), byte) in low.iter_mut().zip(&mut high).zip(length) {
            (*low, *high) = (*byte, *byte);
        }
        let low = usize::try_from(u32::from_be_bytes(low)).unwrap_or(usize::MAX);
        let high = usize::try_from(u32::from_be_bytes(high)).unwrap_or(usize::MAX);
        low <= *self.lengths.end()
            && high >= *self.lengths.start()
            && match_prefix(code, self.code) != Prefix::Differs
    }
}

#[derive(PartialEq, Eq)]
enum Prefix {
    /// The bytes begin with all of the pattern.
    Whole,
    /// The pattern begins with all of the bytes.
    SoFar,
    Differs,
}

fn match_prefix(bytes: &[u8], pattern: &[u8]) -> Prefix {
    if bytes.starts_with(pattern) {
        Prefix::Whole
    } else if pattern.starts_with(bytes) {
        Prefix::SoFar
    } else {
        Prefix::Differs
    }
}

/// The line up to and including its CRLF; `None` until it is complete.
fn v1_line(bytes: &[u8]) -> Result<Option<&[u8]>, OpeningError> {
    let window = bytes.get(..MAX_PROXY_V1).unwrap_or(bytes);
    // Found here and not by `ppp`, which looks for the end in whatever else was read.
    let end = window.iter().position(|byte| !(b' '..=b'~').contains(byte));
    let (text, ending) = window.split_at(end.unwrap_or(window.len()));
    match match_prefix(ending, b"\r\n") {
        Prefix::Whole => Ok(bytes.get(..text.len() + 2)),
        Prefix::SoFar if window.len() == MAX_PROXY_V1 => Err(OpeningError::ProxyTooLong),
        Prefix::SoFar => Ok(None),
        Prefix::Differs => Err(OpeningError::ProxyMalformed),
    }
}

fn v1_source(addresses: &v1::Addresses) -> Option<SocketAddr> {
    match addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
    }
}

fn v2_source(header: &v2::Header<'_>) -> Option<SocketAddr> {
    match (&header.command, &header.addresses) {
        (v2::Command::Local, _) => None,
        (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
        (_, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (_, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
    }
}
