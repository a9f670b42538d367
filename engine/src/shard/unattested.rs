//! The connections of one shard whose clients are not attested yet: a bounded pool that displaces the
//! oldest connection of the source that has the most.
//!
//! Such a connection costs its client nothing, so their number is limited apart from that of the sessions,
//! and a silent client loses its place to one that sends its ClientHello. A handshake that has begun is
//! finished before others begin: while many are in progress, the shard leaves new connections in the
//! backlog of its listener (docs/adr/0019-occupancy.md).
//!
//! It must never displace a connection that waits for the computation of this process.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::config::UnattestedLimits;
use crate::io::peer::Peer;
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::telemetry::shard_metrics::ShardMetrics;

/// Handshakes of a shard that are in progress at the same time, from the ClientHello to the verdict. Each
/// takes about half a millisecond of computation, so that all of them are far within the login deadline
/// also on a machine that is ten times slower.
const MAX_HANDSHAKES: usize = 256;
/// A silent connection is displaced for one in the backlog only after this time: a ClientHello that
/// follows an SSLRequest needs one round trip.
const SILENT_GRACE: Duration = Duration::from_millis(250);
/// The same for a connection whose handshake is in progress: other round trips, and the client's own computation. Of 1,000
/// clients that start together on one slow machine, some need more than two seconds for that.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(4);

/// A shard that has not looked for so long has not read what its clients sent either: they get
/// [`SILENT_GRACE`] again.
const STALL: Duration = Duration::from_millis(100);

/// Where a connection comes from, as far as its share of the pool is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An IPv4 address, or the first 64 bits of an IPv6 address: the smallest network that a host gets.
    Address(IpAddr),
    /// A proxy that will name the client, or a Unix socket. Only the total is limited.
    Shared,
}

impl Source {
    pub(crate) fn of(peer: Peer) -> Self {
        peer.address()
            .map_or(Self::Shared, |address| Self::of_ip(address.ip()))
    }

    fn of_ip(address: IpAddr) -> Self {
        Self::Address(admin::source_of(address))
    }
}

/// The pool of one shard.
#[derive(Clone)]
pub(crate) struct UnattestedPool(Rc<Pool>);

struct Pool {
    limits: UnattestedLimits,
    max_handshakes: usize,
    shard_metrics: Rc<ShardMetrics>,
    /// Tells the other shards whether there is no place.
    full_flag: Arc<AtomicBool>,
    next: Cell<u64>,
    last_look: Cell<Option<Instant>>,
    /// No connection is displaced before this.
    grace_until: Cell<Option<Instant>>,
    entries: RefCell<Entries>,
}

#[derive(Default)]
struct Entries {
    /// In the order of their arrival.
    connections: BTreeMap<u64, Entry>,
    counts: HashMap<Source, usize>,
}

struct Entry {
    source: Source,
    control: Rc<ConnectionControl>,
}

/// A connection's place in the pool, given back when dropped.
pub(super) struct UnattestedPlace {
    pool: UnattestedPool,
    number: u64,
}

impl UnattestedPool {
    /// `limits` are those of this shard.
    pub(crate) fn new(
        limits: UnattestedLimits,
        shard_metrics: Rc<ShardMetrics>,
        full_flag: Arc<AtomicBool>,
    ) -> Self {
        Self(Rc::new(Pool {
            max_handshakes: (limits.total / 2).clamp(1, MAX_HANDSHAKES),
            limits,
            shard_metrics,
            full_flag,
            next: Cell::new(0),
            last_look: Cell::new(None),
            grace_until: Cell::new(None),
            entries: RefCell::default(),
        }))
    }

    /// Gives a place to a new connection. If there is none, or none for its source, another connection is
    /// displaced. `None` if all of them wait for this process.
    pub(super) fn enter(
        &self,
        source: Source,
        control: &Rc<ConnectionControl>,
    ) -> Option<UnattestedPlace> {
        let mut entries = self.0.entries.borrow_mut();
        if entries.is_at(source, self.0.limits.per_address) {
            self.displace(&mut entries, Some(source), |_| true)?;
        } else if entries.connections.len() >= self.0.limits.total {
            self.displace(&mut entries, None, |_| true)?;
        }
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        entries.insert(number, source, Rc::clone(control));
        self.0.shard_metrics.unattested.increment(1.0);
        self.set_full_flag(&entries);
        Some(UnattestedPlace {
            pool: self.clone(),
            number,
        })
    }

