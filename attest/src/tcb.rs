//! TCB statuses and advisories, with Intel's names.

use std::fmt;
use std::str::FromStr;

/// The status of a platform's patch level, from Intel's collateral.
///
/// The names are those of Intel's TCB info. The last two are from dcap-qvl and Intel's QVL, for a TD 1.5 that was
/// launched before its TDX module was updated. Texts list statuses in the declaration order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TcbStatus {
    /// All patches are applied.
    UpToDate,
    /// Software must be hardened against a known vulnerability. Whether it is, is unknown.
    SwHardeningNeeded,
    /// The platform's configuration leaves a known vulnerability open.
    ConfigurationNeeded,
    /// Both of the above.
    ConfigurationAndSwHardeningNeeded,
    /// Patches are missing.
    OutOfDate,
    /// Patches are missing and the configuration leaves a vulnerability open.
    OutOfDateConfigurationNeeded,
    /// The platform's keys are compromised.
    Revoked,
    /// The TD was launched under an out-of-date TCB that has been updated since.
    RelaunchAdvised,
    /// The same, and the configuration leaves a vulnerability open.
    RelaunchAdvisedConfigurationNeeded,
}

impl TcbStatus {
    /// All, in order.
    pub const ALL: [Self; 9] = [
        Self::UpToDate,
        Self::SwHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSwHardeningNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
        Self::Revoked,
        Self::RelaunchAdvised,
        Self::RelaunchAdvisedConfigurationNeeded,
    ];

    /// Intel's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
            Self::RelaunchAdvised => "TDRelaunchAdvised",
            Self::RelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
        }
    }

    fn bit(self) -> u16 {
        match self {
            Self::UpToDate => 1,
            Self::SwHardeningNeeded => 1 << 1,
            Self::ConfigurationNeeded => 1 << 2,
            Self::ConfigurationAndSwHardeningNeeded => 1 << 3,
            Self::OutOfDate => 1 << 4,
            Self::OutOfDateConfigurationNeeded => 1 << 5,
            Self::Revoked => 1 << 6,
            Self::RelaunchAdvised => 1 << 7,
            Self::RelaunchAdvisedConfigurationNeeded => 1 << 8,
        }
    }
}

impl From<dcap_qvl::TcbStatus> for TcbStatus {
    fn from(status: dcap_qvl::TcbStatus) -> Self {
        match status {
            dcap_qvl::TcbStatus::UpToDate => Self::UpToDate,
            dcap_qvl::TcbStatus::SWHardeningNeeded => Self::SwHardeningNeeded,
            dcap_qvl::TcbStatus::ConfigurationNeeded => Self::ConfigurationNeeded,
            dcap_qvl::TcbStatus::ConfigurationAndSWHardeningNeeded => {
                Self::ConfigurationAndSwHardeningNeeded
            }
            dcap_qvl::TcbStatus::OutOfDate => Self::OutOfDate,
            dcap_qvl::TcbStatus::OutOfDateConfigurationNeeded => Self::OutOfDateConfigurationNeeded,
            dcap_qvl::TcbStatus::Revoked => Self::Revoked,
            dcap_qvl::TcbStatus::TDRelaunchAdvised => Self::RelaunchAdvised,
            dcap_qvl::TcbStatus::TDRelaunchAdvisedConfigurationNeeded => {
                Self::RelaunchAdvisedConfigurationNeeded
            }
        }
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A TCB status that cannot be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TcbStatusError {
    /// No such name.
    #[error("no TCB status of Intel's; OK stands for UpToDate")]
    Unknown,
    /// dcap-qvl refuses revoked platforms under every policy.
    #[error("Revoked cannot be accepted: the platform's keys are compromised")]
    Revoked,
}

impl FromStr for TcbStatus {
    type Err = TcbStatusError;

    /// Intel's name, or `OK` for `UpToDate`, as Intel Trust Authority calls it.
    fn from_str(text: &str) -> Result<Self, TcbStatusError> {
        if text == "OK" {
            return Ok(Self::UpToDate);
        }
        match Self::ALL.into_iter().find(|status| status.as_str() == text) {
            Some(Self::Revoked) => Err(TcbStatusError::Revoked),
            Some(status) => Ok(status),
            None => Err(TcbStatusError::Unknown),
        }
    }
}

/// A set of accepted statuses. It always contains `UpToDate`, and never `Revoked`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TcbStatuses(u16);

impl TcbStatuses {
    /// The set of `statuses` and `UpToDate`, without `Revoked`.
    #[must_use]
    pub fn new(statuses: impl IntoIterator<Item = TcbStatus>) -> Self {
        let bits = statuses
            .into_iter()
            .fold(TcbStatus::UpToDate.bit(), |bits, s| bits | s.bit());
        Self(bits & !TcbStatus::Revoked.bit())
    }

    /// Whether `status` is accepted.
    #[must_use]
    pub fn contains(self, status: TcbStatus) -> bool {
        self.0 & status.bit() != 0
    }

    pub(crate) fn goes_beyond_default(self) -> bool {
        self.0 & !Self::default().0 != 0
    }

    pub(crate) fn bits(self) -> u16 {
        self.0
    }
}

impl Default for TcbStatuses {
    /// `UpToDate`, `SWHardeningNeeded`, `ConfigurationNeeded`, `ConfigurationAndSWHardeningNeeded`:
    /// no patch is missing. [contract, section 5]
    fn default() -> Self {
        Self::new([
            TcbStatus::SwHardeningNeeded,
            TcbStatus::ConfigurationNeeded,
            TcbStatus::ConfigurationAndSwHardeningNeeded,
        ])
    }
}

impl fmt::Display for TcbStatuses {
    /// `OK, SWHardeningNeeded, …`: this list names `UpToDate` `OK`, as users know it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OK")?;
        TcbStatus::ALL
            .into_iter()
            .filter(|status| *status != TcbStatus::UpToDate && self.contains(*status))
            .try_for_each(|status| write!(f, ", {status}"))
    }
}

impl fmt::Debug for TcbStatuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcbStatuses({self})")
    }
}

/// The name of one of Intel's security advisories, such as `INTEL-SA-00837`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Advisory(String);

/// A text that is not the name of an advisory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an advisory's name is like INTEL-SA-00837")]
pub struct AdvisoryError;

impl Advisory {
    /// Maximum size of a name, in bytes. Intel's have 14.
    const MAX_MANIFEST_LEN: usize = 32;

    /// The name, in upper case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `id` names this advisory, in any case.
    pub(crate) fn is(&self, id: &str) -> bool {
        self.0.eq_ignore_ascii_case(id)
    }
}

impl FromStr for Advisory {
    type Err = AdvisoryError;

    fn from_str(text: &str) -> Result<Self, AdvisoryError> {
        let number = text
            .get(..9)
            .filter(|head| head.eq_ignore_ascii_case("INTEL-SA-"));
        let digits = text.get(9..).unwrap_or_default();
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if number.is_none() || !is_number || text.len() > Self::MAX_MANIFEST_LEN {
            return Err(AdvisoryError);
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}

impl fmt::Display for Advisory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
