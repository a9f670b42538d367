//! The part of TLS 1.3's key schedule that a session needs after its handshake
//! (RFC 8446, 7.2 and 7.3): keys of a traffic secret, and the secret after it.
//!
//! rustls runs the schedule up to the two traffic secrets and hands them to its
//! `KeyLog`, the one way on which it parts with them. Ours writes nothing: it
//! keeps them on the thread until the call into rustls that made them is over.

use std::cell::RefCell;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{aead, hkdf};
use rustls::{CipherSuite, KeyLog, SupportedCipherSuite};
use zeroize::Zeroizing;

/// What a TLS 1.3 cipher suite is made of.
pub(super) struct Suite {
    aead: &'static aead::Algorithm,
    hash: &'static hkdf::Algorithm,
    /// Records that one key seals before the next takes over (RFC 8446, 5.5, of
    /// AES-GCM).
    pub(super) limit: u64,
}

static AES_128_GCM_SHA256: Suite = Suite {
    aead: &aead::AES_128_GCM,
    hash: &hkdf::HKDF_SHA256,
    limit: 1 << 24,
};
static AES_256_GCM_SHA384: Suite = Suite {
    aead: &aead::AES_256_GCM,
    hash: &hkdf::HKDF_SHA384,
    limit: 1 << 24,
};
static CHACHA20_POLY1305_SHA256: Suite = Suite {
    aead: &aead::CHACHA20_POLY1305,
    hash: &hkdf::HKDF_SHA256,
    limit: u64::MAX,
};

impl Suite {
    /// `None` for what is not TLS 1.3, or not known here.
    pub(super) fn of(agreed: SupportedCipherSuite) -> Option<&'static Self> {
        match agreed.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(&AES_128_GCM_SHA256),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(&AES_256_GCM_SHA384),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(&CHACHA20_POLY1305_SHA256),
            _ => None,
        }
    }
}

/// A traffic secret, wiped when it is dropped. Boxed, since a move would leave a copy
/// behind that nobody wipes.
pub(super) struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    fn copy(from: &[u8]) -> Self {
        Self(Zeroizing::new(from.into()))
    }

    /// Its key and its initialisation vector (RFC 8446, 7.3).
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

    /// The one that follows it after a KeyUpdate (RFC 8446, 7.2).
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
            .expand(&info, Length(out.len()))?
            .fill(out)
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The first two traffic secrets of a session.
pub(super) struct Secrets {
    pub(super) client: Secret,
    pub(super) server: Secret,
}

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    static CAUGHT: RefCell<[Option<Secret>; 2]> = const { RefCell::new([None, None]) };
}

/// What rustls takes for a key log, for configurations whose sessions are to seal
/// and open their own records. Nothing is logged.
#[derive(Debug)]
pub(crate) struct SecretCapture;

impl KeyLog for SecretCapture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAUGHT.with_borrow_mut(|[client, server]| match label {
            CLIENT => *client = Some(Secret::copy(secret)),
            SERVER => *server = Some(Secret::copy(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT || label == SERVER
    }
}

/// Runs one call into rustls; the traffic secrets that it came to, if it did.
pub(super) fn catch<T>(call: impl FnOnce() -> T) -> (T, Option<Secrets>) {
    CAUGHT.set([None, None]);
    let result = call();
    let [client, server] = CAUGHT.take();
    let secrets = client.zip(server);
    (
        result,
        secrets.map(|(client, server)| Secrets { client, server }),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The client's of RFC 8448, 3.
    pub(in crate::tls) const CLIENT_SECRET: &str =
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5";

    pub(in crate::tls) fn secret(hex: &str) -> Secret {
        Secret::copy(&hex::decode(hex).unwrap())
    }

    /// As [`AES_128_GCM_SHA256`], with keys that seal few records.
    pub(in crate::tls) static FOUR_RECORDS: Suite = Suite {
        aead: &aead::AES_128_GCM,
        hash: &hkdf::HKDF_SHA256,
        limit: 4,
    };

    #[test]
    fn keys_are_those_of_rfc_8448() {
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
    fn only_both_secrets_of_one_call_are_caught() {
        let caught = catch(|| SecretCapture.log(CLIENT, &[], &[1; 32])).1;
        assert!(caught.is_none());
        let caught = catch(|| SecretCapture.log(SERVER, &[], &[2; 32])).1;
        assert!(caught.is_none(), "the client's was of another call");
        let caught = catch(|| {
            SecretCapture.log(CLIENT, &[], &[1; 32]);
            SecretCapture.log(SERVER, &[], &[2; 48]);
            SecretCapture.log("EXPORTER_SECRET", &[], &[3; 32]);
        });
        let caught = caught.1.unwrap();
        assert_eq!(caught.client.0[..], [1; 32]);
        assert_eq!(caught.server.0[..], [2; 48]);
    }
}
