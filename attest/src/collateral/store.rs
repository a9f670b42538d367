//! What is held, when it expires, and what to fetch next.
//!
//! Pure: `now` (unix seconds) and random numbers are arguments, nothing here waits or does I/O. Wall-clock
//! time, because collateral is dated in it; a clock that jumps makes a fetch earlier or later, no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::CollateralError;
use super::fetch::FetchError;
use super::key::CollateralKey;
use super::set::Collateral;
use crate::limits::{MAX_CONCURRENT_FETCHES, MAX_PLATFORM_FAMILIES};

/// When to refresh, and when to warn. All in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Refresh at least this often: how late a TCB recovery is learnt of.
    pub refresh_interval: u64,
    /// Refresh when this little is left, or a quarter of the lifetime if that is less.
    pub refresh_before_expiry: u64,
    /// Time between attempts when the PCCS has nothing newer although little is left.
    pub late_retry_interval: u64,
    /// First wait after a failure; doubled for each further one.
    pub initial_backoff: u64,
    /// Longest wait after failures, while something valid is held.
    pub max_backoff_cached: u64,
    /// Longest wait after failures, while nothing valid is held.
    pub max_backoff_missing: u64,
    /// Warn when this little is left.
    pub warn_before_expiry: u64,
}

impl Default for Schedule {
    /// Daily, 7 days ahead of the end (Intel's parts hold for 30), hourly when late; 5 s to an hour
    /// after failures, at most a minute when sessions wait for it; a warning 3 days before the end.
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

/// Something to log and to count. Told once each.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Fetched (or offered), verified, and now what is held.
    Refreshed {
        /// For which platforms.
        key: CollateralKey,
        /// Until when it holds, in unix seconds.
        expires_at: u64,
        /// Whether the content is new. If so the epoch has changed.
        changed: bool,
    },
    /// An attempt failed. What was held still is.
    Failed {
        /// For which platforms.
        key: CollateralKey,
        /// Why.
        error: FetchError,
        /// Until when what is held holds; `None` when sessions are refused for lack of it.
        held_until: Option<u64>,
        /// When it is tried again at the earliest, in unix seconds.
        retry_at: u64,
    },
    /// Little is left: a person should look at the PCCS.
    AboutToExpire {
        /// For which platforms.
        key: CollateralKey,
        /// Until when it holds.
        expires_at: u64,
    },
    /// It has expired: sessions from these platforms are refused.
    Expired {
        /// For which platforms.
        key: CollateralKey,
    },
    /// A file was not used.
    NotLoaded {
        /// Its path.
        file: String,
        /// Why.
        why: String,
    },
    /// The copy on disk could not be written. What is held in memory is not affected.
    NotStored {
        /// For which platforms.
        key: CollateralKey,
        /// Why.
        why: String,
    },
}

/// What [`Store::want`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Here it is.
    Cached(Arc<Collateral>),
    /// It will be fetched, or is being fetched.
    Pending,
    /// The last attempt failed, and it is too early for another.
    BackingOff {
        /// Unix seconds.
        retry_at: u64,
        /// Why the last attempt failed.
        last: FetchError,
    },
    /// Too many families are held already.
    Full,
}

/// All that is held at one moment. Its readers never wait for a fetch.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    epoch: u64,
    held: BTreeMap<CollateralKey, Arc<Collateral>>,
}

impl Snapshot {
    /// Changes whenever the content does: verdicts of another epoch are to be reached anew.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is held for `key`, if it holds at `now`.
    #[must_use]
    pub fn get(&self, key: CollateralKey, now: u64) -> Option<&Arc<Collateral>> {
        self.held
            .get(&key)
            .filter(|collateral| collateral.is_valid_at(now))
    }

    /// All that is held, expired or not.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Collateral>> {
        self.held.values()
    }

    /// Seconds until each set expires, for a metric: 0 for what has.
    pub fn seconds_until_expiry(&self, now: u64) -> impl Iterator<Item = (CollateralKey, u64)> {
        self.held
            .iter()
            .map(move |(key, held)| (*key, held.expires_at().saturating_sub(now)))
    }
}

