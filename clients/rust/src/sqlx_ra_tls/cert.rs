//! The TDX quote in a certificate.

pub use engine::embed::extract_tdx_quote;

/// The extension with a bare quote.
pub const OID_TDX_QUOTE: &str = "1.3.6.1.4.1.62397.1.1";
/// The extension with dstack's attestation envelope.
pub const OID_ATTESTATION: &str = "1.3.6.1.4.1.62397.1.8";
