//! Leaf certificates as dstack's guest agent issues them.

use rcgen::{
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
};

use super::pki::params;
use super::platform::tlv;
use super::{Binding, Envelope, Evidence, Key, MockError, Pki, Platform, Validity};

/// 1.3.6.1.4.1.62397.1, the arc of dstack's extensions. [dstack `ra-tls/src/oids.rs`]
const DSTACK_ARC: [u64; 8] = [1, 3, 6, 1, 4, 1, 62_397, 1];
const QUOTE: u64 = 1;
const EVENT_LOG: u64 = 2;
const APP_ID: u64 = 3;
const USAGE: u64 = 4;
const ATTESTATION: u64 = 8;
const APP_INFO: u64 = 9;
const OCTET_STRING: u8 = 0x04;

/// The contents of a leaf besides its evidence.
#[derive(Clone, Debug)]
pub struct LeafOptions {
    /// Common name of the subject.
    pub subject: String,
    /// Subject alternative names: DNS names and IP addresses.
    pub alt_names: Vec<String>,
    /// notBefore and notAfter.
    pub validity: Validity,
    /// Distinguishes certificates of one subject: another number gives another serial number.
    pub number: u64,
    /// Extended key usage: TLS server.
    pub server: bool,
    /// Extended key usage: TLS client.
    pub client: bool,
    /// Extension `.3`, the app id. It proves nothing.
    pub app_id: Option<Vec<u8>>,
    /// Extension `.4`, the usage of the certificate.
    pub usage: Option<String>,
    /// Extension `.9`, app info. It proves nothing.
    pub app_info: Option<Vec<u8>>,
    /// Replaces the content of extension `.8`, to test malformed evidence.
    pub attestation: Option<Vec<u8>>,
}

impl Default for LeafOptions {
    /// For client and server, with the names `localhost` and 127.0.0.1, valid from 2020 to 2049.
    fn default() -> Self {
        Self {
            subject: "mock.teesql.invalid".to_owned(),
            alt_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            validity: Validity::default(),
            number: 0,
            server: true,
            client: true,
            app_id: None,
            usage: Some("app:custom".to_owned()),
            app_info: None,
            attestation: None,
        }
    }
}

/// A leaf with its key and issuer.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    pem: String,
    ca_der: Vec<u8>,
    ca_pem: String,
    quote: Option<Vec<u8>>,
    key: Key,
}

impl Certificate {
    /// Issues a leaf for `key` by the KMS CA of `pki`, with a quote of `platform`.
    ///
    /// # Errors
    /// [`MockError`] for options that cannot be written: an invalid DNS name, a date after the year 9999,
    /// evidence of more than 64 KiB.
    pub fn issue(
        pki: &Pki,
        platform: &Platform,
        key: &Key,
        evidence: &Evidence,
        leaf: &LeafOptions,
    ) -> Result<Self, MockError> {
        let quote = match evidence.envelope {
            Envelope::None => None,
            _ => Some(evidence.quote(platform, key)?),
        };
        let serial = match leaf.number {
            0 => format!("leaf {}", leaf.subject),
            number => format!("leaf {} {number}", leaf.subject),
        };
        let mut params = params(&pki.seed, &serial, leaf.validity)?;
        params.subject_alt_names =
            rcgen::CertificateParams::new(leaf.alt_names.clone())?.subject_alt_names;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.subject.as_str());
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if leaf.server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.client {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        for (arc, content) in extensions(evidence, leaf, quote.as_deref(), key)? {
            let oid: Vec<u64> = DSTACK_ARC.into_iter().chain([arc]).collect();
            let content = tlv(OCTET_STRING, &content)?;
            params
                .custom_extensions
                .push(CustomExtension::from_oid_content(&oid, content));
        }
        let certificate = params.signed_by(key, &pki.kms.issuer)?;
        Ok(Self {
            der: certificate.der().to_vec(),
            pem: certificate.pem(),
            ca_der: pki.kms.der.clone(),
            ca_pem: pki.kms.pem.clone(),
            quote,
            key: key.clone(),
        })
    }

    /// The leaf in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The leaf in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Leaf and KMS CA in PEM, concatenated.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        format!("{}{}", self.pem, self.ca_pem)
    }

    /// Leaf and KMS CA in DER.
    #[must_use]
    pub fn chain_der(&self) -> [&[u8]; 2] {
        [&self.der, &self.ca_der]
    }

    /// The quote in the evidence, if there is any.
    #[must_use]
    pub fn quote(&self) -> Option<&[u8]> {
        self.quote.as_deref()
    }

    /// The key pair.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// Extension numbers and contents, in dstack's order.
fn extensions(
    evidence: &Evidence,
    leaf: &LeafOptions,
    quote: Option<&[u8]>,
    key: &Key,
) -> Result<Vec<(u64, Vec<u8>)>, MockError> {
    let mut extensions = Vec::new();
    let mut push = |arc, content: Option<Vec<u8>>| {
        extensions.extend(content.map(|content| (arc, content)));
    };
    push(APP_ID, leaf.app_id.clone());
    push(APP_INFO, leaf.app_info.clone());
    push(USAGE, leaf.usage.clone().map(String::into_bytes));
    if let Some(quote) = quote {
        let report_data = match evidence.binding {
            Binding::Own => key.report_data(),
            Binding::Bytes(bytes) => bytes,
        };
        if matches!(evidence.envelope, Envelope::Legacy | Envelope::Both) {
            push(QUOTE, Some(quote.to_vec()));
            push(EVENT_LOG, Some(evidence.legacy_event_log()?));
        }
        let attestation = match evidence.envelope {
            Envelope::V0 => Some(evidence.v0(quote, report_data)),
            Envelope::V1 | Envelope::Both => Some(evidence.v1(quote, report_data)?),
            Envelope::Legacy | Envelope::None => None,
        };
        push(ATTESTATION, leaf.attestation.clone().or(attestation));
    } else {
        push(ATTESTATION, leaf.attestation.clone());
    }
    Ok(extensions)
}
