//! Events of `tracing` to a function in JavaScript.
//!
//! This module has its own `tracing`, so that a subscriber for all threads of the process concerns only this package. An
//! event goes to one JavaScript thread: the first that has loaded the package and still runs.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use napi::Status;
use napi::bindgen_prelude::{FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use teesql::bindings::{event_text, is_wanted};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// Events that JavaScript has not received yet. Further ones are lost: they must neither wait nor use up the memory.
const MAX_WAITING: usize = 1024;

type Entry = FnArgs<(&'static str, String)>;
type Sink = ThreadsafeFunction<Entry, (), Entry, Status, false, true, MAX_WAITING>;

/// One for each JavaScript thread that has loaded the package, with the thread's number. The first one is used.
static SINKS: Mutex<Vec<(u32, Sink)>> = Mutex::new(Vec::new());

/// 0 for none, then error, warn, info, debug.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// Where the log goes and its most verbose level: to `log(level, text)`, a function of the thread with this number. With
/// `first` it replaces what was set before. Without, it is used after the threads that are registered already have ended.
#[napi(catch_unwind)]
pub fn set_log(
    thread: u32,
    first: bool,
    log: Function<'_, Entry, ()>,
    level: Option<String>,
) -> napi::Result<()> {
    let sink = log
        .build_threadsafe_function()
        .weak::<true>()
        .max_queue_size::<MAX_WAITING>()
        .build()?;
    let mut sinks = SINKS.lock().unwrap_or_else(PoisonError::into_inner);
    sinks.retain(|(other, sink)| *other != thread && !sink.aborted());
    if first || sinks.is_empty() {
        sinks.insert(0, (thread, sink));
        set_level(level.as_deref());
    } else {
        sinks.push((thread, sink));
    }
    Ok(())
}

fn set_level(level: Option<&str>) {
    static INSTALLED: Once = Once::new();
    let number = match level {
        Some("error") => 1,
        Some("warn") => 2,
        Some("info") => 3,
        Some("debug") => 4,
        _ => 0,
    };
    LEVEL.store(number, Ordering::Relaxed);
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(ToJavaScript);
        // An error would mean that this module has set one before.
        let _ = tracing::subscriber::set_global_default(subscriber);
    });
    tracing::callsite::rebuild_interest_cache();
}

/// The number of a level in [`LEVEL`], and its name in JavaScript.
fn level(level: Level) -> (u8, &'static str) {
    match level {
        Level::ERROR => (1, "error"),
        Level::WARN => (2, "warn"),
        Level::INFO => (3, "info"),
        Level::DEBUG => (4, "debug"),
        _ => (5, "debug"),
    }
}

struct ToJavaScript;

impl<S: Subscriber> Layer<S> for ToJavaScript {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        level(*metadata.level()).0 <= LEVEL.load(Ordering::Relaxed) && is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = level(*event.metadata().level()).1;
        let text = event_text(event);
        let mut sinks = SINKS.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, sink)) = sinks.first() {
            let entry = (level, text.clone());
            let status = sink.call(entry.into(), ThreadsafeFunctionCallMode::NonBlocking);
            if status != Status::Closing {
                return;
            }
            sinks.remove(0);
        }
    }
}
