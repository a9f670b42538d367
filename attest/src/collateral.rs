//! Intel's collateral: what it is, how it is kept fresh, and how it is checked before it is kept.
//!
//! Collateral is what a quote is judged with: TCB info, the quoting enclave's identity and two
//! revocation lists, each signed by Intel and valid for about 30 days (the root CRL for a year).
//! dcap-qvl refuses expired collateral, so the day on which the refresh stops working is the day on
//! which, a few weeks later, nobody can log in. This module exists to make that day loud and late.
//!
//! | Module | Is |
//! | --- | --- |
//! | [`Collateral`] | one set of collateral, parsed: for which platforms, and until when |
//! | [`Store`] | what is held and what to fetch next: a state machine, `now` and randomness are arguments |
//! | [`Fetcher`] | asks a PCCS over HTTP, with caps on bytes and time |
//! | [`DiskCache`] | the copy that survives a restart |
//! | [`Refresher`] | the loop that joins them, for the control thread; [`Handle`] is its other end |
//!
//! What it must never do: replace what is held by anything that does not verify under the trusted
//! root, run on a shard, or trust a PCCS with more than the time at which its answers arrive. A PCCS
//! signs nothing: every part is signed by Intel, and the newest part that was ever seen is kept
//! ([`Collateral::merge_newest`]), so one that lies can only be useless. And dcap-qvl judges by it again
//! at every quote (signatures that it has accepted before are remembered): the check here decides what is *kept*, never who enters.

mod check;
mod disk_cache;
mod error;
mod fetch;
mod key;
mod pccs;
mod refresher;
mod set;
mod store;
mod validity;

pub use disk_cache::{DiskCache, LoadError, load_file};
pub use error::{CollateralError, Part};
pub use fetch::{FetchError, FetchOptions, Fetcher};
pub use key::{CaType, CollateralKey, Fmspc};
pub use pccs::{INTEL_PCS, PHALA_PCCS, Source, SourceError};
pub use refresher::{Environment, Handle, Refresher, Unavailable};
pub use set::Collateral;
pub use store::{Event, RequestOutcome, Schedule, Snapshot, Store};

pub use crate::limits::{
    MAX_COLLATERAL_PART_LEN, MAX_CONCURRENT_FETCHES, MAX_ISSUER_CHAIN_LEN, MAX_PLATFORM_FAMILIES,
};
