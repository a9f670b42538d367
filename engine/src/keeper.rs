//! Collateral, kept fresh on the control thread.

use attest::collateral::{
    Disk, Event, FetchOptions, Fetcher, Handle, Keeper, Schedule, Store, Surroundings,
};
use rustls::crypto::SecureRandom;
use tokio::sync::mpsc;

use crate::config::Attestation;
use crate::trust::unix_now;

/// Starts the keeper on this thread's runtime. `changed` is told whenever what
/// is held has become another.
///
/// # Errors
/// The HTTP client cannot be set up.
pub(crate) fn start(
    attestation: &mut Attestation,
    random: &'static dyn SecureRandom,
    changed: mpsc::UnboundedSender<()>,
) -> Result<Handle, attest::collateral::FetchError> {
    let store = Store::new(attestation.root.der().to_vec(), Schedule::default());
    let fetcher = match attestation.source.take() {
        Some(source) => Some(Fetcher::new(source, &FetchOptions::default())?),
        None => None,
    };
    let disk = attestation.folder.take().map(Disk::new);
    let around = Surroundings {
        now: Box::new(unix_now),
        random: Box::new(move || {
            let mut bytes = [0; 4];
            // It only spreads attempts in time: zero does too.
            let _ = random.fill(&mut bytes);
            u32::from_ne_bytes(bytes)
        }),
        events: Box::new(move |event| {
            if let Event::Refreshed { changed: true, .. } = event {
                // The control thread may be gone already.
                let _ = changed.send(());
            }
            log(event);
        }),
    };
    let (mut keeper, handle) = Keeper::new(store, fetcher, disk, around);
    keeper.load();
    for collateral in attestation.collateral.drain(..) {
        let key = collateral.key();
        if let Err(error) = handle.offer(collateral) {
            tracing::warn!(%key, %error, "collateral file not used");
        }
    }
    tokio::spawn(keeper.run());
    Ok(handle)
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
