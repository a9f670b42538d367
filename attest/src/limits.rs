//! Caps on every input that a peer, a server or a file controls.
//!
//! Each cap is checked before anything of that size is allocated. They are in one module so that a
//! reviewer sees the whole attack surface at once; each parser re-exports the caps of its own input.
//!
//! | Input | Caps |
//! | --- | --- |
//! | Certificate chain, from a TLS peer | [`MAX_CHAIN_LEN`], [`MAX_CERTIFICATE_LEN`], [`MAX_ISSUERS_LEN`], [`MAX_SKELETON_LEN`], [`MAX_UNREAD_LEN`], [`MAX_EXTENSIONS`] |
//! | Evidence in a certificate | [`MAX_ENVELOPE_LEN`], [`MAX_QUOTE_LEN`], [`MAX_EVENTS`], [`MAX_EVENT_NAME_LEN`], [`MAX_EVENT_PAYLOAD_LEN`], [`MAX_VM_CONFIG_LEN`] |
//! | Collateral, from a PCCS or a file | [`MAX_COLLATERAL_PART_LEN`], [`MAX_ISSUER_CHAIN_LEN`], [`MAX_PLATFORM_FAMILIES`], [`MAX_CONCURRENT_FETCHES`] |
//! | Intel Trust Authority | [`MAX_TOKEN_RESPONSE_LEN`], [`MAX_KEY_SET_LEN`] |
//! | Leader manifest, from DNS | [`MAX_MANIFEST_RECORDS`], [`MAX_MANIFEST_LEN`], [`MAX_MANIFEST_FIELDS`], [`MAX_LEADER_URL_LEN`], [`MAX_INSTANCE_DIGITS`] |
//! | Policy file | [`MAX_POLICY_LEN`], [`MAX_POLICY_ENTRIES`], [`MAX_POLICY_VALUES`], [`MAX_POLICY_NAME_LEN`] |
//! | Guest agent | [`MAX_AGENT_RESPONSE_LEN`], [`MAX_AGENT_TEXT_LEN`], [`MAX_KEY_PEM_LEN`], [`MAX_KEY_SIGNATURE_LEN`], [`MAX_AGENT_MESSAGE_CHARS`] |

// --- Certificate chain ---------------------------------------------------------------------------

/// Maximum number of certificates in a presented chain. dstack sends two.
pub const MAX_CHAIN_LEN: usize = 6;

/// Maximum size of one certificate, and of a whole chain, in bytes: one envelope of
/// [`MAX_ENVELOPE_LEN`] and a quarter of that for the legacy extensions. rustls itself reads handshake
/// messages of at most 64 KiB.
pub const MAX_CERTIFICATE_LEN: usize = MAX_ENVELOPE_LEN + MAX_ENVELOPE_LEN / 4;

/// Maximum size of a certificate without its evidence extensions, in bytes. dstack's leaf has about
/// 450. The cap bounds what x509-parser allocates for names and extensions.
pub const MAX_SKELETON_LEN: usize = 16 << 10;

/// Maximum size of the certificates after the leaf, in bytes, together: they carry no evidence, and without a
/// pinned KMS root nothing reads them. dstack's CA has about 430.
pub const MAX_ISSUERS_LEN: usize = 16 << 10;

/// Maximum size of all extensions of a certificate that no check reads, in bytes, together. Of dstack's, app
/// info has 426, usage 12, app id 20.
pub const MAX_UNREAD_LEN: usize = 1 << 10;

/// Maximum number of extensions in one certificate. dstack's leaf has at most eight.
pub const MAX_EXTENSIONS: usize = 32;

// --- Evidence ------------------------------------------------------------------------------------

/// Maximum size of an attestation envelope, and of a legacy event log, in bytes.
pub const MAX_ENVELOPE_LEN: usize = 512 << 10;

/// Maximum size of the VM configuration in an envelope, in bytes. dstack's is under 1 KiB.
pub const MAX_VM_CONFIG_LEN: usize = 64 << 10;

/// Maximum size of a quote, in bytes. With a PCK chain a quote has about 5 KiB. Linux' guest driver
/// had a buffer of 8 KiB for it until 2025 (`GET_QUOTE_BUF_SIZE`).
pub const MAX_QUOTE_LEN: usize = 32 << 10;

/// Maximum number of events in one log. A dstack boot writes nine; all others are the application's.
pub const MAX_EVENTS: usize = 1024;

/// Maximum size of an event's name, in bytes. dstack's have at most 16.
pub const MAX_EVENT_NAME_LEN: usize = 256;

/// Maximum size of an event's payload, in bytes. dstack's largest, the key provider, has about 200.
pub const MAX_EVENT_PAYLOAD_LEN: usize = 64 << 10;

/// Maximum size of a boot event's digest, in bytes: that of SHA-512.
pub(crate) const MAX_EVENT_DIGEST_LEN: usize = 64;

/// Maximum number of keys in one map of a V1 envelope. dstack's largest map, an event, has seven.
pub(crate) const MAX_MAP_KEYS: usize = 16;

/// Maximum size of a key or kind in a V1 envelope, in bytes. dstack's longest has 19.
pub(crate) const MAX_MAP_KEY_LEN: usize = 64;

// --- Collateral ----------------------------------------------------------------------------------

