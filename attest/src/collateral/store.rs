//! The collateral cache and its refresh schedule: a sans-I/O state machine.
//!
//! `now` (Unix seconds) and random numbers are arguments; nothing here waits or does I/O. It uses wall-clock
//! time, because collateral is dated in it. A clock that jumps only makes a fetch earlier, or later by no more than
//! the longest wait of the [`Schedule`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::CollateralError;
use super::fetch::FetchError;
use super::key::CollateralKey;
use super::set::Collateral;
use super::usage::FamilyUsage;
use crate::limits::{MAX_CONCURRENT_FETCHES, MAX_PLATFORM_FAMILIES};

/// Seconds for which the collateral of a family without sessions is refreshed after its last use.
const REFRESH_UNUSED: u64 = 86_400;
/// Minimum seconds between two attempts that [`Store::refresh`] causes.
const REFRESH_REQUEST_INTERVAL: u64 = 60;

/// When to refresh, and when to warn. All values in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Longest time between refreshes, which bounds the delay until a TCB recovery is known.
    pub refresh_interval: u64,
    /// Refresh when only this much validity is left, or a quarter of the lifetime if that is less.
    pub refresh_before_expiry: u64,
    /// Time between attempts when little validity is left and the PCCS has nothing newer.
    pub late_retry_interval: u64,
    /// Delay after the first failure. Doubled for each further failure.
    pub initial_backoff: u64,
    /// Maximum delay after failures while valid collateral is cached.
    pub max_backoff_cached: u64,
    /// Maximum delay after failures while no valid collateral is cached.
    pub max_backoff_missing: u64,
    /// Warn when only this much validity is left.
    pub warn_before_expiry: u64,
}

impl Default for Schedule {
    /// Daily, 7 days before expiry (Intel's parts are valid for 30), hourly when late. Back-off from 5 s to
    /// an hour, or to a minute while sessions wait for it. A warning 3 days before expiry.
    fn default() -> Self {
        Self {
            refresh_interval: 86_400,
            refresh_before_expiry: 7 * 86_400,
            late_retry_interval: 3_600,
            initial_backoff: 5,
            max_backoff_cached: 3_600,
            max_backoff_missing: 60,
            warn_before_expiry: 3 * 86_400,
        }
    }
}

/// Something to log and to count. Each is reported once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Collateral was fetched or imported, verified, and is now cached.
    Refreshed {
        /// The platforms.
        key: CollateralKey,
        /// The newest date on it, in Unix seconds: by then this much time must have passed.
        valid_from: u64,
        /// When it expires, in Unix seconds.
        expires_at: u64,
        /// Whether the content is new. If so, the epoch has changed.
        changed: bool,
    },
    /// An attempt failed. The cached collateral stays.
    Failed {
        /// The platforms.
        key: CollateralKey,
        /// The error.
        error: FetchError,
        /// When the cached collateral expires; `None` if nothing is cached, so that sessions are refused.
        cached_until: Option<u64>,
        /// The earliest time of the next attempt, in Unix seconds.
        retry_at: u64,
    },
    /// Little validity is left: an operator should look at the PCCS. Only of platforms that have sessions.
    AboutToExpire {
        /// The platforms.
        key: CollateralKey,
        /// When it expires, in Unix seconds.
        expires_at: u64,
    },
    /// Collateral has expired: sessions from these platforms are refused. Only of platforms that have sessions.
    Expired {
        /// The platforms.
        key: CollateralKey,
    },
    /// A file was not used.
    NotLoaded {
        /// Its path.
        file: String,
        /// The error.
        why: String,
    },
    /// The copy on disk could not be written. The collateral in memory is not affected.
    NotStored {
        /// The platforms.
        key: CollateralKey,
        /// The error.
        why: String,
    },
}

/// The result of [`Store::request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The cached collateral.
    Cached(Arc<Collateral>),
    /// It will be fetched, or is being fetched.
    Pending,
    /// The last attempt failed, and the back-off has not ended.
    BackingOff {
        /// When it ends, in Unix seconds.
        retry_at: u64,
        /// The error of the last attempt.
        last: FetchError,
    },
    /// The cache is full.
    Full,
}

/// All cached collateral at one moment. Readers never wait for a fetch.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    epoch: u64,
    cached: BTreeMap<CollateralKey, (Arc<Collateral>, FamilyUsage)>,
}

impl Snapshot {
    /// Changes with the content. Verdicts of another epoch are invalid.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The collateral for `key`, if it is valid at `now` (Unix seconds).
    #[must_use]
    pub fn get(&self, key: CollateralKey, now: u64) -> Option<&Arc<Collateral>> {
        let (collateral, _) = self.cached.get(&key)?;
        Some(collateral).filter(|collateral| collateral.is_valid_at(now))
    }

