//! Quotes, encoded byte by byte like those of hardware.
//!
//! The layouts are from Intel's "TDX DCAP Quoting Library API" (versions 4 and 5) and "SGX ECDSA Quote
//! Library Reference" (version 3). This module does not use dcap-qvl's encoder, so that encoder and
//! verifier cannot share a mistake. Certification data is of type 6 (QE report) around type 5 (PCK
//! chain), as in all quotes of dstack's hosts.

use sha2::{Digest, Sha256};

use super::tcb::{MODULE_SIGNER, PCE_SVN, QE_ATTRIBUTES, QE_SIGNER, qe_prod_id};
use super::{MockError, Platform, Tee};

/// Intel's QE vendor ID, 939A7233-F79C-4CA9-940A-0DB3957F0607.
const INTEL_QE_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];
/// ECDSA with P-256.
const KEY_TYPE_P256: u16 = 2;
const TEE_SGX: u32 = 0;
const TEE_TDX: u32 = 0x81;
/// Body type of version 5: TDX 1.0 report.
const BODY_TD_10: u16 = 2;
/// Body type of version 5: TDX 1.5 report.
const BODY_TD_15: u16 = 3;
/// Type of certification data: a PEM chain.
const PCK_CHAIN: u16 = 5;
/// Type of certification data: QE report, its signature, and nested certification data.
const QE_REPORT: u16 = 6;
/// QE authentication data. dcap-qvl accepts only a length of 32 bytes.
const QE_AUTH: [u8; 32] = [0xa5; 32];

/// TD attribute bit: debug. [Intel TDX Module ABI, "TD attributes"]
const ATTRIBUTE_DEBUG: u64 = 1;
/// TD attribute bit: no #VE for pending pages.
const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

/// Version and report type of a quote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuoteFormat {
    /// Version 4 with a TDX 1.0 report, as on dstack's hosts.
    #[default]
    V4,
    /// Version 5 with a TDX 1.0 report.
    V5Td10,
    /// Version 5 with a TDX 1.5 report.
    V5Td15,
    /// Version 3, SGX: not a TD.
    SgxV3,
}

/// The TDX module's report about a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// Version and report type of the quote.
    pub format: QuoteFormat,
    /// Measurement of the initial memory.
    pub mrtd: [u8; 48],
    /// Runtime measurement registers 0 to 2: firmware, kernel, command line and initrd.
    pub rtmr: [[u8; 48]; 3],
    /// Runtime measurement register 3: dstack's runtime events.
    pub rtmr3: [u8; 48],
    /// 64 bytes that the guest chooses.
    pub report_data: [u8; 64],
    /// Whether the debug bit is set.
    pub debug: bool,
    /// Attribute bits to set in addition to the usual ones.
    pub attributes: u64,
    /// XFAM.
    pub xfam: [u8; 8],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
    /// MRSEAM.
    pub mr_seam: [u8; 48],
    /// TEE_TCB_SVN; `None` derives it from the platform's levels.
    pub tee_tcb_svn: Option<[u8; 16]>,
    /// TEE_TCB_SVN2 of TDX 1.5: the current module, if it was updated below a running guest.
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// MRSERVICETD of TDX 1.5.
    pub mr_service_td: [u8; 48],
    /// Type of the inner certification data; 5 on hardware.
    pub certification: u16,
}

impl Default for TdReport {
    /// Version 4, not in debug mode, with invented measurements and report data of zeros.
    fn default() -> Self {
        Self {
            format: QuoteFormat::V4,
            mrtd: [0x11; 48],
            rtmr: [[0x20; 48], [0x21; 48], [0x22; 48]],
            rtmr3: [0; 48],
            report_data: [0; 64],
            debug: false,
            attributes: 0,
            xfam: [0xe7, 0x02, 0x06, 0x00, 0, 0, 0, 0],
            mr_config_id: [0; 48],
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            mr_seam: [0x5e; 48],
            tee_tcb_svn: None,
            tee_tcb_svn2: None,
            mr_service_td: [0; 48],
            certification: PCK_CHAIN,
        }
    }
}

impl Platform {
    /// Signs a quote over `report`.
    ///
    /// # Errors
    /// [`MockError::TooLong`] for a PCK chain of more than 4 GiB, which does not occur.
    pub fn quote(&self, report: &TdReport) -> Result<Vec<u8>, MockError> {
        let signed = self.signed_part(report);
        let auth = self.auth_data(report, &signed)?;
        Ok([&signed[..], &length32(&auth)?, &auth].concat())
    }

    /// Header and report, which the attestation key signs.
    fn signed_part(&self, report: &TdReport) -> Vec<u8> {
        let td = self.td_report_10(report);
        let body = |kind: u16, td: Vec<u8>| {
            let size = u32::try_from(td.len()).unwrap_or(u32::MAX);
            [&kind.to_le_bytes()[..], &size.to_le_bytes(), &td].concat()
        };
        match report.format {
            QuoteFormat::V4 => [header(4, TEE_TDX), td].concat(),
            QuoteFormat::V5Td10 => [header(5, TEE_TDX), body(BODY_TD_10, td)].concat(),
            QuoteFormat::V5Td15 => {
                let svn2 = report.tee_tcb_svn2.unwrap_or(self.tee_tcb_svn(report));
                let td = [&td[..], &svn2, &report.mr_service_td].concat();
                [header(5, TEE_TDX), body(BODY_TD_15, td)].concat()
            }
            QuoteFormat::SgxV3 => {
                let attributes = if report.debug { [0x07; 1] } else { [0x05; 1] };
                let enclave = enclave_report(
                    self.cpu_svn(),
                    pad(&attributes),
                    pad(&report.mrtd[..32]),
                    (1, 1),
                    report.report_data,
                );
                [header(3, TEE_SGX), enclave].concat()
            }
        }
    }

