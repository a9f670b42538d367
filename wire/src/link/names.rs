//! The names in the request of a link: of members and of services, as validated fixed-size types.
//!
//! A request is read into these before anything decides by it. A name is never longer than its
//! type, and an error never contains the bytes that were sent.

use std::fmt;
use std::str::FromStr;

use super::refusal::LinkRefusal;

/// Maximum length of a service's name in bytes: twice the longest name that IANA registers.
/// [RFC 6335, section 5.1: 15]
pub const MAX_SERVICE_NAME: usize = 32;

/// Maximum length of a member's name in bytes: that of a label in DNS. [RFC 1035, section 2.3.4]
pub const MAX_MEMBER_NAME: usize = 63;

/// What a name is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A member of the cluster.
    Member,
    /// A service that members reach of each other.
    Service,
}

impl NameKind {
    /// Maximum length in bytes.
    #[must_use]
    pub fn max_length(self) -> usize {
        match self {
            Self::Member => MAX_MEMBER_NAME,
            Self::Service => MAX_SERVICE_NAME,
        }
    }

    fn begins_with_digit(self) -> bool {
        match self {
            Self::Member => true,
            Self::Service => false,
        }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Member => {
                "the name of a member has lower-case letters, digits and hyphens, and neither \
                 begins nor ends with a hyphen"
            }
            Self::Service => {
                "the name of a service has lower-case letters, digits and hyphens, begins with a \
                 letter and does not end with a hyphen"
            }
        }
    }

    /// The length of a name as the frame has it.
    fn check_length(self, length: usize) -> Result<u8, NameError> {
        let kind = self;
        match u8::try_from(length) {
            Ok(0) => Err(NameError::Empty { kind }),
            Ok(len) if length <= self.max_length() => Ok(len),
            _ => Err(NameError::TooLong { kind, length }),
        }
    }

    /// Checks the first bytes of a name of `length` bytes.
    fn check_bytes(self, bytes: &[u8], length: usize) -> Result<(), NameError> {
        let invalid = |(index, byte): (usize, &u8)| match byte {
            b'a'..=b'z' => false,
            b'0'..=b'9' => index == 0 && !self.begins_with_digit(),
            b'-' => index == 0 || index + 1 == length,
            _ => true,
        };
        match bytes.iter().enumerate().position(invalid) {
            None => Ok(()),
            Some(index) => Err(NameError::InvalidByte {
                kind: self,
                position: index + 1,
            }),
        }
    }
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member => write!(f, "member"),
            Self::Service => write!(f, "service"),
        }
    }
}

/// Why bytes are not a name. Never contains the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No character.
    #[error("the name of a {kind} must not be empty")]
    Empty {
        /// What the name is of.
        kind: NameKind,
    },
    /// More than [`NameKind::max_length`] bytes.
    #[error("the name of a {kind} has at most {} bytes, not {length}", .kind.max_length())]
    TooLong {
        /// What the name is of.
        kind: NameKind,
        /// The length in bytes.
        length: usize,
    },
    /// A byte that is not allowed at its position.
    #[error("{}: byte {position} is not allowed", .kind.rule())]
    InvalidByte {
        /// What the name is of.
        kind: NameKind,
        /// The position of the first such byte, counted from 1.
        position: usize,
    },
}

impl NameError {
    /// The reason code for log and metric: stable, in snake case.
    #[must_use]
    pub fn code(self) -> &'static str {
        let (Self::Empty { kind } | Self::TooLong { kind, .. } | Self::InvalidByte { kind, .. }) =
            self;
        match kind {
            NameKind::Member => "link_invalid_member_name",
            NameKind::Service => "link_invalid_service_name",
        }
    }

    /// The answer to the member that sent the bytes as a name: the request is not valid.
    #[must_use]
    pub fn answer(self) -> LinkRefusal {
        match self {
            Self::Empty { .. } | Self::TooLong { .. } | Self::InvalidByte { .. } => {
                LinkRefusal::UnknownService
            }
        }
    }
}

/// A checked name, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name<const MAX: usize> {
    bytes: [u8; MAX],
    len: u8,
}

impl<const MAX: usize> Name<MAX> {
    fn new(kind: NameKind, name: &[u8]) -> Result<Self, NameError> {
        let len = kind.check_length(name.len())?;
        kind.check_bytes(name, name.len())?;
        let mut bytes = [0; MAX];
        for (slot, byte) in bytes.iter_mut().zip(name) {
            *slot = *byte;
        }
        Ok(Self { bytes, len })
    }

    fn split_prefixed(kind: NameKind, bytes: &[u8]) -> Result<Option<(Self, &[u8])>, NameError> {
        let Some((length, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let length = usize::from(*length);
        kind.check_length(length)?;
        match rest.split_at_checked(length) {
            Some((name, rest)) => Ok(Some((Self::new(kind, name)?, rest))),
            None => kind.check_bytes(rest, length).map(|()| None),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.len);
        out.extend_from_slice(self.as_bytes());
    }

    fn as_str(&self) -> &str {
        // Always ASCII: `new` checks it.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        let len = usize::from(self.len);
        self.bytes.get(..len).unwrap_or_default()
    }
}

/// Defines the type of one kind of name.
macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:expr, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Name<{ $max }>);

        impl $type {
            /// Parses a whole name.
            ///
            /// # Errors
            /// [`NameError`], which never contains the bytes.
            pub fn new(name: &[u8]) -> Result<Self, NameError> {
                Name::new($kind, name).map(Self)
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// Reads a length and a name from the start of `bytes`, and returns what follows.
            /// `None` if it is not complete; an invalid length or byte is an error as soon as it
            /// was read.
            pub(super) fn split_prefixed(
                bytes: &[u8],
            ) -> Result<Option<(Self, &[u8])>, NameError> {
                let split = Name::split_prefixed($kind, bytes)?;
                Ok(split.map(|(name, rest)| (Self(name), rest)))
            }

            /// Appends the length and the name.
            pub(super) fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            /// Parses a whole name.
            ///
            /// # Errors
            /// [`NameError`], which never contains the text.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::new(text.as_bytes())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($type))
            }
        }
    };
}

name_type!(
    /// The name of a service that members reach through links.
    ///
    /// 1 to 32 lower-case letters, digits and hyphens of ASCII. The first is a letter, the last is
    /// not a hyphen. That is the syntax of IANA's service names [RFC 6335, section 5.1], except
    /// that the case is fixed, the first character is a letter, hyphens may follow each other, and
    /// there may be more than 15 characters.
    ServiceName,
    NameKind::Service,
    MAX_SERVICE_NAME
);

name_type!(
    /// The name of a member, which Patroni and etcd know it by.
    ///
    /// 1 to 63 lower-case letters, digits and hyphens of ASCII, with no hyphen first or last: a
    /// label of a host name [RFC 1123, section 2.1] in lower case, so that it can be used in names
    /// of hosts, files and systemd units.
    MemberName,
    NameKind::Member,
    MAX_MEMBER_NAME
);
