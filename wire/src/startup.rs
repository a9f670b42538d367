//! StartupMessage and CancelRequest as checked types.
//!
//! It exists so that past this file only packets whose layout was checked once travel, borrowed while
//! they lie in the read buffer and owned while the password is awaited. It must never print a
//! start-up parameter or a cancel key, and never change what is passed on to Postgres.

use std::fmt;

use crate::error::FrontendError;
use crate::message::Cursor;
pub use crate::version::ProtocolVersion;

/// Most bytes of a start-up packet, its length word included.
/// [PostgreSQL `pqcomm.h`, MAX_STARTUP_PACKET_LENGTH, which leaves the length word out: a packet of
/// 10,001 to 10,004 bytes that Postgres itself would still take is refused here.]
pub const MAX_STARTUP_PACKET: usize = 10_000;

/// Fewest bytes of a start-up packet: length word and version.
pub const MIN_STARTUP_PACKET: usize = 8;

/// Fewest bytes of a cancel key. [PostgreSQL 18, protocol message formats, CancelRequest]
pub const MIN_CANCEL_KEY: usize = 4;

/// Most bytes of a cancel key. [PostgreSQL 18, protocol message formats, CancelRequest]
pub const MAX_CANCEL_KEY: usize = 256;

/// Bytes of a CancelRequest before its key: length word, request code, process id.
const CANCEL_HEADER_LEN: usize = 12;

/// Fewest and most bytes of a whole CancelRequest.
pub(crate) const CANCEL_LENGTHS: std::ops::RangeInclusive<usize> =
    CANCEL_HEADER_LEN + MIN_CANCEL_KEY..=MAX_CANCEL_PACKET;

/// Most bytes of a whole CancelRequest.
pub const MAX_CANCEL_PACKET: usize = CANCEL_HEADER_LEN + MAX_CANCEL_KEY;

/// Request codes in the place of the version. [PostgreSQL `pqcomm.h`]
pub(crate) const CANCEL_REQUEST: u32 = 0x04d2_162e;
pub(crate) const SSL_REQUEST: u32 = 0x04d2_162f;
pub(crate) const GSSENC_REQUEST: u32 = 0x04d2_1630;

/// Names that start so are protocol options, not parameters.
/// [PostgreSQL 18, protocol message formats, StartupMessage]
const PROTOCOL_OPTION_PREFIX: &[u8] = b"_pq_.";

/// A CancelRequest of plausible size. Whether its key is right only Postgres knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CancelRequest<'a>(&'a [u8]);

impl<'a> CancelRequest<'a> {
    /// `packet` is exactly the packet; `None` if its size is not one that a CancelRequest has.
    pub(crate) fn new(packet: &'a [u8]) -> Option<Self> {
        CANCEL_LENGTHS
            .contains(&packet.len())
            .then_some(Self(packet))
    }

    /// The whole packet, to be forwarded as it is: 16 to 268 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Shows the size only: whoever knows the key can cancel.
impl fmt::Debug for CancelRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelRequest({} bytes)", self.0.len())
    }
}

/// A StartupMessage whose layout was checked, borrowed from the input.
#[derive(PartialEq, Eq)]
pub struct StartupMessage<'a> {
    version: ProtocolVersion,
    user: &'a str,
    list: &'a [u8],
}

impl<'a> StartupMessage<'a> {
    /// `packet` is exactly the packet, length word included; its version was looked at already.
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Self, FrontendError> {
        let mut cursor = Cursor::new(packet);
        let (Some(_length), Some(version)) = (cursor.u32(), cursor.u32()) else {
            return Err(FrontendError::MalformedStartup);
        };
        let list = cursor.rest();
        let mut user = None;
        loop {
            let name = cursor.c_str().ok_or(FrontendError::MalformedStartup)?;
            if name.is_empty() {
                break;
            }
            let value = cursor.c_str().ok_or(FrontendError::MalformedStartup)?;
            // Postgres would take the last one: whoever reads another one checks the wrong role.
            if name == b"user" && user.replace(value).is_some() {
                return Err(FrontendError::RepeatedUser);
            }
        }
        if !cursor.is_empty() {
            return Err(FrontendError::MalformedStartup);
        }
        let user = user.filter(|user| !user.is_empty());
        let user = user.ok_or(FrontendError::MissingUser)?;
        Ok(Self {
            version: ProtocolVersion::from_u32(version),
            user: std::str::from_utf8(user).map_err(|_| FrontendError::UserNotUtf8)?,
            list,
        })
    }

    /// The version that the client asked for. The major number is 3, the minor any.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The role that the client asked for: never empty, no NUL, at most the packet's size.
    #[must_use]
    pub fn user(&self) -> &'a str {
        self.user
    }

    /// The value that Postgres would use for `name`: the last one given.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'a [u8]> {
        self.parameters()
            .filter_map(|(key, value)| (key == name.as_bytes()).then_some(value))
            .last()
    }

    /// Every (name, value) in the order sent, protocol options included. Neither has a NUL.
    #[must_use]
    pub fn parameters(&self) -> Parameters<'a> {
        Parameters(Cursor::new(self.list))
    }

    /// Copies what has to be kept while the password is awaited.
    #[must_use]
    pub fn to_owned(&self) -> Startup {
        Startup {
            version: self.version,
            role: self.user.to_owned(),
            list: self.list.to_owned(),
        }
    }
}

/// Shows version and role, never a parameter.
impl fmt::Debug for StartupMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartupMessage")
            .field("version", &self.version)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// The owned form of a [`StartupMessage`], kept while the password is awaited.
#[derive(Clone, PartialEq, Eq)]
pub struct Startup {
    version: ProtocolVersion,
    role: String,
    list: Vec<u8>,
}

impl Startup {
    /// The version that the client asked for.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The role that the client asked for.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Every (name, value) as sent and in the order sent, protocol options included.
    #[must_use]
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters(Cursor::new(&self.list))
    }

    /// The names of the `_pq_.` options. None is known to this crate.
    pub(crate) fn protocol_options(&self) -> impl Iterator<Item = &[u8]> {
        self.parameters()
            .filter_map(|(name, _)| is_protocol_option(name).then_some(name))
    }

    /// What Postgres is told: everything but the `_pq_.` options, which were negotiated away.
    pub(crate) fn forwarded_parameters(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.parameters()
            .filter(|(name, _)| !is_protocol_option(name))
    }
}

/// Shows version and role, never a parameter.
impl fmt::Debug for Startup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Startup")
            .field("version", &self.version)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The (name, value) pairs of a start-up packet, in the order sent.
pub struct Parameters<'a>(Cursor<'a>);

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.0.c_str().filter(|name| !name.is_empty())?;
        Some((name, self.0.c_str()?))
    }
}

fn is_protocol_option(name: &[u8]) -> bool {
    name.starts_with(PROTOCOL_OPTION_PREFIX)
}
