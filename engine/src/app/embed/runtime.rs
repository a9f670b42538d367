//! The threads that all forwarders of a process share, and that live while any of them lives: a shared singleton behind a
//! weak pointer.
//!
//! One control thread; and once there is a forwarder, one thread for connections and one for verifications; and once an
//! application decides about servers, one for that. A separate forwarder would cost four threads and a ring.
//!
//! A process that forks has a copy of the memory and none of the threads. So the process id is compared before anything is
//! used, and in the child nothing of it is dropped: that would wait for threads that do not exist.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapWeak;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::app::error::{StartError, system};
use crate::app::forwarder::start::SharedThreads;
use crate::app::lifecycle;
use crate::attestation::custom::{CallbackThread, CallbackThreadGuard};
use crate::attestation::verifier::verify_pool_options;
use crate::io::driver::DriverChoice;
use crate::io::offload::OffloadPool;
use crate::io::worker::Worker;
use crate::shard::shared_thread::{SharedThread, SharedThreadGuard};
use crate::telemetry::metrics::Metrics;

/// How often the metrics are summed up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long lookups of names that block may keep the control thread at its end.
const LOOKUP_GRACE: Duration = Duration::from_millis(500);
/// Pause of a thread that waits for another one to start the threads.
const CREATION_PAUSE: Duration = Duration::from_millis(1);

static CURRENT: LazyLock<ArcSwapWeak<SharedRuntime>> =
    LazyLock::new(|| ArcSwapWeak::new(Weak::new()));

/// The process whose thread is starting the threads; 0 if none is. A lock that a fork cannot leave locked.
static CREATOR: AtomicU32 = AtomicU32::new(0);

/// The threads. They end when this is dropped.
pub(crate) struct SharedRuntime {
    pid: u32,
    control: Handle,
    control_thread: Mutex<Option<ControlThread>>,
    forwarders: Mutex<Option<ForwarderThreads>>,
    callbacks: Mutex<Option<(CallbackThread, CallbackThreadGuard)>>,
}

struct ControlThread {
    /// The thread ends when this is dropped.
    stop: oneshot::Sender<()>,
    worker: Worker,
}

/// What only forwarders need.
struct ForwarderThreads {
    shared: SharedThreads,
    shards: SharedThreadGuard,
    verify: Vec<Worker>,
}

/// Held by the thread that starts the threads.
struct CreationGuard;

impl CreationGuard {
    fn acquire() -> Self {
        let own = std::process::id();
        loop {
            let holder = CREATOR.load(Ordering::Acquire);
            // The holder may be a thread of the parent, which this process does not have.
            let is_free = holder != own;
            let taken = CREATOR.compare_exchange(holder, own, Ordering::AcqRel, Ordering::Relaxed);
            if is_free && taken.is_ok() {
                return Self;
            }
            std::thread::sleep(CREATION_PAUSE);
        }
    }
}

impl Drop for CreationGuard {
    fn drop(&mut self) {
        CREATOR.store(0, Ordering::Release);
    }
}

impl SharedRuntime {
    /// The threads of this process. Starts the control thread if there is none.
    ///
    /// # Errors
    /// The process has no threads or descriptors left.
    pub(crate) fn acquire() -> Result<Arc<Self>, StartError> {
        if let Some(current) = Self::current() {
            return Ok(current);
        }
        let _guard = CreationGuard::acquire();
        // Another thread may have been faster.
        if let Some(current) = Self::current() {
            return Ok(current);
        }
        let new = Arc::new(Self::start()?);
        CURRENT.store(Arc::downgrade(&new));
        Ok(new)
    }

    fn current() -> Option<Arc<Self>> {
        let current = CURRENT.load().upgrade()?;
        (current.pid == std::process::id()).then_some(current)
    }

    fn start() -> Result<Self, StartError> {
        let failed = || system("cannot start the control thread");
        let control = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("forward-block")
            .build()
            .map_err(failed())?;
        let handle = control.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = Worker::spawn("forward", move || {
            // Ends when the sender is dropped.
            let _ = control.block_on(stopped);
            control.shutdown_timeout(LOOKUP_GRACE);
        })
        .map_err(failed())?;
        Ok(Self {
            pid: std::process::id(),
            control: handle,
            control_thread: Mutex::new(Some(ControlThread { stop, worker })),
            forwarders: Mutex::default(),
            callbacks: Mutex::default(),
        })
    }

