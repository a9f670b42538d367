//! From certificate bytes to "this peer may enter, and why".
//!
//! A peer's X.509 certificate carries a TDX quote. The crate answers one question about it: is the
//! quote genuine, is it bound to the key of this very certificate, and does policy allow what it
//! says? It answers with an [`AttestedPeer`], which nothing else can make, or with one [`Denial`] of a
//! closed list. It fails closed: what cannot be read, replayed or verified is refused.
//!
//! Nothing here, outside [`agent`], [`collateral`], [`ita`] and the mock, opens a socket, reads a clock,
//! logs or is async: certificates are byte slices and `now` is an argument, in unix seconds. Everything
//! that a peer can make long has a named cap that is checked before anything is allocated.
//!
//! The way of a certificate, and the types that make it impossible to skip a step:
//!
//! ```text
//! DER ─ certificate::Leaf ─ evidence::UnboundEvidence ─ binding::BoundEvidence ─ AttestedPeer
//!       dates, caps          .8, or .1 and .2            the quote is this key's   Intel, TCB, RTMR3, policy
//! └────────────────────── examine(), ~10 µs, on a shard ──────────┘ └ Verifier, ≤ 0.5 ms, elsewhere ┘
//! ```
//!
//! | Module | About |
//! | --- | --- |
//! | [`certificate`] | X.509: caps, dates, the evidence extensions |
//! | [`chain`] | the presented chain as one value; signatures up to a pinned KMS root |
//! | [`evidence`] | the envelopes V0 and V1, and the older pair of extensions |
//! | [`quote`] | header and report of a TDX quote, versions 4 and 5 |
//! | [`binding`] | the only way from unbound to bound evidence |
//! | [`event_log`] | digests V1 and V2, the replay of RTMR3, the identity it proves |
//! | [`tcb`] | TCB statuses and advisories |
//! | [`policy`] | what is allowed |
//! | [`verify`] | Intel's signatures, TCB status, and all checks in order |
//! | [`trace`] | an observer that sees each check with its outcome and values |
//! | [`cache`] | verdicts that were already reached |
//! | [`limits`] | caps on every input that a peer, a server or a file controls |
//! | [`denial`] | every way to be refused |
//! | [`collateral`] | what quotes are judged with, and how it is kept fresh |
//! | [`agent`] | dstack's guest agent: this TD's own certificate, derived keys and quotes |
//! | [`ita`] | Intel Trust Authority as the judge of the quote, in the place of collateral |
//! | [`manifest`] | which instance of a cluster leads, by its operator's signature |

#![forbid(unsafe_code)]

pub mod agent;
pub mod binding;
pub mod cache;
pub mod certificate;
pub mod chain;
pub mod collateral;
pub mod denial;
mod der;
pub mod event_log;
pub mod evidence;
pub mod ita;
pub mod limits;
pub mod manifest;
#[cfg(feature = "mock")]
pub mod mock;
pub mod policy;
pub mod quote;
mod signature_cache;
pub mod tcb;
pub mod trace;
pub mod values;
pub mod verify;

pub use binding::{BoundEvidence, examine};
pub use denial::Denial;
pub use policy::Policy;
pub use verify::{AttestedPeer, TrustedRoot, Verifier};
