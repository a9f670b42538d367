//! The limits on a process' connections: counting semaphores that refuse instead of queueing.
//!
//! A connection is counted where it is: among those that are not attested ([`UnattestedPool`]), among those that log in,
//! or among the sessions, whose place is taken only after the login. It must never be counted on the data path.
//!
//! An attested peer that is slow to log in must not keep the others out, so that one peer gets at most half of the places
//! of those that log in. Peers are counted in a table of fixed size by their hash: without a lock, and a peer that shares a
//! place of the table shares its half.
//!
//! [`UnattestedPool`]: super::unattested::UnattestedPool

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use attest::AttestedPeer;

use crate::shard::unattested::UnattestedPlace;
use crate::telemetry::link_info::LinkDirection;

/// Counters of the logins by peer. With so many it is improbable that two busy peers share one.
const PEER_COUNTERS: usize = 1_024;

/// The limits of a process.
pub(crate) struct ConnectionLimit {
    sessions: Semaphore,
    /// Attested clients that have not logged in yet.
    logins: Semaphore,
    /// The same by peer.
    peer_logins: Box<[Semaphore]>,
    /// Has a random key, so that no peer can choose whose counter it shares.
    hasher: RandomState,
    /// Links that other members have opened, so that neither clients nor the links of this member take their places.
    accepted_links: Semaphore,
    /// Links that this member opens.
    opened_links: Semaphore,
    /// The number of the last connection.
    last_number: AtomicU64,
}

/// Whose login it is: the app id that its event log proves, else the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LoginPeer {
    App([u8; 20]),
    Certificate([u8; 32]),
}

impl LoginPeer {
    pub(crate) fn of(peer: &AttestedPeer) -> Self {
        match peer.app_id() {
            Some(app_id) => Self::App(app_id.0),
            None => Self::Certificate(peer.fingerprint().0),
        }
    }
}

struct Semaphore {
    max: usize,
    taken: AtomicUsize,
}

impl Semaphore {
    fn new(max: usize) -> Self {
        let taken = AtomicUsize::new(0);
        Self { max, taken }
    }

    fn acquire(&self) -> Result<(), LimitReached> {
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.max {
            return Ok(());
        }
        self.release();
        Err(LimitReached)
    }

