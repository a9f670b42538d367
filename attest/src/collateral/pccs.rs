//! The PCCS protocol: URLs of requests and parsing of responses. Sans-I/O: the HTTP is in
//! [`fetch`](super::fetch).
//!
//! Paths and headers are those of Intel's "Provisioning Certification Service for ECDSA Attestation",
//! API v4, and of the reference PCCS, which sends the root CRL as hex text; Intel's own service publishes
//! it under another name.

use std::fmt;
use std::str::FromStr;

use dcap_qvl::QuoteCollateralV3;
use reqwest::Url;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{CollateralError, Part};
use super::key::CollateralKey;
use super::set::Collateral;
use super::validity::malformed;
use crate::limits::MAX_ISSUER_CHAIN_LEN;

/// Intel's service.
pub const INTEL_PCS: &str = "https://api.trustedservices.intel.com";
/// Phala's PCCS, dcap-qvl's default.
pub const PHALA_PCCS: &str = "https://pccs.phala.network";
/// Where Intel publishes the root CRL, since its PCS has no `rootcacrl`. The certificates name this URL
/// too, but a URL from a certificate that a PCCS sent is never fetched.
const INTEL_ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// The PCCS that collateral is fetched from.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    base: String,
    is_intel: bool,
}

/// A text that does not name a PCCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is not a URL.
    #[error("a PCCS is `intel`, `phala`, or an http or https URL")]
    NotAUrl,
    /// Its scheme is neither http nor https.
    #[error("a PCCS URL must be http or https")]
    Scheme,
    /// The URL holds a user name or password, which would end up in logs.
    #[error("a PCCS URL must not hold a user name or password")]
    Credentials,
    /// The URL holds a query or fragment, which would end up in the middle of the request URLs.
    #[error("a PCCS URL must not hold a query or fragment")]
    Query,
}

impl FromStr for Source {
    type Err = SourceError;

    /// `intel`, `phala`, or a base URL, with or without `/sgx/certification/v4`.
    ///
    /// Plain http does not weaken the content, since Intel signs it. It lets the network delay updates,
    /// and see which platforms are requested.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let base = match text {
            "intel" => INTEL_PCS,
            "phala" => PHALA_PCCS,
            other => other,
        };
        let url = Url::parse(base).map_err(|_| SourceError::NotAUrl)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SourceError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(SourceError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(SourceError::Query);
        }
        let base = url.as_str().trim_end_matches('/');
        let base = base
            .strip_suffix("/sgx/certification/v4")
            .or(base.strip_suffix("/tdx/certification/v4"))
            .unwrap_or(base);
        Ok(Self {
            base: base.to_owned(),
            is_intel: base == INTEL_PCS,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

/// One of the four resources that make up a set of collateral.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    PckCrl,
    RootCrl,
    TcbInfo,
    QeIdentity,
}

impl Resource {
    /// The headers that may hold the issuer chain; the root CRL has none.
    pub(super) fn chain_headers(self) -> &'static [&'static str] {
        match self {
            Self::PckCrl => &["sgx-pck-crl-issuer-chain"],
            Self::RootCrl => &[],
            Self::TcbInfo => &["tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain"],
            Self::QeIdentity => &["sgx-enclave-identity-issuer-chain"],
        }
    }

    fn part(self) -> Part {
        match self {
            Self::PckCrl => Part::PckCrl,
            Self::RootCrl => Part::RootCrl,
            Self::TcbInfo => Part::TcbInfo,
            Self::QeIdentity => Part::QeIdentity,
        }
    }
}

impl Source {
    pub(super) fn url(&self, resource: Resource, key: CollateralKey) -> String {
        let base = &self.base;
        match resource {
            Resource::PckCrl => {
                format!(
                    "{base}/sgx/certification/v4/pckcrl?ca={}&encoding=der",
                    key.ca.as_str()
                )
            }
            Resource::RootCrl if self.is_intel => INTEL_ROOT_CRL.to_owned(),
            Resource::RootCrl => format!("{base}/sgx/certification/v4/rootcacrl"),
            Resource::TcbInfo => {
                format!(
                    "{base}/tdx/certification/v4/tcb?fmspc={}&update=standard",
                    key.fmspc
                )
            }
            Resource::QeIdentity => {
                format!("{base}/tdx/certification/v4/qe/identity?update=standard")
            }
        }
    }
}

