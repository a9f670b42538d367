//! Attestation tokens (JWS) as Trust Authority signs them, with real RSA keys, and forged variants.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA384};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::MockError;
use crate::quote::TdQuote;
use crate::verify::Appraisal;

/// Validity of a token in seconds, like Intel's: five minutes.
const LIFETIME: u64 = 300;

/// Position of the modulus in the DER of a 2,048-bit public key: after the headers of the sequence and of
/// the integer, and the leading zero. [PKCS #1, RSAPublicKey]
const MODULUS: std::ops::Range<usize> = 9..265;

/// Trust Authority's key and a forger's. Generated once per process: RSA keys are not derived from a seed.
static KEYS: LazyLock<Option<[KeyPair; 2]>> = LazyLock::new(|| {
    let key = || KeyPair::generate(KeySize::Rsa2048).ok();
    Some([key()?, key()?])
});

/// Which token to issue. All but the first three must be refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TokenVariant {
    /// A correct token, signed with PS384.
    #[default]
    Valid,
    /// A correct token with its claims in a member `tdx`, as in Intel's version 2.
    Nested,
    /// A correct token, signed with RS256.
    Rs256,
    /// `alg: none` without a signature.
    AlgorithmNone,
    /// HS256 with the public key as the secret.
    Hs256,
    /// Signed by another key, with the `kid` of the correct one.
    WrongKey,
    /// One bit of the signature is flipped.
    BadSignature,
    /// `jku` is this URL.
    OtherJku(String),
    /// `kid` names no key of the set.
    UnknownKey,
    /// `kid` names a key of 1,024 bits.
    ShortKey,
    /// `exp` is now.
    Expired,
    /// `nbf` and `iat` are five minutes ahead.
    NotYetValid,
    /// One claim about the TD has this value; null removes the claim.
    Claim(&'static str, Value),
}

/// Signs tokens.
#[derive(Clone, Copy)]
pub(super) struct Signer {
    own: &'static KeyPair,
    foreign: &'static KeyPair,
}

impl Signer {
    pub(super) fn new() -> Result<Self, MockError> {
        match KEYS.as_ref() {
            Some([own, foreign]) => Ok(Self { own, foreign }),
            None => Err(MockError::Key("cannot make an RSA key".to_owned())),
        }
    }

    /// The key set (JWKS): the key `kid` for PS384, the same key under another name for RS256, and a
    /// short key.
    pub(super) fn key_set(&self, kid: &str) -> Value {
        let public = self.own.public_key().as_ref();
        let n = encode(public.get(MODULUS).unwrap_or_default());
        let key = |kid: String, alg: &str, n: &str| json!({"kty": "RSA", "use": "sig", "kid": kid, "alg": alg, "n": n, "e": "AQAB"});
        json!({"keys": [
            key(kid.to_owned(), "PS384", &n),
            key(format!("{kid}-rs256"), "RS256", &n),
            key(format!("{kid}-short"), "PS384", &encode(&[0xc1; 128])),
        ]})
    }

    /// Signs a token about `quote` at `now`.
    pub(super) fn token(
        &self,
        quote: &TdQuote,
        appraisal: &Appraisal,
        now: u64,
        (jku, kid): (&str, &str),
        variant: &TokenVariant,
    ) -> Result<String, MockError> {
        let (alg, kid) = match variant {
            TokenVariant::AlgorithmNone => ("none", kid.to_owned()),
            TokenVariant::Hs256 => ("HS256", kid.to_owned()),
            TokenVariant::Rs256 => ("RS256", format!("{kid}-rs256")),
            TokenVariant::ShortKey => ("PS384", format!("{kid}-short")),
            TokenVariant::UnknownKey => ("PS384", format!("{kid}-unknown")),
            _ => ("PS384", kid.to_owned()),
        };
        let jku = match variant {
            TokenVariant::OtherJku(url) => url,
            _ => jku,
        };
        let header = json!({"alg": alg, "jku": jku, "kid": kid, "typ": "JWT"});
        let claims = dated(claims(quote, appraisal, variant), now, variant);
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let mut signature = self.sign(signed.as_bytes(), variant)?;
        if let (TokenVariant::BadSignature, Some(last)) = (variant, signature.last_mut()) {
            *last ^= 1;
        }
        Ok(format!("{signed}.{}", encode(&signature)))
    }

    fn sign(&self, signed: &[u8], variant: &TokenVariant) -> Result<Vec<u8>, MockError> {
        let (key, encoding): (_, &'static dyn aws_lc_rs::signature::RsaEncoding) = match variant {
            TokenVariant::AlgorithmNone => return Ok(Vec::new()),
            TokenVariant::Hs256 => {
                // Algorithm confusion: the public key, which is not secret, is the shared secret.
                let secret = self.own.public_key().as_ref();
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                return Ok(hmac::sign(&key, signed).as_ref().to_vec());
            }
            TokenVariant::WrongKey => (self.foreign, &RSA_PSS_SHA384),
            TokenVariant::Rs256 => (self.own, &RSA_PKCS1_SHA256),
            _ => (self.own, &RSA_PSS_SHA384),
        };
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(encoding, &SystemRandom::new(), signed, &mut signature)
            .map_err(|_| MockError::Key("cannot sign a token".to_owned()))?;
        Ok(signature)
    }
}

/// The claims about the TD, taken from the quote.
fn claims(quote: &TdQuote, appraisal: &Appraisal, variant: &TokenVariant) -> Value {
    let report = quote.report();
    let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs().map(|rtmr| rtmr.to_string());
    let [under_debug, ..] = report.attributes();
    let debug = under_debug & 1 != 0;
    let mut claims = json!({
        "attester_type": "TDX",
        "attester_tcb_status": appraisal.tcb_status().as_str(),
        "attester_advisory_ids": appraisal.advisories(),
        "tdx_mrtd": report.mrtd().to_string(),
        "tdx_rtmr0": rtmr0,
        "tdx_rtmr1": rtmr1,
        "tdx_rtmr2": rtmr2,
        "tdx_rtmr3": rtmr3,
        "tdx_report_data": hex::encode(report.report_data()),
        "tdx_is_debuggable": debug,
        "tdx_td_attributes_debug": debug,
    });
    if let (TokenVariant::Claim(name, value), Some(claims)) = (variant, claims.as_object_mut()) {
        match value {
            Value::Null => claims.remove(*name),
            value => claims.insert((*name).to_owned(), value.clone()),
        };
    }
    claims
}

/// Adds issuer and dates. Intel's version 2 nests the claims in a member.
fn dated(claims: Value, now: u64, variant: &TokenVariant) -> Value {
    let from = match variant {
        TokenVariant::Expired => now.saturating_sub(LIFETIME),
        TokenVariant::NotYetValid => now.saturating_add(LIFETIME),
        _ => now,
    };
    let mut dated = json!({
        "iss": "Intel Trust Authority",
        "iat": from,
        "nbf": from,
        "exp": from.saturating_add(LIFETIME),
    });
    let Some(members) = dated.as_object_mut() else {
        return dated;
    };
    match (variant, claims) {
        (TokenVariant::Nested, claims) => drop(members.insert("tdx".to_owned(), claims)),
        (_, Value::Object(claims)) => members.extend(claims),
        _ => {}
    }
    dated
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
