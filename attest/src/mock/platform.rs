//! A platform at one patch level, with its PCK certificate in Intel's form.

use rcgen::CustomExtension;

use super::options::DEFAULT_FMSPC;
use super::pki::{date, intel_leaf, intel_name, params};
use super::tcb::PCE_SVN;
use super::{Key, MockError, ModuleLevel, Pki, PlatformLevel, QeLevel, Validity};
use crate::collateral::{CaType, CollateralKey, Fmspc};

/// id-ce-sGXExtensions, 1.2.840.113741.1.13.1. [Intel, "SGX PCK Certificate and CRL Profile", 1.4]
const SGX_EXTENSIONS: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];
/// The same OID as the content of a DER value.
const SGX_EXTENSIONS_DER: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];

const INTEGER: u8 = 0x02;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;

/// Options of a platform.
#[derive(Clone, Debug)]
pub struct PlatformOptions {
    /// Its name. Another name is another platform with its own keys and serial number.
    pub name: &'static str,
    /// Platform family.
    pub fmspc: Fmspc,
    /// The CA that issues its PCK certificate.
    pub ca: CaType,
    /// Patch level of the firmware.
    pub level: PlatformLevel,
    /// Patch level of the TDX module.
    pub module: ModuleLevel,
    /// Patch level of the quoting enclave.
    pub qe: QeLevel,
    /// Whether its PCK certificate says that SMT is on. Only the platform CA's certificates say it, and
    /// the two following.
    pub smt: bool,
    /// Whether packages can be added to it.
    pub dynamic_platform: bool,
    /// Whether Intel keeps its root keys.
    pub cached_keys: bool,
    /// Validity of the PCK certificate.
    pub validity: Validity,
}

impl Default for PlatformOptions {
    /// Up to date, with a certificate of the platform CA.
    fn default() -> Self {
        Self {
            name: "machine 1",
            fmspc: DEFAULT_FMSPC,
            ca: CaType::Platform,
            level: PlatformLevel::default(),
            module: ModuleLevel::default(),
            qe: QeLevel::default(),
            smt: true,
            dynamic_platform: true,
            cached_keys: true,
            validity: Validity::default(),
        }
    }
}

impl PlatformOptions {
    /// The default platform with its firmware at `level`.
    #[must_use]
    pub fn with_level(level: PlatformLevel) -> Self {
        Self {
            level,
            ..Self::default()
        }
    }
}

/// A platform that can quote.
pub struct Platform {
    pub(super) options: PlatformOptions,
    pub(super) pck_key: Key,
    /// The attestation key of its quoting enclave.
    pub(super) attestation_key: Key,
    /// PCK certificate, PCK CA and root: the content of certification data of type 5.
    pub(super) pck_chain_pem: String,
}

impl Platform {
    /// Issues the platform's PCK certificate by the CA of `pki` that `options` names.
    ///
    /// # Errors
    /// [`MockError::Date`] for a date after the year 9999.
    pub fn new(pki: &Pki, options: &PlatformOptions) -> Result<Self, MockError> {
        let label = format!("pck {}", options.name);
        let pck_key = Key::derive(&pki.seed, &label)?;
        let mut params = params(&pki.seed, &label, options.validity)?;
        params.not_after = date(options.validity.until)?;
        params.distinguished_name = intel_name("Mock SGX PCK Certificate");
        intel_leaf(
            &mut params,
            &format!("pckcrl?ca={}&encoding=der", options.ca.as_str()),
        );
        let extension = CustomExtension::from_oid_content(&SGX_EXTENSIONS, sgx_extension(options)?);
        params.custom_extensions.push(extension);
        let ca = pki.pck_ca(options.ca);
        let pck = params.signed_by(&pck_key, &ca.issuer)?;
        Ok(Self {
            pck_chain_pem: format!("{}{}{}", pck.pem(), ca.pem, pki.root.pem),
            attestation_key: Key::derive(&pki.seed, &format!("attestation {}", options.name))?,
            pck_key,
            options: options.clone(),
        })
    }

    /// The key of the collateral for this platform.
    #[must_use]
    pub fn collateral_key(&self) -> CollateralKey {
        CollateralKey {
            fmspc: self.options.fmspc,
            ca: self.options.ca,
        }
    }

    /// CPUSVN of the PCK certificate.
    pub(super) fn cpu_svn(&self) -> [u8; 16] {
        cpu_svn(&self.options)
    }
}

fn cpu_svn(options: &PlatformOptions) -> [u8; 16] {
    let mut svn = [0; 16];
    let (first, _) = svn.split_at_mut(4);
    first.copy_from_slice(&[options.level.svn(), 2, 2, 2]);
    svn
}

/// The content of the SGX extension: PPID, TCB, PCEID, FMSPC and type. Certificates of the platform CA
/// also have the platform instance and its configuration.
fn sgx_extension(options: &PlatformOptions) -> Result<Vec<u8>, MockError> {
    let ppid = Key::derive(&[0; 32], options.name)?.report_data();
    let id = |at: usize| ppid.get(at..at + 16).unwrap_or_default().to_vec();
    let mut fields = vec![
        entry(&[1], OCTET_STRING, &id(0))?,
        entry(&[2], SEQUENCE, &tcb_field(options)?)?,
        entry(&[3], OCTET_STRING, &[0, 0])?,
        entry(&[4], OCTET_STRING, &options.fmspc.0)?,
    ];
    match options.ca {
        CaType::Processor => fields.push(entry(&[5], ENUMERATED, &[0])?),
        CaType::Platform => {
            let flag =
                |which, set: bool| entry(&[7, which], BOOLEAN, &[if set { 0xff } else { 0 }]);
            fields.push(entry(&[5], ENUMERATED, &[1])?);
            fields.push(entry(&[6], OCTET_STRING, &id(16))?);
            fields.push(entry(
                &[7],
                SEQUENCE,
                &[
                    flag(1, options.dynamic_platform)?,
                    flag(2, options.cached_keys)?,
                    flag(3, options.smt)?,
                ]
                .concat(),
            )?);
        }
    }
    tlv(SEQUENCE, &fields.concat())
}

fn tcb_field(options: &PlatformOptions) -> Result<Vec<u8>, MockError> {
    let svn = cpu_svn(options);
    let mut fields = Vec::new();
    for (which, component) in (1..).zip(svn) {
        fields.push(entry(&[2, which], INTEGER, &[component])?);
    }
    fields.push(entry(&[2, 17], INTEGER, &[PCE_SVN])?);
    fields.push(entry(&[2, 18], OCTET_STRING, &svn)?);
    Ok(fields.concat())
}

/// `SEQUENCE { OID under the SGX extension, value }`.
fn entry(arc: &[u8], tag: u8, value: &[u8]) -> Result<Vec<u8>, MockError> {
    let oid = tlv(OID, &[&SGX_EXTENSIONS_DER[..], arc].concat())?;
    tlv(SEQUENCE, &[oid, tlv(tag, value)?].concat())
}

/// A DER value of less than 64 KiB: tag, length, content.
pub(super) fn tlv(tag: u8, value: &[u8]) -> Result<Vec<u8>, MockError> {
    let length = u16::try_from(value.len()).map_err(|_| MockError::TooLong("a DER value"))?;
    let [high, low] = length.to_be_bytes();
    let header = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    Ok([&header, value].concat())
}
