//! One connection on its shard: its handler, its watchdog and its log line.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;

use crate::io::peer::Peer;
use crate::io::stream::Stream;
use crate::session::control::ConnectionControl;
use crate::shard::balancer::ShardAssignment;
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;
use crate::shard::message::LinkRoute;
use crate::shard::unattested::Source;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;

/// A connection in the list of its shard.
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) control: Rc<ConnectionControl>,
    pub(super) info: Rc<RefCell<ConnectionInfo>>,
}

impl<S: ConnectionHandler> Shard<S> {
    /// One connection from accept to its log line.
    pub(super) async fn connection(
        self: Rc<Self>,
        stream: Stream,
        peer: Peer,
        assignment: ShardAssignment,
    ) {
        let shard_metrics = &self.handler.context().shard_metrics;
        let number = self.limit.next_number();
        let info = Rc::new(RefCell::new(ConnectionInfo::new(number, peer)));
        let control = Rc::new(ConnectionControl::new(
            info.borrow().accepted + self.timeouts.login,
            Rc::clone(shard_metrics),
            Rc::clone(&self.activity),
        ));
        let Some(place) = self.unattested.enter(self.source(peer), &control) else {
            return self.dropped(&info.borrow());
        };
        let permit = self.limit.permit(place);
        shard_metrics.accepted();
        if self.handler.context().audit.is_some() {
            info.borrow_mut().audit = Some(Box::default());
        }
        let handler = Box::pin(self.handler.serve(stream, &permit, &control, &info));
        let end = self.supervise(handler, &control, &info).await;
        drop((permit, assignment));
        self.finish(&info.borrow(), &control, &end);
    }

    /// One local connection for which a link is opened, from accept to its log line.
    pub(super) async fn link(
        self: Rc<Self>,
        stream: Stream,
        peer: Peer,
        assignment: ShardAssignment,
        route: LinkRoute,
    ) {
        let number = self.limit.next_number();
        let info = Rc::new(RefCell::new(ConnectionInfo::new(number, peer)));
        let control = Rc::new(ConnectionControl::new(
            info.borrow().accepted + self.timeouts.login,
            Rc::clone(&self.handler.context().shard_metrics),
            Rc::clone(&self.activity),
        ));
        let permit = self.limit.link_permit();
        let handler = self
            .handler
            .open_link(stream, route, &permit, &control, &info);
        let end = self.supervise(Box::pin(handler), &control, &info).await;
        drop((permit, assignment));
        self.finish(&info.borrow(), &control, &end);
    }

    /// Runs a handler with its watchdog, among the connections of this shard.
    async fn supervise(
        &self,
        handler: Pin<Box<impl Future<Output = CloseReason>>>,
        control: &Rc<ConnectionControl>,
        info: &Rc<RefCell<ConnectionInfo>>,
    ) -> CloseReason {
        let connection = Connection {
            number: info.borrow().number,
            control: Rc::clone(control),
            info: Rc::clone(info),
        };
        let key = self.connections.borrow_mut().insert(connection);
        let end = {
            // Boxed or pinned: a future that is passed by value is in memory twice.
            let with_watchdog = pin!(with_watchdog(handler, control, self.timeouts.idle));
            catch_panic(with_watchdog).await
        };
        self.connections.borrow_mut().remove(key);
        end
    }

    /// Counts and logs a connection that has ended.
    fn finish(&self, info: &ConnectionInfo, control: &ConnectionControl, end: &CloseReason) {
        let context = self.handler.context();
        match (&info.link, &context.links) {
            (Some(link), Some(links)) => {
                links.metrics.ended(link, info.is_session, end);
                if matches!(end, CloseReason::Panic) {
                    context.shard_metrics.panicked();
                }
            }
            _ => context.shard_metrics.ended(info.role, info.is_session, end),
        }
        if !info.logged {
            context.access_log.ended(info, control.bytes(), end);
        }
        // A link that this member opens is no access to it.
        if let Some(audit) = context.audit.as_ref().filter(|_| info.audit.is_some()) {
            let policy = context.gate_of(control).policy_epoch();
            let peer = control.peer();
            audit.ended(info, peer.as_deref(), policy, control.bytes(), end);
        }
        if self.connections.borrow().is_empty()
            && let Some(waker) = self.emptied.take()
        {
            waker.wake();
        }
    }
}

impl<S: ConnectionHandler> Shard<S> {
    /// Where a connection comes from. A proxy will name the client.
    fn source(&self, peer: Peer) -> Source {
        let is_proxy = |address: SocketAddr| self.handler.is_proxy(address.ip());
        match peer.address().is_some_and(is_proxy) {
            true => Source::Shared,
            false => Source::of(peer),
        }
    }

    /// A connection for which there is no place.
    fn dropped(&self, info: &ConnectionInfo) {
        let context = self.handler.context();
        context.shard_metrics.dropped();
        context.access_log.dropped_over_limit(info.peer);
        if let Some(audit) = &context.audit {
            audit.dropped_over_limit(info.number, info.peer);
        }
    }
}

/// Runs a handler together with its watchdog. The watchdog ends first only if the handler
/// did not end although its sockets are shut down; the handler is dropped then.
async fn with_watchdog(
    mut handler: Pin<Box<impl Future<Output = CloseReason>>>,
    control: &ConnectionControl,
    idle: Option<Duration>,
) -> CloseReason {
    let mut watchdog = pin!(control.watchdog(idle));
    poll_fn(|cx| {
        // The handler first: the watchdog then sees its change of phase.
        if let Poll::Ready(end) = handler.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        watchdog
            .as_mut()
            .poll(cx)
            .map(|reason| reason.map_or(CloseReason::PeerStuck, CloseReason::from))
    })
    .await
}

/// A panic ends the connection that it happened in, and no other.
async fn catch_panic(handler: Pin<&mut impl Future<Output = CloseReason>>) -> CloseReason {
    AssertUnwindSafe(handler)
        .catch_unwind()
        .await
        .unwrap_or(CloseReason::Panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_one_connection() {
        let handler = pin!(async { std::hint::black_box(None::<CloseReason>).expect("a bug") });
        let end = catch_panic(handler).now_or_never();
        assert!(matches!(end, Some(CloseReason::Panic)));
    }
}
