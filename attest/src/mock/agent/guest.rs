//! The methods of the mock agent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{AgentOptions, lock};
use crate::agent::Method;
use crate::mock::{
    Binding, Certificate, Envelope, Evidence, Key, LeafOptions, MockError, Pki, Platform, Validity,
};

/// dstack's default notBefore, 1975-01-01T00:00:00Z. [recorded from dstack 0.6.0]
const DEFAULT_NOT_BEFORE: u64 = 157_766_400;
/// Seconds to dstack's default notAfter: 3650 days. [recorded from dstack 0.6.0]
const TEN_YEARS: u64 = 3_650 * 86_400;

/// A fault in the content of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The key is not the certificate's.
    WrongKey,
    /// Quotes have other report data than requested.
    WrongReportData,
}

/// A TD with its agent's state.
pub(super) struct Guest {
    pki: Arc<Pki>,
    platform: Platform,
    pub(super) options: AgentOptions,
    /// The agent's own certificate and its issuer, in PEM.
    pub(super) own: String,
    /// Number of the next key.
    keys: AtomicU64,
    /// Held while a quote is made: hardware makes one at a time.
    quoting: Mutex<()>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TlsKeyRequest {
    subject: String,
    alt_names: Vec<String>,
    usage_ra_tls: bool,
    usage_server_auth: bool,
    usage_client_auth: bool,
    not_before: Option<u64>,
    not_after: Option<u64>,
    with_app_info: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct KeyRequest {
    path: String,
    purpose: String,
    algorithm: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct QuoteRequest {
    #[serde(deserialize_with = "hex_bytes")]
    report_data: Vec<u8>,
}

#[derive(Deserialize, Default)]
struct NoRequest {}

pub(super) fn hex_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Errors have the same text as dstack's.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn text(error: MockError) -> String {
    error.to_string()
}

impl Guest {
    pub(super) fn new(pki: Arc<Pki>, options: AgentOptions) -> Result<Self, MockError> {
        let mut guest = Self {
            platform: Platform::new(&pki, &options.platform)?,
            pki,
            options,
            own: String::new(),
            keys: AtomicU64::new(0),
            quoting: Mutex::default(),
        };
        guest.own = guest.own_certificate()?;
        Ok(guest)
    }

    fn own_certificate(&self) -> Result<String, MockError> {
        let request = TlsKeyRequest {
            subject: "mock-agent".to_owned(),
            usage_ra_tls: true,
            usage_client_auth: true,
            ..TlsKeyRequest::default()
        };
        let validity = Validity {
            from: DEFAULT_NOT_BEFORE,
            until: (self.options.now)() + TEN_YEARS,
        };
        let key = Key::derive(&self.options.seed, "agent's own")?;
        let certificate = self.issue(&key, request, validity, Fault::None)?;
        Ok(certificate.chain_pem())
    }

    /// Calls a method with `fields` as JSON. Returns the response, or the text of a 400.
    pub(super) fn call(
        &self,
        method: Method,
        fields: &[u8],
        fault: Fault,
    ) -> Result<Value, String> {
        match method {
            Method::GetTlsKey => self.tls_key(parse(fields)?, fault),
            Method::GetKey => self.key(&parse(fields)?),
            Method::GetQuote => self.quote(&parse(fields)?, fault),
            Method::Attest => self.attest(&parse(fields)?, fault),
            Method::Info => parse(fields).and_then(|NoRequest {}| self.info().map_err(text)),
            Method::Version => parse(fields).map(|NoRequest {}| {
                json!({ "version": "0.6.0", "rev": concat!("mock:", env!("CARGO_PKG_VERSION")) })
            }),
        }
    }

    fn tls_key(&self, request: TlsKeyRequest, fault: Fault) -> Result<Value, String> {
        let validity = Validity {
            from: request.not_before.unwrap_or(DEFAULT_NOT_BEFORE),
            until: request
                .not_after
                .unwrap_or_else(|| (self.options.now)() + TEN_YEARS),
        };
        if validity.from >= validity.until {
            return Err("not_before must be earlier than not_after".to_owned());
        }
        let key = self.next_key().map_err(text)?;
        let certificate = self.issue(&key, request, validity, fault).map_err(text)?;
        let returned = match fault {
            Fault::WrongKey => self.next_key().map_err(text)?,
            Fault::None | Fault::WrongReportData => key,
        };
        Ok(json!({
            "key": returned.to_pkcs8_pem().map_err(text)?,
            "certificate_chain": [certificate.pem(), self.pki.kms_pem()],
        }))
    }

    fn issue(
        &self,
        key: &Key,
        request: TlsKeyRequest,
        validity: Validity,
        fault: Fault,
    ) -> Result<Certificate, MockError> {
        let mut evidence = self.options.evidence.clone();
        match (request.usage_ra_tls, fault) {
            (false, _) => evidence.envelope = Envelope::None,
            (true, Fault::WrongReportData) => evidence.binding = Binding::Bytes([0xbd; 64]),
            (true, Fault::None | Fault::WrongKey) => {}
        }
        let app_info = match request.with_app_info {
            true => Some(self.app_info()?),
            false => None,
        };
        let leaf = LeafOptions {
            subject: request.subject,
            alt_names: request.alt_names,
            validity,
            server: request.usage_server_auth,
            client: request.usage_client_auth,
            app_info,
            number: serial_of(key),
            ..LeafOptions::default()
        };
        let _quoting = request.usage_ra_tls.then(|| self.lock_for_quote());
        Certificate::issue(&self.pki, &self.platform, key, &evidence, &leaf)
    }

    fn next_key(&self) -> Result<Key, MockError> {
        let number = self.keys.fetch_add(1, Ordering::Relaxed);
        Key::derive(&self.options.seed, &format!("agent key {number}"))
    }

    fn key(&self, request: &KeyRequest) -> Result<Value, String> {
        if !matches!(
            request.algorithm.as_str(),
            "" | "secp256k1" | "k256" | "ed25519"
        ) {
            return Err("Unsupported algorithm".to_owned());
        }
        let (key, chain) = self.derived_key(request)?;
        Ok(json!({ "key": hex::encode(key), "signature_chain": chain }))
    }

    /// A key, and the signatures that tie it to the KMS.
    fn derived_key(&self, request: &KeyRequest) -> Result<([u8; 32], [String; 2]), String> {
        let key = Sha256::new()
            .chain_update(b"teesql mock application key\0")
            .chain_update(self.options.seed)
            .chain_update(&self.options.evidence.app_id)
            .chain_update(request.path.as_bytes())
            .finalize();
        let app = Key::derive(&self.options.seed, "application").map_err(text)?;
        let kms = Key::derive(&self.pki.seed, "kms keys").map_err(text)?;
        let of_key = format!("{}:{}:{key:x}", request.purpose, request.algorithm);
        let chain = [
            signature(&app, of_key.as_bytes()),
            signature(&kms, &app.spki_der()),
        ];
        Ok((key.into(), chain))
    }

    /// The key of `Sign`.
    pub(super) fn signing_key(&self, algorithm: &str) -> Result<([u8; 32], [String; 2]), String> {
        self.derived_key(&KeyRequest {
            path: "vms".to_owned(),
            purpose: "signing".to_owned(),
            algorithm: algorithm.to_owned(),
        })
    }

    fn quote(&self, request: &QuoteRequest, fault: Fault) -> Result<Value, String> {
        let requested = padded(request)?;
        let (evidence, quote, quoted) = self.quote_over(requested, fault).map_err(text)?;
        let event_log = evidence.legacy_event_log().map_err(text)?;
        Ok(json!({
            "quote": hex::encode(&quote),
            "event_log": String::from_utf8_lossy(&event_log),
            "report_data": hex::encode(requested),
            "vm_config": evidence.vm_config(),
            "attestation": hex::encode(evidence.v1(&quote, quoted).map_err(text)?),
        }))
    }

    fn attest(&self, request: &QuoteRequest, fault: Fault) -> Result<Value, String> {
        let (evidence, quote, quoted) = self.quote_over(padded(request)?, fault).map_err(text)?;
        let attestation = match evidence.envelope {
            Envelope::V0 => evidence.v0(&quote, quoted),
            _ => evidence.v1(&quote, quoted).map_err(text)?,
        };
        Ok(json!({ "attestation": hex::encode(attestation) }))
    }

    /// The evidence, the quote, and the report data of the quote.
    fn quote_over(
        &self,
        report_data: [u8; 64],
        fault: Fault,
    ) -> Result<(Evidence, Vec<u8>, [u8; 64]), MockError> {
        let quoted = match fault {
            Fault::WrongReportData => report_data.map(|byte| !byte),
            Fault::None | Fault::WrongKey => report_data,
        };
        let evidence = Evidence {
            binding: Binding::Bytes(quoted),
            ..self.options.evidence.clone()
        };
        let _quoting = self.lock_for_quote();
        // The key is not used: the evidence overrides the report data.
        let key = Key::derive(&self.options.seed, "none")?;
        let quote = evidence.quote(&self.platform, &key)?;
        Ok((evidence, quote, quoted))
    }

    /// Waits for the quotes before this one, and then for as long as a quote takes.
    fn lock_for_quote(&self) -> MutexGuard<'_, ()> {
        let guard = lock(&self.quoting);
        std::thread::sleep(self.options.quote_time);
        guard
    }
}

/// Derived from the key, so that another key's certificate has another serial number.
fn serial_of(key: &Key) -> u64 {
    let hash = key.report_data();
    hash.first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

/// 65 bytes, as long as a recoverable signature, in hex.
fn signature(key: &Key, message: &[u8]) -> String {
    hex::encode([&key.sign_raw(message)[..], &[0]].concat())
}

fn padded(request: &QuoteRequest) -> Result<[u8; 64], String> {
    let mut padded = [0; 64];
    padded
        .get_mut(..request.report_data.len())
        .ok_or("Report data is too long")?
        .copy_from_slice(&request.report_data);
    Ok(padded)
}
