//! Patch levels, and the two JSON documents that rate them: TCB info and QE identity.
//!
//! As with Intel's, one TCB info covers all platforms of a family. A platform's level follows from its
//! firmware (CPUSVN in the PCK certificate) and its TDX module (TEE_TCB_SVN in the quote), so one PCCS
//! serves both up-to-date and outdated platforms. The JSON is compact, with the fields in Intel's order.
//! Its structure is from Intel's "PCS API v4" and from dcap-qvl's `tcb_info.rs`.

use serde_json::{Value, json};

use super::options::{CollateralOptions, Tee};
use crate::collateral::Fmspc;

/// Patch level of a platform's firmware, named after the status of its CPUSVN in the mock TCB info.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlatformLevel {
    /// UpToDate, no advisories.
    #[default]
    UpToDate,
    /// SWHardeningNeeded, INTEL-SA-00615.
    SwHardeningNeeded,
    /// ConfigurationNeeded, INTEL-SA-00219.
    ConfigurationNeeded,
    /// ConfigurationAndSWHardeningNeeded, INTEL-SA-00219 and INTEL-SA-00615.
    ConfigurationAndSwHardeningNeeded,
    /// OutOfDate, INTEL-SA-00837.
    OutOfDate,
    /// OutOfDateConfigurationNeeded, INTEL-SA-00219 and INTEL-SA-00837.
    OutOfDateConfigurationNeeded,
    /// Revoked: dcap-qvl refuses it under every policy.
    Revoked,
    /// Below every level of the TCB info.
    Unknown,
}

/// The levels of the TCB info, best first, in Intel's order.
const LEVELS: [PlatformLevel; 7] = [
    PlatformLevel::UpToDate,
    PlatformLevel::SwHardeningNeeded,
    PlatformLevel::ConfigurationNeeded,
    PlatformLevel::ConfigurationAndSwHardeningNeeded,
    PlatformLevel::OutOfDate,
    PlatformLevel::OutOfDateConfigurationNeeded,
    PlatformLevel::Revoked,
];

impl PlatformLevel {
    /// The status that dcap-qvl reports; `None` for [`PlatformLevel::Unknown`].
    #[must_use]
    pub fn status(self) -> Option<&'static str> {
        Some(match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
            Self::Unknown => return None,
        })
    }

    /// The advisories in the TCB info.
    #[must_use]
    pub fn advisories(self) -> &'static [&'static str] {
        match self {
            Self::UpToDate | Self::Unknown => &[],
            Self::SwHardeningNeeded => &["INTEL-SA-00615"],
            Self::ConfigurationNeeded => &["INTEL-SA-00219"],
            Self::ConfigurationAndSwHardeningNeeded => &["INTEL-SA-00219", "INTEL-SA-00615"],
            Self::OutOfDate | Self::Revoked => &["INTEL-SA-00837"],
            Self::OutOfDateConfigurationNeeded => &["INTEL-SA-00219", "INTEL-SA-00837"],
        }
    }

    /// The first CPUSVN component of a platform at this level.
    pub(super) fn svn(self) -> u8 {
        match self {
            Self::UpToDate => 9,
            Self::SwHardeningNeeded => 8,
            Self::ConfigurationNeeded => 7,
            Self::ConfigurationAndSwHardeningNeeded => 6,
            Self::OutOfDate => 5,
            Self::OutOfDateConfigurationNeeded => 4,
            Self::Revoked => 3,
            Self::Unknown => 2,
        }
    }
}

/// Patch level of a platform's TDX module: the first byte of TEE_TCB_SVN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModuleLevel {
    /// UpToDate.
    #[default]
    UpToDate,
    /// OutOfDate, INTEL-SA-01036.
    OutOfDate,
    /// Revoked.
    Revoked,
    /// Below every level of the module.
    Unknown,
}

impl ModuleLevel {
    pub(super) fn svn(self) -> u8 {
        match self {
            Self::UpToDate => 6,
            Self::OutOfDate => 4,
            Self::Revoked => 2,
            Self::Unknown => 1,
        }
    }
}

/// Patch level of a platform's quoting enclave: its ISVSVN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QeLevel {
    /// UpToDate.
    #[default]
    UpToDate,
    /// OutOfDate, INTEL-SA-00477.
    OutOfDate,
    /// Revoked.
    Revoked,
    /// Below every level of the QE identity.
    Unknown,
}

impl QeLevel {
    pub(super) fn svn(self) -> u16 {
        match self {
            Self::UpToDate => 8,
            Self::OutOfDate => 6,
            Self::Revoked => 4,
            Self::Unknown => 2,
        }
    }
}

/// PCESVN of all mock platforms, which all levels require.
pub(super) const PCE_SVN: u8 = 11;
/// MRSIGNER of the mock TDX module. Intel's is also zero.
pub(super) const MODULE_SIGNER: [u8; 48] = [0; 48];
/// MRSIGNER of the mock quoting enclaves.
pub(super) const QE_SIGNER: [u8; 32] = [0x71; 32];
/// ATTRIBUTES of the mock quoting enclaves: INIT and provisioning key, like Intel's.
pub(super) const QE_ATTRIBUTES: [u8; 16] = [0x11, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0, 0, 0, 0, 0, 0, 0];
/// Intel's mask: all flags but MODE64BIT, and none of XFRM.
const QE_ATTRIBUTES_MASK: &str = "FBFFFFFFFFFFFFFF0000000000000000";

