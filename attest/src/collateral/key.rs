//! The key of a set of collateral: a platform family and a PCK CA.

use std::fmt;
use std::str::FromStr;

use super::error::{CollateralError, Part};
use super::validity::malformed;

/// The platform family that a PCK certificate names: Family-Model-Stepping-Platform-CustomSKU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fmspc(pub [u8; 6]);

impl fmt::Display for Fmspc {
    /// Twelve uppercase hex digits, as Intel's services write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode_upper(self.0))
    }
}

impl fmt::Debug for Fmspc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fmspc({self})")
    }
}

/// Which of Intel's two CAs issued a PCK certificate. Each has its own CRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CaType {
    /// For machines with one CPU package, registered directly.
    Processor,
    /// For machines with several CPU packages: the servers that run TDX.
    Platform,
}

impl CaType {
    /// As in Intel's `pckcrl?ca=`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }

    /// By the issuer's common name, as in dcap-qvl (`X509CertParsed::pck_ca`).
    pub(super) fn from_name(name: &str) -> Option<Self> {
        if name.contains("Processor") {
            Some(Self::Processor)
        } else if name.contains("Platform") {
            Some(Self::Platform)
        } else {
            None
        }
    }
}

impl From<dcap_qvl::config::PckCa> for CaType {
    fn from(ca: dcap_qvl::config::PckCa) -> Self {
        match ca {
            dcap_qvl::config::PckCa::Processor => Self::Processor,
            dcap_qvl::config::PckCa::Platform => Self::Platform,
        }
    }
}

/// The platforms that a set of collateral is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CollateralKey {
    /// The platform family.
    pub fmspc: Fmspc,
    /// The CA that issued the PCK certificate.
    pub ca: CaType,
}

impl fmt::Display for CollateralKey {
    /// Such as `B0C06F000000-platform`, which is also the name of the file on disk.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.fmspc, self.ca.as_str())
    }
}

impl FromStr for CollateralKey {
    type Err = CollateralError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = malformed(
            Part::TcbInfo,
            "a key is <12 hex digits>-<platform|processor>",
        );
        let (fmspc, ca) = text.split_once('-').ok_or_else(|| wrong.clone())?;
        let ca = match ca {
            "processor" => CaType::Processor,
            "platform" => CaType::Platform,
            _ => return Err(wrong),
        };
        Ok(Self {
            fmspc: parse_fmspc(fmspc).ok_or(wrong)?,
            ca,
        })
    }
}

pub(super) fn parse_fmspc(text: &str) -> Option<Fmspc> {
    let mut fmspc = [0; 6];
    hex::decode_to_slice(text, &mut fmspc).ok()?;
    Some(Fmspc(fmspc))
}