    /// The use of the collateral for `key`, if it is cached.
    #[must_use]
    pub fn usage(&self, key: CollateralKey) -> Option<&FamilyUsage> {
        self.cached.get(&key).map(|(_, usage)| usage)
    }

    /// All cached collateral, expired or not.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Collateral>> {
        self.cached.values().map(|(collateral, _)| collateral)
    }

    /// Seconds until each set of a family that has sessions expires. 0 for expired ones.
    pub fn seconds_until_expiry(&self, now: u64) -> impl Iterator<Item = (CollateralKey, u64)> {
        let used = self
            .cached
            .iter()
            .filter(|(_, (_, usage))| usage.sessions() > 0);
        used.map(move |(key, (cached, _))| (*key, cached.expires_at().saturating_sub(now)))
    }
}

#[derive(Default)]
struct Entry {
    cached: Option<Arc<Collateral>>,
    in_flight: bool,
    /// There was a request since the last attempt. Families without collateral are fetched only on
    /// request.
    requested: bool,
    failures: u32,
    last: Option<FetchError>,
    next_attempt_at: u64,
    attempted_at: u64,
    requested_at: u64,
    usage: FamilyUsage,
    warning_reported: bool,
    expiry_reported: bool,
}

impl Entry {
    fn valid_at(&self, now: u64) -> Option<&Arc<Collateral>> {
        self.cached
            .as_ref()
            .filter(|cached| cached.is_valid_at(now))
    }

    /// A clock that was set back must not put the next attempt off: it is never further away than the longest wait.
    fn limit_wait(&mut self, schedule: &Schedule, now: u64) {
        let longest = match (self.failures, &self.cached) {
            (0, _) => schedule.refresh_interval.max(schedule.late_retry_interval),
            (_, None) => schedule.max_backoff_missing,
            (_, Some(_)) => schedule
                .max_backoff_cached
                .max(schedule.max_backoff_missing),
        };
        let latest = now.saturating_add(longest.max(1));
        self.next_attempt_at = self.next_attempt_at.min(latest);
    }

    fn is_due(&self, now: u64) -> bool {
        let keep_fresh = self.cached.is_some() && self.was_used_within(REFRESH_UNUSED, now);
        !self.in_flight && self.next_attempt_at <= now && (self.requested || keep_fresh)
    }

    /// Whether it has sessions, or was requested or used in the last `seconds`.
    fn was_used_within(&self, seconds: u64, now: u64) -> bool {
        let last = self.requested_at.max(self.usage.last_used());
        self.usage.sessions() > 0 || last.saturating_add(seconds) > now
    }
}

/// The cached collateral, and when to fetch which.
pub struct Store {
    root: Vec<u8>,
    schedule: Schedule,
    entries: BTreeMap<CollateralKey, Entry>,
    snapshot: Arc<Snapshot>,
}

impl Store {
    /// Creates an empty store that accepts collateral which verifies under `root` (DER).
    #[must_use]
    pub fn new(root: Vec<u8>, schedule: Schedule) -> Self {
        Self {
            root,
            schedule,
            entries: BTreeMap::new(),
            snapshot: Arc::default(),
        }
    }

    /// The cached collateral.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Requests the collateral for `key`. From the first request on, the store keeps it fresh.
    pub fn request(&mut self, key: CollateralKey, now: u64) -> RequestOutcome {
        if !self.entries.contains_key(&key) && !self.make_room(now) {
            return RequestOutcome::Full;
        }
        let entry = self.entries.entry(key).or_default();
        entry.requested_at = now;
        entry.limit_wait(&self.schedule, now);
        if let Some(cached) = entry.valid_at(now) {
            return RequestOutcome::Cached(Arc::clone(cached));
        }
        if let Some(last) = entry
            .last
            .clone()
            .filter(|_| !entry.in_flight && entry.next_attempt_at > now)
        {
            return RequestOutcome::BackingOff {
                retry_at: entry.next_attempt_at,
                last,
            };
        }
        entry.requested = true;
        entry.next_attempt_at = entry.next_attempt_at.min(now);
        RequestOutcome::Pending
    }

    /// Asks for newer collateral than what is cached for `key`, although that is valid: a policy refuses it. There is an
    /// attempt at most once a minute. Does nothing if none is cached.
    pub fn refresh(&mut self, key: CollateralKey, now: u64) {
        let Some(entry) = self.entries.get_mut(&key).filter(|e| e.cached.is_some()) else {
            return;
        };
        // In case the clock was set back since.
        let attempted_at = entry.attempted_at.min(now);
        let earliest = attempted_at.saturating_add(REFRESH_REQUEST_INTERVAL);
        entry.requested_at = now;
        entry.next_attempt_at = entry.next_attempt_at.min(earliest.max(now));
    }

