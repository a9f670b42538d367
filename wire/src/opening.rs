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

/// Most bytes that [`Opening`] ever needs to see at once: the longest opening.
pub const MAX_OPENING: usize = MAX_PROXY_V2;

/// Fixed part of a PROXY v2 header.
const PROXY_V2_HEADER_LEN: usize = 16;

const PROXY_V1_SIGNATURE: &[u8] = b"PROXY ";
const PROXY_V2_SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;

/// TLS record type "handshake", and the major version that every TLS record has.
/// [RFC 8446, section 5.1]
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_MAJOR: u8 = 0x03;

/// Length word and request code: all that tells start-up packets apart.
const PACKET_HEADER_LEN: usize = 8;
/// What a client sends to be asked for TLS.
pub const SSL_REQUEST_PACKET: [u8; PACKET_HEADER_LEN] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What this listener allows from this peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningPolicy {
    /// Take a CancelRequest without TLS.
    pub plaintext_cancel: bool,
    /// Take a PROXY header, if one comes.
    pub proxy_protocol: bool,
}

/// Where a connection is between its first byte and TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    First,
    Proxied,
    GssRefused,
    TlsAgreed,
}

/// The state of a connection that is not yet in TLS.
#[derive(Debug, PartialEq, Eq)]
pub struct Opening {
    policy: OpeningPolicy,
    state: State,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum OpeningStep<'a> {
    /// Read more bytes behind the same ones. Nothing was consumed.
    Read(Opening),
    /// Drop `consumed` bytes, send `byte` (`S` or `N`) in plaintext, then read on.
    Reply {
        /// The one byte to send.
        byte: u8,
        /// Bytes dealt with: all that were given.
        consumed: usize,
        /// The state to go on with.
        next: Opening,
    },
    /// Drop `consumed` bytes: a PROXY header.
    Proxied {
        /// The client's address; `None` if the proxy speaks for itself or does not know.
        source: Option<SocketAddr>,
        /// Bytes of the header.
        consumed: usize,
        /// The state to go on with. There may be bytes left to advance over.
        next: Opening,
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
enum PacketKind {
    Ssl,
    Gss,
    Cancel,
    Startup,
}

struct Pattern {
    kind: PacketKind,
    lengths: RangeInclusive<usize>,
    code: &'static [u8],
}

const PATTERNS: [Pattern; 4] = [
    Pattern {
        kind: PacketKind::Ssl,
        lengths: PACKET_HEADER_LEN..=PACKET_HEADER_LEN,
        code: &SSL_REQUEST.to_be_bytes(),
    },
    Pattern {
        kind: PacketKind::Gss,
        lengths: PACKET_HEADER_LEN..=PACKET_HEADER_LEN,
        code: &GSSENC_REQUEST.to_be_bytes(),
    },
    Pattern {
        kind: PacketKind::Cancel,
        lengths: CANCEL_LENGTHS,
        code: &CANCEL_REQUEST.to_be_bytes(),
    },
    Pattern {
        kind: PacketKind::Startup,
        lengths: MIN_STARTUP_PACKET..=MAX_STARTUP_PACKET,
        code: &[0, 3],
    },
];

impl Opening {
    /// A connection of which nothing was read.
    #[must_use]
    pub fn new(policy: OpeningPolicy) -> Self {
        Self {
            policy,
            state: State::First,
        }
    }

    /// Looks at everything read and not yet consumed. Never needs more than [`MAX_OPENING`] bytes.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> OpeningStep<'_> {
        let Some(first) = bytes.first() else {
            return OpeningStep::Read(self);
        };
        match (self.state, *first) {
            (State::TlsAgreed, _) => self.after_tls_agreed(bytes),
            (_, TLS_HANDSHAKE) => self.expect_tls(bytes, OpeningError::Garbage),
            (_, 0) => self.startup_packet(bytes),
            (_, b'P') => self.proxy_v1(bytes),
            (_, b'\r') => self.proxy_v2(bytes),
            _ => OpeningStep::Refuse(OpeningError::Garbage),
        }
    }

    fn with_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    fn expect_tls(self, bytes: &[u8], mismatch: OpeningError) -> OpeningStep<'_> {
        match bytes.get(1) {
            None => OpeningStep::Read(self),
            Some(&TLS_MAJOR) => OpeningStep::Tls,
            Some(_) => OpeningStep::Refuse(mismatch),
        }
    }

