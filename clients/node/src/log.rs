//! Events of `tracing` to a function in JavaScript.
//!
//! This module has its own `tracing`, so that a subscriber for all threads of the process concerns only this package. An
//! event goes to one JavaScript thread: the first that has loaded the package and still runs.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use napi::bindgen_prelude::{FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use napi_derive::napi;
use teesql::bindings::{event_text, is_wanted};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};

/// Events that JavaScript has not received yet. Further ones are lost: they must neither wait nor use up the memory.
const MAX_WAITING: usize = 1024;

type Entry = FnArgs<(&'static str, String)>;
type LogFunction = ThreadsafeFunction<Entry, (), Entry, Status, false, true, MAX_WAITING>;

/// The log of a JavaScript thread.
struct Sink {
    /// The thread's number.
    thread: u32,
    log: LogFunction,
    /// As [`LEVEL`].
    level: u8,
    has_ended: bool,
}

/// One for each JavaScript thread that has loaded the package. The first one of a thread that still runs is used.
static SINKS: Mutex<Vec<Sink>> = Mutex::new(Vec::new());

/// The most verbose level of the sink that is used: 0 for none, then error, warn, info, debug.
static LEVEL: AtomicU8 = AtomicU8::new(0);

fn sinks() -> MutexGuard<'static, Vec<Sink>> {
    SINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the log goes and its most verbose level: to `log(level, text)`, a function of the thread with this number. With
/// `first` it replaces what was set before. Without, it is used after the threads that are registered already have ended.
#[napi(catch_unwind)]
pub fn set_log(
    env: Env,
    thread: u32,
    first: bool,
    log: Function<'_, Entry, ()>,
    level: Option<String>,
) -> napi::Result<()> {
    let log = log
        .build_threadsafe_function()
        .weak::<true>()
        .max_queue_size::<MAX_WAITING>()
        .build()?;
    if !first {
        // Once in each thread, when it loads the package.
        env.add_env_cleanup_hook(thread, end_of_thread)?;
    }
    let sink = Sink {
        thread,
        log,
        level: level_number(level.as_deref()),
        has_ended: false,
    };
    let mut sinks = sinks();
    sinks.retain(|other| other.thread != thread && !other.has_ended && !other.log.aborted());
    if first {
        sinks.insert(0, sink);
    } else {
        sinks.push(sink);
    }
    use_level_of_first(&sinks);
    Ok(())
}

/// Leaves the log to the next thread.
fn end_of_thread(thread: u32) {
    let mut sinks = sinks();
    // It is not dropped here, while Node.js ends its functions.
    for sink in sinks.iter_mut().filter(|sink| sink.thread == thread) {
        sink.has_ended = true;
    }
    use_level_of_first(&sinks);
}

fn level_number(level: Option<&str>) -> u8 {
    match level {
        Some("error") => 1,
        Some("warn") => 2,
        Some("info") => 3,
        Some("debug") => 4,
        _ => 0,
    }
}

fn use_level_of_first(sinks: &[Sink]) {
    static INSTALLED: Once = Once::new();
    let first = sinks.iter().find(|sink| !sink.has_ended);
    let level = first.map_or(0, |sink| sink.level);
    LEVEL.store(level, Ordering::Relaxed);
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
        let (number, level) = level(*event.metadata().level());
        let text = event_text(event);
        for sink in sinks().iter_mut().filter(|sink| !sink.has_ended) {
            if number > sink.level {
                return;
            }
            let entry = (level, text.clone());
            let call = ThreadsafeFunctionCallMode::NonBlocking;
            if sink.log.call(entry.into(), call) != Status::Closing {
                return;
            }
            // Its thread is ending: `end_of_thread` follows.
            sink.has_ended = true;
        }
    }
}