/// A response: its body, and the issuer chain, still URL-encoded.
pub(super) struct PccsResponse {
    pub(super) body: Vec<u8>,
    pub(super) chain: Option<String>,
}

/// The four responses.
pub(super) struct PccsResponses {
    pub(super) pck_crl: PccsResponse,
    pub(super) root_crl: PccsResponse,
    pub(super) tcb_info: PccsResponse,
    pub(super) qe_identity: PccsResponse,
}

#[derive(Deserialize)]
struct TcbInfoBody<'a> {
    #[serde(rename = "tcbInfo", borrow)]
    document: &'a RawValue,
    signature: &'a str,
}

#[derive(Deserialize)]
struct QeIdentityBody<'a> {
    #[serde(rename = "enclaveIdentity", borrow)]
    document: &'a RawValue,
    signature: &'a str,
}

impl PccsResponses {
    /// Assembles the collateral. Does not verify it.
    pub(super) fn into_collateral(self, key: CollateralKey) -> Result<Collateral, CollateralError> {
        let not_signed =
            |resource: Resource| malformed(resource.part(), "no signed document in JSON");
        let tcb: TcbInfoBody<'_> = serde_json::from_slice(&self.tcb_info.body)
            .map_err(|_| not_signed(Resource::TcbInfo))?;
        let qe: QeIdentityBody<'_> = serde_json::from_slice(&self.qe_identity.body)
            .map_err(|_| not_signed(Resource::QeIdentity))?;
        let signature = |resource: Resource, text: &str| {
            hex::decode(text).map_err(|_| malformed(resource.part(), "the signature is not hex"))
        };
        let collateral = Collateral::parse(QuoteCollateralV3 {
            // The exact bytes that Intel signed, not a re-serialised JSON value.
            tcb_info: tcb.document.get().to_owned(),
            tcb_info_signature: signature(Resource::TcbInfo, tcb.signature)?,
            tcb_info_issuer_chain: chain(Resource::TcbInfo, self.tcb_info.chain.as_deref())?,
            qe_identity: qe.document.get().to_owned(),
            qe_identity_signature: signature(Resource::QeIdentity, qe.signature)?,
            qe_identity_issuer_chain: chain(
                Resource::QeIdentity,
                self.qe_identity.chain.as_deref(),
            )?,
            pck_crl_issuer_chain: chain(Resource::PckCrl, self.pck_crl.chain.as_deref())?,
            pck_crl: crl(Resource::PckCrl, self.pck_crl.body)?,
            root_ca_crl: crl(Resource::RootCrl, self.root_crl.body)?,
            pck_certificate_chain: None,
        })?;
        match collateral.key() == key {
            true => Ok(collateral),
            false => Err(CollateralError::WrongKey),
        }
    }
}

/// A CRL as DER or as hex text of DER. The two cannot be confused: DER starts with the byte 0x30 and a
/// length above 0x7f, and hex text has no byte above 0x7f.
fn crl(resource: Resource, body: Vec<u8>) -> Result<Vec<u8>, CollateralError> {
    let text = body.trim_ascii();
    if text.iter().all(u8::is_ascii_hexdigit) {
        return hex::decode(text)
            .map_err(|_| malformed(resource.part(), "an odd number of hex digits"));
    }
    Ok(body)
}

fn chain(resource: Resource, encoded: Option<&str>) -> Result<String, CollateralError> {
    let encoded = encoded.ok_or(malformed(resource.part(), "no issuer chain in the headers"))?;
    if encoded.len() > 3 * MAX_ISSUER_CHAIN_LEN {
        return Err(malformed(resource.part(), "the issuer chain is too long"));
    }
    percent_decode(encoded).ok_or(malformed(
        resource.part(),
        "the issuer chain is not URL-encoded text",
    ))
}

/// Decodes `%0A` and the like. `+` stays: it is base64 here, and Intel encodes spaces as `%20`.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            decoded.extend(byte);
            rest = tail;
        } else {
            decoded.push(*first);
        }
    }
    String::from_utf8(decoded).ok()
}
