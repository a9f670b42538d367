//! The addresses of servers that a forwarder's sessions are connected to: a registry of weak references.
//!
//! A CancelRequest does not say which session it is meant for except by a key that only its server knows, and sessions
//! may be with several servers: it must reach each of them. And with `follow`, sessions with a leader that was
//! replaced have to be found.
//!
//! It must not be locked, and the end of a session must not touch it: a session holds a reference, and those without
//! a session are removed when the next one begins elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use crate::io::target::{Endpoint, Target};

/// The endpoints with sessions, those of all shards.
#[derive(Default)]
pub(crate) struct ServerEndpoints(ArcSwap<Vec<Weak<Endpoint>>>);

impl ServerEndpoints {
    /// The endpoint at `address` of `target`, the same for all its sessions.
    pub(crate) fn endpoint(&self, target: &Arc<Target>, address: SocketAddr) -> Arc<Endpoint> {
        let is_wanted =
            |known: &Arc<Endpoint>| known.address == address && known.target.is_same_server(target);
        let known = self.live().into_iter().find(is_wanted);
        known.unwrap_or_else(|| {
            self.insert(Arc::new(Endpoint {
                target: Arc::clone(target),
                address,
            }))
        })
    }

    /// Two shards may insert the same endpoint at the same time. It is then in the list twice, and a CancelRequest
    /// reaches it twice.
    fn insert(&self, endpoint: Arc<Endpoint>) -> Arc<Endpoint> {
        self.0.rcu(|all| {
            let live = all.iter().filter(|known| known.strong_count() > 0);
            let mut next: Vec<_> = live.cloned().collect();
            next.push(Arc::downgrade(&endpoint));
            next
        });
        endpoint
    }

    /// The endpoints with sessions.
    pub(crate) fn live(&self) -> Vec<Arc<Endpoint>> {
        self.0.load().iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn an_endpoint_is_known_while_it_has_sessions() {
        let all = ServerEndpoints::default();
        let target = |port| {
            Arc::new(Target {
                server: ServerName::try_from("db.example").unwrap(),
                port,
                addresses: Vec::new(),
                leader: None,
            })
        };
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let first = all.endpoint(&target(1), address(1));
        // Another lookup has found the same server.
        let again = all.endpoint(&target(1), address(1));
        assert!(Arc::ptr_eq(&first, &again));
        let second = all.endpoint(&target(2), address(2));
        assert_eq!(all.live().len(), 2);
        drop((first, again));
        let live = all.live();
        assert!(live.len() == 1 && Arc::ptr_eq(&live[0], &second));
        drop(live);
        let third = all.endpoint(&target(1), address(3));
        assert_eq!(all.0.load().len(), 2, "the ended one is removed");
        drop((second, third));
        assert!(all.live().is_empty());
    }
}