    fn release(&self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitReached;

/// One connection's places, given back when dropped.
pub(crate) struct ConnectionPermit {
    limit: Arc<ConnectionLimit>,
    unattested: RefCell<Option<UnattestedPlace>>,
    /// The place of the peer's counter, while it logs in.
    logs_in: Cell<Option<usize>>,
    is_session: Cell<bool>,
    link: Cell<Option<LinkDirection>>,
}

impl ConnectionLimit {
    /// `max_links` is the limit for each direction.
    pub(crate) fn new(max_sessions: usize, max_logins: usize, max_links: usize) -> Arc<Self> {
        let of_peer = max_logins.div_ceil(2);
        let peer_logins = (0..PEER_COUNTERS).map(|_| Semaphore::new(of_peer));
        Arc::new(Self {
            sessions: Semaphore::new(max_sessions),
            logins: Semaphore::new(max_logins),
            peer_logins: peer_logins.collect(),
            hasher: RandomState::new(),
            accepted_links: Semaphore::new(max_links),
            opened_links: Semaphore::new(max_links),
            last_number: AtomicU64::new(0),
        })
    }

    /// The number of a new connection, from 1.
    pub(super) fn next_number(&self) -> u64 {
        self.last_number
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
    }

    /// The place of a peer's counter.
    fn counter_of(&self, peer: LoginPeer) -> usize {
        let hash = self.hasher.hash_one(peer) % PEER_COUNTERS as u64;
        usize::try_from(hash).unwrap_or_default()
    }

    fn begin_login(&self, peer: LoginPeer) -> Result<usize, LimitReached> {
        let counter = self.counter_of(peer);
        let of_peer = self.peer_logins.get(counter).ok_or(LimitReached)?;
        of_peer.acquire()?;
        self.logins
            .acquire()
            .inspect_err(|LimitReached| of_peer.release())?;
        Ok(counter)
    }

    fn end_login(&self, counter: usize) {
        self.logins.release();
        if let Some(of_peer) = self.peer_logins.get(counter) {
            of_peer.release();
        }
    }

    fn links(&self, direction: LinkDirection) -> &Semaphore {
        match direction {
            LinkDirection::Accepted => &self.accepted_links,
            LinkDirection::Opened => &self.opened_links,
        }
    }

    /// The permit of a local connection for which a link is opened. It never was an unattested client's.
    pub(super) fn link_permit(self: &Arc<Self>) -> ConnectionPermit {
        ConnectionPermit {
            limit: Arc::clone(self),
            unattested: RefCell::new(None),
            logs_in: Cell::new(None),
            is_session: Cell::new(false),
            link: Cell::new(None),
        }
    }

    /// The permit of a connection that is not attested yet.
    pub(super) fn permit(self: &Arc<Self>, place: UnattestedPlace) -> ConnectionPermit {
        ConnectionPermit {
            limit: Arc::clone(self),
            unattested: RefCell::new(Some(place)),
            logs_in: Cell::new(None),
            is_session: Cell::new(false),
            link: Cell::new(None),
        }
    }
}

impl ConnectionPermit {
    /// The proxy has named its client.
    pub(crate) fn set_client(&self, client: IpAddr) {
        if let Some(place) = &*self.unattested.borrow() {
            place.set_client(client);
        }
    }

    /// The client is attested: it may not be displaced any more.
    ///
    /// # Errors
    /// Too many attested clients are logging in, or too many of this peer. The connection keeps its place until it has ended, since its
    /// client may take its time to close.
    pub(crate) fn attested(&self, peer: LoginPeer) -> Result<(), LimitReached> {
        self.logs_in.set(Some(self.limit.begin_login(peer)?));
        self.unattested.take();
        Ok(())
    }

    /// Whether a session could begin now.
    ///
    /// # Errors
    /// There are as many sessions as there may be.
    pub(crate) fn check_sessions(&self) -> Result<(), LimitReached> {
        let sessions = &self.limit.sessions;
        match sessions.taken.load(Ordering::Relaxed) < sessions.max {
            true => Ok(()),
            false => Err(LimitReached),
        }
    }

    /// The client has logged in.
    ///
    /// # Errors
    /// There are as many sessions as there may be.
    pub(crate) fn begin_session(&self) -> Result<(), LimitReached> {
        self.limit.sessions.acquire()?;
        self.is_session.set(true);
        self.unattested.take();
        self.end_login();
        Ok(())
    }

    /// The connection is a link, and a member's if it was accepted.
    ///
    /// # Errors
    /// There are as many links in this direction as there may be.
    pub(crate) fn begin_link(&self, direction: LinkDirection) -> Result<(), LimitReached> {
        self.limit.links(direction).acquire()?;
        self.link.set(Some(direction));
        self.unattested.take();
        Ok(())
    }

    fn end_login(&self) {
        if let Some(counter) = self.logs_in.take() {
            self.limit.end_login(counter);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.end_login();
        if self.is_session.take() {
            self.limit.sessions.release();
        }
        if let Some(direction) = self.link.take() {
            self.limit.links(direction).release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(limit: &Arc<ConnectionLimit>) -> ConnectionPermit {
        ConnectionPermit {
            limit: Arc::clone(limit),
            unattested: RefCell::default(),
            logs_in: Cell::default(),
            is_session: Cell::default(),
            link: Cell::default(),
        }
    }

    /// Two peers that share no counter.
    fn two_peers(limit: &ConnectionLimit) -> [LoginPeer; 2] {
        let peers = |number: u8| LoginPeer::App([number; 20]);
        let first = limit.counter_of(peers(0));
        let other = (1..=255).map(peers);
        let mut other = other.filter(|peer| limit.counter_of(*peer) != first);
        [peers(0), other.next().unwrap()]
    }

    #[test]
    fn a_session_takes_its_place_after_the_login() {
        let limit = ConnectionLimit::new(2, 3, 1);
        let [one, other] = two_peers(&limit);
        let clients: Vec<_> = (0..3).map(|_| permit(&limit)).collect();
        for (client, peer) in clients.iter().zip([one, other, one]) {
            client.attested(peer).unwrap();
            client.check_sessions().unwrap();
        }
        let late = permit(&limit);
        assert_eq!(late.attested(other), Err(LimitReached));
        drop(late);
        let sessions = clients.iter().map(ConnectionPermit::begin_session);
        assert!(sessions.eq([Ok(()), Ok(()), Err(LimitReached)]));
        let late = permit(&limit);
        late.attested(one).unwrap();
        assert_eq!(late.check_sessions(), Err(LimitReached));
        drop(clients);
        late.begin_session().unwrap();
        assert_eq!(limit.sessions.taken.load(Ordering::Relaxed), 1);
        drop(late);
        let semaphores = [&limit.sessions, &limit.logins].into_iter();
        for semaphore in semaphores.chain(&limit.peer_logins) {
            assert_eq!(semaphore.taken.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_peer_that_is_slow_to_log_in_leaves_half_of_the_places() {
        let limit = ConnectionLimit::new(100, 10, 1);
        let [slow, other] = two_peers(&limit);
        let permits: Vec<_> = (0..20).map(|_| permit(&limit)).collect();
        let (of_slow, of_other) = permits.split_at(10);
        let admitted = |permits: &[ConnectionPermit], peer| {
            let admitted = permits.iter().filter(|one| one.attested(peer).is_ok());
            admitted.count()
        };
        assert_eq!(admitted(of_slow, slow), 5);
        assert_eq!(admitted(of_other, other), 5);
        // A place that it gives back is its own again.
        of_slow[0].begin_session().unwrap();
        assert_eq!(permit(&limit).attested(other), Err(LimitReached));
        permit(&limit).attested(slow).unwrap();
        // What was refused has left nothing behind.
        drop(permits);
        let semaphores = [&limit.logins].into_iter().chain(&limit.peer_logins);
        assert!(
            semaphores
                .into_iter()
                .all(|one| one.taken.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn links_and_sessions_do_not_take_each_others_places() {
        let limit = ConnectionLimit::new(1, 1, 1);
        let session = permit(&limit);
        session.begin_session().unwrap();
        let directions = [LinkDirection::Accepted, LinkDirection::Opened];
        let links = directions.map(|direction| {
            let link = permit(&limit);
            link.begin_link(direction).unwrap();
            assert_eq!(permit(&limit).begin_link(direction), Err(LimitReached));
            link
        });
        drop(links);
        for direction in directions {
            permit(&limit).begin_link(direction).unwrap();
        }
    }
}
