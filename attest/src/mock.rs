//! A TDX of the project's own: an "Intel" PKI, machines that quote, certificates that carry the
//! quotes, a PCCS and a guest agent, for tests and for machines without TDX.
//!
//! It exists so that every check of the verifier can be shown to be made: dcap-qvl verifies what is
//! made here signature by signature, date by date, under [`Pki::root_der`] as its root, and each thing
//! that it checks can be made wrong alone. Everything follows from a seed: the same seed and the same
//! options give the same bytes (signatures are deterministic, RFC 6979); only the RSA keys and
//! tokens of Trust Authority are random.
//!
//! It must never be trusted: the keys are public to whoever knows the seed, so a verifier accepts it
//! only under a root that was named as dangerous. It never logs or reads a clock; only [`TrustAuthority`]
//! draws randomness, and only it, [`Pccs`] and [`Agent`] open sockets, on loopback or where they are told
//! to.
//!
//! | Type | Is |
//! | --- | --- |
//! | [`Pki`] | the root CA, both PCK CAs, the TCB signing certificate, the KMS CA; makes collateral |
//! | [`Platform`] | one platform at one patch level: its PCK certificate; makes quotes |
//! | [`Evidence`] | what a guest says of itself: measurements, event log, envelope |
//! | [`Certificate`] | a leaf as dstack's guest agent hands out, with the evidence in it |
//! | [`Pccs`] | a PCCS over HTTP that can be told to misbehave |
//! | [`Agent`] | dstack's guest agent, which hands such certificates out, and can be told to misbehave |
//! | [`TrustAuthority`] | an Intel Trust Authority over HTTP that can be told to misbehave |
//!
//! ```
//! # fn main() -> Result<(), attest::mock::MockError> {
//! use attest::mock::{Certificate, CollateralOptions, Evidence, Key, LeafOptions, Platform, PlatformOptions, Pki};
//!
//! const NOW: u64 = 1_800_000_000;
//! let pki = Pki::new(&[7; 32])?;
//! let machine = Platform::new(&pki, &PlatformOptions::default())?;
//! let key = Key::derive(&[7; 32], "client 1")?;
//! let client = Certificate::issue(&pki, &machine, &key, &Evidence::default(), &LeafOptions::default())?;
//! let collateral = pki.collateral(&CollateralOptions::at(NOW))?;
//! # let _ = (client.pem(), collateral);
//! # Ok(())
//! # }
//! ```

mod agent;
mod behaviour;
mod certificate;
mod collateral;
mod event;
mod evidence;
mod fixture;
mod http;
mod key;
mod options;
mod pccs;
mod pki;
mod platform;
mod quote;
pub mod recorded;
mod tcb;
mod token;
mod trust_authority;

pub use agent::{Agent, AgentBehaviour, AgentListen, AgentOptions, Now};
pub use behaviour::Behaviour;
pub use certificate::{Certificate, LeafOptions};
pub use event::{DigestVersion, Event, SYSTEM_READY};
pub use evidence::{Binding, Envelope, Evidence, PayloadForm, Rtmr3};
pub use fixture::Fixture;
pub use key::Key;
pub use options::{CollateralOptions, Revoked, Tee};
pub use pccs::{Pccs, PccsResponses, Resource};
pub use pki::{Pki, PkiOptions, Validity};
pub use platform::{Platform, PlatformOptions};
pub use quote::{QuoteFormat, TdReport};
pub use tcb::{ModuleLevel, PlatformLevel, QeLevel};
pub use token::TokenVariant;
pub use trust_authority::TrustAuthority;

/// What can go wrong while making mock data: only options that make no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MockError {
    /// rcgen refused to write a certificate or a CRL.
    #[error("cannot write a certificate or CRL: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key could not be written in PKCS#8.
    #[error("cannot write a key: {0}")]
    Key(String),
    /// A date after the year 9999, which X.509 cannot write.
    #[error("unix time {0} is after the year 9999")]
    Date(u64),
    /// The event log or attestation could not be encoded.
    #[error("cannot encode evidence: {0}")]
    Evidence(String),
    /// Something is longer than its length field can say.
    #[error("{0} is too long for its length field")]
    TooLong(&'static str),
    /// PCCS or guest agent could not listen.
    #[error("cannot listen: {0}")]
    Io(#[from] std::io::Error),
}