/// ISVPRODID of the quoting enclave: 2 for TDX, 1 for SGX.
pub(super) fn qe_prod_id(tee: Tee) -> u16 {
    match tee {
        Tee::Tdx => 2,
        Tee::Sgx => 1,
    }
}

/// The unsigned TCB info.
pub(super) fn tcb_info(fmspc: Fmspc, options: &CollateralOptions) -> String {
    let mut info = json!({
        "id": if options.tee == Tee::Tdx { "TDX" } else { "SGX" },
        "version": 3,
        "issueDate": rfc3339(options.tcb_info.from),
        "nextUpdate": rfc3339(options.tcb_info.until),
        "fmspc": fmspc.to_string(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": options.evaluation_number,
    });
    let levels: Vec<Value> = LEVELS
        .iter()
        .map(|level| platform_level(*level, options))
        .collect();
    if let Value::Object(fields) = &mut info {
        if options.tee == Tee::Tdx {
            fields.insert("tdxModule".to_owned(), module(None));
            let modules = json!([module(Some("TDX_01")), module(Some("TDX_03"))]);
            fields.insert("tdxModuleIdentities".to_owned(), modules);
        }
        fields.insert("tcbLevels".to_owned(), Value::Array(levels));
    }
    info.to_string()
}

fn platform_level(level: PlatformLevel, options: &CollateralOptions) -> Value {
    // After a TCB recovery, the level that was up to date no longer is.
    let demoted = options.recovery && level == PlatformLevel::UpToDate;
    let rated_as = if demoted {
        PlatformLevel::OutOfDate
    } else {
        level
    };
    let mut tcb = json!({
        "sgxtcbcomponents": components([level.svn(), 2, 2, 2]),
        "pcesvn": PCE_SVN,
    });
    if let (Value::Object(tcb), Tee::Tdx) = (&mut tcb, options.tee) {
        // The first two belong to the TDX module, which has its own levels.
        tcb.insert("tdxtcbcomponents".to_owned(), components([0, 0, 2, 0]));
    }
    let mut entry = json!({
        "tcb": tcb,
        "tcbDate": "2025-03-12T00:00:00Z",
        "tcbStatus": rated_as.status(),
    });
    if let (Value::Object(entry), [_, ..]) = (&mut entry, rated_as.advisories()) {
        entry.insert("advisoryIDs".to_owned(), json!(rated_as.advisories()));
    }
    entry
}

fn components(first: [u8; 4]) -> Value {
    let svns = first.into_iter().chain([0; 12]);
    Value::Array(svns.map(|svn| json!({ "svn": svn })).collect())
}

fn module(id: Option<&str>) -> Value {
    let mut module = json!({
        "mrsigner": hex::encode_upper(MODULE_SIGNER),
        "attributes": "0000000000000000",
        "attributesMask": "FFFFFFFFFFFFFFFF",
    });
    if let (Value::Object(fields), Some(id)) = (&mut module, id) {
        fields.insert("id".to_owned(), json!(id));
        let levels = json!([
            isv_level(ModuleLevel::UpToDate.svn().into(), "UpToDate", &[]),
            isv_level(
                ModuleLevel::OutOfDate.svn().into(),
                "OutOfDate",
                &["INTEL-SA-01036"]
            ),
            isv_level(
                ModuleLevel::Revoked.svn().into(),
                "Revoked",
                &["INTEL-SA-01036"]
            ),
        ]);
        fields.insert("tcbLevels".to_owned(), levels);
    }
    module
}

fn isv_level(svn: u16, status: &str, advisories: &[&str]) -> Value {
    let mut level = json!({
        "tcb": { "isvsvn": svn },
        "tcbDate": "2025-03-12T00:00:00Z",
        "tcbStatus": status,
    });
    if let (Value::Object(level), [_, ..]) = (&mut level, advisories) {
        level.insert("advisoryIDs".to_owned(), json!(advisories));
    }
    level
}

/// The unsigned QE identity.
pub(super) fn qe_identity(options: &CollateralOptions) -> String {
    json!({
        "id": if options.tee == Tee::Tdx { "TD_QE" } else { "QE" },
        "version": 2,
        "issueDate": rfc3339(options.qe_identity.from),
        "nextUpdate": rfc3339(options.qe_identity.until),
        "tcbEvaluationDataNumber": options.evaluation_number,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": QE_ATTRIBUTES_MASK,
        "mrsigner": hex::encode_upper(QE_SIGNER),
        "isvprodid": qe_prod_id(options.tee),
        "tcbLevels": [
            isv_level(QeLevel::UpToDate.svn(), "UpToDate", &[]),
            isv_level(QeLevel::OutOfDate.svn(), "OutOfDate", &["INTEL-SA-00477"]),
            isv_level(QeLevel::Revoked.svn(), "Revoked", &["INTEL-SA-00477"]),
        ],
    })
    .to_string()
}

/// Formats as `2025-06-19T10:16:03Z`. The caller has checked that the year is at most 9999.
fn rfc3339(unix_seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}