#[derive(Default)]
struct Entry {
    held: Option<Arc<Collateral>>,
    in_flight: bool,
    /// Somebody has asked since the last attempt. Families of which nothing is held are fetched only
    /// when asked for.
    wanted: bool,
    failures: u32,
    last: Option<FetchError>,
    next_attempt_at: u64,
    requested_at: u64,
    warning_reported: bool,
    expiry_reported: bool,
}

impl Entry {
    fn holds(&self, now: u64) -> Option<&Arc<Collateral>> {
        self.held.as_ref().filter(|held| held.is_valid_at(now))
    }

    fn is_due(&self, now: u64) -> bool {
        !self.in_flight && self.next_attempt_at <= now && (self.wanted || self.held.is_some())
    }
}

/// What is held, and what is to be fetched next.
pub struct Store {
    root: Vec<u8>,
    schedule: Schedule,
    entries: BTreeMap<CollateralKey, Entry>,
    snapshot: Arc<Snapshot>,
}

impl Store {
    /// An empty store that takes what verifies under `root` (DER).
    #[must_use]
    pub fn new(root: Vec<u8>, schedule: Schedule) -> Self {
        Self {
            root,
            schedule,
            entries: BTreeMap::new(),
            snapshot: Arc::default(),
        }
    }

    /// All that is held now.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Asks for `key`; starts to keep it fresh, if it was not known.
    pub fn request(&mut self, key: CollateralKey, now: u64) -> RequestOutcome {
        if !self.entries.contains_key(&key) && !self.make_room() {
            return RequestOutcome::Full;
        }
        let entry = self.entries.entry(key).or_default();
        entry.requested_at = now;
        if let Some(held) = entry.holds(now) {
            return RequestOutcome::Cached(Arc::clone(held));
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
        entry.wanted = true;
        entry.next_attempt_at = entry.next_attempt_at.min(now);
        RequestOutcome::Pending
    }

    /// Drops the family that was asked for longest ago, of those of which nothing is held.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < MAX_PLATFORM_FAMILIES {
            return true;
        }
        let idle = self
            .entries
            .iter()
            .filter(|(_, e)| e.held.is_none() && !e.in_flight);
        let Some(oldest) = idle
            .min_by_key(|(_, e)| e.requested_at)
            .map(|(key, _)| *key)
        else {
            return false;
        };
        self.entries.remove(&oldest);
        true
    }

    /// A key to fetch now, if there is one. It is in flight until [`Store::complete_fetch`] is called with it.
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
        let due = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.is_due(now));
        // Those for whom sessions wait go first.
        let (key, entry) = due.min_by_key(|(_, e)| (e.holds(now).is_some(), e.next_attempt_at))?;
        entry.in_flight = true;
        entry.wanted = false;
        Some(*key)
    }

    /// The second at which [`Store::next_due`] or [`Store::tick`] next has something to say.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        let warn = self.schedule.warn_before_expiry;
        self.entries
            .values()
            .flat_map(|entry| {
                let held = entry.held.as_ref();
                let fetch = (!entry.in_flight && (entry.wanted || held.is_some()))
                    .then_some(entry.next_attempt_at);
                let warning = held
                    .filter(|_| !entry.warning_reported)
                    .map(|held| held.expires_at().saturating_sub(warn));
                let expiry = held
                    .filter(|_| !entry.expiry_reported)
                    .map(|held| held.expires_at());
                [fetch, warning, expiry]
            })
            .flatten()
            .min()
    }

    /// The end of a flight. `random` is any number: it spreads the next attempt.
    ///
    /// What was fetched is held only if it verifies; then the newest of each part is
    /// ([`Collateral::merge_newest`]). Otherwise what was held still is.
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
                let expires_at = collateral.expires_at();
                entry.failures = 0;
                entry.last = None;
                entry.next_attempt_at = self.schedule.refresh_at(&collateral, now, random);
                if changed {
                    entry.warning_reported = false;
                    entry.expiry_reported = false;
                    entry.held = Some(Arc::new(collateral));
                    self.publish();
                }
                Event::Refreshed {
                    key,
                    expires_at,
                    changed,
                }
            }
            Err(error) => {
                entry.failures = entry.failures.saturating_add(1);
                entry.last = Some(error.clone());
                let held_until = entry.holds(now).map(|held| held.expires_at());
                let wait = self
                    .schedule
                    .back_off(entry.failures, held_until.is_some(), random);
                entry.next_attempt_at = now.saturating_add(wait);
                Event::Failed {
                    key,
                    error,
                    held_until,
                    retry_at: entry.next_attempt_at,
                }
            }
        }
    }

    /// Collateral from a file or from disk, as if it had been fetched, without a flight.
    ///
    /// # Errors
    /// [`CollateralError`] if it does not verify at `now`, or if there are [`MAX_PLATFORM_FAMILIES`] families already.
    pub fn import(
        &mut self,
        offered: Collateral,
        now: u64,
        random: u32,
    ) -> Result<Event, CollateralError> {
        let key = offered.key();
        let (collateral, changed) = self.verify_and_merge(key, offered, now)?;
        if !self.entries.contains_key(&key) && !self.make_room() {
            return Err(CollateralError::StoreFull);
        }
        let expires_at = collateral.expires_at();
        let entry = self.entries.entry(key).or_default();
        if changed {
            // How old it is is not known: ask soon, but not every restarted machine at once.
            entry.next_attempt_at =
                now + u64::from(random) % self.schedule.late_retry_interval.max(1);
            entry.warning_reported = false;
            entry.expiry_reported = false;
            entry.held = Some(Arc::new(collateral));
            self.publish();
        }
        Ok(Event::Refreshed {
            key,
            expires_at,
            changed,
        })
    }

    /// What to tell merely because time has passed.
    pub fn tick(&mut self, now: u64) -> Vec<Event> {
        let warn = self.schedule.warn_before_expiry;
        let mut events = Vec::new();
        for (key, entry) in &mut self.entries {
            let Some(held) = &entry.held else { continue };
            let expires_at = held.expires_at();
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

    /// The newest of what is held and what fetched, if that verifies; and whether it is new.
    fn verify_and_merge(
        &self,
        key: CollateralKey,
        fetched: Collateral,
        now: u64,
    ) -> Result<(Collateral, bool), CollateralError> {
        if fetched.key() != key {
            return Err(CollateralError::WrongKey);
        }
        fetched.check(&self.root, now)?;
        let Some(held) = self.entries.get(&key).and_then(|entry| entry.held.as_ref()) else {
            return Ok((fetched, true));
        };
        let mut newest = Collateral::merge_newest(held, &fetched, now)?;
        if newest.check(&self.root, now).is_err() {
            // Each part is genuine alone, so a newer CRL has revoked the signer of another.
            newest = Collateral::merge_newest_crls(held, &fetched, now)?;
            newest.check(&self.root, now)?;
        }
        let changed = newest != **held;
        Ok((newest, changed))
    }

    fn publish(&mut self) {
        let held =
            |(key, entry): (&CollateralKey, &Entry)| Some((*key, Arc::clone(entry.held.as_ref()?)));
        self.snapshot = Arc::new(Snapshot {
            epoch: self.snapshot.epoch + 1,
            held: self.entries.iter().filter_map(held).collect(),
        });
    }
}

impl Schedule {
    /// When to refresh what came at `now`.
    fn refresh_at(&self, collateral: &Collateral, now: u64, random: u32) -> u64 {
        let expires_at = collateral.expires_at();
        let lifetime = expires_at.saturating_sub(collateral.valid_from());
        let preferred = expires_at.saturating_sub(self.refresh_before_expiry.min(lifetime / 4));
        let wait = match preferred.checked_sub(now) {
            Some(left) if left > 0 => left.min(self.refresh_interval),
            // The PCCS has nothing newer: keep asking, and before the end.
            _ => self
                .late_retry_interval
                .min(expires_at.saturating_sub(now) / 4),
        };
        now.saturating_add(with_jitter(wait, random).max(1))
    }

    fn back_off(&self, failures: u32, is_held: bool, random: u32) -> u64 {
        let cap = if is_held {
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

/// `wait`, up to a quarter shorter: so that machines that started together do not ask together.
fn with_jitter(wait: u64, random: u32) -> u64 {
    wait - u64::from(random) % (wait / 4 + 1)
}
