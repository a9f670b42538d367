//! The loop that keeps collateral fresh, and the handle through which the rest asks for it.
//!
//! The loop runs on the control thread's tokio runtime. Readers look at a [`Snapshot`] behind an
//! [`ArcSwap`], which no fetch can hold up; who needs what is not held waits for the one flight that
//! fetches it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;

use super::disk_cache::Disk;
use super::fetch::{FetchError, Fetcher};
use super::key::CollateralKey;
use super::set::Collateral;
use super::store::{Event, Snapshot, Store, Wanted};
use crate::limits::{MAX_COLLATERAL_REQUESTS, MAX_COLLATERAL_WAITERS};

/// Longest sleep: the clock of the wall may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why there is no collateral for a quote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// It could not be fetched, now or a moment ago.
    #[error("collateral for {key} is not held and could not be fetched: {error}")]
    Failed {
        /// For which platforms.
        key: CollateralKey,
        /// Why the last attempt failed.
        error: FetchError,
    },
    /// Too many ask at once, or for too many platform families.
    #[error("too many requests for collateral")]
    Busy,
    /// The keeper has ended.
    #[error("the collateral keeper has ended")]
    Ended,
}

type Answer = Result<Arc<Collateral>, Unavailable>;

enum Request {
    Want(CollateralKey, oneshot::Sender<Answer>),
    Offer(Box<Collateral>),
}

/// The way to the keeper. Cheap to clone; works from any thread.
#[derive(Clone)]
pub struct Handle {
    snapshot: Arc<ArcSwap<Snapshot>>,
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// All that is held now. Never waits.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The number of the content that is held now. Never waits.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.snapshot.load().epoch()
    }

    /// Collateral for `key`: what is held, or what one fetch brings, whoever else waits for it too.
    ///
    /// Ask only for a quote whose PCK chain leads to the trusted root: others could make this machine
    /// ask the PCCS for families that do not exist.
    ///
    /// # Errors
    /// [`Unavailable`], at the latest after the fetcher's deadline.
    pub async fn want(&self, key: CollateralKey) -> Answer {
        self.ask(key)?.await.map_err(|_| Unavailable::Ended)?
    }

    /// Hands in collateral from elsewhere, such as a file: it is verified and merged as a fetched one is,
    /// and the keeper's events tell what became of it.
    ///
    /// # Errors
    /// [`Unavailable::Busy`] or [`Unavailable::Ended`].
    pub fn offer(&self, collateral: Collateral) -> Result<(), Unavailable> {
        self.send(Request::Offer(Box::new(collateral)))
    }

    fn ask(&self, key: CollateralKey) -> Result<oneshot::Receiver<Answer>, Unavailable> {
        let (answer, receiver) = oneshot::channel();
        self.send(Request::Want(key, answer))?;
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

/// What the keeper needs of the world.
pub struct Surroundings {
    /// Unix seconds.
    pub now: Box<dyn FnMut() -> u64 + Send>,
    /// Any numbers: they spread attempts in time, and protect nothing.
    pub random: Box<dyn FnMut() -> u32 + Send>,
    /// Told of what happens. Must not wait.
    pub events: Box<dyn FnMut(Event) + Send>,
}

/// What a task does, and for which key: what is left to know of one that has panicked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Fetch(CollateralKey),
    Store(CollateralKey),
}

enum Done {
    Fetched(Box<Result<Collateral, FetchError>>),
    Stored(Result<(), String>),
}

/// Keeps collateral fresh until all its handles are gone.
pub struct Keeper {
    store: Store,
    fetcher: Option<Fetcher>,
    disk: Option<Disk>,
    around: Surroundings,
    requests: mpsc::Receiver<Request>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    waiters: BTreeMap<CollateralKey, Vec<oneshot::Sender<Answer>>>,
    work: JoinSet<Done>,
    /// What each task does: at most [`MAX_CONCURRENT_FETCHES`](super::MAX_CONCURRENT_FETCHES) fetch, and each key has at most
    /// one copy being written.
    working: BTreeMap<Id, Work>,
    /// Keys whose content has changed while an older copy was being written.
    unsaved: BTreeSet<CollateralKey>,
}

