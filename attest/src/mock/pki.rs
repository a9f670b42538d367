//! The mock PKI: Intel's root CA, PCK CAs and TCB signing certificate, and dstack's KMS CA.

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DistinguishedName, DnType, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use sha2::{Digest, Sha256};

use super::{Key, MockError};
use crate::collateral::CaType;

/// 2020-01-01T00:00:00Z.
const PKI_FROM: u64 = 1_577_836_800;
/// 2049-12-31T23:59:59Z, notAfter of Intel's own root.
const PKI_UNTIL: u64 = 2_524_607_999;
/// 9999-12-31T23:59:59Z, the last date that X.509 can express.
const LAST_DATE: u64 = 253_402_300_799;

/// A period of validity in unix seconds. Both ends are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// notBefore, thisUpdate or issueDate.
    pub from: u64,
    /// notAfter or nextUpdate.
    pub until: u64,
}

impl Default for Validity {
    /// 2020 to the end of 2049.
    fn default() -> Self {
        Self {
            from: PKI_FROM,
            until: PKI_UNTIL,
        }
    }
}

/// Validities of a [`Pki`]'s certificates.
#[derive(Clone, Copy, Debug, Default)]
pub struct PkiOptions {
    /// The root CA.
    pub root: Validity,
    /// Both PCK CAs.
    pub pck_ca: Validity,
    /// The certificate that signs TCB info and QE identity.
    pub tcb_signer: Validity,
    /// The KMS CA.
    pub kms: Validity,
    /// Number of the TCB signing certificate. Another number has another key, as after a revocation.
    /// [`Revoked::tcb_signer`](super::Revoked::tcb_signer) revokes number 0.
    pub tcb_signer_number: u8,
}

/// A CA: its certificate, and its name and key for signing.
pub(super) struct Ca {
    pub(super) der: Vec<u8>,
    pub(super) pem: String,
    pub(super) issuer: Issuer<'static, Key>,
}

/// The mock Intel PKI and the mock KMS CA, derived from one seed.
pub struct Pki {
    pub(super) seed: [u8; 32],
    pub(super) root: Ca,
    platform_ca: Ca,
    processor_ca: Ca,
    pub(super) kms: Ca,
    pub(super) tcb_signer_pem: String,
    pub(super) tcb_signer_key: Key,
}

impl Pki {
    /// Creates a PKI whose certificates are valid from 2020 to 2049.
    ///
    /// # Errors
    /// [`MockError`], which does not occur.
    pub fn new(seed: &[u8; 32]) -> Result<Self, MockError> {
        Self::with_options(seed, &PkiOptions::default())
    }

    /// Creates a PKI with `options`.
    ///
    /// # Errors
    /// [`MockError::Date`] for a date after the year 9999.
    pub fn with_options(seed: &[u8; 32], options: &PkiOptions) -> Result<Self, MockError> {
        let root = ca(
            seed,
            "root",
            intel_name("Mock SGX Root CA"),
            1,
            options.root,
            None,
        )?;
        let pck_ca = |label: &str, name: &str| {
            ca(
                seed,
                label,
                intel_name(name),
                0,
                options.pck_ca,
                Some(&root),
            )
        };
        let platform_ca = pck_ca("platform-ca", "Mock SGX PCK Platform CA")?;
        let processor_ca = pck_ca("processor-ca", "Mock SGX PCK Processor CA")?;
        let signer = match options.tcb_signer_number {
            0 => "tcb-signer".to_owned(),
            number => format!("tcb-signer {number}"),
        };
        let tcb_signer_key = Key::derive(seed, &signer)?;
        let mut params = params(seed, &signer, options.tcb_signer)?;
        params.distinguished_name = intel_name("Mock SGX TCB Signing");
        intel_leaf(&mut params, "rootcacrl");
        let tcb_signer = params.signed_by(&tcb_signer_key, &root.issuer)?;
        let mut kms_name = DistinguishedName::new();
        kms_name.push(DnType::OrganizationName, "Dstack");
        kms_name.push(DnType::CommonName, "Dstack KMS CA");
        Ok(Self {
            seed: *seed,
            platform_ca,
            processor_ca,
            kms: ca(seed, "kms", kms_name, 1, options.kms, None)?,
            tcb_signer_pem: tcb_signer.pem(),
            tcb_signer_key,
            root,
        })
    }

    /// The root CA in DER. Configured as `dangerous_tdx_root_ca`, it makes the mock verify.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root.der
    }

    /// The root CA in PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root.pem
    }

    /// The KMS CA in DER, for clients and sidecars to pin.
    #[must_use]
    pub fn kms_der(&self) -> &[u8] {
        &self.kms.der
    }

    /// The KMS CA in PEM.
    #[must_use]
    pub fn kms_pem(&self) -> &str {
        &self.kms.pem
    }

    pub(super) fn pck_ca(&self, ca: CaType) -> &Ca {
        match ca {
            CaType::Platform => &self.platform_ca,
            CaType::Processor => &self.processor_ca,
        }
    }
}

/// Certificate parameters that all certificates here share.
pub(super) fn params(
    seed: &[u8; 32],
    label: &str,
    validity: Validity,
) -> Result<CertificateParams, MockError> {
    let mut params = CertificateParams::default();
    params.not_before = date(validity.from)?;
    params.not_after = date(validity.until)?;
    params.serial_number = Some(serial(seed, label));
    Ok(params)
}

/// A positive serial number of 20 bytes, derived from the label so that a CRL can be made without the
/// certificate.
pub(super) fn serial(seed: &[u8; 32], label: &str) -> SerialNumber {
    let digest = Sha256::new()
        .chain_update(b"teesql mock serial\0")
        .chain_update(seed)
        .chain_update(label.as_bytes())
        .finalize();
    let mut serial = digest.get(..20).unwrap_or_default().to_vec();
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    SerialNumber::from_slice(&serial)
}

/// Converts unix seconds to rcgen's type.
pub(super) fn date<T>(unix_seconds: u64) -> Result<T, MockError>
where
    T: From<std::time::SystemTime>,
{
    if unix_seconds > LAST_DATE {
        return Err(MockError::Date(unix_seconds));
    }
    Ok(T::from(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix_seconds),
    ))
}

/// A name in Intel's order, with the common name first.
pub(super) fn intel_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "TeeSQL mock, not Intel");
    name.push(DnType::CountryName, "ZZ");
    name
}

/// Adds the extensions of Intel's leaf certificates: AKI, CRL distribution point, SKI, key usage, and
/// basic constraints without CA.
pub(super) fn intel_leaf(params: &mut CertificateParams, crl: &str) {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::ContentCommitment,
    ];
    params.use_authority_key_identifier_extension = true;
    params.crl_distribution_points = vec![CrlDistributionPoint {
        uris: vec![format!("https://pccs.invalid/sgx/certification/v4/{crl}")],
    }];
}

fn ca(
    seed: &[u8; 32],
    label: &str,
    name: DistinguishedName,
    path_length: u8,
    validity: Validity,
    issuer: Option<&Ca>,
) -> Result<Ca, MockError> {
    let key = Key::derive(seed, label)?;
    let mut params = params(seed, label, validity)?;
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let certificate = match issuer {
        None => params.self_signed(&key)?,
        Some(issuer) => {
            params.use_authority_key_identifier_extension = true;
            params.signed_by(&key, &issuer.issuer)?
        }
    };
    debug_assert_eq!(key.der_bytes().len(), 65);
    Ok(Ca {
        der: certificate.der().to_vec(),
        pem: certificate.pem(),
        issuer: Issuer::new(params, key),
    })
}
