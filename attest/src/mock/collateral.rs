//! The mock PKI's collateral: signed JSON and CRLs, with any dates and revocations.

use dcap_qvl::QuoteCollateralV3;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};

use super::options::{CollateralOptions, Revoked};
use super::pki::{Ca, date, serial};
use super::tcb::{qe_identity, tcb_info};
use super::{MockError, Pki, Validity};
use crate::collateral::{Collateral, CollateralError};

impl Pki {
    /// Signs collateral, in dcap-qvl's form.
    ///
    /// # Errors
    /// [`MockError::Date`] for a date after the year 9999; [`MockError::Certificate`] for a CRL whose
    /// nextUpdate is not after its thisUpdate.
    pub fn collateral(&self, options: &CollateralOptions) -> Result<QuoteCollateralV3, MockError> {
        for validity in [options.tcb_info, options.qe_identity] {
            date::<std::time::SystemTime>(validity.from.max(validity.until))?;
        }
        let tcb_info = tcb_info(options.fmspc, options);
        let qe_identity = qe_identity(options);
        let pck_ca = self.pck_ca(options.ca);
        let signer_chain = format!("{}{}", self.tcb_signer_pem, self.root.pem);
        let sign = |json: &str| self.tcb_signer_key.sign_raw(json.as_bytes()).to_vec();
        Ok(QuoteCollateralV3 {
            pck_crl_issuer_chain: format!("{}{}", pck_ca.pem, self.root.pem),
            root_ca_crl: crl(&self.root, options.root_crl, self.revoked_by_root(options))?,
            pck_crl: crl(pck_ca, options.pck_crl, self.revoked_by_pck_ca(options))?,
            tcb_info_issuer_chain: signer_chain.clone(),
            tcb_info_signature: sign(&tcb_info),
            tcb_info,
            qe_identity_issuer_chain: signer_chain,
            qe_identity_signature: sign(&qe_identity),
            qe_identity,
            pck_certificate_chain: None,
        })
    }

    /// The same, parsed as for the collateral store.
    ///
    /// # Errors
    /// The errors of [`Pki::collateral`], and [`MockError::Evidence`] for collateral that is not for TDX.
    pub fn parsed_collateral(&self, options: &CollateralOptions) -> Result<Collateral, MockError> {
        Collateral::parse(self.collateral(options)?)
            .map_err(|error: CollateralError| MockError::Evidence(error.to_string()))
    }

    fn revoked_by_root(&self, options: &CollateralOptions) -> Vec<SerialNumber> {
        let ca = format!("{}-ca", options.ca.as_str());
        let Revoked {
            pck_ca,
            tcb_signer,
            root,
            platform: _,
        } = options.revoked;
        [
            (pck_ca, ca.as_str()),
            (tcb_signer, "tcb-signer"),
            (root, "root"),
        ]
        .into_iter()
        .filter(|(revoked, _)| *revoked)
        .map(|(_, label)| serial(&self.seed, label))
        .collect()
    }

    fn revoked_by_pck_ca(&self, options: &CollateralOptions) -> Vec<SerialNumber> {
        // Intel's list is never empty, so an unrelated entry is always present.
        let platform = options
            .revoked
            .platform
            .map(|name| serial(&self.seed, &format!("pck {name}")));
        [serial(&self.seed, "a PCK certificate of old")]
            .into_iter()
            .chain(platform)
            .collect()
    }
}

fn crl(ca: &Ca, validity: Validity, revoked: Vec<SerialNumber>) -> Result<Vec<u8>, MockError> {
    let revoked_certs = revoked
        .into_iter()
        .map(|serial_number| {
            Ok(RevokedCertParams {
                serial_number,
                revocation_time: date(validity.from)?,
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            })
        })
        .collect::<Result<Vec<_>, MockError>>()?;
    let params = CertificateRevocationListParams {
        this_update: date(validity.from)?,
        next_update: date(validity.until)?,
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&ca.issuer)?.der().to_vec())
}