impl Keeper {
    /// A keeper of `store`. Without a fetcher it only knows what is on disk or offered; without a disk
    /// a restart begins with nothing.
    #[must_use]
    pub fn new(
        store: Store,
        fetcher: Option<Fetcher>,
        disk: Option<Disk>,
        around: Surroundings,
    ) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(MAX_COLLATERAL_REQUESTS);
        let snapshot = Arc::new(ArcSwap::new(Arc::clone(store.snapshot())));
        let handle = Handle {
            snapshot: Arc::clone(&snapshot),
            requests: sender,
        };
        let keeper = Self {
            store,
            fetcher,
            disk,
            around,
            requests,
            snapshot,
            waiters: BTreeMap::new(),
            work: JoinSet::new(),
            working: BTreeMap::new(),
            unsaved: BTreeSet::new(),
        };
        (keeper, handle)
    }

    /// Takes what is on disk and still verifies. Reads files: call it before the runtime is busy. What
    /// is not used is told as an event, and never an error: the network may have better.
    pub fn load(&mut self) {
        let Some(disk) = &self.disk else { return };
        let loaded = match disk.load() {
            Ok(loaded) => loaded,
            Err(error) => {
                let file = disk.folder().display().to_string();
                (self.around.events)(Event::NotLoaded {
                    file,
                    why: error.to_string(),
                });
                return;
            }
        };
        for (path, read) in loaded {
            let (now, random) = ((self.around.now)(), (self.around.random)());
            let taken = read
                .map_err(|error| error.to_string())
                .and_then(|collateral| {
                    self.store
                        .offer(collateral, now, random)
                        .map_err(|error| error.to_string())
                });
            let file = path.display().to_string();
            (self.around.events)(taken.unwrap_or_else(|why| Event::NotLoaded { file, why }));
        }
        self.publish();
    }

    /// The loop. Ends when all handles are gone.
    pub async fn run(mut self) {
        loop {
            self.start_flights();
            for event in self.store.tick((self.around.now)()) {
                (self.around.events)(event);
            }
            let pause = self.pause();
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Want(key, answer)) => self.want(key, answer),
                    Some(Request::Offer(collateral)) => self.offer(*collateral),
                    None => return,
                },
                Some(ended) = self.work.join_next_with_id() => match ended {
                    Ok((id, done)) => self.done(id, Some(done)),
                    // It has panicked, or the runtime ends: it is over all the same.
                    Err(error) => self.done(error.id(), None),
                },
                () = sleep(pause) => {}
            }
        }
    }

    fn done(&mut self, id: Id, done: Option<Done>) {
        match (self.working.remove(&id), done) {
            (Some(Work::Fetch(key)), Some(Done::Fetched(result))) => self.fetched(key, *result),
            (Some(Work::Fetch(key)), _) => self.fetched(key, Err(FetchError::BrokenOff)),
            (Some(Work::Store(key)), done) => {
                if let Some(Done::Stored(Err(why))) = done {
                    (self.around.events)(Event::NotStored { key, why });
                }
                if self.unsaved.remove(&key) {
                    let now = (self.around.now)();
                    self.save(key, now);
                }
            }
            (None, _) => {}
        }
    }

    fn start_flights(&mut self) {
        while let Some(key) = self.store.next_due((self.around.now)()) {
            match self.fetcher.clone() {
                Some(fetcher) => {
                    let flight = async move { Done::Fetched(Box::new(fetcher.fetch(key).await)) };
                    let id = self.work.spawn(flight).id();
                    self.working.insert(id, Work::Fetch(key));
                }
                None if self.waiters.contains_key(&key) => {
                    self.fetched(key, Err(FetchError::NoSource));
                }
                // That a machine without a PCCS cannot refresh is how it was set up: no event.
                None => {
                    let (now, random) = ((self.around.now)(), (self.around.random)());
                    self.store
                        .arrived(key, Err(FetchError::NoSource), now, random);
                }
            }
        }
    }

    fn pause(&mut self) -> Duration {
        let now = (self.around.now)();
        let until = self
            .store
            .next_wake()
            .map_or(u64::MAX, |at| at.saturating_sub(now).max(1));
        Duration::from_secs(until).min(LONGEST_SLEEP)
    }

    fn want(&mut self, key: CollateralKey, answer: oneshot::Sender<Answer>) {
        // Who has stopped waiting is not told; a closed channel is no error.
        let reply = match self.store.want(key, (self.around.now)()) {
            Wanted::Held(held) => Ok(held),
            Wanted::NotBefore { last, .. } => Err(Unavailable::Failed { key, error: last }),
            Wanted::Full => Err(Unavailable::Busy),
            Wanted::Coming => {
                if self.waiters.values().map(Vec::len).sum::<usize>() < MAX_COLLATERAL_WAITERS {
                    self.waiters.entry(key).or_default().push(answer);
                    return;
                }
                Err(Unavailable::Busy)
            }
        };
        let _ = answer.send(reply);
    }

    fn offer(&mut self, collateral: Collateral) {
        let key = collateral.key();
        let (now, random) = ((self.around.now)(), (self.around.random)());
        let event = match self.store.offer(collateral, now, random) {
            Ok(event) => event,
            Err(error) => Event::NotLoaded {
                file: key.to_string(),
                why: error.to_string(),
            },
        };
        self.settle(key, event, now);
    }

    fn fetched(&mut self, key: CollateralKey, result: Result<Collateral, FetchError>) {
        let (now, random) = ((self.around.now)(), (self.around.random)());
        let event = self.store.arrived(key, result, now, random);
        self.settle(key, event, now);
    }

    /// After anything has come: readers, waiters and the disk get it, and the event is told.
    fn settle(&mut self, key: CollateralKey, event: Event, now: u64) {
        self.publish();
        let answer = match (&event, self.store.snapshot().get(key, now)) {
            (_, Some(held)) => Some(Ok(Arc::clone(held))),
            (Event::Failed { error, .. }, None) => Some(Err(Unavailable::Failed {
                key,
                error: error.clone(),
            })),
            // An offer that was refused says nothing of the flight that they wait for.
            (_, None) => None,
        };
        if let Some(answer) = answer {
            for waiter in self.waiters.remove(&key).unwrap_or_default() {
                let _ = waiter.send(answer.clone());
            }
        }
        if let Event::Refreshed { changed: true, .. } = event {
            self.save(key, now);
        }
        (self.around.events)(event);
    }

    fn save(&mut self, key: CollateralKey, now: u64) {
        let Some(disk) = self.disk.clone() else {
            return;
        };
        if self.working.values().any(|work| *work == Work::Store(key)) {
            self.unsaved.insert(key);
            return;
        }
        if let Some(held) = self.store.snapshot().get(key, now).cloned() {
            let save = move || Done::Stored(disk.save(&held).map_err(|error| error.to_string()));
            let id = self.work.spawn_blocking(save).id();
            self.working.insert(id, Work::Store(key));
        }
    }

    fn publish(&self) {
        self.snapshot.store(Arc::clone(self.store.snapshot()));
    }
}
