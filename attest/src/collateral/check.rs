//! Verifies collateral before it is cached: signatures, revocation and dates.
//!
//! dcap-qvl 0.7 has no function that verifies collateral without a quote, and it does not verify the PCK
//! CRL unless a PCK chain leads to it. So the checks are made here, with x509-parser and ring, for the
//! one structure that Intel's PKI has: the root issues each signer directly, and the PCK CA signs the PCK
//! CRL. For that structure they are at least as strict as dcap-qvl's (webpki's). If Intel changes the
//! structure, fetched collateral is refused here and the cached set stays.

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::revocation_list::CertificateRevocationList;

use super::error::{CollateralError, Part};
use super::set::Collateral;
use super::validity::{Validity, certificate, crl, pem};

impl Collateral {
    /// Verifies every signature up to `root` (DER), revocation, and every date at `now` (Unix seconds).
    ///
    /// # Errors
    /// The [`CollateralError`] of the first wrong part.
    pub fn check(&self, root: &[u8], now: u64) -> Result<(), CollateralError> {
        let qvl = self.as_qvl();
        let root = certificate(Part::Root, root)?;
        check_validity(Part::Root, validity_of(&root), now)?;

        let root_crl = crl(Part::RootCrl, &qvl.root_ca_crl)?;
        check_crl(Part::RootCrl, &root_crl, &root, now)?;
        not_revoked(Part::Root, &root, &root_crl)?;
        let issued_by_root =
            |part, signer: &str, ca| check_issued(part, signer, ca, &root, &root_crl, now);

        let signer = issued_by_root(Part::TcbInfoSigner, &qvl.tcb_info_issuer_chain, false)?;
        check_json(
            Part::TcbInfo,
            &signer,
            qvl.tcb_info.as_bytes(),
            &qvl.tcb_info_signature,
        )?;

        let signer = issued_by_root(Part::QeIdentitySigner, &qvl.qe_identity_issuer_chain, false)?;
        check_json(
            Part::QeIdentity,
            &signer,
            qvl.qe_identity.as_bytes(),
            &qvl.qe_identity_signature,
        )?;

        let pck_ca = issued_by_root(Part::PckCa, &qvl.pck_crl_issuer_chain, true)?;
        let pck_ca = certificate(Part::PckCa, &pck_ca)?;
        check_crl(
            Part::PckCrl,
            &crl(Part::PckCrl, &qvl.pck_crl)?,
            &pck_ca,
            now,
        )?;

        // All other dates were checked above: these are the dates of the JSON.
        check_validity(Part::TcbInfo, self.tcb_info_validity(), now)?;
        check_validity(Part::QeIdentity, self.qe_identity_validity(), now)?;
        Ok(())
    }
}

/// Verifies that the signer is issued by the root, in date and not revoked. Gives it in DER.
fn check_issued(
    part: Part,
    signer: &str,
    is_ca: bool,
    root: &X509Certificate<'_>,
    root_crl: &CertificateRevocationList<'_>,
    now: u64,
) -> Result<Vec<u8>, CollateralError> {
    let der = pem(part, signer)?.contents;
    let signer = certificate(part, &der)?;
    if signer.is_ca() != is_ca || signer.issuer().as_raw() != root.subject().as_raw() {
        return Err(CollateralError::WrongIssuer { part });
    }
    signer
        .verify_signature(Some(root.public_key()))
        .map_err(|_| CollateralError::BadSignature { part })?;
    check_validity(part, validity_of(&signer), now)?;
    not_revoked(part, &signer, root_crl)?;
    drop(signer);
    Ok(der)
}

fn check_crl(
    part: Part,
    crl: &CertificateRevocationList<'_>,
    issuer: &X509Certificate<'_>,
    now: u64,
) -> Result<(), CollateralError> {
    if crl.issuer().as_raw() != issuer.subject().as_raw() {
        return Err(CollateralError::WrongIssuer { part });
    }
    crl.verify_signature(issuer.public_key())
        .map_err(|_| CollateralError::BadSignature { part })?;
    let mut validity = Validity::default();
    validity.crl(part, crl.as_raw())?;
    check_validity(part, validity, now)
}

fn not_revoked(
    part: Part,
    certificate: &X509Certificate<'_>,
    crl: &CertificateRevocationList<'_>,
) -> Result<(), CollateralError> {
    let serial = certificate.raw_serial();
    match crl
        .iter_revoked_certificates()
        .any(|revoked| revoked.raw_serial() == serial)
    {
        true => Err(CollateralError::Revoked { part }),
        false => Ok(()),
    }
}

/// Verifies the signature of a JSON document. Intel signs the exact bytes of the JSON value, with ECDSA
/// P-256 and SHA-256, as `r || s`.
fn check_json(
    part: Part,
    signer: &[u8],
    json: &[u8],
    signature: &[u8],
) -> Result<(), CollateralError> {
    let signer = certificate(part, signer)?;
    let point = signer.public_key().subject_public_key.data.as_ref();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(json, signature)
        .map_err(|_| CollateralError::BadSignature { part })
}

fn validity_of(certificate: &X509Certificate<'_>) -> Validity {
    let mut validity = Validity::default();
    validity.certificate(certificate);
    validity
}

fn check_validity(part: Part, validity: Validity, now: u64) -> Result<(), CollateralError> {
    if now < validity.from {
        Err(CollateralError::NotYetValid {
            part,
            from: validity.from,
        })
    } else if now >= validity.until {
        Err(CollateralError::Expired {
            part,
            at: validity.until,
        })
    } else {
        Ok(())
    }
}
