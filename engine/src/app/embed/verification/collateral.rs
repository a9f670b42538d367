//! Collateral for verifications without a forwarder: a small cache of the process, by source, root and platform.
//!
//! A program may verify one server after the other, and each would cost four requests. Entries are few and small, so they
//! stay until they are replaced. A lock could be held by another thread at a fork: the list is behind an atomic pointer.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use attest::TrustedRoot;
use attest::collateral::{
    Collateral, CollateralError, CollateralKey, FetchOptions, Fetcher, Source,
};

use super::super::error::{Error, ErrorKind};
use crate::app::error::StartError;

/// The most entries. The oldest one is replaced.
const MAX_ENTRIES: usize = 8;
/// How long collateral is used without asking whether there is newer.
const MAX_AGE: Duration = Duration::from_secs(3600);

static CACHE: LazyLock<ArcSwap<Vec<Entry>>> = LazyLock::new(ArcSwap::default);

#[derive(Clone)]
struct Entry {
    source: Source,
    root: TrustedRoot,
    key: CollateralKey,
    fetched: Instant,
    collateral: Arc<Collateral>,
}

impl Entry {
    fn is_of(&self, source: &Source, root: &TrustedRoot, key: CollateralKey) -> bool {
        self.key == key && self.source == *source && self.root == *root
    }
}

/// The collateral for `key`, from the cache or from `source`, which must verify under `root`.
///
/// # Errors
/// [`ErrorKind::Unavailable`].
pub(super) async fn get(
    source: &Source,
    root: &TrustedRoot,
    key: CollateralKey,
    now: u64,
) -> Result<Arc<Collateral>, Error> {
    let cached = CACHE.load();
    let mut cached = cached.iter().filter(|entry| entry.is_of(source, root, key));
    if let Some(entry) = cached.next()
        && entry.fetched.elapsed() < MAX_AGE
        && entry.collateral.check_dates(now).is_ok()
    {
        return Ok(Arc::clone(&entry.collateral));
    }
    let fetcher = Fetcher::new(source.clone(), &FetchOptions::default());
    let fetcher = fetcher.map_err(StartError::Collateral)?;
    let fetched = fetcher.fetch(key).await.map_err(unavailable)?;
    check(&fetched, root, now)?;
    let collateral = Arc::new(fetched);
    let entry = Entry {
        source: source.clone(),
        root: root.clone(),
        key,
        fetched: Instant::now(),
        collateral: Arc::clone(&collateral),
    };
    CACHE.rcu(|entries| {
        let others = entries
            .iter()
            .filter(|entry| !entry.is_of(source, root, key));
        let mut next: Vec<_> = others.cloned().collect();
        if next.len() >= MAX_ENTRIES {
            next.remove(0);
        }
        next.push(entry.clone());
        next
    });
    Ok(collateral)
}

/// Checks that collateral is genuine. That it is not in date is for the verifier to say, with another code.
///
/// # Errors
/// [`ErrorKind::Unavailable`].
pub(super) fn check(collateral: &Collateral, root: &TrustedRoot, now: u64) -> Result<(), Error> {
    match collateral.check(root.der(), now) {
        Ok(()) | Err(CollateralError::NotYetValid { .. } | CollateralError::Expired { .. }) => {
            Ok(())
        }
        Err(error) => Err(unavailable(error)),
    }
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> Error {
    let text = format!("no collateral to verify the quote with: {error}");
    Error::new(ErrorKind::Unavailable, "collateral_unavailable", text)
}
