//! The limits on a process' connections: counting semaphores that refuse instead of queueing.
//!
//! A connection is counted where it is: among those that are not attested ([`UnattestedPool`]), among those that log in,
//! or among the sessions, whose place is taken only after the login. It must never be counted on the data path.
//!
//! [`UnattestedPool`]: super::unattested::UnattestedPool

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shard::unattested::UnattestedPlace;
use crate::telemetry::link_info::LinkDirection;

/// The limits of a process.
pub(crate) struct ConnectionLimit {
    sessions: Semaphore,
    /// Attested clients that have not logged in yet.
    logins: Semaphore,
    /// Links that other members have opened, so that neither clients nor the links of this member take their places.
    accepted_links: Semaphore,
    /// Links that this member opens.
    opened_links: Semaphore,
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
    logs_in: Cell<bool>,
    is_session: Cell<bool>,
    link: Cell<Option<LinkDirection>>,
}

impl ConnectionLimit {
    /// `max_links` is the limit for each direction.
    pub(crate) fn new(max_sessions: usize, max_logins: usize, max_links: usize) -> Arc<Self> {
        Arc::new(Self {
            sessions: Semaphore::new(max_sessions),
            logins: Semaphore::new(max_logins),
            accepted_links: Semaphore::new(max_links),
            opened_links: Semaphore::new(max_links),
        })
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
            logs_in: Cell::new(false),
            is_session: Cell::new(false),
            link: Cell::new(None),
        }
    }

    /// The permit of a connection that is not attested yet.
    pub(super) fn permit(self: &Arc<Self>, place: UnattestedPlace) -> ConnectionPermit {
        ConnectionPermit {
            limit: Arc::clone(self),
            unattested: RefCell::new(Some(place)),
            logs_in: Cell::new(false),
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
    /// Too many attested clients are logging in. The connection keeps its place until it has ended, since its
    /// client may take its time to close.
    pub(crate) fn attested(&self) -> Result<(), LimitReached> {
        self.limit.logins.acquire()?;
        self.logs_in.set(true);
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
        if self.logs_in.take() {
            self.limit.logins.release();
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

    #[test]
    fn a_session_takes_its_place_after_the_login() {
        let limit = ConnectionLimit::new(2, 3, 1);
        let clients: Vec<_> = (0..3).map(|_| permit(&limit)).collect();
        for client in &clients {
            client.attested().unwrap();
            client.check_sessions().unwrap();
        }
        let late = permit(&limit);
        assert_eq!(late.attested(), Err(LimitReached));
        drop(late);
        let sessions = clients.iter().map(ConnectionPermit::begin_session);
        assert!(sessions.eq([Ok(()), Ok(()), Err(LimitReached)]));
        let late = permit(&limit);
        late.attested().unwrap();
        assert_eq!(late.check_sessions(), Err(LimitReached));
        drop(clients);
        late.begin_session().unwrap();
        assert_eq!(limit.sessions.taken.load(Ordering::Relaxed), 1);
        drop(late);
        for semaphore in [&limit.sessions, &limit.logins] {
            assert_eq!(semaphore.taken.load(Ordering::Relaxed), 0);
        }
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
