//! Verification of TDX-attested TLS peers (RA-TLS): from certificate bytes to an admitted or refused peer.
//!
//! A peer's X.509 certificate carries a TDX quote. The crate decides whether the quote is genuine, whether it
//! is bound to the key of this certificate, and whether the policy allows what it says. The result is an
//! [`AttestedPeer`], which only this crate can make, or one [`Denial`] of a closed list. It fails closed: input
//! that cannot be parsed, replayed or verified is refused.
//!
//! Outside [`agent`], [`collateral`], [`ita`] and the mock, it opens no socket, reads no clock, does not log and
//! is not async: certificates are byte slices, and `now` is an argument in Unix seconds. All peer-controlled
//! input has named caps ([`limits`]) that are checked before anything is allocated.
//!
//! The steps, and the types that make it impossible to skip one:
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
//! | [`chain`] | the presented chain, and its signatures up to a pinned KMS root |
//! | [`evidence`] | the envelopes V0 and V1, and the legacy pair of extensions |
//! | [`quote`] | header and report of a TDX quote, versions 4 and 5 |
//! | [`binding`] | the only way from unbound to bound evidence |
//! | [`event_log`] | digests V1 and V2, the replay of RTMR3, the identity it proves |
//! | [`tcb`] | TCB statuses and advisories |
//! | [`policy`] | allow-lists and accepted statuses |
//! | [`verify`] | Intel's signatures, TCB status, and all checks in order |
//! | [`trace`] | an observer that sees each check with its outcome and values |
//! | [`cache`] | a cache of verdicts |
//! | [`limits`] | caps on every input that a peer, a server or a file controls |
//! | [`denial`] | the reasons to refuse a peer |
//! | [`collateral`] | Intel's collateral: fetch, check, cache, refresh |
//! | [`agent`] | client of dstack's guest agent: this TD's certificate, derived keys and quotes |
//! | [`ita`] | client of Intel Trust Authority, which verifies quotes instead of collateral and dcap-qvl |
//! | [`manifest`] | the signed manifest that names the leading instance of a cluster |

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