    /// TDREPORT of TDX 1.0: 584 bytes.
    fn td_report_10(&self, report: &TdReport) -> Vec<u8> {
        let debug = if report.debug { ATTRIBUTE_DEBUG } else { 0 };
        let attributes = ATTRIBUTE_SEPT_VE_DISABLE | debug | report.attributes;
        let [rtmr0, rtmr1, rtmr2] = &report.rtmr;
        [
            &self.tee_tcb_svn(report)[..],
            &report.mr_seam,
            &MODULE_SIGNER,            // MRSIGNERSEAM
            &[0; 8],                   // SEAMATTRIBUTES
            &attributes.to_le_bytes(), // TDATTRIBUTES
            &report.xfam,
            &report.mrtd,
            &report.mr_config_id,
            &report.mr_owner,
            &report.mr_owner_config,
            rtmr0,
            rtmr1,
            rtmr2,
            &report.rtmr3,
            &report.report_data,
        ]
        .concat()
    }

    /// The TDX module's patch level and major version (1 for TDX 1.0, 3 for TDX 1.5), and the microcode.
    fn tee_tcb_svn(&self, report: &TdReport) -> [u8; 16] {
        let version = if report.format == QuoteFormat::V5Td15 {
            3
        } else {
            1
        };
        report
            .tee_tcb_svn
            .unwrap_or(pad(&[self.options.module.svn(), version, 3]))
    }

    fn auth_data(&self, report: &TdReport, signed: &[u8]) -> Result<Vec<u8>, MockError> {
        let tee = match report.format {
            QuoteFormat::SgxV3 => Tee::Sgx,
            QuoteFormat::V4 | QuoteFormat::V5Td10 | QuoteFormat::V5Td15 => Tee::Tdx,
        };
        let qe_report = self.qe_report(tee);
        let chain = self.pck_chain_pem.as_bytes();
        let qe_data = [
            &qe_report[..],
            &self.pck_key.sign_raw(&qe_report),
            &length16(&QE_AUTH)?,
            &QE_AUTH,
            &report.certification.to_le_bytes(),
            &length32(chain)?,
            chain,
        ]
        .concat();
        let signature = self.attestation_key.sign_raw(signed);
        let head = [&signature[..], self.attestation_key.raw_public()].concat();
        match tee {
            Tee::Sgx => Ok([head, qe_data].concat()),
            Tee::Tdx => {
                let outer = [&QE_REPORT.to_le_bytes()[..], &length32(&qe_data)?].concat();
                Ok([head, outer, qe_data].concat())
            }
        }
    }

    /// The quoting enclave's report, which binds the attestation key.
    fn qe_report(&self, tee: Tee) -> Vec<u8> {
        let bound = Sha256::new()
            .chain_update(self.attestation_key.raw_public())
            .chain_update(QE_AUTH)
            .finalize();
        let id = (qe_prod_id(tee), self.options.qe.svn());
        enclave_report(self.cpu_svn(), QE_ATTRIBUTES, [0x9e; 32], id, pad(&bound))
    }
}

/// 48 bytes. The last 20 are user data: the QE's identifier and four zeros.
fn header(version: u16, tee: u32) -> Vec<u8> {
    // Version 3 has the SVNs of QE and PCE here; later versions have zeros.
    let (qe_svn, pce_svn) = if version == 3 {
        (8, u16::from(PCE_SVN))
    } else {
        (0, 0)
    };
    [
        &version.to_le_bytes()[..],
        &KEY_TYPE_P256.to_le_bytes(),
        &tee.to_le_bytes(),
        &u16::to_le_bytes(qe_svn),
        &pce_svn.to_le_bytes(),
        &INTEL_QE_VENDOR,
        &[0xd1; 16],
        &[0; 4],
    ]
    .concat()
}

/// The body of an SGX REPORT: 384 bytes.
fn enclave_report(
    cpu_svn: [u8; 16],
    attributes: [u8; 16],
    mr_enclave: [u8; 32],
    (product, svn): (u16, u16),
    report_data: [u8; 64],
) -> Vec<u8> {
    [
        &cpu_svn[..],
        &[0; 4], // MISCSELECT
        &[0; 28],
        &attributes,
        &mr_enclave,
        &[0; 32],
        &QE_SIGNER,
        &[0; 96],
        &product.to_le_bytes(),
        &svn.to_le_bytes(),
        &[0; 60],
        &report_data,
    ]
    .concat()
}

/// Pads `bytes` with zeros, or truncates them.
fn pad<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    padded
}

fn length16(bytes: &[u8]) -> Result<[u8; 2], MockError> {
    let length = u16::try_from(bytes.len()).map_err(|_| MockError::TooLong("QE data"))?;
    Ok(length.to_le_bytes())
}

fn length32(bytes: &[u8]) -> Result<[u8; 4], MockError> {
    let length = u32::try_from(bytes.len()).map_err(|_| MockError::TooLong("a quote"))?;
    Ok(length.to_le_bytes())
}