    fn after_tls_agreed(self, bytes: &[u8]) -> OpeningStep<'_> {
        if bytes.first() == Some(&TLS_HANDSHAKE) {
            return self.expect_tls(bytes, OpeningError::NotTls);
        }
        match match_prefix(bytes, &SSL_REQUEST_PACKET) {
            PrefixMatch::Full => OpeningStep::Refuse(OpeningError::RepeatedRequest),
            PrefixMatch::Partial => OpeningStep::Read(self),
            PrefixMatch::Mismatch => OpeningStep::Refuse(OpeningError::NotTls),
        }
    }

    fn startup_packet(self, bytes: &[u8]) -> OpeningStep<'_> {
        let header = bytes.get(..PACKET_HEADER_LEN).unwrap_or(bytes);
        let Some(pattern) = PATTERNS.iter().find(|pattern| pattern.could_match(header)) else {
            return OpeningStep::Refuse(OpeningError::Garbage);
        };
        if header.len() < PACKET_HEADER_LEN {
            return OpeningStep::Read(self);
        }
        match pattern.kind {
            PacketKind::Ssl => self.reply(b'S', bytes),
            PacketKind::Gss if self.state == State::GssRefused => {
                OpeningStep::Refuse(OpeningError::RepeatedRequest)
            }
            PacketKind::Gss => self.reply(b'N', bytes),
            PacketKind::Cancel if self.policy.plaintext_cancel => self.cancel(bytes),
            PacketKind::Cancel => OpeningStep::Refuse(OpeningError::PlaintextCancel),
            PacketKind::Startup => OpeningStep::Refuse(OpeningError::PlaintextStartup),
        }
    }

    fn reply(self, byte: u8, bytes: &[u8]) -> OpeningStep<'_> {
        // A man in the middle could have put them there, and TLS would then vouch for them.
        if bytes.len() > PACKET_HEADER_LEN {
            return OpeningStep::Refuse(OpeningError::EarlyBytes);
        }
        let state = match byte {
            b'S' => State::TlsAgreed,
            _ => State::GssRefused,
        };
        OpeningStep::Reply {
            byte,
            consumed: bytes.len(),
            next: self.with_state(state),
        }
    }

    fn cancel(self, bytes: &[u8]) -> OpeningStep<'_> {
        let length = Cursor::new(bytes).u32().unwrap_or_default();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        match bytes.get(..length) {
            None => OpeningStep::Read(self),
            Some(packet) => match CancelRequest::new(packet) {
                Some(request) => OpeningStep::Cancel(request),
                None => OpeningStep::Refuse(OpeningError::Garbage),
            },
        }
    }

    fn proxied(self, header: &[u8], source: Option<SocketAddr>) -> OpeningStep<'static> {
        OpeningStep::Proxied {
            source,
            consumed: header.len(),
            next: self.with_state(State::Proxied),
        }
    }

    /// Whether a PROXY header may stand here.
    fn check_proxy_allowed(&self) -> Result<(), OpeningError> {
        match self.state {
            State::First if self.policy.proxy_protocol => Ok(()),
            State::First => Err(OpeningError::ProxyNotAllowed),
            State::Proxied | State::GssRefused | State::TlsAgreed => {
                Err(OpeningError::ProxyMisplaced)
            }
        }
    }

    fn proxy_v1(self, bytes: &[u8]) -> OpeningStep<'_> {
        match match_prefix(bytes, PROXY_V1_SIGNATURE) {
            PrefixMatch::Mismatch => return OpeningStep::Refuse(OpeningError::Garbage),
            PrefixMatch::Partial => return OpeningStep::Read(self),
            PrefixMatch::Full => {}
        }
        if let Err(error) = self.check_proxy_allowed() {
            return OpeningStep::Refuse(error);
        }
        let header = match v1_line(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return OpeningStep::Read(self),
            Err(error) => return OpeningStep::Refuse(error),
        };
        match v1::Header::try_from(header) {
            Ok(parsed) => self.proxied(header, v1_source(&parsed.addresses)),
            Err(_) => OpeningStep::Refuse(OpeningError::ProxyMalformed),
        }
    }

    fn proxy_v2(self, bytes: &[u8]) -> OpeningStep<'_> {
        match match_prefix(bytes, PROXY_V2_SIGNATURE) {
            PrefixMatch::Mismatch => return OpeningStep::Refuse(OpeningError::Garbage),
            PrefixMatch::Partial => return OpeningStep::Read(self),
            PrefixMatch::Full => {}
        }
        if let Err(error) = self.check_proxy_allowed() {
            return OpeningStep::Refuse(error);
        }
        // The length is the last of the fixed part's 16 bytes.
        if let Some([high, low]) = bytes.get(PROXY_V2_HEADER_LEN - 2..PROXY_V2_HEADER_LEN) {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if PROXY_V2_HEADER_LEN + length > MAX_PROXY_V2 {
                return OpeningStep::Refuse(OpeningError::ProxyTooLong);
            }
        }
        match v2::Header::try_from(bytes) {
            Ok(parsed) if parsed.protocol == v2::Protocol::Datagram => {
                OpeningStep::Refuse(OpeningError::ProxyMalformed)
            }
            Ok(parsed) => {
                let source = v2_source(&parsed);
                self.proxied(parsed.as_bytes(), source)
            }
            Err(error) if error.is_incomplete() => OpeningStep::Read(self),
            Err(_) => OpeningStep::Refuse(OpeningError::ProxyMalformed),
        }
    }
}

