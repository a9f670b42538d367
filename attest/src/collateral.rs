//! Intel's collateral: how it is parsed, checked, cached and kept fresh.
//!
//! Collateral is what a quote is verified against: TCB info, the quoting enclave's identity and two
//! revocation lists, each signed by Intel and valid for about 30 days (the root CRL for a year).
//! dcap-qvl refuses expired collateral, so if the refresh stops working, every login fails a few weeks
//! later. This module makes such a failure visible early, and its effect as late as possible.
//!
//! | Type | Is |
//! | --- | --- |
//! | [`Collateral`] | one parsed set: for which platforms, and until when |
//! | [`Store`] | the cache and its refresh schedule: a sans-I/O state machine with `now` and randomness as arguments |
//! | [`Fetcher`] | the PCCS client: HTTP, with caps on bytes and time |
//! | [`DiskCache`] | a copy that survives a restart |
//! | [`Refresher`] | the background task that joins them, on the control thread; [`Handle`] is its client side |
//!
//! What it must never do: replace cached collateral by something that does not verify under the trusted
//! root, run on a shard, or trust a PCCS with more than the time at which its responses arrive. A PCCS
//! signs nothing. Every part is signed by Intel, and the newest part ever seen is kept
//! ([`Collateral::merge_newest`]), so a malicious PCCS can only withhold updates. dcap-qvl verifies the
//! collateral again with every quote (a cache skips signatures that it has accepted before): the check
//! here decides what is cached, never which peer is admitted.

mod check;
mod disk_cache;
mod error;
mod fetch;
mod key;
mod pccs;
mod refresher;
mod set;
mod store;
mod usage;
mod validity;

pub use disk_cache::{DiskCache, LoadError, load_file};
pub use error::{CollateralError, Part};
pub use fetch::{FetchError, FetchOptions, Fetcher};
pub use key::{CaType, CollateralKey, Fmspc};
pub use pccs::{INTEL_PCS, PHALA_PCCS, Source, SourceError};
pub use refresher::{Environment, Handle, Refresher, Unavailable};
pub use set::Collateral;
pub use store::{Event, RequestOutcome, Schedule, Snapshot, Store};
pub use usage::{FamilySession, FamilyUsage};

pub use crate::limits::{
    MAX_COLLATERAL_PART_LEN, MAX_CONCURRENT_FETCHES, MAX_ISSUER_CHAIN_LEN, MAX_PLATFORM_FAMILIES,
};
