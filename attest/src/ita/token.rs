//! A token: a JWT in compact serialisation. [RFC 7515; RFC 7519]

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::ItaError;
use super::algorithm::Algorithm;
use super::claims::Claims;
use super::jwks::KeySet;

#[derive(Deserialize)]
struct Header {
    alg: String,
    jku: Option<String>,
    kid: Option<String>,
    /// Header extensions that must be understood. None is.
    crit: Option<IgnoredAny>,
}

/// A token whose signature is not verified. Its claims are not parsed before that.
pub(super) struct Token<'a> {
    algorithm: Algorithm,
    jku: String,
    kid: String,
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, ItaError> {
        let wrong = ItaError::MalformedToken;
        let parts = text.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, payload) = signed.split_once('.')?;
            Some((signed, header, payload, signature))
        });
        let (signed, header, payload, signature) =
            parts.ok_or(wrong("it does not have three parts"))?;
        let header = decode(header)?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|_| wrong("its header cannot be read"))?;
        let algorithm = Algorithm::from_name(&header.alg)?;
        if header.crit.is_some() {
            return Err(wrong("its header has unknown critical extensions"));
        }
        Ok(Self {
            algorithm,
            jku: header.jku.ok_or(wrong("its header has no jku"))?,
            kid: header.kid.ok_or(wrong("its header has no kid"))?,
            signature: decode(signature)?,
            signed,
            payload,
        })
    }

    /// The URL at which the token says that its key is. Not to be fetched before it is checked.
    pub(super) fn jku(&self) -> &str {
        &self.jku
    }

    /// Verifies the signature with a key of `keys`, and gives the claims.
    pub(super) fn verify(&self, keys: &KeySet) -> Result<Claims, ItaError> {
        let key = keys.find(&self.kid, self.algorithm)?;
        key.verify(self.algorithm, self.signed.as_bytes(), &self.signature)?;
        Claims::parse(&decode(self.payload)?)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, ItaError> {
    BASE64_URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| ItaError::MalformedToken("a part of it is not base64url"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(header: &str, rest: &str) -> Result<(), ItaError> {
        let header = BASE64_URL_SAFE_NO_PAD.encode(header);
        Token::parse(&format!("{header}{rest}")).map(|_| ())
    }

    #[test]
    fn accepts_two_algorithms_only() {
        let header = |alg: &str| format!(r#"{{"alg":"{alg}","jku":"j","kid":"k"}}"#);
        for alg in ["PS384", "RS256"] {
            assert_eq!(parse(&header(alg), ".e30.c2ln"), Ok(()));
        }
        for alg in [
            "none", "None", "", "HS256", "HS384", "ES256", "ES384", "PS256", "RS384", "RS512",
            "ps384", "EdDSA",
        ] {
            let refused = parse(&header(alg), ".e30.c2ln");
            assert_eq!(refused, Err(ItaError::Algorithm), "{alg}");
        }
    }

    #[test]
    fn rejects_malformed_tokens() {
        let header = r#"{"alg":"PS384","jku":"j","kid":"k"}"#;
        for (header, rest) in [
            (header, ""),
            (header, ".e30"),
            (header, ".e30.c2ln="),
            (header, ".e30.c2l n"),
            ("{}", ".e30.c2ln"),
            ("[]", ".e30.c2ln"),
            (r#"{"alg":"PS384","kid":"k"}"#, ".e30.c2ln"),
            (r#"{"alg":"PS384","jku":"j"}"#, ".e30.c2ln"),
            (
                r#"{"alg":"PS384","alg":"none","jku":"j","kid":"k"}"#,
                ".e30.c2ln",
            ),
            (
                r#"{"alg":"PS384","jku":"j","kid":"k","crit":["b64"]}"#,
                ".e30.c2ln",
            ),
        ] {
            let refused = parse(header, rest).unwrap_err();
            assert_eq!(refused.code(), "ita_malformed_token", "{header}{rest}");
        }
        assert!(Token::parse("").is_err() && Token::parse("..").is_err());
    }

    proptest::proptest! {
        /// Arbitrary text is refused with an error.
        #[test]
        fn rejects_arbitrary_text(text in ".{0,300}", body in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            proptest::prop_assert!(Token::parse(&text).is_err());
            let _ = parse(&text, ".e30.c2ln");
            proptest::prop_assert!(Claims::parse(&body).is_err());
            let from = url::Url::parse("https://ita.example/certs").unwrap();
            proptest::prop_assert!(KeySet::parse(&body, from, 0).is_err());
        }
    }
}