    /// Whether new connections have to wait in the backlog. Displaces a connection that has kept this
    /// process waiting for too long.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let mut entries = self.0.entries.borrow_mut();
        if entries.connections.len() < self.0.max_handshakes {
            return false;
        }
        let connections = entries.connections.values();
        let handshakes = connections.filter(|entry| entry.control.has_begun());
        let handshakes = handshakes.count();
        let full =
            handshakes >= self.0.max_handshakes || entries.connections.len() >= self.0.limits.total;
        if full && self.is_grace_running(now) {
            return true;
        }
        let has_waited = |control: &ConnectionControl| {
            let grace = match control.has_begun() {
                true => HANDSHAKE_GRACE,
                false => SILENT_GRACE,
            };
            let silent_for = control.silent_for(now);
            silent_for.is_some_and(|silent| silent >= grace)
        };
        full && self
            .displace(&mut entries, None, |control| {
                // A silent connection makes no room for a handshake.
                let helps = handshakes < self.0.max_handshakes || control.has_begun();
                helps && has_waited(control)
            })
            .is_none()
    }

    /// Whether all connections still have the time that [`STALL`] gives them.
    fn is_grace_running(&self, now: Instant) -> bool {
        let last_look = self.0.last_look.replace(Some(now));
        if last_look.is_none_or(|last| now.saturating_duration_since(last) > STALL) {
            self.0.grace_until.set(Some(now + SILENT_GRACE));
        }
        self.0.grace_until.get().is_some_and(|until| now < until)
    }

    /// Displaces a connection that does not wait for this process, and that `may` be displaced: one of `only` if that
    /// is given, else one of the sources with the most, if there is one. Among these one without a ClientHello comes
    /// first, then the oldest.
    fn displace(
        &self,
        entries: &mut Entries,
        only: Option<Source>,
        may: impl Fn(&ConnectionControl) -> bool,
    ) -> Option<()> {
        let now = Instant::now();
        let most = entries.counts.values().copied().max()?;
        let fitting = entries.connections.iter().filter(|(_, entry)| {
            let control = &entry.control;
            let waits = control.silent_for(now).is_some();
            waits && may(control) && only.is_none_or(|only| only == entry.source)
        });
        let first = fitting.min_by_key(|(number, entry)| {
            let few = entries.count(entry.source) < most;
            (few, entry.control.has_begun(), **number)
        });
        let number = *first?.0;
        let entry = self.remove(entries, number)?;
        entry.control.terminate(TerminateReason::Displaced);
        Some(())
    }

    fn remove(&self, entries: &mut Entries, number: u64) -> Option<Entry> {
        let entry = entries.remove(number)?;
        self.0.shard_metrics.unattested.decrement(1.0);
        self.set_full_flag(entries);
        Some(entry)
    }

    fn set_full_flag(&self, entries: &Entries) {
        let is_full = entries.connections.len() >= self.0.limits.total;
        self.0.full_flag.store(is_full, Ordering::Relaxed);
    }
}

impl Entries {
    fn is_at(&self, source: Source, limit: usize) -> bool {
        source != Source::Shared && self.count(source) >= limit
    }

    fn count(&self, source: Source) -> usize {
        self.counts.get(&source).copied().unwrap_or(0)
    }

    fn insert(&mut self, number: u64, source: Source, control: Rc<ConnectionControl>) {
        *self.counts.entry(source).or_default() += 1;
        self.connections.insert(number, Entry { source, control });
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.connections.remove(&number)?;
        if let Some(count) = self.counts.get_mut(&entry.source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&entry.source);
            }
        }
        Some(entry)
    }
}

impl UnattestedPlace {
    /// Counts the connection under the address of the client that its proxy has named. If that client has
    /// as many as it may have, its oldest one is displaced.
    pub(super) fn set_client(&self, client: IpAddr) {
        let pool = &self.pool;
        let mut entries = pool.0.entries.borrow_mut();
        // Otherwise it has been displaced.
        if let Some(entry) = entries.remove(self.number) {
            let source = Source::of_ip(client);
            if entries.is_at(source, pool.0.limits.per_address) {
                let _ = pool.displace(&mut entries, Some(source), |_| true);
            }
            entries.insert(self.number, source, entry.control);
            pool.set_full_flag(&entries);
        }
    }
}

