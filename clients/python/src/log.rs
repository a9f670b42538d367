//! Log lines of the crate for Python's `logging`: a layer of `tracing` that writes to the mailbox.
//!
//! The extension module is linked with its own copy of `tracing`, so that the global subscriber concerns no other library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use pyo3::prelude::*;
use teesql::bindings::{self, event_text};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::queue::{Line, Shared};

/// Where lines go. Not a lock, which another thread could hold when the process forks.
static TARGET: ArcSwapOption<Shared> = ArcSwapOption::const_empty();

/// The least severe level that Python wants, as Python numbers them.
static MIN_LEVEL: AtomicU8 = AtomicU8::new(WARNING);

const ERROR: u8 = 40;
const WARNING: u8 = 30;
const INFO: u8 = 20;
const DEBUG: u8 = 10;
/// Below DEBUG, as other libraries have it.
const TRACE: u8 = 5;

/// Has lines go to this mailbox.
pub(crate) fn set_target(mailbox: Arc<Shared>) {
    TARGET.store(Some(mailbox));
}

/// Has lines go nowhere, if they go to this mailbox.
pub(crate) fn remove_target(mailbox: &Arc<Shared>) {
    TARGET.compare_and_swap(mailbox, None);
}

/// Installs the layer; once in a process.
pub(crate) fn install() {
    // Fails if this module was initialised before.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(ToMailbox));
}

/// Sets the least severe level to be logged, as Python numbers them.
#[pyfunction]
pub(crate) fn set_log_level(level: u32) {
    let level = u8::try_from(level).unwrap_or(u8::MAX);
    if MIN_LEVEL.swap(level, Ordering::Relaxed) != level {
        tracing::callsite::rebuild_interest_cache();
    }
}

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        Level::DEBUG => DEBUG,
        Level::TRACE => TRACE,
    }
}

fn is_wanted(metadata: &Metadata<'_>) -> bool {
    number(*metadata.level()) >= MIN_LEVEL.load(Ordering::Relaxed) && bindings::is_wanted(metadata)
}

struct ToMailbox;

impl<S: Subscriber> Layer<S> for ToMailbox {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_wanted(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let least = MIN_LEVEL.load(Ordering::Relaxed);
        let levels = [
            (TRACE, LevelFilter::TRACE),
            (DEBUG, LevelFilter::DEBUG),
            (INFO, LevelFilter::INFO),
            (WARNING, LevelFilter::WARN),
            (ERROR, LevelFilter::ERROR),
        ];
        let first = levels.into_iter().find(|(level, _)| least <= *level);
        Some(first.map_or(LevelFilter::OFF, |(_, filter)| filter))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(target) = TARGET.load_full() else {
            return;
        };
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        target.push_line(Line {
            level: number(*event.metadata().level()),
            target: event.metadata().target(),
            text: event_text(event),
            at: at.map_or(0.0, |since| since.as_secs_f64()),
        });
    }
}
