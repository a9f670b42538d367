//! One parsed set of collateral: for which platforms it is, and until when it is valid.

use std::fmt;

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};
use sha2::{Digest, Sha256};

use super::error::{CollateralError, Part};
use super::key::{CaType, CollateralKey, parse_fmspc};
use super::validity::{Validity, crl, first_of_chain, malformed};
use crate::denial::Denial;
use crate::limits::{MAX_COLLATERAL_JSON_LEN, MAX_COLLATERAL_PART_LEN, MAX_ISSUER_CHAIN_LEN};

/// How new a signed JSON document is: Intel's evaluation number first, since Intel re-signs old
/// evaluations with new dates, then the date of issue.
type Freshness = (u32, u64);

/// A parsed set of collateral for one [`CollateralKey`].
///
/// Parsing does not verify it: [`Collateral::check`] does, and dcap-qvl does again with each quote.
#[derive(Clone)]
pub struct Collateral {
    qvl: QuoteCollateralV3,
    key: CollateralKey,
    valid_from: u64,
    expires_at: u64,
    digest: [u8; 32],
    parts: Parts,
}

/// The validity of each separately signed part with its issuer chain, and how new the part is.
#[derive(Clone)]
struct Parts {
    tcb_info: (Validity, Freshness),
    qe_identity: (Validity, Freshness),
    root_crl: (Validity, u64),
    pck_crl: (Validity, u64),
}

impl Collateral {
    /// Parses `qvl`, and drops what no signature covers. Of each issuer chain only the signer is kept,
    /// since the certificate above it is the trusted root or worthless. The PCK certificate chain is dropped,
    /// since it belongs to one quote, and dcap-qvl would prefer it to the quote's own.
    ///
    /// # Errors
    /// [`CollateralError`] for collateral that is too large, malformed, or not for TDX. Signatures and dates
    /// are not checked.
    pub fn parse(mut qvl: QuoteCollateralV3) -> Result<Self, CollateralError> {
        qvl.pck_certificate_chain = None;
        cap_sizes(&qvl)?;
        for (part, chain) in [
            (Part::TcbInfoSigner, &mut qvl.tcb_info_issuer_chain),
            (Part::QeIdentitySigner, &mut qvl.qe_identity_issuer_chain),
            (Part::PckCa, &mut qvl.pck_crl_issuer_chain),
        ] {
            *chain = first_of_chain(part, chain)?;
        }
        let tcb_info: TcbInfo = serde_json::from_str(&qvl.tcb_info)
            .map_err(|_| malformed(Part::TcbInfo, "no TCB info that dcap-qvl can read"))?;
        if tcb_info.id != "TDX" || tcb_info.version < 3 {
            return Err(CollateralError::NotTdx);
        }
        let qe_identity: QeIdentity = serde_json::from_str(&qvl.qe_identity)
            .map_err(|_| malformed(Part::QeIdentity, "no QE identity that dcap-qvl can read"))?;
        if qe_identity.id != "TD_QE" {
            return Err(CollateralError::NotTdx);
        }
        let fmspc = parse_fmspc(&tcb_info.fmspc).ok_or(malformed(
            Part::TcbInfo,
            "the FMSPC is not six bytes of hex",
        ))?;
        let parts = Parts::read(&qvl, &tcb_info, &qe_identity)?;
        let validity = parts.validity();
        Ok(Self {
            key: CollateralKey {
                fmspc,
                ca: ca_of_crl(&qvl.pck_crl)?,
            },
            valid_from: validity.from,
            expires_at: validity.until,
            digest: digest(&qvl),
            parts,
            qvl,
        })
    }

    /// Parses the JSON form of dcap-qvl's `QuoteCollateralV3` (byte fields as hex), which dcap-qvl's
    /// command line writes and [`DiskCache`](super::DiskCache) keeps.
    ///
    /// # Errors
    /// As [`Collateral::parse`].
    pub fn from_json(json: &[u8]) -> Result<Self, CollateralError> {
        if json.len() > MAX_COLLATERAL_JSON_LEN {
            return Err(CollateralError::TooLarge {
                part: Part::TcbInfo,
                bytes: json.len(),
                limit: MAX_COLLATERAL_JSON_LEN,
            });
        }
        let qvl = serde_json::from_slice(json)
            .map_err(|_| malformed(Part::TcbInfo, "no QuoteCollateralV3 in JSON"))?;
        Self::parse(qvl)
    }

    /// Serialises to the JSON form that [`Collateral::from_json`] parses.
    ///
    /// # Errors
    /// [`CollateralError::Malformed`] if serialisation fails, which strings and bytes cannot.
    pub fn to_json(&self) -> Result<Vec<u8>, CollateralError> {
        serde_json::to_vec(&self.qvl)
            .map_err(|_| malformed(Part::TcbInfo, "cannot be written as JSON"))
    }

