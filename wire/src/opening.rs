//! The plaintext bytes on the port up to the first byte of TLS, as a sans-I/O state machine.
//!
//! These bytes come from unauthenticated peers and decide whether a connection is encrypted at all.
//! A plaintext byte must never reach the code that reads inside TLS (CVE-2021-23214), and the
//! machine must never wait for more bytes than it needs for a decision.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ppp::{PartialResult, v1, v2};

pub use crate::error::OpeningError;
use crate::message::Cursor;
use crate::startup::{
    CANCEL_LENGTHS, CANCEL_REQUEST, CancelRequest, GSSENC_REQUEST, MAX_STARTUP_PACKET,
    MIN_STARTUP_PACKET, SSL_REQUEST,
};

/// Maximum length of a PROXY v1 header in bytes, including CRLF. [HAProxy `proxy-protocol.txt`,
/// section 2.1]
pub const MAX_PROXY_V1: usize = 107;

/// Maximum length of a PROXY v2 header in bytes. A receiver must accept 16 + 216 [HAProxy
/// `proxy-protocol.txt`, section 2.2]. The rest is for TLVs, up to the segment size that every TCP
/// peer accepts, because the header must fit into one segment [RFC 9293, section 3.7.1: 536].
pub const MAX_PROXY_V2: usize = 536;

/// Maximum number of bytes that [`Opening`] needs at a time: the longest opening.
pub const MAX_OPENING: usize = MAX_PROXY_V2;

/// Length of the fixed part of a PROXY v2 header in bytes.
const PROXY_V2_HEADER_LEN: usize = 16;

const PROXY_V1_SIGNATURE: &[u8] = b"PROXY ";
const PROXY_V2_SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;

/// TLS record type "handshake", and the major version of every TLS record.
/// [RFC 8446, section 5.1]
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_MAJOR: u8 = 0x03;

/// Length of a start-up packet's header in bytes: length word and request code, which identify the
/// kind of the packet.
const PACKET_HEADER_LEN: usize = 8;
/// The SSLRequest packet, with which a client requests TLS.
pub const SSL_REQUEST_PACKET: [u8; PACKET_HEADER_LEN] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What the listener allows from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpeningPolicy {
    /// Accept a CancelRequest without TLS.
    pub plaintext_cancel: bool,
    /// Accept a PROXY header.
    pub proxy_protocol: bool,
}

/// The progress of a connection between its first byte and TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    First,
    Proxied,
    GssRefused,
    TlsAgreed,
}

/// The state of a connection before TLS.
#[derive(Debug, PartialEq, Eq)]
pub struct Opening {
    policy: OpeningPolicy,
    state: State,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum OpeningStep<'a> {
    /// Read more bytes and append them. Nothing was consumed.
    Read(Opening),
    /// Drop `consumed` bytes, send `byte` (`S` or `N`) in plaintext, then read more.
    Reply {
        /// The one byte to send.
        byte: u8,
        /// Number of bytes processed: all that were passed in.
        consumed: usize,
        /// The next state.
        next: Opening,
    },
    /// Drop `consumed` bytes, a PROXY header, then continue.
    Proxied {
        /// The client's address; `None` if the connection is the proxy's own or the address is
        /// unknown.
        source: Option<SocketAddr>,
        /// Length of the header in bytes.
        consumed: usize,
        /// The next state. Call it with the remaining bytes before reading more.
        next: Opening,
    },
    /// A TLS record begins at the first byte. Nothing was consumed.
    Tls,
    /// Forward this request and close. Ignore any bytes after it.
    Cancel(CancelRequest<'a>),
    /// Send [`OpeningError::response`], if there is one, and close.
    Refuse(OpeningError),
}

/// The start-up packets that are recognized before TLS.
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
    /// Creates the state of a connection on which nothing was read.
    #[must_use]
    pub fn new(policy: OpeningPolicy) -> Self {
        Self {
            policy,
            state: State::First,
        }
    }

    /// Processes all bytes read and not yet consumed. Never needs more than [`MAX_OPENING`] bytes.
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
        // A man in the middle could have injected them, and they would then be read as if they had
        // been protected by TLS.
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

    /// Checks that a PROXY header is allowed in this state.
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
    /// Whether a packet of this kind can start with `header`, which has at most 8 bytes.
    fn could_match(&self, header: &[u8]) -> bool {
        let (length, code) = header.split_at_checked(4).unwrap_or((header, &[]));
        // The range of lengths that is possible after the bytes read so far.
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
    /// The bytes start with the whole pattern.
    Full,
    /// The bytes are a proper prefix of the pattern.
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

/// Returns the line including its CRLF; `None` until it is complete.
fn v1_line(bytes: &[u8]) -> Result<Option<&[u8]>, OpeningError> {
    let window = bytes.get(..MAX_PROXY_V1).unwrap_or(bytes);
    // `ppp` would search for the end of the line in all bytes read, beyond the cap.
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