    /// If the cache is full, evicts the least recently requested family without collateral, or else the least recently
    /// used one that was not used for a day. Never one whose fetch somebody waits for: it would never end.
    fn make_room(&mut self, now: u64) -> bool {
        if self.entries.len() < MAX_PLATFORM_FAMILIES {
            return true;
        }
        let unused = |e: &Entry| e.cached.is_none() || !e.was_used_within(REFRESH_UNUSED, now);
        let idle = self
            .entries
            .iter()
            .filter(|(_, e)| !e.in_flight && !e.requested && unused(e));
        let Some(oldest) = idle
            .min_by_key(|(_, e)| (e.cached.is_some(), e.requested_at.max(e.usage.last_used())))
            .map(|(key, _)| *key)
        else {
            return false;
        };
        if self
            .entries
            .remove(&oldest)
            .is_some_and(|e| e.cached.is_some())
        {
            self.publish();
        }
        true
    }

    /// A key to fetch now, if there is one. Its fetch lasts until [`Store::complete_fetch`] is called.
    pub fn next_due(&mut self, now: u64) -> Option<CollateralKey> {
        if self
            .entries
            .values()
            .filter(|entry| entry.in_flight)
            .count()
            >= MAX_CONCURRENT_FETCHES
        {
            return None;
        }
        for entry in self.entries.values_mut() {
            entry.limit_wait(&self.schedule, now);
        }
        let due = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.is_due(now));
        // Fetches that sessions wait for go first.
        let (key, entry) =
            due.min_by_key(|(_, e)| (e.valid_at(now).is_some(), e.next_attempt_at))?;
        entry.in_flight = true;
        entry.attempted_at = now;
        entry.requested = false;
        Some(*key)
    }

    /// The second at which [`Store::next_due`] or [`Store::tick`] next has something to report.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        let warn = self.schedule.warn_before_expiry;
        self.entries
            .values()
            .flat_map(|entry| {
                let cached = entry.cached.as_ref();
                let fetch = (!entry.in_flight && (entry.requested || cached.is_some()))
                    .then_some(entry.next_attempt_at);
                let warning = cached
                    .filter(|_| !entry.warning_reported)
                    .map(|cached| cached.expires_at().saturating_sub(warn));
                let expiry = cached
                    .filter(|_| !entry.expiry_reported)
                    .map(|cached| cached.expires_at());
                [fetch, warning, expiry]
            })
            .flatten()
            .min()
    }

    /// Completes a fetch. `random` is any number: the jitter of the next attempt.
    ///
    /// Fetched collateral is cached only if it verifies, and then merged so that the newest of each part is
    /// kept ([`Collateral::merge_newest`]). Otherwise the cached collateral stays.
    pub fn complete_fetch(
        &mut self,
        key: CollateralKey,
        result: Result<Collateral, FetchError>,
        now: u64,
        random: u32,
    ) -> Event {
        let taken = result.and_then(|fetched| Ok(self.verify_and_merge(key, fetched, now)?));
        let entry = self.entries.entry(key).or_default();
        entry.in_flight = false;
        match taken {
            Ok((collateral, changed)) => {
                let (valid_from, expires_at) = (collateral.valid_from(), collateral.expires_at());
                entry.failures = 0;
                entry.last = None;
                entry.next_attempt_at = self.schedule.refresh_at(&collateral, now, random);
                if changed {
                    entry.warning_reported = false;
                    entry.expiry_reported = false;
                    entry.cached = Some(Arc::new(collateral));
                    self.publish();
                }
                Event::Refreshed {
                    key,
                    valid_from,
                    expires_at,
                    changed,
                }
            }
            Err(error) => {
                entry.failures = entry.failures.saturating_add(1);
                entry.last = Some(error.clone());
                let cached_until = entry.valid_at(now).map(|cached| cached.expires_at());
                let wait = self
                    .schedule
                    .back_off(entry.failures, cached_until.is_some(), random);
                entry.next_attempt_at = now.saturating_add(wait);
                Event::Failed {
                    key,
                    error,
                    cached_until,
                    retry_at: entry.next_attempt_at,
                }
            }
        }
    }

    /// Imports collateral from a file or from disk, as if it had been fetched.
    ///
    /// # Errors
    /// [`CollateralError`] if it does not verify at `now`, or if there are already
    /// [`MAX_PLATFORM_FAMILIES`] families.
    pub fn import(
        &mut self,
        imported: Collateral,
        now: u64,
        random: u32,
    ) -> Result<Event, CollateralError> {
        let key = imported.key();
        let (collateral, changed) = self.verify_and_merge(key, imported, now)?;
        if !self.entries.contains_key(&key) && !self.make_room(now) {
            return Err(CollateralError::StoreFull);
        }
        let (valid_from, expires_at) = (collateral.valid_from(), collateral.expires_at());
        let entry = self.entries.entry(key).or_default();
        entry.requested_at = entry.requested_at.max(now);
        if changed {
            // Its age is unknown, so refresh it soon, but spread over the restarted machines.
            entry.next_attempt_at =
                now + u64::from(random) % self.schedule.late_retry_interval.max(1);
            entry.warning_reported = false;
            entry.expiry_reported = false;
            entry.cached = Some(Arc::new(collateral));
            self.publish();
        }
        Ok(Event::Refreshed {
            key,
            valid_from,
            expires_at,
            changed,
        })
    }

    /// Events that are due because time has passed. Expired collateral stays: with the parts of it that are still
    /// valid, a PCCS cannot go back to older ones when the family is used again.
    pub fn tick(&mut self, now: u64) -> Vec<Event> {
        let warn = self.schedule.warn_before_expiry;
        let mut events = Vec::new();
        for (key, entry) in &mut self.entries {
            let Some(cached) = entry.cached.as_ref().filter(|_| entry.usage.sessions() > 0) else {
                continue;
            };
            let expires_at = cached.expires_at();
            if now >= expires_at && !entry.expiry_reported {
                entry.expiry_reported = true;
                entry.warning_reported = true;
                events.push(Event::Expired { key: *key });
            } else if now >= expires_at.saturating_sub(warn) && !entry.warning_reported {
                entry.warning_reported = true;
                events.push(Event::AboutToExpire {
                    key: *key,
                    expires_at,
                });
            }
        }
        events
    }

    /// Verifies `fetched` and merges it with the cached collateral. Also gives whether the content is new. The dates are
    /// compared with `now`, or with the newest date on `fetched` if that is later.
    fn verify_and_merge(
        &self,
        key: CollateralKey,
        fetched: Collateral,
        now: u64,
    ) -> Result<(Collateral, bool), CollateralError> {
        if fetched.key() != key {
            return Err(CollateralError::WrongKey);
        }
        // What Intel has signed exists: a clock that is before its date is slow.
        let now = now.max(fetched.valid_from());
        fetched.check(&self.root, now)?;
        let Some(cached) = self
            .entries
            .get(&key)
            .and_then(|entry| entry.cached.as_ref())
        else {
            return Ok((fetched, true));
        };
        let mut newest = Collateral::merge_newest(cached, &fetched, now)?;
        if newest.check(&self.root, now).is_err() {
            // Each part alone is genuine, so a newer CRL must have revoked the signer of another part.
            newest = Collateral::merge_newest_crls(cached, &fetched, now)?;
            newest.check(&self.root, now)?;
        }
        let changed = newest != **cached;
        Ok((newest, changed))
    }

    fn publish(&mut self) {
        let cached = |(key, entry): (&CollateralKey, &Entry)| {
            let cached = Arc::clone(entry.cached.as_ref()?);
            Some((*key, (cached, entry.usage.clone())))
        };
        self.snapshot = Arc::new(Snapshot {
            epoch: self.snapshot.epoch + 1,
            cached: self.entries.iter().filter_map(cached).collect(),
        });
    }
}

