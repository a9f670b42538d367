//! The part of the TLS 1.3 key schedule that a session needs after its handshake (RFC 8446,
//! 7.2 and 7.3): the keys of a traffic secret, and the next traffic secret.
//!
//! rustls runs the schedule up to the two traffic secrets and passes them to its `KeyLog`,
//! the only interface by which it hands them out. Our `KeyLog` must never write them
//! anywhere: it keeps them in a thread-local until the call into rustls that derived them
//! returns.

use std::cell::RefCell;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{aead, hkdf};
use rustls::{CipherSuite, KeyLog, SupportedCipherSuite};
use zeroize::Zeroizing;

/// The algorithms of a TLS 1.3 cipher suite.
pub(super) struct Suite {
    aead: &'static aead::Algorithm,
    hash: &'static hkdf::Algorithm,
    /// Records that one key may seal before it must be updated (RFC 8446, 5.5, for
    /// AES-GCM).
    pub(super) record_limit: u64,
}

static AES_128_GCM_SHA256: Suite = Suite {
    aead: &aead::AES_128_GCM,
    hash: &hkdf::HKDF_SHA256,
    record_limit: 1 << 24,
};
static AES_256_GCM_SHA384: Suite = Suite {
    aead: &aead::AES_256_GCM,
    hash: &hkdf::HKDF_SHA384,
    record_limit: 1 << 24,
};
static CHACHA20_POLY1305_SHA256: Suite = Suite {
    aead: &aead::CHACHA20_POLY1305,
    hash: &hkdf::HKDF_SHA256,
    record_limit: u64::MAX,
};

impl Suite {
    /// Returns `None` for a suite that is not TLS 1.3, or that is not implemented here.
    pub(super) fn of(negotiated: SupportedCipherSuite) -> Option<&'static Self> {
        match negotiated.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(&AES_128_GCM_SHA256),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(&AES_256_GCM_SHA384),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(&CHACHA20_POLY1305_SHA256),
            _ => None,
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Suite {
    /// This suite with another limit. It is leaked.
    pub(super) fn with_record_limit(&self, record_limit: u64) -> &'static Self {
        Box::leak(Box::new(Self {
            record_limit,
            ..*self
        }))
    }

    /// Bytes of a traffic secret.
    pub(super) fn hash_len(&self) -> usize {
        self.hash.hmac_algorithm().digest_algorithm().output_len()
    }
}

/// A traffic secret, zeroized on drop. Boxed, because a move of the bytes themselves would
/// leave a copy that is not zeroized.
pub(super) struct TrafficSecret(Zeroizing<Box<[u8]>>);

impl TrafficSecret {
    fn copy(from: &[u8]) -> Self {
        Self(Zeroizing::new(from.into()))
    }

    /// Derives the key and the initialisation vector (RFC 8446, 7.3).
    pub(super) fn keys(
        &self,
        suite: &Suite,
    ) -> Result<(aead::LessSafeKey, [u8; aead::NONCE_LEN]), Unspecified> {
        let mut longest = Zeroizing::new([0; 32]);
        let key = longest.get_mut(..suite.aead.key_len()).ok_or(Unspecified)?;
        self.expand(suite, b"key", key)?;
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(suite.aead, key)?);
        let mut iv = [0; aead::NONCE_LEN];
        self.expand(suite, b"iv", &mut iv)?;
        Ok((key, iv))
    }

    /// Derives the secret that replaces this one after a KeyUpdate (RFC 8446, 7.2).
    pub(super) fn next(&self, suite: &Suite) -> Result<Self, Unspecified> {
        let mut next = Self::copy(&self.0);
        self.expand(suite, b"traffic upd", &mut next.0)?;
        Ok(next)
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
    fn expand(&self, suite: &Suite, label: &[u8], out: &mut [u8]) -> Result<(), Unspecified> {
        const PREFIX: &[u8] = b"tls13 ";
        let length = u16::try_from(out.len()).map_err(|_| Unspecified)?;
        let label_len = u8::try_from(PREFIX.len() + label.len()).map_err(|_| Unspecified)?;
        let info = [&length.to_be_bytes(), &[label_len][..], PREFIX, label, &[0]];
        hkdf::Prk::new_less_safe(*suite.hash, &self.0)
            .expand(&info, OutputLen(out.len()))?
            .fill(out)
    }
}

struct OutputLen(usize);

impl hkdf::KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

/// The first application traffic secret of each side.
pub(super) struct TrafficSecrets {
    pub(super) client: TrafficSecret,
    pub(super) server: TrafficSecret,
}

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    static CAPTURED: RefCell<[Option<TrafficSecret>; 2]> = const { RefCell::new([None, None]) };
}

/// A `KeyLog` for configurations whose sessions take over the traffic secrets. It logs
/// nothing.
#[derive(Debug)]
pub(crate) struct SecretCapture;

impl KeyLog for SecretCapture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAPTURED.with_borrow_mut(|[client, server]| match label {
            CLIENT => *client = Some(TrafficSecret::copy(secret)),
            SERVER => *server = Some(TrafficSecret::copy(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}

/// Runs one call into rustls. Returns its result, and both traffic secrets if the call
/// derived them.
pub(super) fn capture<T>(call: impl FnOnce() -> T) -> (T, Option<TrafficSecrets>) {
    CAPTURED.set([None, None]);
    let result = call();
    let [client, server] = CAPTURED.take();
    let secrets = client.zip(server);
    (
        result,
        secrets.map(|(client, server)| TrafficSecrets { client, server }),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The client's application traffic secret of RFC 8448, 3.
    pub(in crate::tls) const CLIENT_SECRET: &str =
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";

    pub(in crate::tls) fn secret(hex: &str) -> TrafficSecret {
        TrafficSecret::copy(&hex::decode(hex).unwrap())
    }

    /// [`AES_128_GCM_SHA256`] with a limit of four records per key.
    pub(in crate::tls) static FOUR_RECORDS: Suite = Suite {
        aead: &aead::AES_128_GCM,
        hash: &hkdf::HKDF_SHA256,
        record_limit: 4,
    };

    #[test]
    fn derives_the_keys_of_rfc_8448() {
        let secret = secret(CLIENT_SECRET);
        let mut key = [0; 16];
        secret
            .expand(&AES_128_GCM_SHA256, b"key", &mut key)
            .unwrap();
        assert_eq!(hex::encode(key), "17422dda596ed5d9acd890e3c63f5051");
        let (_, iv) = secret.keys(&AES_128_GCM_SHA256).unwrap();
        assert_eq!(hex::encode(iv), "5b78923dee08579033e523d9");
    }

    #[test]
    fn captures_only_both_secrets_of_one_call() {
        let captured = capture(|| SecretCapture.log(CLIENT, &[], &[1; 32])).1;
        assert!(captured.is_none());
        let captured = capture(|| SecretCapture.log(SERVER, &[], &[2; 32])).1;
        assert!(
            captured.is_none(),
            "the client's secret is of an earlier call"
        );
        let captured = capture(|| {
            SecretCapture.log(CLIENT, &[], &[1; 32]);
            SecretCapture.log(SERVER, &[], &[2; 48]);
            SecretCapture.log("EXPORTER_SECRET", &[], &[3; 32]);
        });
        let captured = captured.1.unwrap();
        assert_eq!(captured.client.0[..], [1; 32]);
        assert_eq!(captured.server.0[..], [2; 48]);
    }
}
