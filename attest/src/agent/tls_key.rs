//! A private key with its certificate, which this side presents in TLS (`GetTlsKey`).

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use serde::Serialize;
use zeroize::Zeroizing;

use super::AgentError;
use super::pem::{self, Label};
use super::response::ResponseFields;
use crate::certificate::{Extensions, Leaf};
use crate::chain::fingerprint;
use crate::evidence::UnboundEvidence;
use crate::values::Fingerprint;

/// The SubjectPublicKeyInfo of a P-256 key, up to the point. [RFC 5480, section 2]
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Parameters of the certificate. The default has no usage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TlsKeyRequest {
    /// Common name of the subject.
    pub subject: String,
    /// Subject alternative names: DNS names and IP addresses.
    pub alt_names: Vec<String>,
    /// Whether to include evidence that is bound to the key.
    pub usage_ra_tls: bool,
    /// Whether the certificate is for a TLS server.
    pub usage_server_auth: bool,
    /// Whether the certificate is for a TLS client.
    pub usage_client_auth: bool,
    /// notBefore, in Unix seconds. The agent's default is in 1975.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// notAfter, in Unix seconds. The agent's default is ten years from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// Whether to include the application's identity as the agent claims it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub with_app_info: bool,
}

/// A private key and its certificate chain. The key is wiped when dropped.
pub struct TlsKey {
    key: Zeroizing<Vec<u8>>,
    chain: Vec<Vec<u8>>,
    fingerprint: Fingerprint,
    not_before: u64,
    not_after: u64,
}

impl TlsKey {
    pub(super) fn from_response(
        response: &ResponseFields<'_>,
        request: &TlsKeyRequest,
    ) -> Result<Self, AgentError> {
        const CHAIN: &str = "certificate_chain";
        let key = pem::private_key(response)?;
        let chain = pem::certificates(response, CHAIN, response.texts(CHAIN)?)?;
        let malformed = |field, why| response.malformed(field, why);
        let der = chain.first().map(Vec::as_slice).unwrap_or_default();
        let leaf =
            Leaf::parse(der).map_err(|_| malformed(CHAIN, "holds an invalid certificate"))?;
        let spki = spki_of(&key)
            .ok_or_else(|| malformed("key", "is not a PKCS#8 private key on P-256"))?;
        if spki != leaf.spki() {
            return Err(malformed("key", "is not the key of the certificate"));
        }
        if request.usage_ra_tls && !has_bound_evidence(leaf.extensions(), &spki) {
            return Err(malformed(
                CHAIN,
                "carries no evidence that is bound to its key (a simulator of dstack needs patch_report_data = true)",
            ));
        }
        Ok(Self {
            fingerprint: fingerprint(der),
            not_before: leaf.not_before(),
            not_after: leaf.not_after(),
            key,
            chain,
        })
    }

    /// The private key: PKCS#8 in DER.
    #[must_use]
    pub fn key_der(&self) -> &[u8] {
        &self.key
    }

    /// The private key: PKCS#8 in PEM.
    #[must_use]
    pub fn key_pem(&self) -> Zeroizing<String> {
        pem::write(Label::PrivateKey, &self.key)
    }

    /// The certificates in DER, leaf first.
    #[must_use]
    pub fn chain_der(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The certificates in PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        let blocks = self.chain.iter();
        let blocks = blocks.map(|der| pem::write(Label::Certificate, der).to_string());
        blocks.collect()
    }

    /// The leaf's fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The leaf's notBefore, in Unix seconds.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// The leaf's notAfter, in Unix seconds: the last second at which it is valid.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fingerprint, chain, ..
        } = self;
        write!(f, "TlsKey({fingerprint}, {} certificates)", chain.len())
    }
}

/// The SubjectPublicKeyInfo of a P-256 private key, in DER. `None` for other keys; the agent's are all
/// P-256.
fn spki_of(pkcs8: &[u8]) -> Option<Vec<u8>> {
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &SystemRandom::new()).ok()?;
    Some([&P256_SPKI, pair.public_key().as_ref()].concat())
}

fn has_bound_evidence(extensions: &Extensions<'_>, spki: &[u8]) -> bool {
    UnboundEvidence::from_extensions(extensions)
        .is_ok_and(|evidence| evidence.check_binding(spki).is_ok())
}
