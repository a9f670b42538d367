//! Recorded evidence for conformance tests: exchanges with dstack's guest agent, and quotes of TDX
//! hardware with Intel's collateral.
//!
//! It exists so that the verifier is also tested with evidence that this project did not make. The files
//! are not part of the repository. The environment variable `TEESQL_FIXTURES` names their folder, and a
//! test that needs a missing file prints that it is skipped. It must never be used outside tests: it
//! panics on files that cannot be parsed.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a broken file is a mistake in the test's environment; a skipped test says so"
)]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use x509_parser::pem::Pem;

use crate::collateral::Collateral;
use crate::verify::{TrustedRoot, Verifier};

/// Within the validity of the collateral in `dstack-mock-*` (2026-11-19 to 2026-12-20).
pub const MOCK_NOW: u64 = 1_796_000_000;
/// Within the validity of `tdx-hardware/tdx_quote_collateral.json` (2025-06-19 to 2025-07-19).
pub const HARDWARE_NOW: u64 = 1_750_400_000;
/// Within the validity of `tdx-hardware/tdx_quote_outdated_collateral.json` (2026-02-18 to 2026-03-20).
pub const OUTDATED_NOW: u64 = 1_772_500_000;

/// The application in the recorded evidence of dstack.
pub const APP_ID: &str = "5bb4ff9a3837357f19dc176407a5709c62eb6c56";
/// Its compose hash.
pub const COMPOSE_HASH: &str = "c143116fef3940e7f776bfc0919c256232ae5338a6e948c96b711e0b2383483a";
/// Its instance id.
pub const INSTANCE_ID: &str = "1691ed1b47506cad7d08834668691d88246f5b1f";
/// The OS image below it.
pub const OS_IMAGE_HASH: &str = "e61be43dd1cc6a6f5edefd7c51b608983780839b0000ce60dd99737dcffe09b9";

/// The path of a file, or `None` with a printed reason.
#[must_use]
pub fn path(name: &str) -> Option<PathBuf> {
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
    if !path.exists() {
        let path = path.display();
        println!("skipped: {path} does not exist (TEESQL_FIXTURES names its folder)");
        return None;
    }
    Some(path)
}

/// The content of a file, or `None` with a printed reason.
#[must_use]
pub fn read(name: &str) -> Option<Vec<u8>> {
    Some(fs::read(path(name)?).expect("a readable file"))
}

fn response(folder: &str, name: &str) -> Option<Value> {
    let json = read(&format!("{folder}/{name}.response.json"))?;
    Some(serde_json::from_slice(&json).expect("JSON"))
}

fn text<'a>(response: &'a Value, field: &str) -> &'a str {
    let field = response.get(field).and_then(Value::as_str);
    field.expect("a text field")
}

/// A response to `GetTlsKey`.
pub struct TlsKey {
    /// Leaf, then CA, in PEM.
    pub chain_pem: Vec<String>,
    /// The leaf's private key in PEM.
    pub key_pem: String,
}

impl TlsKey {
    /// Leaf, then CA, in DER.
    #[must_use]
    pub fn chain_der(&self) -> Vec<Vec<u8>> {
        let der = |pem: &String| {
            let pem = Pem::iter_from_buffer(pem.as_bytes()).next();
            pem.expect("PEM").expect("PEM").contents
        };
        self.chain_pem.iter().map(der).collect()
    }
}

/// The response of `folder` to the `GetTlsKey` request `name`.
#[must_use]
pub fn tls_key(folder: &str, name: &str) -> Option<TlsKey> {
    let response = response(folder, name)?;
    let chain = response.get("certificate_chain").and_then(Value::as_array);
    let pem = |pem: &Value| pem.as_str().expect("PEM").to_owned();
    Some(TlsKey {
        chain_pem: chain.expect("a chain").iter().map(pem).collect(),
        key_pem: text(&response, "key").to_owned(),
    })
}

/// The envelope in the response of `folder` to `Attest`.
#[must_use]
pub fn attestation(folder: &str) -> Option<Vec<u8>> {
    let response = response(folder, "Attest")?;
    Some(hex::decode(text(&response, "attestation")).expect("hex"))
}

/// A verifier under the root of `folder`, one of `dstack-mock-*`, and the collateral.
#[must_use]
pub fn mock(folder: &str) -> Option<(Verifier, Collateral)> {
    let root = read(&format!("{folder}/tdx-root-ca.pem"))?;
    let root = TrustedRoot::dangerous(&root).expect("a root");
    let collateral = read(&format!("{folder}/collateral.json"))?;
    let collateral = Collateral::from_json(&collateral).expect("collateral");
    Some((Verifier::new(root), collateral))
}

/// A quote of TDX hardware and its collateral.
#[must_use]
pub fn hardware(name: &str) -> Option<(Vec<u8>, Collateral)> {
    let quote = read(&format!("tdx-hardware/{name}"))?;
    let collateral = read(&format!("tdx-hardware/{name}_collateral.json"))?;
    let collateral = Collateral::from_json(&collateral).expect("collateral");
    Some((quote, collateral))
}
