//! The request that opens a link between two members of a cluster, as sans-I/O state machines of
//! both: a length-prefixed name, answered by one status byte, as in SOCKS5.
//!
//! A link is a TLS connection from one member to another that carries one connection to a service
//! of the other member, such as etcd or Postgres. It exists so that services without attestation
//! reach each other over attested connections. The member that opens the link sends
//! [`request_link`]'s frame and reads the answer with [`AwaitAnswer`]; the member that accepts it
//! reads the frame with [`AwaitRequest`]. After the answer [`LinkRequest::accept`] the bytes in
//! both directions belong to the service.
//!
//! It must never interpret a byte of the service, and never name a port or an address: the
//! accepting member alone decides what a service is. Whether the peer is a member is the caller's
//! check, before the request is read.

use std::fmt;
use std::str::FromStr;

/// The ALPN protocol of a link. Its number is the version of the frame and the answer.
pub const LINK_ALPN: &[u8] = b"teesql-link/1";

/// Maximum length of a service's name in bytes: twice the longest name that IANA registers.
/// [RFC 6335, section 5.1: 15]
pub const MAX_SERVICE_NAME: usize = 32;

/// Maximum number of bytes that [`AwaitRequest`] needs: the length and the longest name.
pub const MAX_LINK_REQUEST: usize = 1 + MAX_SERVICE_NAME;

/// The number of bytes that [`AwaitAnswer`] needs.
pub const LINK_ANSWER_LEN: usize = 1;

/// The answer that opens the link. All others are in [`LinkRefusal`].
const ACCEPTED: u8 = 0;

/// The name of a service that members reach through links.
///
/// 1 to 32 lower-case letters, digits and hyphens of ASCII. The first is a letter, the last is not
/// a hyphen. That is the syntax of IANA's service names [RFC 6335, section 5.1], except that the
/// case is fixed, the first character is a letter, hyphens may follow each other, and there may be
/// more than 15 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// The name, padded with zeros.
    bytes: [u8; MAX_SERVICE_NAME],
    len: u8,
}

/// Why bytes are not a service's name. Never contains the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceNameError {
    /// No character.
    #[error("the name of a service must not be empty")]
    Empty,
    /// More than [`MAX_SERVICE_NAME`] bytes.
    #[error("the name of a service has at most {MAX_SERVICE_NAME} bytes, not {length}")]
    TooLong {
        /// The length in bytes.
        length: usize,
    },
    /// A byte that is not allowed at its position.
    #[error(
        "the name of a service has lower-case letters, digits and hyphens, begins with a letter \
         and does not end with a hyphen: byte {position} is not allowed"
    )]
    InvalidByte {
        /// The position of the first such byte, counted from 1.
        position: usize,
    },
}

impl ServiceNameError {
    /// The reason code for log and metric: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Empty | Self::TooLong { .. } | Self::InvalidByte { .. } => {
                "link_invalid_service_name"
            }
        }
    }

    /// The answer to the member that sent the bytes as a name: no service has such a name.
    #[must_use]
    pub fn answer(self) -> LinkRefusal {
        match self {
            Self::Empty | Self::TooLong { .. } | Self::InvalidByte { .. } => {
                LinkRefusal::UnknownService
            }
        }
    }
}

impl ServiceName {
    /// Parses a whole name.
    ///
    /// # Errors
    /// [`ServiceNameError`], which never contains the bytes.
    pub fn new(name: &[u8]) -> Result<Self, ServiceNameError> {
        let len = check_length(name.len())?;
        check_bytes(name, name.len())?;
        let mut bytes = [0; MAX_SERVICE_NAME];
        for (slot, byte) in bytes.iter_mut().zip(name) {
            *slot = *byte;
        }
        Ok(Self { bytes, len })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Always ASCII: `new` checks it.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        let len = usize::from(self.len);
        self.bytes.get(..len).unwrap_or_default()
    }
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    /// Parses a whole name.
    ///
    /// # Errors
    /// [`ServiceNameError`], which never contains the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.as_bytes())
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceName({self})")
    }
}

/// The length of a name as the frame has it.
fn check_length(length: usize) -> Result<u8, ServiceNameError> {
    match u8::try_from(length) {
        Ok(0) => Err(ServiceNameError::Empty),
        Ok(len) if length <= MAX_SERVICE_NAME => Ok(len),
        _ => Err(ServiceNameError::TooLong { length }),
    }
}

/// Checks the first bytes of a name of `length` bytes.
fn check_bytes(bytes: &[u8], length: usize) -> Result<(), ServiceNameError> {
    let invalid = |(index, byte): (usize, &u8)| match byte {
        b'a'..=b'z' => false,
        b'0'..=b'9' => index == 0,
        b'-' => index == 0 || index + 1 == length,
        _ => true,
    };
    match bytes.iter().enumerate().position(invalid) {
        None => Ok(()),
        Some(index) => Err(ServiceNameError::InvalidByte {
            position: index + 1,
        }),
    }
}

/// Why a member refuses a link. The answer is one byte, after which the member closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefusal {
    /// The member has no service of this name, or what was sent is not a name.
    #[error("the member has no service of this name")]
    UnknownService,
    /// The peer is attested, but the member policy does not admit it. Independent of the name, so
    /// that only members learn which services there are.
    #[error("the member policy does not admit this peer")]
    NotAMember,
    /// The service does not accept a connection.
    #[error("the service does not accept connections")]
    ServiceUnreachable,
    /// The limit on links is reached.
    #[error("the member has too many links")]
    TooManyLinks,
    /// The member is shutting down.
    #[error("the member is shutting down")]
    Draining,
    /// The member cannot verify peers yet: it waits for its own evidence, or for collateral.
    #[error("the member cannot verify its peers yet")]
    NotReady,
}