impl Schedule {
    /// The time of the next refresh of collateral that was fetched at `now`.
    fn refresh_at(&self, collateral: &Collateral, now: u64, random: u32) -> u64 {
        let expires_at = collateral.expires_at();
        let lifetime = expires_at.saturating_sub(collateral.valid_from());
        let preferred = expires_at.saturating_sub(self.refresh_before_expiry.min(lifetime / 4));
        let wait = match preferred.checked_sub(now) {
            Some(left) if left > 0 => left.min(self.refresh_interval),
            // The PCCS has nothing newer: ask again, several times before expiry.
            _ => self
                .late_retry_interval
                .min(expires_at.saturating_sub(now) / 4),
        };
        now.saturating_add(with_jitter(wait, random).max(1))
    }

    fn back_off(&self, failures: u32, is_cached: bool, random: u32) -> u64 {
        let cap = if is_cached {
            self.max_backoff_cached
        } else {
            self.max_backoff_missing
        };
        let doubled = 1u64
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u64::MAX);
        with_jitter(
            self.initial_backoff.saturating_mul(doubled).min(cap),
            random,
        )
        .max(1)
    }
}

/// Jitter: `wait`, up to a quarter shorter, so that machines that started together do not fetch together.
fn with_jitter(wait: u64, random: u32) -> u64 {
    wait - u64::from(random) % (wait / 4 + 1)
}
