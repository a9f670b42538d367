//! Newtypes for measurements and identities.
//!
//! They are parsed once, from hex in the configuration or from a quote, and passed as types from then on. None of
//! them is secret.

use std::fmt;
use std::str::FromStr;

/// A text that is not hex of the right length. Names the type and its number of digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} takes {digits} hex digits")]
pub struct HexError {
    name: &'static str,
    digits: usize,
}

macro_rules! hex_newtype {
    ($(#[$doc:meta])* $name:ident, $len:literal, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Size of the value in bytes.
            pub const LEN: usize = $len;

            /// The value as bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            /// Hex in either case, with or without `0x`.
            fn from_str(text: &str) -> Result<Self, HexError> {
                let mut value = [0; $len];
                hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut value)
                    .map_err(|_| HexError { name: $label, digits: 2 * $len })?;
                Ok(Self(value))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = std::array::TryFromSliceError;

            fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
                bytes.try_into().map(Self)
            }
        }

        impl fmt::Display for $name {
            /// Lowercase hex.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

hex_newtype!(
    /// The measurement of a TD's initial memory, made by the TDX module.
    Mrtd,
    48,
    "an MRTD"
);
hex_newtype!(
    /// One of the four run-time measurement registers.
    Rtmr,
    48,
    "an RTMR"
);
hex_newtype!(
    /// dstack's id of an application: 20 bytes, often an Ethereum address.
    AppId,
    20,
    "an app id"
);
hex_newtype!(
    /// SHA-256 of the application's compose file.
    ComposeHash,
    32,
    "a compose hash"
);
hex_newtype!(
    /// SHA-256 of the OS image.
    OsImageHash,
    32,
    "an OS image hash"
);
hex_newtype!(
    /// dstack's id of one instance of an application.
    InstanceId,
    20,
    "an instance id"
);
hex_newtype!(
    /// XFAM: the extended features of the CPU that a TD may use, little endian.
    Xfam,
    8,
    "an XFAM"
);
hex_newtype!(
    /// TDATTRIBUTES, little endian.
    TdAttributes,
    8,
    "TD attributes"
);
hex_newtype!(
    /// MRCONFIGID: configuration that the TD's host fixed at its creation.
    MrConfigId,
    48,
    "an MRCONFIGID"
);
hex_newtype!(
    /// MROWNER: the owner that the TD's host fixed at its creation.
    MrOwner,
    48,
    "an MROWNER"
);
hex_newtype!(
    /// MROWNERCONFIG: the owner's configuration that the TD's host fixed at its creation.
    MrOwnerConfig,
    48,
    "an MROWNERCONFIG"
);
hex_newtype!(
    /// MRSEAM: the measurement of the TDX module.
    MrSeam,
    48,
    "an MRSEAM"
);
hex_newtype!(
    /// The platform instance id of a PCK certificate: one physical machine, until it is reinstalled.
    Piid,
    16,
    "a PIID"
);
hex_newtype!(
    /// SHA-256 of a DER certificate, as `openssl x509 -fingerprint -sha256` shows it without colons.
    Fingerprint,
    32,
    "a fingerprint"
);

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The first ten and the last four hex digits, to recognise a measurement in a log line.
pub(crate) fn abbreviated(value: &impl fmt::Display) -> String {
    let hex = value.to_string();
    match (hex.get(..10), hex.get(hex.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) if hex.len() > 14 => format!("{head}…{tail}"),
        _ => hex,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_checked() {
        let id: AppId = "0x5BB4ff9a3837357f19dc176407a5709c62eb6c56"
            .parse()
            .unwrap();
        assert_eq!(id.to_string(), "5bb4ff9a3837357f19dc176407a5709c62eb6c56");
        let wrong = "5bb4".parse::<AppId>().unwrap_err();
        assert_eq!(wrong.to_string(), "an app id takes 40 hex digits");
        assert!("zz".repeat(48).parse::<Mrtd>().is_err());
        assert_eq!(AppId::try_from(&[0; 19][..]).ok(), None);
    }

    #[test]
    fn a_measurement_is_abbreviated() {
        let mrtd = Mrtd([0xab; 48]);
        assert_eq!(abbreviated(&mrtd), "ababababab…abab");
        assert_eq!(abbreviated(&"short"), "short");
    }
}
