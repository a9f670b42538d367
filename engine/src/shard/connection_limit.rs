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

/// The limits of a process.
pub(crate) struct ConnectionLimit {
    sessions: Semaphore,
    /// Attested clients that have not logged in yet.
    logins: Semaphore,
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
}

impl ConnectionLimit {
    pub(crate) fn new(max_sessions: usize, max_logins: usize) -> Arc<Self> {
        Arc::new(Self {
            sessions: Semaphore::new(max_sessions),
            logins: Semaphore::new(max_logins),
        })
    }

    /// The permit of a connection that is not attested yet.
    pub(super) fn permit(self: &Arc<Self>, place: UnattestedPlace) -> ConnectionPermit {
        ConnectionPermit {
            limit: Arc::clone(self),
            unattested: RefCell::new(Some(place)),
            logs_in: Cell::new(false),
            is_session: Cell::new(false),
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
        }
    }

    #[test]
    fn a_session_takes_its_place_after_the_login() {
        let limit = ConnectionLimit::new(2, 3);
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
}