impl Drop for UnattestedPlace {
    fn drop(&mut self) {
        let mut entries = self.pool.0.entries.borrow_mut();
        drop(self.pool.remove(&mut entries, self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::activity::ShardActivity;
    use crate::shard::connection_limit::{ConnectionLimit, LimitReached, LoginPeer};
    use crate::telemetry::metrics::Metrics;

    struct Fixture {
        pool: UnattestedPool,
        shard_metrics: Rc<ShardMetrics>,
    }

    impl Fixture {
        fn new(total: usize, per_address: usize) -> Self {
            let shard_metrics = Rc::new(ShardMetrics::new(&Metrics::new().unwrap(), 0));
            let limits = UnattestedLimits { total, per_address };
            let full_flag = Arc::<AtomicBool>::default();
            let pool = UnattestedPool::new(limits, Rc::clone(&shard_metrics), full_flag);
            Self {
                pool,
                shard_metrics,
            }
        }

        fn control(&self) -> Rc<ConnectionControl> {
            let (deadline, activity) = (Instant::now(), Rc::new(ShardActivity::idle()));
            let metrics = Rc::clone(&self.shard_metrics);
            Rc::new(ConnectionControl::new(deadline, metrics, activity))
        }

        fn enter(&self, source: Source) -> (Rc<ConnectionControl>, Option<UnattestedPlace>) {
            let control = self.control();
            let place = self.pool.enter(source, &control);
            (control, place)
        }

        /// Whether the pool is full for `time`, if the shard looks every 10 ms.
        fn is_full_for(&self, time: Duration) -> bool {
            let (start, step) = (Instant::now(), STALL / 10);
            let looks = time.as_millis() / step.as_millis();
            let looks = (0..=u32::try_from(looks).unwrap()).map(|look| start + step * look);
            // Not `all`: each look counts.
            looks.fold(true, |full, now| full & self.pool.is_full(now))
        }

        fn len(&self) -> usize {
            self.pool.0.entries.borrow().connections.len()
        }
    }

    fn source(last: u8) -> Source {
        Source::of_ip(IpAddr::from([192, 0, 2, last]))
    }

    fn is_displaced(control: &ConnectionControl) -> bool {
        control.terminate_reason() == Some(TerminateReason::Displaced)
    }

    #[test]
    fn the_oldest_of_the_source_with_the_most_is_displaced() {
        let fixture = Fixture::new(5, 5);
        let entered: Vec<_> = [1, 2, 2, 2, 3]
            .map(|last| fixture.enter(source(last)))
            .into();
        let (_, newcomer) = fixture.enter(source(4));
        assert!(newcomer.is_some());
        let displaced: Vec<_> = entered.iter().map(|(c, _)| is_displaced(c)).collect();
        assert_eq!(displaced, [false, true, false, false, false]);
        assert_eq!(fixture.len(), 5);
        // The place of a displaced connection is free before its handler has ended.
        drop(entered);
        assert_eq!(fixture.len(), 1);
    }

    #[test]
    fn a_source_displaces_only_itself() {
        let fixture = Fixture::new(10, 2);
        let other = fixture.enter(source(9));
        let own: Vec<_> = (0..4).map(|_| fixture.enter(source(1))).collect();
        let displaced: Vec<_> = own.iter().map(|(c, _)| is_displaced(c)).collect();
        assert_eq!(displaced, [true, true, false, false]);
        assert!(!is_displaced(&other.0));
        // The limit for an address does not hold for a proxy or a Unix socket.
        let shared: Vec<_> = (0..4).map(|_| fixture.enter(Source::Shared)).collect();
        assert!(!shared.iter().any(|(c, _)| is_displaced(c)));
    }

    #[test]
    fn a_client_behind_a_proxy_has_its_own_share() {
        let fixture = Fixture::new(10, 2);
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let (control, place) = fixture.enter(Source::Shared);
                place.as_ref().unwrap().set_client([192, 0, 2, 7].into());
                (control, place)
            })
            .collect();
        let displaced: Vec<_> = clients.iter().map(|(c, _)| is_displaced(c)).collect();
        assert_eq!(displaced, [true, false, false]);
        assert_eq!(fixture.len(), 2);
    }

    #[test]
    fn the_other_shards_know_whether_there_is_a_place() {
        let fixture = Fixture::new(2, 2);
        let is_full = || fixture.pool.0.full_flag.load(Ordering::Relaxed);
        let first = fixture.enter(source(1));
        assert!(!is_full());
        let second = fixture.enter(source(2));
        assert!(is_full());
        drop(first);
        assert!(!is_full());
        drop(second);
    }

    #[test]
    fn an_attested_client_that_is_refused_keeps_its_place() {
        let fixture = Fixture::new(3, 3);
        let limit = ConnectionLimit::new(1, 1, 0);
        let peer = LoginPeer::App([1; 20]);
        let [first, second] = [1, 2].map(|last| {
            let (_, place) = fixture.enter(source(last));
            limit.permit(place.unwrap())
        });
        assert_eq!(first.attested(peer), Ok(()));
        assert_eq!(fixture.len(), 1);
        assert_eq!(second.attested(peer), Err(LimitReached));
        assert_eq!(fixture.len(), 1);
        drop(second);
        assert_eq!(fixture.len(), 0);
    }

    #[test]
    fn what_waits_for_this_process_is_not_displaced() {
        let fixture = Fixture::new(3, 3);
        let entered: Vec<_> = (1..4).map(|last| fixture.enter(source(last))).collect();
        let working: Vec<_> = entered.iter().map(|(c, _)| c.begin_work()).collect();
        assert!(fixture.enter(source(4)).1.is_none());
        assert!(fixture.is_full_for(HANDSHAKE_GRACE * 2));
        // Silent ones go before those that have begun.
        drop(working);
        let silent = fixture.enter(source(5));
        assert!(is_displaced(&entered[0].0), "there were only such");
        let (_, newcomer) = fixture.enter(source(6));
        assert!(newcomer.is_some() && is_displaced(&silent.0));
    }

    #[test]
    fn connections_wait_in_the_backlog_until_a_silent_one_has_had_its_time() {
        let fixture = Fixture::new(2, 2);
        let first = fixture.enter(source(1));
        assert!(!fixture.pool.is_full(Instant::now()));
        let second = fixture.enter(source(2));
        assert!(fixture.is_full_for(SILENT_GRACE - STALL / 10));
        assert!(!fixture.is_full_for(SILENT_GRACE + STALL / 10));
        assert!(is_displaced(&first.0) && !is_displaced(&second.0));
        // One handshake in progress is the limit of this pool.
        drop(second.0.begin_work());
        assert!(fixture.is_full_for(HANDSHAKE_GRACE - STALL / 10));
        assert!(!fixture.is_full_for(HANDSHAKE_GRACE + STALL / 10));
        assert!(is_displaced(&second.0));
    }

    #[test]
    fn waits_for_a_client_add_up_after_its_handshake_has_begun() {
        const WAIT: Duration = Duration::from_millis(20);
        let control = Fixture::new(1, 1).control();
        std::thread::sleep(WAIT);
        let begun = Instant::now();
        drop(control.begin_work());
        assert_eq!(control.silent_for(begun), Some(Duration::ZERO));
        for records in 1..4 {
            std::thread::sleep(WAIT);
            drop(control.begin_work());
            let silent_for = control.silent_for(Instant::now()).unwrap();
            assert!(silent_for >= WAIT * records, "{silent_for:?}");
        }
        let work = control.begin_work();
        assert_eq!(control.silent_for(Instant::now()), None);
        drop(work);
    }

    #[test]
    fn a_shard_that_stood_still_gives_its_clients_time() {
        let fixture = Fixture::new(1, 1);
        let first = fixture.enter(source(1));
        let start = Instant::now();
        assert!(fixture.pool.is_full(start));
        // It has not read for 10 s what its clients have sent.
        let resumed = start + Duration::from_secs(10);
        assert!(fixture.pool.is_full(resumed));
        assert!(fixture.pool.is_full(resumed + STALL));
        assert!(!is_displaced(&first.0));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let of = |text: &str| Source::of_ip(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