impl Pattern {
    /// Whether some packet of this kind starts with `head`, which is at most 8 bytes.
    fn could_match(&self, header: &[u8]) -> bool {
        let (length, code) = header.split_at_checked(4).unwrap_or((header, &[]));
        // The lengths that the bytes read so far leave possible.
        let (mut low, mut high) = ([0x00; 4], [0xff; 4]);
        for ((low, high), byte) in low.iter_mut().zip(&mut high).zip(length) {
            (*low, *high) = (*byte, *byte);
        }
        let low = usize::try_from(u32::from_be_bytes(low)).unwrap_or(usize::MAX);
        let high = usize::try_from(u32::from_be_bytes(high)).unwrap_or(usize::MAX);
        low <= *self.lengths.end()
            && high >= *self.lengths.start()
            && match_prefix(code, self.code) != PrefixMatch::Mismatch
    }
}

#[derive(PartialEq, Eq)]
enum PrefixMatch {
    /// The bytes begin with all of the pattern.
    Full,
    /// The pattern begins with all of the bytes.
    Partial,
    Mismatch,
}

fn match_prefix(bytes: &[u8], pattern: &[u8]) -> PrefixMatch {
    if bytes.starts_with(pattern) {
        PrefixMatch::Full
    } else if pattern.starts_with(bytes) {
        PrefixMatch::Partial
    } else {
        PrefixMatch::Mismatch
    }
}

/// The line up to and including its CRLF; `None` until it is complete.
fn v1_line(bytes: &[u8]) -> Result<Option<&[u8]>, OpeningError> {
    let window = bytes.get(..MAX_PROXY_V1).unwrap_or(bytes);
    // Found here and not by `ppp`, which looks for the end in whatever else was read.
    let end = window.iter().position(|byte| !(b' '..=b'~').contains(byte));
    let (text, ending) = window.split_at(end.unwrap_or(window.len()));
    match match_prefix(ending, b"\r\n") {
        PrefixMatch::Full => Ok(bytes.get(..text.len() + 2)),
        PrefixMatch::Partial if window.len() == MAX_PROXY_V1 => Err(OpeningError::ProxyTooLong),
        PrefixMatch::Partial => Ok(None),
        PrefixMatch::Mismatch => Err(OpeningError::ProxyMalformed),
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
