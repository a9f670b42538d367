//! Random bytes from the operating system.

use std::io;

/// Returns `N` random bytes.
///
/// # Errors
/// The operating system provides no randomness.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    Ok(bytes)
}
