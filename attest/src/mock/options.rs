//! What collateral to make: the options that TCB documents, CRLs and platforms share.

use super::Validity;
use crate::collateral::{CaType, CollateralKey, Fmspc};

/// Seconds for which Intel's TCB info, QE identity and PCK CRL hold: 30 days.
const THIRTY_DAYS: u64 = 30 * 86_400;
/// Seconds for which Intel's root CRL holds: about a year.
const ONE_YEAR: u64 = 365 * 86_400;

/// The platform family of a mock machine, unless told otherwise. Not one of Intel's.
pub(super) const DEFAULT_FMSPC: Fmspc = Fmspc([0xf0, 0x7e, 0xe5, 0x01, 0x00, 0x00]);

/// Which technology the collateral is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tee {
    /// TDX: what this project uses.
    #[default]
    Tdx,
    /// SGX: for the tests that it is refused.
    Sgx,
}

/// What the CRLs revoke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The PCK certificate of the machine with this name, by the PCK CRL.
    pub platform: Option<&'static str>,
    /// The PCK CA of the collateral, by the root CRL.
    pub pck_ca: bool,
    /// The TCB signing certificate, by the root CRL.
    pub tcb_signer: bool,
    /// The root itself, by its own CRL.
    pub root: bool,
}

/// What collateral to make.
#[derive(Clone, Debug)]
pub struct CollateralOptions {
    /// For which platform family.
    pub fmspc: Fmspc,
    /// For which PCK CA.
    pub ca: CaType,
    /// For which technology.
    pub tee: Tee,
    /// tcbEvaluationDataNumber of both documents.
    pub evaluation_number: u32,
    /// Whether a TCB recovery has made the best platform level OutOfDate.
    pub recovery: bool,
    /// issueDate and nextUpdate of the TCB info.
    pub tcb_info: Validity,
    /// issueDate and nextUpdate of the QE identity.
    pub qe_identity: Validity,
    /// thisUpdate and nextUpdate of the root CRL.
    pub root_crl: Validity,
    /// thisUpdate and nextUpdate of the PCK CRL.
    pub pck_crl: Validity,
    /// What is revoked.
    pub revoked: Revoked,
}

impl CollateralOptions {
    /// Fresh collateral at `now` (unix seconds): issued an hour ago, and good for 30 days.
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

    /// The same, for another platform family and CA.
    #[must_use]
    pub fn for_key(self, key: CollateralKey) -> Self {
        Self {
            fmspc: key.fmspc,
            ca: key.ca,
            ..self
        }
    }
}
