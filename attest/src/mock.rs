//! A mock TDX for tests and for machines without TDX: an "Intel" PKI, platforms that quote,
//! certificates that carry the quotes, a PCCS, a guest agent and a Trust Authority.
//!
//! It exists to show that the verifier makes each of its checks. dcap-qvl verifies the mock's output
//! completely, every signature and every date, with [`Pki::root_der`] as its root; each input of a check
//! can be made wrong separately. Everything is derived from a seed: the same seed and the same options
//! give the same bytes (signatures are deterministic, RFC 6979). The exceptions are Trust Authority's RSA
//! keys and tokens, which are random.
//!
//! It must never be trusted: its keys are known to anyone who knows the seed. A verifier accepts it
//! only under a root that is configured as dangerous. It never logs and never reads a clock. Only
//! [`TrustAuthority`] uses random numbers, and only [`TrustAuthority`], [`Pccs`] and [`Agent`] open
//! sockets, on loopback or at a given path.
//!
//! | Type | What it is |
//! | --- | --- |
//! | [`Pki`] | the root CA, both PCK CAs, the TCB signing certificate, the KMS CA; makes collateral |
//! | [`Platform`] | one platform at one patch level, with its PCK certificate; makes quotes |
//! | [`Evidence`] | what a guest reports about itself: measurements, event log, envelope |
//! | [`Certificate`] | a leaf as issued by dstack's guest agent, with the evidence in it |
//! | [`Pccs`] | a PCCS over HTTP, with fault injection |
//! | [`Agent`] | dstack's guest agent, which issues such certificates, with fault injection |
//! | [`TrustAuthority`] | an Intel Trust Authority over HTTP, with fault injection |
//! | [`Fixture`] | a peer that passes every check, for tests that make one thing wrong |
//!
//! ```
//! # fn main() -> Result<(), attest::mock::MockError> {
//! use attest::mock::{
//!     Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pki, Platform, PlatformOptions,
//! };
//!
//! const NOW: u64 = 1_800_000_000;
//! let pki = Pki::new(&[7; 32])?;
//! let platform = Platform::new(&pki, &PlatformOptions::default())?;
//! let key = Key::derive(&[7; 32], "client 1")?;
//! let client = Certificate::issue(&pki, &platform, &key, &Evidence::default(), &LeafOptions::default())?;
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

/// Errors of the mock: options that cannot be written, and sockets that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MockError {
    /// rcgen cannot write a certificate or a CRL.
    #[error("cannot write a certificate or CRL: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A key cannot be generated, read or written in PKCS#8.
    #[error("cannot write a key: {0}")]
    Key(String),
    /// A date after the year 9999, which X.509 cannot express.
    #[error("unix time {0} is after the year 9999")]
    Date(u64),
    /// The event log or attestation cannot be encoded.
    #[error("cannot encode evidence: {0}")]
    Evidence(String),
    /// A value is too long for its length field.
    #[error("{0} is too long for its length field")]
    TooLong(&'static str),
    /// A server cannot listen.
    #[error("cannot listen: {0}")]
    Io(#[from] std::io::Error),
}