    /// The form in which dcap-qvl takes it.
    #[must_use]
    pub fn as_qvl(&self) -> &QuoteCollateralV3 {
        &self.qvl
    }

    /// The platforms that it is for.
    #[must_use]
    pub fn key(&self) -> CollateralKey {
        self.key
    }

    /// The first second at which every part is valid, in Unix seconds.
    #[must_use]
    pub fn valid_from(&self) -> u64 {
        self.valid_from
    }

    /// The first second at which some part is not valid any more, in Unix seconds: the earliest nextUpdate
    /// or notAfter of all parts and their issuers.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Checks that `now`, in Unix seconds, is within the validity of every part.
    ///
    /// # Errors
    /// [`Denial::CollateralNotYetValid`], [`Denial::CollateralExpired`].
    pub fn check_dates(&self, now: u64) -> Result<(), Denial> {
        if now < self.valid_from {
            Err(Denial::CollateralNotYetValid)
        } else if now >= self.expires_at {
            Err(Denial::CollateralExpired)
        } else {
            Ok(())
        }
    }

    /// When Intel issued the TCB info, in Unix seconds.
    #[must_use]
    pub fn tcb_info_issued_at(&self) -> u64 {
        let (_, (_, issued)) = self.parts.tcb_info;
        issued
    }

    /// The number of Intel's TCB evaluation: the smaller `tcbEvaluationDataNumber` of TCB info and QE identity, which a
    /// PCCS can take from different evaluations.
    #[must_use]
    pub fn tcb_evaluation_number(&self) -> u32 {
        let (_, (of_tcb_info, _)) = self.parts.tcb_info;
        let (_, (of_qe_identity, _)) = self.parts.qe_identity;
        of_tcb_info.min(of_qe_identity)
    }

    /// Whether every part is valid at `now`, in Unix seconds.
    #[must_use]
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.valid_from..self.expires_at).contains(&now)
    }

    /// SHA-256 of the content. Two sets with the same digest give the same verdicts.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Merges two sets into the one with the newer of each part: TCB info, QE identity and the two CRLs.
    ///
    /// Each part is signed separately, so a mixture of genuine parts is genuine. Because of the merge a
    /// PCCS cannot bring back an older TCB info or CRL, and two caches of different age under one name do no
    /// harm. A part of `cached` that has expired at `now` is replaced whatever its age.
    ///
    /// # Errors
    /// [`CollateralError::WrongKey`] if the two are for different platforms. None otherwise, for two parsed
    /// sets.
    pub fn merge_newest(cached: &Self, fetched: &Self, now: u64) -> Result<Self, CollateralError> {
        let mut qvl = Self::merge_newest_crls(cached, fetched, now)?.qvl;
        let (old, new) = (&cached.parts, &fetched.parts);
        if new.tcb_info.1 <= old.tcb_info.1 && old.tcb_info.0.contains(now) {
            qvl.tcb_info.clone_from(&cached.qvl.tcb_info);
            qvl.tcb_info_signature
                .clone_from(&cached.qvl.tcb_info_signature);
            qvl.tcb_info_issuer_chain
                .clone_from(&cached.qvl.tcb_info_issuer_chain);
        }
        if new.qe_identity.1 <= old.qe_identity.1 && old.qe_identity.0.contains(now) {
            qvl.qe_identity.clone_from(&cached.qvl.qe_identity);
            qvl.qe_identity_signature
                .clone_from(&cached.qvl.qe_identity_signature);
            qvl.qe_identity_issuer_chain
                .clone_from(&cached.qvl.qe_identity_issuer_chain);
        }
        Self::parse(qvl)
    }

    /// Merges only the CRLs: the result has the newer of each CRL, and the rest of `fetched`. Used when a
    /// newer CRL has revoked the signer of a part of `cached`.
    ///
    /// # Errors
    /// As [`Collateral::merge_newest`].
    pub fn merge_newest_crls(
        cached: &Self,
        fetched: &Self,
        now: u64,
    ) -> Result<Self, CollateralError> {
        if cached.key != fetched.key {
            return Err(CollateralError::WrongKey);
        }
        let mut qvl = fetched.qvl.clone();
        let (old, new) = (&cached.parts, &fetched.parts);
        if new.root_crl.1 <= old.root_crl.1 && old.root_crl.0.contains(now) {
            qvl.root_ca_crl.clone_from(&cached.qvl.root_ca_crl);
        }
        if new.pck_crl.1 <= old.pck_crl.1 && old.pck_crl.0.contains(now) {
            qvl.pck_crl.clone_from(&cached.qvl.pck_crl);
            qvl.pck_crl_issuer_chain
                .clone_from(&cached.qvl.pck_crl_issuer_chain);
        }
        Self::parse(qvl)
    }

    /// The validity of the TCB info and its signer.
    pub(super) fn tcb_info_validity(&self) -> Validity {
        self.parts.tcb_info.0
    }

    /// The validity of the QE identity and its signer.
    pub(super) fn qe_identity_validity(&self) -> Validity {
        self.parts.qe_identity.0
    }
}

