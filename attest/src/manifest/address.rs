//! Ethereum addresses, which identify a cluster and a signer.

use std::fmt;
use std::str::FromStr;

/// An Ethereum address: the last 20 bytes of keccak-256 of a public key or of a contract's origin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EthAddress(pub [u8; 20]);

/// A text that is not an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is 0x and 40 hex digits")]
pub struct EthAddressError;

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
