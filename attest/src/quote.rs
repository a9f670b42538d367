//! A parser of TDX quotes: header, report and the PCK chain, before any signature is verified.
//!
//! Every value is only claimed by the peer until [`Verifier`](crate::Verifier) has verified the quote. dcap-qvl
//! parses the same bytes again. This parser exists for the binding and for precise denials, and checks every
//! inner length, so that dcap-qvl never allocates for a wrong one.
//!
//! Layout: Intel, "TDX DCAP Quoting Library API", A.3 (version 4) and A.4 (version 5).

use std::fmt;

use crate::denial::Denial;
pub use crate::limits::MAX_QUOTE_LEN;
use crate::values::{Mrtd, Rtmr};

/// Size of report data in bytes: the data that a TD chooses.
pub const REPORT_DATA_LEN: usize = 64;

const HEADER_LEN: usize = 48;
const TEE_SGX: u32 = 0;
const TEE_TDX: u32 = 0x81;
const KEY_ECDSA_P256: u16 = 2;
const KEY_ECDSA_P384: u16 = 3;
/// Body types of version 5 and their lengths.
const BODY_SGX: u16 = 1;
const BODY_TD_1_0: u16 = 2;
const BODY_TD_1_5: u16 = 3;
const BODY_TD_1_5_EX: u16 = 4;
const TD_1_0_LEN: usize = 584;
const TD_1_5_LEN: usize = 648;
const TD_1_5_EX_LEN: usize = 885;
/// Certification data: the QE report with what certifies it, and in it the PCK chain as PEM.
const CERTIFICATION_QE_REPORT: u16 = 6;
const CERTIFICATION_PCK_CHAIN: u16 = 5;
/// Signature and attestation key, and the QE's report and its signature.
const SIGNATURE_AND_KEY_LEN: usize = 64 + 64;
const QE_REPORT_AND_SIGNATURE_LEN: usize = 384 + 64;

/// A well-formed TDX quote. Its signatures are not verified.
#[derive(Clone, PartialEq, Eq)]
pub struct TdQuote {
    bytes: Box<[u8]>,
    version: u16,
    report: TdReport,
    pck_chain: (usize, usize),
}

/// The first fields of any quote of Intel's, which select its parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuoteHeader {
    /// 3 is SGX only, 4 and 5 are SGX or TDX.
    pub version: u16,
    /// The algorithm of the attestation key; 2 is ECDSA P-256.
    pub key_type: u16,
    /// `0x81` is TDX, 0 is SGX.
    pub tee_type: u32,
}

/// The TD report in a quote.
#[derive(Clone, PartialEq, Eq)]
pub struct TdReport {
    kind: ReportKind,
    tee_tcb_svn: [u8; 16],
    mr_seam: [u8; 48],
    attributes: [u8; 8],
    xfam: [u8; 8],
    mrtd: [u8; 48],
    mr_config_id: [u8; 48],
    mr_owner: [u8; 48],
    mr_owner_config: [u8; 48],
    rtmrs: [[u8; 48]; 4],
    report_data: [u8; 64],
}

/// The type of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportKind {
    /// TDX 1.0.
    Td10,
    /// TDX 1.5.
    Td15,
    /// TDX 1.5 with the extended report.
    Td15Ex,
}

impl TdQuote {
    /// Parses a quote. Zeros after it are allowed: TDX guests return the whole buffer that the quote was written
    /// to.
    ///
    /// # Errors
    /// [`Denial::NotTdx`] for SGX, [`Denial::UnsupportedQuote`] for quotes that dcap-qvl does not verify,
    /// [`Denial::MalformedEvidence`] for everything else.
    pub fn parse(bytes: &[u8]) -> Result<Self, Denial> {
        if bytes.len() > MAX_QUOTE_LEN {
            return Err(Denial::MalformedEvidence("the quote is too large"));
        }
        let mut cursor = Cursor { rest: bytes };
        let (version, kind) = read_header(&mut cursor)?;
        let report = TdReport::read(&mut cursor, kind)?;
        let signature_data = cursor.take_u32_prefixed()?;
        if cursor.rest.iter().any(|byte| *byte != 0) {
            return Err(Denial::MalformedEvidence("there are bytes after the quote"));
        }
        let start = bytes.len() - cursor.rest.len() - signature_data.len();
        let (offset, len) = find_pck_chain(signature_data)?;
        Ok(Self {
            bytes: bytes.into(),
            version,
            report,
            pck_chain: (start + offset, len),
        })
    }

    /// The quote as presented.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// 4 or 5.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The TD report.
    #[must_use]
    pub fn report(&self) -> &TdReport {
        &self.report
    }

