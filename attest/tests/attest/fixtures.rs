//! The shared fixtures: evidence that this project did not make.

use std::fs;
use std::path::PathBuf;

use attest::Policy;
use attest::collateral::Collateral;
use attest::policy::Settings;
use attest::verify::{TrustedRoot, Verifier};
use x509_parser::pem::Pem;

/// Inside the window of the mock collateral (2026-11-19 … 2026-12-20).
pub(crate) const MOCK_NOW: u64 = 1_796_000_000;
/// Inside 2025-06-19 … 2025-07-19.
pub(crate) const HARDWARE_NOW: u64 = 1_750_400_000;
/// Inside 2026-02-18 … 2026-03-20.
pub(crate) const OUTDATED_NOW: u64 = 1_772_500_000;

/// A fixture, or `None` with a printed reason.
pub(crate) fn read(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("TEESQL_FIXTURES").map_or_else(
        || {
            PathBuf::from(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../shared/fixtures"
            ))
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            println!(
                "skipped: {}: {error} (TEESQL_FIXTURES names the folder)",
                path.display()
            );
            None
        }
    }
}

/// The answer to `GetTlsKey`: the chain in DER, and the key in PEM.
pub(crate) struct TlsKey {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: String,
}

pub(crate) fn tls_key(folder: &str, name: &str) -> Option<TlsKey> {
    let json = read(&format!("{folder}/{name}.response.json"))?;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let chain = json["certificate_chain"].as_array().unwrap();
    let der = |pem: &serde_json::Value| {
        let pem = Pem::iter_from_buffer(pem.as_str().unwrap().as_bytes())
            .next()
            .unwrap();
        pem.unwrap().contents
    };
    Some(TlsKey {
        chain: chain.iter().map(der).collect(),
        key: json["key"].as_str().unwrap().to_owned(),
    })
}

/// The envelope that `Attest` answers.
pub(crate) fn envelope(folder: &str) -> Option<Vec<u8>> {
    let json = read(&format!("{folder}/Attest.response.json"))?;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    Some(hex::decode(json["attestation"].as_str().unwrap()).unwrap())
}

/// The root and collateral of the mock fixtures.
pub(crate) fn mock(folder: &str) -> Option<(Verifier, Collateral)> {
    let root = TrustedRoot::dangerous(&read(&format!("{folder}/tdx-root-ca.pem"))?).unwrap();
    let collateral = Collateral::from_json(&read(&format!("{folder}/collateral.json"))?).unwrap();
    Some((Verifier::new(root), collateral))
}

/// A hardware quote and its collateral.
pub(crate) fn hardware(name: &str) -> Option<(Vec<u8>, Collateral)> {
    let quote = read(&format!("tdx-hardware/{name}"))?;
    let collateral = read(&format!("tdx-hardware/{name}_collateral.json"))?;
    Some((quote, Collateral::from_json(&collateral).unwrap()))
}

pub(crate) fn policy(change: impl FnOnce(&mut Settings)) -> Policy {
    let mut settings = Settings::default();
    change(&mut settings);
    Policy::new(settings)
}
