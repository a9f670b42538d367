//! Collateral, kept fresh on the control thread.

use std::time::Duration;

use admin::Latch;
use attest::certificate::Leaf;
use attest::collateral::{
    CollateralKey, DiskCache, Environment, Event, FetchOptions, Fetcher, Handle, Refresher,
    Schedule, Store,
};
use attest::evidence::UnboundEvidence;
use rustls::crypto::SecureRandom;
use tokio::sync::mpsc;

use crate::attestation::verifier::QuoteVerifier;
use crate::config::Attestation;
use crate::io::clock::unix_now;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate::Identity;

/// How often `/ready` learns of what is held. From memory, unless it is missing.
const LOOK: Duration = Duration::from_secs(5);

/// Starts the keeper on this thread's runtime. `changed` is told whenever what
/// is held has become another.
///
/// # Errors
/// The HTTP client cannot be set up.
pub(crate) fn start(
    attestation: &mut Attestation,
    random: &'static dyn SecureRandom,
    metrics: &Metrics,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Handle, attest::collateral::FetchError> {
    let store = Store::new(attestation.root.der().to_vec(), Schedule::default());
    let fetcher = match attestation.source.take() {
        Some(source) => Some(Fetcher::new(source, &FetchOptions::default())?),
        None => None,
    };
    let counter =
        |outcome| metrics.counter("teesql_collateral_refreshes_total", &[("outcome", outcome)]);
    let (refreshed, failed) = (counter("ok"), counter("failed"));
    let disk = attestation.folder.take().map(DiskCache::new);
    let around = Environment {
        now: Box::new(unix_now),
        random: Box::new(move || {
            let mut bytes = [0; 4];
            // It only spreads attempts in time: zero does too.
            let _ = random.fill(&mut bytes);
            u32::from_ne_bytes(bytes)
        }),
        events: Box::new(move |event| {
            match event {
                Event::Refreshed { changed: news, .. } => {
                    refreshed.increment(1);
                    if news {
                        // The control thread may be gone already.
                        let _ = changed.send(());
                    }
                }
                Event::Failed { .. } => failed.increment(1),
                _ => {}
            }
            log(event);
        }),
    };
    let (mut keeper, handle) = Refresher::new(store, fetcher, disk, around);
    keeper.load();
    for collateral in attestation.collateral.drain(..) {
        let key = collateral.key();
        if let Err(error) = handle.import(collateral) {
            tracing::warn!(%key, %error, "collateral file not used");
        }
    }
    tokio::spawn(keeper.run());
    Ok(handle)
}

/// Keeps the collateral of this machine's own platform, whose peers are the
/// likeliest clients, and tells `latch` whether all that is held is fresh.
pub(crate) async fn refresh_own_platform(
    quote_verifier: &QuoteVerifier,
    own: &Identity,
    latch: &Latch,
) {
    let key = own_key(own);
    loop {
        let asked = match key {
            Some(key) => quote_verifier.collateral().request(key).await.map(drop),
            None => Ok(()),
        };
        let expired = quote_verifier.collateral_left(unix_now()) == Some(0);
        match asked {
            Ok(()) if !expired => latch.set_ready(),
            Ok(()) => latch.set_not_ready("collateral has expired, and its renewal fails"),
            Err(error) => latch.set_not_ready(error.to_string()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Which collateral the quote in our own certificate would be judged with;
/// `None` where there is no quote in it.
fn own_key(own: &Identity) -> Option<CollateralKey> {
    let leaf = Leaf::parse(own.certified().cert.first()?).ok()?;
    let evidence = UnboundEvidence::from_extensions(leaf.extensions()).ok()?;
    evidence.quote().collateral_key().ok()
}

fn log(event: Event) {
    match event {
        Event::Refreshed {
            key,
            expires_at,
            changed,
        } => tracing::info!(%key, expires_at, changed, "collateral refreshed"),
        Event::Failed {
            key,
            error,
            held_until,
            retry_at,
        } => tracing::warn!(%key, %error, held_until, retry_at, "collateral not refreshed"),
        Event::AboutToExpire { key, expires_at } => {
            tracing::error!(%key, expires_at, "collateral is about to expire");
        }
        Event::Expired { key } => {
            tracing::error!(%key, "collateral has expired: its clients are refused");
        }
        Event::NotLoaded { file, why } => tracing::warn!(file, why, "collateral not loaded"),
        Event::NotStored { key, why } => tracing::warn!(%key, why, "collateral not stored"),
        event => tracing::info!(?event, "collateral"),
    }
}