    /// The PCK certificate chain in PEM.
    #[must_use]
    pub fn pck_chain(&self) -> &[u8] {
        let (start, len) = self.pck_chain;
        self.bytes
            .get(start..)
            .and_then(|rest| rest.get(..len))
            .unwrap_or_default()
    }
}

impl fmt::Debug for TdQuote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TdQuote")
            .field("version", &self.version)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl QuoteHeader {
    /// Parses the header of a quote of any technology.
    ///
    /// # Errors
    /// [`Denial::MalformedEvidence`] for fewer bytes than a header has.
    pub fn read(bytes: &[u8]) -> Result<Self, Denial> {
        Self::take(&mut Cursor { rest: bytes })
    }

    /// Whether the fields have values of Intel's quotes. Text, DER and the envelopes begin with other bytes.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        matches!(self.version, 3..=5) && matches!(self.key_type, KEY_ECDSA_P256 | KEY_ECDSA_P384)
    }

    fn take(cursor: &mut Cursor<'_>) -> Result<Self, Denial> {
        let header = Self {
            version: cursor.take_u16()?,
            key_type: cursor.take_u16()?,
            tee_type: cursor.take_u32()?,
        };
        cursor.take(HEADER_LEN - 8)?;
        Ok(header)
    }
}

/// The header, and for version 5 the body's type and length.
fn read_header(cursor: &mut Cursor<'_>) -> Result<(u16, ReportKind), Denial> {
    let QuoteHeader {
        version,
        key_type,
        tee_type,
    } = QuoteHeader::take(cursor)?;
    match version {
        3 => return Err(Denial::NotTdx),
        4 | 5 => {}
        _ => return Err(Denial::UnsupportedQuote("its version is neither 4 nor 5")),
    }
    match tee_type {
        TEE_TDX => {}
        TEE_SGX => return Err(Denial::NotTdx),
        _ => return Err(Denial::UnsupportedQuote("its TEE type is unknown")),
    }
    if key_type != KEY_ECDSA_P256 {
        return Err(Denial::UnsupportedQuote(
            "its attestation key is not ECDSA P-256",
        ));
    }
    if version == 4 {
        return Ok((version, ReportKind::Td10));
    }
    let body = cursor.take_u16()?;
    let len = cursor.take_u32()?;
    let kind = match body {
        BODY_SGX => return Err(Denial::NotTdx),
        BODY_TD_1_0 => ReportKind::Td10,
        BODY_TD_1_5 => ReportKind::Td15,
        BODY_TD_1_5_EX => ReportKind::Td15Ex,
        _ => return Err(Denial::UnsupportedQuote("its body type is unknown")),
    };
    if usize::try_from(len).ok() != Some(kind.len()) {
        return Err(Denial::MalformedEvidence(
            "the quote's body has another length than its type",
        ));
    }
    Ok((version, kind))
}

/// Parses the signature data. Returns offset and length of the PCK chain in it.
fn find_pck_chain(signature_data: &[u8]) -> Result<(usize, usize), Denial> {
    let mut cursor = Cursor {
        rest: signature_data,
    };
    cursor.take(SIGNATURE_AND_KEY_LEN)?;
    if cursor.take_u16()? != CERTIFICATION_QE_REPORT {
        return Err(Denial::UnsupportedQuote("it carries no QE report"));
    }
    let certification = cursor.take_u32_prefixed()?;
    cursor.end()?;
    let mut cursor = Cursor {
        rest: certification,
    };
    cursor.take(QE_REPORT_AND_SIGNATURE_LEN)?;
    let auth_len = cursor.take_u16()?;
    cursor.take(usize::from(auth_len))?;
    if cursor.take_u16()? != CERTIFICATION_PCK_CHAIN {
        return Err(Denial::UnsupportedQuote(
            "it carries no PCK certificate chain",
        ));
    }
    let chain = cursor.take_u32_prefixed()?;
    cursor.end()?;
    // The chain is the last part of the certification data, which is the last part of the signature data.
    Ok((signature_data.len() - chain.len(), chain.len()))
}

impl ReportKind {
    /// Size of the report in bytes.
    fn len(self) -> usize {
        match self {
            Self::Td10 => TD_1_0_LEN,
            Self::Td15 => TD_1_5_LEN,
            Self::Td15Ex => TD_1_5_EX_LEN,
        }
    }

    /// The name that the command line shows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Td10 => "TD 1.0",
            Self::Td15 => "TD 1.5",
            Self::Td15Ex => "TD 1.5 extended",
        }
    }
}

