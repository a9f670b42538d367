//! Options of collateral, shared by TCB documents, CRLs and platforms.

use super::Validity;
use crate::collateral::{CaType, CollateralKey, Fmspc};

/// Validity in seconds of Intel's TCB info, QE identity and PCK CRL: 30 days.
const THIRTY_DAYS: u64 = 30 * 86_400;
/// Validity in seconds of Intel's root CRL: about a year.
const ONE_YEAR: u64 = 365 * 86_400;

/// The default platform family. Intel has no such FMSPC.
pub(super) const DEFAULT_FMSPC: Fmspc = Fmspc([0xf0, 0x7e, 0xe5, 0x01, 0x00, 0x00]);

/// The technology of the collateral.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tee {
    /// TDX.
    #[default]
    Tdx,
    /// SGX, to test that it is refused.
    Sgx,
}

/// The certificates that the CRLs revoke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The PCK certificate of the platform with this name, by the PCK CRL.
    pub platform: Option<&'static str>,
    /// The PCK CA of the collateral, by the root CRL.
    pub pck_ca: bool,
    /// The TCB signing certificate, by the root CRL.
    pub tcb_signer: bool,
    /// The root itself, by its own CRL.
    pub root: bool,
}

/// Options of collateral.
#[derive(Clone, Debug)]
pub struct CollateralOptions {
    /// The platform family.
    pub fmspc: Fmspc,
    /// The PCK CA.
    pub ca: CaType,
    /// The technology.
    pub tee: Tee,
    /// tcbEvaluationDataNumber of both documents.
    pub evaluation_number: u32,
    /// Whether a TCB recovery has downgraded the best platform level to OutOfDate.
    pub recovery: bool,
    /// issueDate and nextUpdate of the TCB info.
    pub tcb_info: Validity,
    /// issueDate and nextUpdate of the QE identity.
    pub qe_identity: Validity,
    /// thisUpdate and nextUpdate of the root CRL.
    pub root_crl: Validity,
    /// thisUpdate and nextUpdate of the PCK CRL.
    pub pck_crl: Validity,
    /// The revoked certificates.
    pub revoked: Revoked,
}

impl CollateralOptions {
    /// Fresh collateral at `now` (unix seconds): issued an hour ago and valid for 30 days.
    #[must_use]
    pub fn at(now: u64) -> Self {
        let from = now.saturating_sub(3_600);
        let month = Validity {
            from,
            until: from + THIRTY_DAYS,
        };
        Self {
            fmspc: DEFAULT_FMSPC,
            ca: CaType::Platform,
            tee: Tee::Tdx,
            evaluation_number: 17,
            recovery: false,
            tcb_info: month,
            qe_identity: month,
            root_crl: Validity {
                from,
                until: from + ONE_YEAR,
            },
            pck_crl: month,
            revoked: Revoked::default(),
        }
    }

    /// The same options for another platform family and CA.
    #[must_use]
    pub fn for_key(self, key: CollateralKey) -> Self {
        Self {
            fmspc: key.fmspc,
            ca: key.ca,
            ..self
        }
    }
}
