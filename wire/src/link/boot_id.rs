//! The boot id: a random number that Linux draws at each start of the kernel, as a UUID.

use std::fmt;
use std::str::FromStr;

/// The number of bytes of a [`BootId`].
pub const BOOT_ID_LEN: usize = 16;

/// The positions of the hyphens in the text of a UUID. [RFC 9562, section 4]
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// Which run of a VM's kernel a member is in, from `/proc/sys/kernel/random/boot_id`. [random(4)]
///
/// Two running VMs have different ones, even if one is a copy of the other's disk and
/// configuration. It is no secret, and proves nothing by itself: it is the word of the peer's
/// measured software.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId([u8; BOOT_ID_LEN]);

/// The text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12")]
pub struct BootIdError;

impl BootId {
    /// From the bytes of the UUID, in the order of its text.
    #[must_use]
    pub const fn new(bytes: [u8; BOOT_ID_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes of the UUID, in the order of its text.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; BOOT_ID_LEN] {
        &self.0
    }
}

impl FromStr for BootId {
    type Err = BootIdError;

    /// Parses the text of a UUID.
    ///
    /// # Errors
    /// [`BootIdError`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 2 * BOOT_ID_LEN + HYPHENS.len() {
            return Err(BootIdError);
        }
        let mut bytes = [0; BOOT_ID_LEN];
        let mut digits = 0;
        for (position, character) in text.bytes().enumerate() {
            if HYPHENS.contains(&position) {
                if character != b'-' {
                    return Err(BootIdError);
                }
                continue;
            }
            let digit = char::from(character).to_digit(16);
            let digit = digit.and_then(|digit| u8::try_from(digit).ok());
            let slot = bytes.get_mut(digits / 2).ok_or(BootIdError)?;
            *slot = *slot << 4 | digit.ok_or(BootIdError)?;
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}