impl Parts {
    fn read(
        qvl: &QuoteCollateralV3,
        tcb_info: &TcbInfo,
        qe_identity: &QeIdentity,
    ) -> Result<Self, CollateralError> {
        let mut tcb = Validity::default();
        tcb.pem(Part::TcbInfoSigner, &qvl.tcb_info_issuer_chain)?;
        let tcb_issued = tcb.json(Part::TcbInfo, &tcb_info.issue_date, &tcb_info.next_update)?;
        let mut qe = Validity::default();
        qe.pem(Part::QeIdentitySigner, &qvl.qe_identity_issuer_chain)?;
        let qe_issued = qe.json(
            Part::QeIdentity,
            &qe_identity.issue_date,
            &qe_identity.next_update,
        )?;
        let mut root_crl = Validity::default();
        let root_crl_issued = root_crl.crl(Part::RootCrl, &qvl.root_ca_crl)?;
        let mut pck_crl = Validity::default();
        pck_crl.pem(Part::PckCa, &qvl.pck_crl_issuer_chain)?;
        let pck_crl_issued = pck_crl.crl(Part::PckCrl, &qvl.pck_crl)?;
        Ok(Self {
            tcb_info: (tcb, (tcb_info.tcb_evaluation_data_number, tcb_issued)),
            qe_identity: (qe, (qe_identity.tcb_evaluation_data_number, qe_issued)),
            root_crl: (root_crl, root_crl_issued),
            pck_crl: (pck_crl, pck_crl_issued),
        })
    }

    /// The intersection of all four validities.
    fn validity(&self) -> Validity {
        let mut all = Validity::default();
        for part in [
            self.tcb_info.0,
            self.qe_identity.0,
            self.root_crl.0,
            self.pck_crl.0,
        ] {
            all.add(part.from, part.until);
        }
        all
    }
}

impl fmt::Debug for Collateral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collateral")
            .field("key", &self.key)
            .field("valid_from", &self.valid_from)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Collateral {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Collateral {}

fn cap_sizes(qvl: &QuoteCollateralV3) -> Result<(), CollateralError> {
    let sizes = [
        (Part::TcbInfo, qvl.tcb_info.len(), MAX_COLLATERAL_PART_LEN),
        (
            Part::QeIdentity,
            qvl.qe_identity.len(),
            MAX_COLLATERAL_PART_LEN,
        ),
        (
            Part::RootCrl,
            qvl.root_ca_crl.len(),
            MAX_COLLATERAL_PART_LEN,
        ),
        (Part::PckCrl, qvl.pck_crl.len(), MAX_COLLATERAL_PART_LEN),
        (
            Part::TcbInfoSigner,
            qvl.tcb_info_issuer_chain.len(),
            MAX_ISSUER_CHAIN_LEN,
        ),
        (
            Part::QeIdentitySigner,
            qvl.qe_identity_issuer_chain.len(),
            MAX_ISSUER_CHAIN_LEN,
        ),
        (
            Part::PckCa,
            qvl.pck_crl_issuer_chain.len(),
            MAX_ISSUER_CHAIN_LEN,
        ),
    ];
    match sizes.into_iter().find(|(_, bytes, limit)| bytes > limit) {
        Some((part, bytes, limit)) => Err(CollateralError::TooLarge { part, bytes, limit }),
        None => Ok(()),
    }
}

fn digest(qvl: &QuoteCollateralV3) -> [u8; 32] {
    let mut hash = Sha256::new();
    let fields: [&[u8]; 9] = [
        qvl.tcb_info.as_bytes(),
        &qvl.tcb_info_signature,
        qvl.tcb_info_issuer_chain.as_bytes(),
        qvl.qe_identity.as_bytes(),
        &qvl.qe_identity_signature,
        qvl.qe_identity_issuer_chain.as_bytes(),
        &qvl.root_ca_crl,
        &qvl.pck_crl,
        qvl.pck_crl_issuer_chain.as_bytes(),
    ];
    for field in fields {
        hash.update(u64::try_from(field.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

fn ca_of_crl(der: &[u8]) -> Result<CaType, CollateralError> {
    let crl = crl(Part::PckCrl, der)?;
    let name = crl.issuer().iter_common_name().next();
    name.and_then(|name| name.as_str().ok())
        .and_then(CaType::from_name)
        .ok_or(malformed(
            Part::PckCrl,
            "the issuer is neither the platform nor the processor CA",
        ))
}