impl TdReport {
    fn read(cursor: &mut Cursor<'_>, kind: ReportKind) -> Result<Self, Denial> {
        let mut body = Cursor {
            rest: cursor.take(kind.len())?,
        };
        let tee_tcb_svn = body.take_array()?;
        let mr_seam = body.take_array()?;
        // MRSIGNERSEAM, SEAMATTRIBUTES
        body.take(48 + 8)?;
        let attributes = body.take_array()?;
        let xfam = body.take_array()?;
        let mrtd = body.take_array()?;
        let mr_config_id = body.take_array()?;
        let mr_owner = body.take_array()?;
        let mr_owner_config = body.take_array()?;
        let rtmrs = [
            body.take_array()?,
            body.take_array()?,
            body.take_array()?,
            body.take_array()?,
        ];
        let report_data = body.take_array()?;
        Ok(Self {
            kind,
            tee_tcb_svn,
            mr_seam,
            attributes,
            xfam,
            mrtd,
            mr_config_id,
            mr_owner,
            mr_owner_config,
            rtmrs,
            report_data,
        })
    }

    /// The type.
    #[must_use]
    pub fn kind(&self) -> ReportKind {
        self.kind
    }

    /// Whether any bit of the group "TD under debug" is set (bits 7:0: debug, profiling). "If any of
    /// the bits in this group are set to 1, the TD is untrusted." [Intel TDX Module Base Specification,
    /// "TD attributes"]
    #[must_use]
    pub fn is_under_debug(&self) -> bool {
        let [under_debug, ..] = self.attributes;
        under_debug != 0
    }

    /// TDATTRIBUTES, little endian.
    #[must_use]
    pub fn attributes(&self) -> [u8; 8] {
        self.attributes
    }

    /// XFAM: the extended features of the CPU that the TD may use, little endian.
    #[must_use]
    pub fn xfam(&self) -> [u8; 8] {
        self.xfam
    }

    /// TEE_TCB_SVN: the patch levels of the TDX module and its loader.
    #[must_use]
    pub fn tee_tcb_svn(&self) -> &[u8; 16] {
        &self.tee_tcb_svn
    }

    /// MRSEAM: the measurement of the TDX module.
    #[must_use]
    pub fn mr_seam(&self) -> &[u8; 48] {
        &self.mr_seam
    }

    /// MRCONFIGID: configuration that the TD's host fixed at its creation.
    #[must_use]
    pub fn mr_config_id(&self) -> &[u8; 48] {
        &self.mr_config_id
    }

    /// MROWNER: the owner, as the TD's host fixed it at its creation.
    #[must_use]
    pub fn mr_owner(&self) -> &[u8; 48] {
        &self.mr_owner
    }

    /// MROWNERCONFIG: the owner's configuration, as the TD's host fixed it at its creation.
    #[must_use]
    pub fn mr_owner_config(&self) -> &[u8; 48] {
        &self.mr_owner_config
    }

    /// MRTD.
    #[must_use]
    pub fn mrtd(&self) -> Mrtd {
        Mrtd(self.mrtd)
    }

    /// RTMR0 to RTMR3.
    #[must_use]
    pub fn rtmrs(&self) -> [Rtmr; 4] {
        self.rtmrs.map(Rtmr)
    }

    /// RTMR3, which dstack extends with its runtime events.
    #[must_use]
    pub fn rtmr3(&self) -> Rtmr {
        let [.., rtmr3] = self.rtmrs;
        Rtmr(rtmr3)
    }

    /// The report data, which the TD chose.
    #[must_use]
    pub fn report_data(&self) -> &[u8; 64] {
        &self.report_data
    }
}

impl fmt::Debug for TdReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TdReport")
            .field("kind", &self.kind)
            .field("mrtd", &self.mrtd())
            .finish_non_exhaustive()
    }
}

/// A little-endian reader. Every read fails if there are too few bytes.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Denial> {
        let cut = Denial::MalformedEvidence("the quote is cut short");
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Denial> {
        let cut = Denial::MalformedEvidence("the quote is cut short");
        let (taken, rest) = self.rest.split_first_chunk().ok_or(cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn take_u16(&mut self) -> Result<u16, Denial> {
        self.take_array().map(u16::from_le_bytes)
    }

    fn take_u32(&mut self) -> Result<u32, Denial> {
        self.take_array().map(u32::from_le_bytes)
    }

    fn take_u32_prefixed(&mut self) -> Result<&'a [u8], Denial> {
        let cut = Denial::MalformedEvidence("the quote is cut short");
        let len = usize::try_from(self.take_u32()?).map_err(|_| cut)?;
        self.take(len)
    }

    fn end(&self) -> Result<(), Denial> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Denial::MalformedEvidence(
            "the quote's signature data is longer than its parts",
        ))
    }
}
