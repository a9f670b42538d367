//! The background task that keeps collateral fresh, and the handle to it.
//!
//! The task runs on the control thread's tokio runtime. Readers load a [`Snapshot`] from an [`ArcSwap`],
//! which never waits for a fetch. Requests for the same missing key share one fetch (single flight).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;

use super::disk_cache::DiskCache;
use super::fetch::{FetchError, Fetcher};
use super::key::CollateralKey;
use super::set::Collateral;
use super::store::{Event, RequestOutcome, Snapshot, Store};
use crate::limits::{MAX_COLLATERAL_REQUESTS, MAX_COLLATERAL_WAITERS};

/// Longest sleep, because the wall clock may be set in the meantime.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Why there is no collateral for a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The fetch failed, now or a moment ago.
    #[error("no collateral for {key} is cached and it could not be fetched: {error}")]
    Failed {
        /// The platforms.
        key: CollateralKey,
        /// The error of the last attempt.
        error: FetchError,
    },
    /// There are too many requests, or requests for too many platform families.
    #[error("too many requests for collateral")]
    Busy,
    /// The refresher has stopped.
    #[error("the collateral refresher has stopped")]
    Ended,
}

type CollateralResult = Result<Arc<Collateral>, Unavailable>;

enum Request {
    Get(CollateralKey, oneshot::Sender<CollateralResult>),
    Import(Box<Collateral>),
    Refresh(CollateralKey),
}

/// The client side of the refresher. Cheap to clone; works on any thread.
#[derive(Clone)]
pub struct Handle {
    snapshot: Arc<ArcSwap<Snapshot>>,
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// The cached collateral. Never waits.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The epoch of the cached collateral. Never waits.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.snapshot.load().epoch()
    }

    /// Requests the collateral for `key`: from the cache, or from a fetch that all requests for the same
    /// key share.
    ///
    /// Request it only for a quote whose PCK chain leads to the trusted root. Otherwise any peer could
    /// make this machine fetch collateral for platform families that do not exist.
    ///
    /// # Errors
    /// [`Unavailable`], at the latest after the fetcher's deadline.
    pub async fn request(&self, key: CollateralKey) -> CollateralResult {
        self.send_request(key)?
            .await
            .map_err(|_| Unavailable::Ended)?
    }

    /// Imports collateral from elsewhere, such as a file. It is verified and merged like fetched
    /// collateral, and an event reports the result.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] or [`Unavailable::Ended`].
    pub fn import(&self, collateral: Collateral) -> Result<(), Unavailable> {
        self.send(Request::Import(Box::new(collateral)))
    }

    /// Asks for newer collateral than the cached one, which a policy refuses ([`Store::refresh`]). Never waits; if too many
    /// requests are queued, nothing happens.
    pub fn refresh(&self, key: CollateralKey) {
        let _ = self.send(Request::Refresh(key));
    }

    fn send_request(
        &self,
        key: CollateralKey,
    ) -> Result<oneshot::Receiver<CollateralResult>, Unavailable> {
        let (reply, receiver) = oneshot::channel();
        self.send(Request::Get(key, reply))?;
        Ok(receiver)
    }

    fn send(&self, request: Request) -> Result<(), Unavailable> {
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Unavailable::Busy,
                mpsc::error::TrySendError::Closed(_) => Unavailable::Ended,
            })
    }
}

/// What the refresher takes from its environment.
pub struct Environment {
    /// The current time in Unix seconds.
    pub now: Box<dyn FnMut() -> u64 + Send>,
    /// Random numbers for jitter. Need not be cryptographically secure.
    pub random: Box<dyn FnMut() -> u32 + Send>,
    /// Called with each event. Must not block.
    pub events: Box<dyn FnMut(Event) + Send>,
}

/// What a task does, and for which key. Kept next to the task, since a panic loses its result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TaskKind {
    Fetch(CollateralKey),
    Store(CollateralKey),
}

enum TaskResult {
    Fetched(Box<Result<Collateral, FetchError>>),
    Stored(Result<(), String>),
}