    /// The control thread.
    pub(crate) fn control(&self) -> &Handle {
        &self.control
    }

    /// The threads of forwarders. Starts them if there are none.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub(crate) fn forwarder_threads(&self) -> Result<SharedThreads, StartError> {
        let threads = self.forwarders.lock();
        let mut threads = threads.unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = threads.as_ref().filter(|threads| threads.are_alive()) {
            return Ok(threads.shared.clone());
        }
        // Those of before have failed, with all their forwarders.
        drop(threads.take());
        let started = ForwarderThreads::start()?;
        let shared = started.shared.clone();
        let metrics = Arc::downgrade(&shared.metrics);
        self.control.spawn(async move {
            while let Some(metrics) = metrics.upgrade() {
                metrics.upkeep();
                drop(metrics);
                tokio::time::sleep(METRICS_UPKEEP).await;
            }
        });
        *threads = Some(started);
        Ok(shared)
    }

    /// The thread on which applications decide about servers. Starts it if there is none.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub(crate) fn callback_thread(&self) -> Result<CallbackThread, StartError> {
        let callbacks = self.callbacks.lock();
        let mut callbacks = callbacks.unwrap_or_else(PoisonError::into_inner);
        if let Some((thread, _)) = callbacks.as_ref() {
            return Ok(thread.clone());
        }
        let started = CallbackThread::start().map_err(system("cannot start a thread"))?;
        let thread = started.0.clone();
        *callbacks = Some(started);
        Ok(thread)
    }

    /// Gives the threads up, and if no other forwarder uses them waits until they have ended, on a separate thread.
    pub(crate) async fn release(self: Arc<Self>) {
        let Some(last) = Arc::into_inner(self) else {
            return;
        };
        let (sender, ended) = oneshot::channel();
        let work = move || {
            drop(last);
            // The receiver is gone if no caller waits any more.
            let _ = sender.send(());
        };
        let reaper = std::thread::Builder::new().name("forward-end".to_owned());
        // Without another thread `work` has been dropped, and with it the threads.
        if let Ok(reaper) = reaper.spawn(work) {
            let _ = ended.await;
            // It has nothing left to do.
            let _ = reaper.join();
        }
    }
}

impl ForwarderThreads {
    fn are_alive(&self) -> bool {
        self.shared.shards.is_alive()
    }

    fn start() -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::for_forwarder()?);
        let driver = lifecycle::choose_driver(DriverChoice::Auto)?;
        let thread = SharedThread::start(driver, Arc::clone(&metrics));
        let (shards, guard) = thread.map_err(system("cannot start a shard"))?;
        let verify = OffloadPool::start_workers(verify_pool_options(1, Duration::MAX));
        let (verify, verify_workers) = verify.map_err(system("cannot start the verify thread"))?;
        Ok(Self {
            shared: SharedThreads {
                metrics,
                shards,
                verify,
            },
            shards: guard,
            verify: verify_workers,
        })
    }
}

impl Drop for SharedRuntime {
    /// Ends the threads in the order in which they use each other.
    fn drop(&mut self) {
        let forwarders = self.forwarders.get_mut();
        let forwarders = forwarders.unwrap_or_else(PoisonError::into_inner).take();
        let callbacks = self.callbacks.get_mut();
        let callbacks = callbacks.unwrap_or_else(PoisonError::into_inner).take();
        let control = self.control_thread.get_mut();
        let control = control.unwrap_or_else(PoisonError::into_inner).take();
        if self.pid != std::process::id() {
            // The threads are those of another process.
            std::mem::forget((forwarders, callbacks, control));
            return;
        }
        let verify = forwarders.map(|threads| {
            drop(threads.shards);
            drop(threads.shared);
            threads.verify
        });
        if let Some(ControlThread { stop, mut worker }) = control {
            drop(stop);
            worker.join();
        }
        // What the other threads had of it is gone.
        for mut worker in verify.into_iter().flatten() {
            worker.join();
        }
        drop(callbacks);
    }
}
