//! Ethereum addresses, which identify a cluster and a signer.

use std::fmt;
use std::str::FromStr;

use sha3::{Digest as _, Keccak256};

/// An Ethereum address: the last 20 bytes of keccak-256 of a public key or of a contract's origin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EthAddress(pub [u8; 20]);

/// A text that is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is 0x and 40 hex digits")]
pub struct EthAddressError;

impl EthAddress {
    /// The address with the checksum that other tools show and check: a letter is in upper case where the digit of the
    /// hash at its place is 8 or more. [EIP-55]
    #[must_use]
    pub fn to_checksummed(&self) -> String {
        let digits = hex::encode(self.0);
        let hash = hex::encode(Keccak256::digest(digits.as_bytes()));
        let cased = digits.chars().zip(hash.bytes()).map(|(digit, hash)| {
            if hash >= b'8' {
                digit.to_ascii_uppercase()
            } else {
                digit
            }
        });
        format!("0x{}", cased.collect::<String>())
    }
}

impl FromStr for EthAddress {
    type Err = EthAddressError;

    /// `0x` and 40 hex digits in any case. The case is not checked as a checksum (EIP-55).
    fn from_str(text: &str) -> Result<Self, EthAddressError> {
        let digits = text.strip_prefix("0x").ok_or(EthAddressError)?;
        let mut address = [0; 20];
        hex::decode_to_slice(digits, &mut address).map_err(|_| EthAddressError)?;
        Ok(Self(address))
    }
}

impl fmt::Display for EthAddress {
    /// In lower case.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for EthAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EthAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_eip_55() {
        for address in [
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
            "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        ] {
            let parsed: EthAddress = address.parse().unwrap();
            assert_eq!(parsed.to_checksummed(), address);
        }
    }
}