/// Keeps collateral fresh until all its handles are dropped.
pub struct Refresher {
    store: Store,
    fetcher: Option<Fetcher>,
    disk: Option<DiskCache>,
    environment: Environment,
    requests: mpsc::Receiver<Request>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    waiters: BTreeMap<CollateralKey, Vec<oneshot::Sender<CollateralResult>>>,
    tasks: JoinSet<TaskResult>,
    /// What each task does. At most [`MAX_CONCURRENT_FETCHES`](super::MAX_CONCURRENT_FETCHES) tasks fetch,
    /// and at most one task for each key writes to disk.
    task_kinds: BTreeMap<Id, TaskKind>,
    /// Keys whose collateral changed while an older copy was being written.
    pending_saves: BTreeSet<CollateralKey>,
}

impl Refresher {
    /// Creates a refresher of `store`. Without a fetcher it only knows what is on disk or imported; without
    /// a disk cache a restart begins with an empty store.
    #[must_use]
    pub fn new(
        store: Store,
        fetcher: Option<Fetcher>,
        disk: Option<DiskCache>,
        environment: Environment,
    ) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(MAX_COLLATERAL_REQUESTS);
        let snapshot = Arc::new(ArcSwap::new(Arc::clone(store.snapshot())));
        let handle = Handle {
            snapshot: Arc::clone(&snapshot),
            requests: sender,
        };
        let refresher = Self {
            store,
            fetcher,
            disk,
            environment,
            requests,
            snapshot,
            waiters: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_kinds: BTreeMap::new(),
            pending_saves: BTreeSet::new(),
        };
        (refresher, handle)
    }

    /// Loads what is on disk and still verifies. Reads files: call it before the runtime is busy. A file
    /// that is not used is reported as an event and not as an error, since a fetch may replace it.
    pub fn load(&mut self) {
        let Some(disk) = &self.disk else { return };
        let loaded = match disk.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                let file = disk.folder().display().to_string();
                (self.environment.events)(Event::NotLoaded {
                    file,
                    why: error.to_string(),
                });
                return;
            }
        };
        for (path, read) in loaded {
            let (now, random) = ((self.environment.now)(), (self.environment.random)());
            let taken = read
                .map_err(|error| error.to_string())
                .and_then(|collateral| {
                    self.store
                        .import(collateral, now, random)
                        .map_err(|error| error.to_string())
                });
            let file = path.display().to_string();
            (self.environment.events)(taken.unwrap_or_else(|why| Event::NotLoaded { file, why }));
        }
        self.publish();
    }

    /// Runs the task. Returns when all handles are dropped.
    pub async fn run(mut self) {
        loop {
            self.start_fetches();
            for event in self.store.tick((self.environment.now)()) {
                (self.environment.events)(event);
            }
            let sleep_time = self.time_to_next_wake();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Get(key, reply)) => self.request(key, reply),
                    Some(Request::Import(collateral)) => self.import(*collateral),
                    Some(Request::Refresh(key)) => self.store.refresh(key, (self.environment.now)()),
                    None => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    Ok((id, done)) => self.task_finished(id, Some(done)),
                    // The task panicked, or the runtime is shutting down: in both cases it is finished.
                    Err(error) => self.task_finished(error.id(), None),
                },
                () = sleep(sleep_time) => {}
            }
        }
    }

    fn task_finished(&mut self, id: Id, done: Option<TaskResult>) {
        match (self.task_kinds.remove(&id), done) {
            (Some(TaskKind::Fetch(key)), Some(TaskResult::Fetched(result))) => {
                self.fetched(key, *result)
            }
            (Some(TaskKind::Fetch(key)), _) => self.fetched(key, Err(FetchError::Truncated)),
            (Some(TaskKind::Store(key)), done) => {
                if let Some(TaskResult::Stored(Err(why))) = done {
                    (self.environment.events)(Event::NotStored { key, why });
                }
                if self.pending_saves.remove(&key) {
                    let now = (self.environment.now)();
                    self.save(key, now);
                }
            }
            (None, _) => {}
        }
    }

    fn start_fetches(&mut self) {
        while let Some(key) = self.store.next_due((self.environment.now)()) {
            match self.fetcher.clone() {
                Some(fetcher) => {
                    let fetch =
                        async move { TaskResult::Fetched(Box::new(fetcher.fetch(key).await)) };
                    let id = self.tasks.spawn(fetch).id();
                    self.task_kinds.insert(id, TaskKind::Fetch(key));
                }
                None if self.waiters.contains_key(&key) => {
                    self.fetched(key, Err(FetchError::NoSource));
                }
                // A machine without a PCCS is configured not to refresh: no event.
                None => {
                    let (now, random) = ((self.environment.now)(), (self.environment.random)());
                    self.store
                        .complete_fetch(key, Err(FetchError::NoSource), now, random);
                }
            }
        }
    }

    fn time_to_next_wake(&mut self) -> Duration {
        let now = (self.environment.now)();
        let until = self
            .store
            .next_wake()
            .map_or(u64::MAX, |at| at.saturating_sub(now).max(1));
        Duration::from_secs(until).min(MAX_SLEEP)
    }

    fn request(&mut self, key: CollateralKey, reply: oneshot::Sender<CollateralResult>) {
        // A caller that has stopped waiting has closed its channel, which is not an error.
        let result = match self.store.request(key, (self.environment.now)()) {
            RequestOutcome::Cached(cached) => Ok(cached),
            RequestOutcome::BackingOff { last, .. } => {
                Err(Unavailable::Failed { key, error: last })
            }
            RequestOutcome::Full => Err(Unavailable::Busy),
            RequestOutcome::Pending => {
                if self.waiters.values().map(Vec::len).sum::<usize>() < MAX_COLLATERAL_WAITERS {
                    self.waiters.entry(key).or_default().push(reply);
                    return;
                }
                Err(Unavailable::Busy)
            }
        };
        let _ = reply.send(result);
    }

    fn import(&mut self, collateral: Collateral) {
        let key = collateral.key();
        let (now, random) = ((self.environment.now)(), (self.environment.random)());
        let event = match self.store.import(collateral, now, random) {
            Ok(event) => event,
            Err(error) => Event::NotLoaded {
                file: key.to_string(),
                why: error.to_string(),
            },
        };
        self.finish(key, event);
    }

    fn fetched(&mut self, key: CollateralKey, result: Result<Collateral, FetchError>) {
        let (now, random) = ((self.environment.now)(), (self.environment.random)());
        let event = self.store.complete_fetch(key, result, now, random);
        self.finish(key, event);
    }

    /// Publishes a result to readers, the event callback, waiting callers and the disk.
    fn finish(&mut self, key: CollateralKey, event: Event) {
        self.publish();
        let changed = matches!(event, Event::Refreshed { changed: true, .. });
        let failed = match &event {
            Event::Failed { error, .. } => Some(error.clone()),
            _ => None,
        };
        (self.environment.events)(event);
        // The event may have shown that the clock is slow.
        let now = (self.environment.now)();
        let result = match (failed, self.store.snapshot().get(key, now)) {
            (_, Some(cached)) => Some(Ok(Arc::clone(cached))),
            (Some(error), None) => Some(Err(Unavailable::Failed { key, error })),
            // A refused import does not answer callers that wait for a fetch.
            (None, None) => None,
        };
        if let Some(result) = result {
            for waiter in self.waiters.remove(&key).unwrap_or_default() {
                let _ = waiter.send(result.clone());
            }
        }
        if changed {
            self.save(key, now);
        }
    }

    fn save(&mut self, key: CollateralKey, now: u64) {
        let Some(disk) = self.disk.clone() else {
            return;
        };
        if self
            .task_kinds
            .values()
            .any(|work| *work == TaskKind::Store(key))
        {
            self.pending_saves.insert(key);
            return;
        }
        if let Some(cached) = self.store.snapshot().get(key, now).cloned() {
            let save =
                move || TaskResult::Stored(disk.save(&cached).map_err(|error| error.to_string()));
            let id = self.tasks.spawn_blocking(save).id();
            self.task_kinds.insert(id, TaskKind::Store(key));
        }
    }

    fn publish(&self) {
        self.snapshot.store(Arc::clone(self.store.snapshot()));
    }
}
