//! Refreshes Intel's collateral on the control thread, with exponential back-off, and keeps that of
//! this machine's platform cached.
//!
//! The refresh itself is [`attest::collateral::Refresher`]. This module connects it to the log, the
//! metrics and the readiness check. A shard must never wait for it.

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
use crate::io::clock::{raise_floor, readable_time, unix_now};
use crate::tasks::coalesced_sleep;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate::Identity;

/// How often the readiness check is updated. The collateral is in memory, unless it is missing.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Starts the refresh on this thread's runtime. `changed` gets a message whenever the cached
/// collateral has changed.
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
    let environment = Environment {
        now: Box::new(unix_now),
        random: Box::new(move || {
            let mut bytes = [0; 4];
            // The jitter between attempts. Without randomness it is 0.
            let _ = random.fill(&mut bytes);
            u32::from_ne_bytes(bytes)
        }),
        events: Box::new(move |event| {
            match event {
                Event::Refreshed {
                    changed: is_new,
                    valid_from,
                    ..
                } => {
                    raise_floor(valid_from);
                    refreshed.increment(1);
                    if is_new {
                        // The receiver may be gone at shutdown.
                        let _ = changed.send(());
                    }
                }
                Event::Failed { .. } => failed.increment(1),
                _ => {}
            }
            log_event(event);
        }),
    };
    let (mut refresher, handle) = Refresher::new(store, fetcher, disk, environment);
    refresher.load();
    for collateral in attestation.collateral.drain(..) {
        let key = collateral.key();
        if let Err(error) = handle.import(collateral) {
            tracing::warn!(%key, %error, "collateral file cannot be used");
        }
    }
    tokio::spawn(refresher.run());
    Ok(handle)
}

/// Keeps the collateral of this machine's own platform cached, because clients on the same
/// kind of platform are the most likely. Sets `latch` to whether the collateral of all platforms that have sessions, and of
/// this machine's own, is valid.
pub(crate) async fn refresh_own_platform(
    quote_verifier: &QuoteVerifier,
    own: &Identity,
    latch: &Latch,
) {
    let key = own_collateral_key(own);
    // Counts as a session, so that its expiry is reported.
    let mut own_family = None;
    loop {
        let requested = match key {
            Some(key) => {
                let requested = quote_verifier.collateral().request(key).await.map(drop);
                let snapshot = quote_verifier.collateral().snapshot();
                let usage = snapshot.usage(key);
                own_family = usage.map(|usage| usage.begin(unix_now())).or(own_family);
                requested
            }
            None => Ok(()),
        };
        let expired = quote_verifier.seconds_until_collateral_expiry(unix_now()) == Some(0);
        match requested {
            Ok(()) if !expired => latch.set_ready(),
            Ok(()) => latch.set_not_ready("collateral has expired, and its renewal fails"),
            Err(error) => latch.set_not_ready(error.to_string()),
        }
        coalesced_sleep::sleep(CHECK_INTERVAL).await;
    }
}

/// The key of the collateral that verifies the quote in this process's own certificate. `None` if
/// the certificate has no quote.
fn own_collateral_key(own: &Identity) -> Option<CollateralKey> {
    let leaf = Leaf::parse(own.certified().cert.first()?).ok()?;
    let evidence = UnboundEvidence::from_extensions(leaf.extensions()).ok()?;
    evidence.quote().collateral_key().ok()
}

fn log_event(event: Event) {
    match event {
        Event::Refreshed {
            key,
            expires_at,
            changed,
            ..
        } => {
            let expires_at = readable_time(expires_at);
            tracing::info!(%key, expires_at, changed, "collateral refreshed");
        }
        Event::Failed {
            key,
            error,
            cached_until,
            retry_at,
        } => {
            let (expires_at, retry_at) = (cached_until.map(readable_time), readable_time(retry_at));
            tracing::warn!(%key, %error, expires_at, retry_at, "collateral not refreshed");
        }
        Event::AboutToExpire { key, expires_at } => {
            let expires_at = readable_time(expires_at);
            tracing::error!(%key, expires_at, "collateral is about to expire");
        }
        Event::Expired { key } => {
            tracing::error!(%key, "collateral has expired: peers on such platforms are refused");
        }
        Event::NotLoaded { file, why } => tracing::warn!(file, why, "collateral not loaded"),
        Event::NotStored { key, why } => tracing::warn!(%key, why, "collateral not stored"),
        event => tracing::info!(?event, "collateral"),
    }
}
