//! Versions of the frontend/backend protocol.
//!
//! It is a separate module because both `error` and `startup` need it.

use std::fmt;

/// A version of the frontend/backend protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion {
    /// The major version: different ones are incompatible. Always 3 since PostgreSQL 7.4.
    pub major: u16,
    /// The minor version: 0 up to PostgreSQL 17, 2 since PostgreSQL 18. 1 was skipped.
    pub minor: u16,
}

impl ProtocolVersion {
    /// Version 3.0, supported by every PostgreSQL since 7.4.
    pub const V3_0: Self = Self { major: 3, minor: 0 };
    /// Version 3.2, new in PostgreSQL 18: cancel keys of up to 256 bytes.
    pub const V3_2: Self = Self { major: 3, minor: 2 };

    /// Decodes the version word: the major number is in the high half, the minor in the low.
    #[must_use]
    pub const fn from_u32(word: u32) -> Self {
        let [a, b, c, d] = word.to_be_bytes();
        Self {
            major: u16::from_be_bytes([a, b]),
            minor: u16::from_be_bytes([c, d]),
        }
    }

    /// Encodes the version word.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        let [a, b] = self.major.to_be_bytes();
        let [c, d] = self.minor.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
