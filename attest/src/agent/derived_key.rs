//! A key that the guest agent derives for the application (`GetKey`).

use std::fmt::{self, Write};

use zeroize::Zeroizing;

use super::AgentError;
use super::response::ResponseFields;
use crate::limits::MAX_KEY_SIGNATURE_LEN;

/// A derived key: 32 bytes that depend on the application's identity and a path. The same on every
/// instance and after every restart. Wiped when dropped.
pub struct DerivedKey {
    key: Zeroizing<[u8; Self::LEN]>,
    signatures: [Vec<u8>; 2],
}

impl DerivedKey {
    /// Length of a key in bytes.
    pub const LEN: usize = 32;

    pub(super) fn from_response(response: &ResponseFields<'_>) -> Result<Self, AgentError> {
        let wrong = || response.malformed("key", "is not hex of 32 bytes");
        let text = response.secret("key", 2 * Self::LEN)?;
        let mut key = Zeroizing::new([0; Self::LEN]);
        hex::decode_to_slice(text.as_bytes(), key.as_mut()).map_err(|_| wrong())?;
        Ok(Self {
            key,
            signatures: signatures(response)?,
        })
    }

    /// The key's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.key
    }

    /// The key as 64 lowercase hex digits, the form in which it is used as a password.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        // Allocated once at full size: growing would leave copies of the key in freed memory.
        let mut hex = Zeroizing::new(String::with_capacity(2 * Self::LEN));
        for byte in self.key.iter() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }

    /// The signatures that lead from the key to the KMS root: the application key's over this key, and
    /// the root's over the application key. Not secret, and not verified.
    #[must_use]
    pub fn signature_chain(&self) -> &[Vec<u8>; 2] {
        &self.signatures
    }
}

fn signatures(response: &ResponseFields<'_>) -> Result<[Vec<u8>; 2], AgentError> {
    const FIELD: &str = "signature_chain";
    let chain: [String; 2] = response
        .texts(FIELD)?
        .try_into()
        .map_err(|_| response.malformed(FIELD, "does not hold two signatures"))?;
    let decode = |text: String| match text.len() {
        1.. if text.len() <= 2 * MAX_KEY_SIGNATURE_LEN => {
            hex::decode(text).map_err(|_| response.malformed(FIELD, "is not hex"))
        }
        _ => Err(response.malformed(FIELD, "holds a signature of an impossible length")),
    };
    let [of_key, of_app] = chain;
    Ok([decode(of_key)?, decode(of_app)?])
}

impl fmt::Debug for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DerivedKey(…)")
    }
}
