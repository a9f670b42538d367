//! dstack's method `Sign`, which this project's client does not use, and applications do.

use k256::ecdsa::signature::Signer as _;
use k256::ecdsa::signature::hazmat::PrehashSigner as _;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::Deserialize;
use serde_json::{Value, json};

use super::guest::{Guest, hex_bytes, parse};

#[derive(Deserialize, Default)]
#[serde(default)]
struct SignRequest {
    algorithm: String,
    #[serde(deserialize_with = "hex_bytes")]
    data: Vec<u8>,
}

/// Signs with the application's signing key. The chain ties that key to the KMS.
pub(super) fn sign(guest: &Guest, fields: &[u8]) -> Result<Value, String> {
    let request: SignRequest = parse(fields)?;
    let (key, chain) = guest.signing_key(&request.algorithm)?;
    let (signature, public_key) = match request.algorithm.as_str() {
        "ed25519" => {
            let pair = Ed25519KeyPair::from_seed_unchecked(&key).map_err(|e| e.to_string())?;
            let signature = pair.sign(&request.data).as_ref().to_vec();
            (signature, pair.public_key().as_ref().to_vec())
        }
        algorithm @ ("secp256k1" | "secp256k1_prehashed") => {
            let pair = k256::ecdsa::SigningKey::from_slice(&key).map_err(|e| e.to_string())?;
            let signature: k256::ecdsa::Signature = if algorithm == "secp256k1" {
                pair.sign(&request.data)
            } else if request.data.len() == 32 {
                let signed = pair.sign_prehash(&request.data);
                signed.map_err(|error| error.to_string())?
            } else {
                return Err(format!(
                    "Pre-hashed signing requires a 32-byte digest, but received {} bytes",
                    request.data.len()
                ));
            };
            let public_key = pair.verifying_key().to_encoded_point(true);
            (
                signature.to_bytes().to_vec(),
                public_key.as_bytes().to_vec(),
            )
        }
        _ => return Err("Unsupported algorithm".to_owned()),
    };
    let signature = hex::encode(signature);
    let chain: Vec<String> = std::iter::once(signature.clone()).chain(chain).collect();
    Ok(json!({
        "signature": signature,
        "signature_chain": chain,
        "public_key": hex::encode(public_key),
    }))
}
