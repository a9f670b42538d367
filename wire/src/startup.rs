//! StartupMessage and CancelRequest as validated types.
//!
//! They exist so that the rest of the program handles only packets whose layout was checked once:
//! borrowed from the read buffer, or owned while the client's password is awaited. A start-up
//! parameter or a cancel key must never be printed, and what a client sent must never be changed
//! before it is forwarded to Postgres: parameters can only be added.

use std::fmt;

use crate::error::FrontendError;
use crate::message::Cursor;
use crate::startup_options::find_settings;
pub use crate::version::ProtocolVersion;

/// Maximum length of a start-up packet in bytes, including its length word.
/// [PostgreSQL `pqcomm.h`, MAX_STARTUP_PACKET_LENGTH, which excludes the length word: a packet of
/// 10,001 to 10,004 bytes is refused here although Postgres would accept it.]
pub const MAX_STARTUP_PACKET: usize = 10_000;

/// Minimum length of a start-up packet in bytes: length word and version.
pub const MIN_STARTUP_PACKET: usize = 8;

/// Minimum length of a cancel key in bytes. [PostgreSQL 18, protocol message formats,
/// CancelRequest]
pub const MIN_CANCEL_KEY: usize = 4;

/// Maximum length of a cancel key in bytes. [PostgreSQL 18, protocol message formats,
/// CancelRequest]
pub const MAX_CANCEL_KEY: usize = 256;

/// Length of a CancelRequest before its key in bytes: length word, request code, process id.
const CANCEL_HEADER_LEN: usize = 12;

/// Minimum and maximum length of a whole CancelRequest in bytes.
pub(crate) const CANCEL_LENGTHS: std::ops::RangeInclusive<usize> =
    CANCEL_HEADER_LEN + MIN_CANCEL_KEY..=MAX_CANCEL_PACKET;

/// Maximum length of a whole CancelRequest in bytes.
pub const MAX_CANCEL_PACKET: usize = CANCEL_HEADER_LEN + MAX_CANCEL_KEY;

/// Request codes, in place of the version. [PostgreSQL `pqcomm.h`]
pub(crate) const CANCEL_REQUEST: u32 = 0x04d2_162e;
pub(crate) const SSL_REQUEST: u32 = 0x04d2_162f;
pub(crate) const GSSENC_REQUEST: u32 = 0x04d2_1630;

/// The prefix of protocol options, which are not parameters.
/// [PostgreSQL 18, protocol message formats, StartupMessage]
const PROTOCOL_OPTION_PREFIX: &[u8] = b"_pq_.";

/// A CancelRequest of a legal size. Only Postgres knows whether its key is right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CancelRequest<'a>(&'a [u8]);

impl<'a> CancelRequest<'a> {
    /// Wraps exactly one packet; `None` if its size is not legal for a CancelRequest.
    pub(crate) fn new(packet: &'a [u8]) -> Option<Self> {
        CANCEL_LENGTHS
            .contains(&packet.len())
            .then_some(Self(packet))
    }

    /// The whole packet of 16 to 268 bytes, to be forwarded unchanged.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Shows the size only: the key allows anyone to cancel queries.
impl fmt::Debug for CancelRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelRequest({} bytes)", self.0.len())
    }
}

/// A StartupMessage with a valid layout, borrowed from the input.
#[derive(PartialEq, Eq)]
pub struct StartupMessage<'a> {
    version: ProtocolVersion,
    user: &'a str,
    list: &'a [u8],
}

impl<'a> StartupMessage<'a> {
    /// Parses exactly one packet, including its length word. The caller has already checked its
    /// version.
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
            // Postgres uses the last one. Checking any other one would check the wrong role.
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

    /// The version that the client requested. The major number is 3; the minor can be any.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The role that the client requested: not empty, without NUL, at most as long as the packet.
    #[must_use]
    pub fn user(&self) -> &'a str {
        self.user
    }

    /// The value that Postgres would use for `name`: the last one in the packet.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&'a [u8]> {
        self.parameters()
            .filter_map(|(key, value)| (key == name.as_bytes()).then_some(value))
            .last()
    }

    /// All (name, value) pairs in the order sent, including protocol options. They contain no NUL.
    #[must_use]
    pub fn parameters(&self) -> Parameters<'a> {
        Parameters(Cursor::new(self.list))
    }

    /// Copies the message, to keep it while the client's password is awaited.
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

/// The owned form of a [`StartupMessage`].
#[derive(Clone, PartialEq, Eq)]
pub struct Startup {
    version: ProtocolVersion,
    role: String,
    list: Vec<u8>,
}

impl Startup {
    /// The version that the client requested.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// The role that the client requested.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }

    /// All (name, value) pairs in the order sent, including protocol options.
    #[must_use]
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters(Cursor::new(&self.list))
    }

    /// The database that the client requested: by default, the one with the name of the role.
    #[must_use]
    pub fn database(&self) -> std::borrow::Cow<'_, str> {
        let databases = self.parameters().filter(|(name, _)| *name == b"database");
        match databases.last() {
            Some((_, name)) if !name.is_empty() => String::from_utf8_lossy(name),
            _ => self.role().into(),
        }
    }

    /// The names of the settings that the client chose itself, as parameters or within `options`. Postgres
    /// compares them without regard to case.
    #[must_use]
    pub fn setting_names(&self) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        for (name, value) in self.parameters() {
            if name == b"options" {
                let settings = find_settings(value).into_iter();
                names.extend(settings.map(|(name, _)| name));
            } else {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Adds a parameter for Postgres after those of the client. Returns whether it fits: Postgres
    /// accepts packets of at most [`MAX_STARTUP_PACKET`] bytes. An empty name, or a NUL in either
    /// text, never fits.
    pub fn add_parameter(&mut self, name: &str, value: &str) -> bool {
        let added = name.len() + value.len() + 2;
        let malformed = name.is_empty() || name.contains('\0') || value.contains('\0');
        if malformed || MIN_STARTUP_PACKET + self.list.len() + added > MAX_STARTUP_PACKET {
            return false;
        }
        // The list ends with a NUL, which is the end of an empty name.
        self.list.pop();
        for text in [name, value] {
            self.list.extend_from_slice(text.as_bytes());
            self.list.push(0);
        }
        self.list.push(0);
        true
    }

    /// The names of the `_pq_.` options. This crate supports none.
    pub(crate) fn protocol_options(&self) -> impl Iterator<Item = &[u8]> {
        self.parameters()
            .filter_map(|(name, _)| is_protocol_option(name).then_some(name))
    }

    /// The parameters for Postgres: all except the `_pq_.` options, which the negotiation rejected.
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