/// Maximum size of one part (TCB info, QE identity or a CRL), in bytes. Intel's have at most 20 KiB
/// (TCB info) and 6 KiB (PCK CRL) today; the margin is for revocations.
pub const MAX_COLLATERAL_PART_LEN: usize = 1 << 20;

/// Maximum size of one PEM issuer chain, in bytes. Intel's have two certificates (signer and root) in
/// 2 KiB.
pub const MAX_ISSUER_CHAIN_LEN: usize = 32 << 10;

/// Maximum size of a whole set as JSON, in bytes: four parts (CRLs double in hex) and three chains.
pub(crate) const MAX_COLLATERAL_JSON_LEN: usize =
    6 * MAX_COLLATERAL_PART_LEN + 4 * MAX_ISSUER_CHAIN_LEN;

/// Maximum size of one PCCS response, in bytes: a part in hex, with its signature.
pub(crate) const MAX_PCCS_RESPONSE_LEN: usize = 2 * MAX_COLLATERAL_PART_LEN;

/// Maximum number of platform families that are cached or being fetched. A fleet has a handful. A
/// peer that invents FMSPCs can use up the rest, and evicts only families without collateral or without use.
pub const MAX_PLATFORM_FAMILIES: usize = 64;

/// Maximum number of concurrent fetches: enough that one unreachable family does not delay another.
pub const MAX_CONCURRENT_FETCHES: usize = 4;

/// Maximum number of queued requests for collateral: as many as the verify queue can hold.
pub(crate) const MAX_COLLATERAL_REQUESTS: usize = 1_024;

/// Maximum number of requests that wait for any fetch.
pub(crate) const MAX_COLLATERAL_WAITERS: usize = 1_024;

/// Maximum number of directory entries that are read from the disk cache.
pub(crate) const MAX_DIRECTORY_ENTRIES: usize = 4 * MAX_PLATFORM_FAMILIES;

// --- Intel Trust Authority -----------------------------------------------------------------------

/// Maximum size of the response that holds the token, in bytes. Intel's are under 10 KiB.
pub const MAX_TOKEN_RESPONSE_LEN: usize = 64 << 10;

/// Maximum size of a JSON Web Key Set, in bytes. Intel's is under 50 KiB, with its certificates.
pub const MAX_KEY_SET_LEN: usize = 256 << 10;

/// Maximum number of keys in a JSON Web Key Set. Intel's has fewer than ten.
pub(crate) const MAX_KEY_SET_KEYS: usize = 64;

/// Minimum size of an RSA modulus, in bits. ring verifies 2,048 to 8,192.
pub(crate) const MIN_RSA_BITS: usize = 2048;

/// Maximum size of a token's `jku`, in bytes. Intel's has 45.
pub(crate) const MAX_JKU_LEN: usize = 512;

// --- Leader manifest -----------------------------------------------------------------------------

/// Maximum number of TXT records at the manifest's name. A cluster has one for each of its publishers. Each costs a
/// verification.
pub const MAX_MANIFEST_RECORDS: usize = 16;

/// Maximum size of a joined TXT record, in bytes. A record with a long URL has about 450.
pub const MAX_MANIFEST_LEN: usize = 2 << 10;

/// Maximum number of fields in a record. Version 1 has seven.
pub const MAX_MANIFEST_FIELDS: usize = 32;

/// Maximum size of a field's key, in bytes.
pub(crate) const MAX_MANIFEST_KEY_LEN: usize = 32;

/// Maximum size of a leader's URL, in bytes.
pub const MAX_LEADER_URL_LEN: usize = 512;

/// Maximum number of hex digits in an instance's name. dstack's have 40.
pub const MAX_INSTANCE_DIGITS: usize = 128;

// --- Policy file ---------------------------------------------------------------------------------

/// Maximum size of a policy file, in bytes. An operating system has about 600, a peer 300.
pub const MAX_POLICY_LEN: usize = 1 << 20;

/// Maximum number of `[[os]]`, and of `[[peer]]`, in a policy file. Each verification compares a peer
/// with all of them.
pub const MAX_POLICY_ENTRIES: usize = 256;

/// Maximum number of values of one key in a policy file.
pub const MAX_POLICY_VALUES: usize = 256;

/// Maximum size of an entry's name, in bytes.
pub const MAX_POLICY_NAME_LEN: usize = 64;

// --- Guest agent ---------------------------------------------------------------------------------

/// Maximum size of a response, in bytes. A recorded quote with its event log has 42 KiB; an envelope
/// of [`MAX_ENVELOPE_LEN`] has 1 MiB in hex.
pub const MAX_AGENT_RESPONSE_LEN: usize = 2 << 20;

/// Maximum size of a short text, in bytes: a name, a version, a configuration.
pub const MAX_AGENT_TEXT_LEN: usize = 64 << 10;

/// Maximum size of a private key in PEM, in bytes. A P-256 key has 241.
pub const MAX_KEY_PEM_LEN: usize = 4 << 10;

/// Maximum size of one signature in a derived key's signature chain, in bytes. Recorded ones have 65.
pub const MAX_KEY_SIGNATURE_LEN: usize = 256;

/// Maximum number of characters of the agent's own message that an error shows.
pub const MAX_AGENT_MESSAGE_CHARS: usize = 200;