impl LinkRefusal {
    /// All refusals.
    pub const ALL: [Self; 6] = [
        Self::UnknownService,
        Self::NotAMember,
        Self::ServiceUnreachable,
        Self::TooManyLinks,
        Self::Draining,
        Self::NotReady,
    ];

    /// Parses an answer; `None` if it is not a refusal of this version.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|refusal| refusal.to_byte() == byte)
    }

    /// The answer on the wire. A byte must never get another meaning.
    #[must_use]
    pub fn to_byte(self) -> u8 {
        match self {
            Self::UnknownService => 1,
            Self::NotAMember => 2,
            Self::ServiceUnreachable => 3,
            Self::TooManyLinks => 4,
            Self::Draining => 5,
            Self::NotReady => 6,
        }
    }

    /// Appends the answer. Allowed at any time before [`LinkRequest::accept`], also before the
    /// request has been read. Close the connection once it is sent.
    pub fn encode(self, out: &mut Vec<u8>) {
        out.push(self.to_byte());
    }

    /// The reason code for log and metric, the same on both members: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownService => "link_unknown_service",
            Self::NotAMember => "link_not_a_member",
            Self::ServiceUnreachable => "link_service_unreachable",
            Self::TooManyLinks => "link_too_many",
            Self::Draining => "link_draining",
            Self::NotReady => "link_not_ready",
        }
    }
}

/// The state of the accepting member, which has not read the whole request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AwaitRequest(());

/// What the accepting member does next.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkRequestStep {
    /// Read more bytes and append them. Nothing was consumed.
    Read(AwaitRequest),
    /// Drop `consumed` bytes, connect to the service, and answer. Bytes after these belong to the
    /// service: forward them if the link is accepted.
    Requested {
        /// The request, with which the link can be accepted. To refuse it, drop it and send a
        /// [`LinkRefusal`].
        request: LinkRequest,
        /// Length of the frame in bytes.
        consumed: usize,
    },
    /// Send [`ServiceNameError::answer`] and close.
    Refuse(ServiceNameError),
}

impl AwaitRequest {
    /// Creates the state of a link on which nothing was read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Processes all bytes read. Never needs more than [`MAX_LINK_REQUEST`] bytes. An invalid
    /// length or byte is refused as soon as it was read.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> LinkRequestStep {
        let Some((length, rest)) = bytes.split_first() else {
            return LinkRequestStep::Read(self);
        };
        let length = usize::from(*length);
        let name = rest.get(..length);
        let checked = check_length(length)
            .and_then(|_| check_bytes(name.unwrap_or(rest), length))
            .and_then(|()| name.map(ServiceName::new).transpose());
        match checked {
            Ok(None) => LinkRequestStep::Read(self),
            Ok(Some(service)) => LinkRequestStep::Requested {
                request: LinkRequest { service },
                consumed: 1 + length,
            },
            Err(error) => LinkRequestStep::Refuse(error),
        }
    }
}

/// A link that was requested and not yet answered.
#[must_use = "the other member waits for an answer"]
#[derive(Debug, PartialEq, Eq)]
pub struct LinkRequest {
    service: ServiceName,
}

impl LinkRequest {
    /// The requested service. Whether there is one of this name is the caller's check.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Appends the answer that opens the link. The service's own bytes follow it.
    pub fn accept(self, out: &mut Vec<u8>) {
        out.push(ACCEPTED);
    }
}

/// Why a link that this member requested was not opened. The other member is at fault, or the
/// configuration of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The other member refused it.
    #[error("the link was refused: {0}")]
    Refused(LinkRefusal),
    /// An answer that is not in the list of this version.
    #[error("the link was answered with the unknown byte {byte:#04x}")]
    UnknownAnswer {
        /// The answer.
        byte: u8,
    },
    /// The other member closed the connection before it answered. Created by the caller, which
    /// owns the connection.
    #[error("the other member closed the connection before it answered")]
    EarlyEof,
}

impl LinkError {
    /// The reason code for log and metric: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::UnknownAnswer { .. } => "link_unknown_answer",
            Self::EarlyEof => "link_early_eof",
        }
    }
}

/// The state of the member that requested a link and has not read the answer.
#[derive(Debug, PartialEq, Eq)]
pub struct AwaitAnswer(());

/// What the member that requested a link does next.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkAnswerStep {
    /// Read more bytes and append them. Nothing was consumed.
    Read(AwaitAnswer),
    /// Drop `consumed` bytes: the link is open. Bytes after these are the service's.
    Opened {
        /// Length of the answer in bytes.
        consumed: usize,
    },
    /// Close. Ignore any bytes after the answer.
    Refuse(LinkError),
}

/// Appends the request for a link to `service`.
///
/// Bytes for the service may follow before the answer, but are lost if the link is refused.
#[must_use]
pub fn request_link(service: &ServiceName, out: &mut Vec<u8>) -> AwaitAnswer {
    out.push(service.len);
    out.extend_from_slice(service.as_bytes());
    AwaitAnswer(())
}

impl AwaitAnswer {
    /// Processes all bytes read. Never needs more than [`LINK_ANSWER_LEN`] bytes.
    #[must_use]
    pub fn advance(self, bytes: &[u8]) -> LinkAnswerStep {
        let Some(byte) = bytes.first() else {
            return LinkAnswerStep::Read(self);
        };
        match (*byte, LinkRefusal::from_byte(*byte)) {
            (ACCEPTED, _) => LinkAnswerStep::Opened {
                consumed: LINK_ANSWER_LEN,
            },
            (_, Some(refusal)) => LinkAnswerStep::Refuse(LinkError::Refused(refusal)),
            (byte, None) => LinkAnswerStep::Refuse(LinkError::UnknownAnswer { byte }),
        }
    }
}
