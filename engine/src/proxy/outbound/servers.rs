//! The choice among a forwarder's servers for a connection, and the delivery of a CancelRequest to the right one.
//!
//! It must not let one server take the time of all: each attempt has its share of the login deadline, and a server that has not
//! answered for [`SLOW`] is penalized before it fails, so that connections that begin meanwhile try another one first.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest::denial::Fault;

use super::order::{Failed, fair_share, in_order};
use super::{OutboundHandler, Server, forward_cancel};
use crate::io::target::{Endpoint, Target, TargetError};
use crate::proxy::{CANCEL_TIMEOUT, shut_down_after};
use crate::session::control::{ConnectionControl, TerminateReason};
use crate::tasks::discovery::TargetResolver;
use crate::telemetry::close_reason::CloseReason;
use crate::telemetry::connection_info::ConnectionInfo;

/// An attempt that takes longer than this is taken for one that will fail, as far as other connections are concerned.
const SLOW: Duration = Duration::from_secs(1);

impl OutboundHandler {
    /// Connects to the first server that can be used, as libpq does with several hosts.
    pub(super) async fn connect_target(
        &self,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, Arc<Endpoint>), CloseReason> {
        let state = &self.state;
        let mut refused = CloseReason::Target(TargetError::NoAddress("the server".to_owned()));
        let targets = (0..state.resolvers.len()).collect();
        let order = self.in_order(targets, |target| Failed::Target(*target));
        let mut left = order.len();
        for target in order {
            let Some(resolver) = state.resolvers.get(target) else {
                continue;
            };
            left = left.saturating_sub(1);
            let until = fair_share(Instant::now(), control.login_deadline(), left);
            let attempt = self.connect_resolved(resolver, until, control, info);
            let slow = || self.failed(Failed::Target(target));
            match notify_after(SLOW, attempt, slow).await {
                Ok(connected) => {
                    state.penalties.lift(Failed::Target(target));
                    state.target_metrics.connected(target);
                    return Ok(connected);
                }
                Err(reason) => refused = reason,
            }
            let terminated = control.terminate_reason();
            if terminated.is_none_or(|reason| reason == TerminateReason::LoginTimeout) {
                state.target_metrics.failed(target, &refused);
                if is_of_server(&refused) {
                    self.failed(Failed::Target(target));
                }
            }
            if let Some(reason) = terminated {
                return Err(reason.into());
            }
            if left > 0 {
                let (reason, server) = (refused.code(), target + 1);
                tracing::warn!(server, reason, error = %refused, "cannot use a server: trying the next one");
            }
        }
        Err(refused)
    }

    /// Connects to the server and verifies it. If that fails, the server may have moved: the
    /// target is looked up again, and another address is tried once.
    async fn connect_resolved(
        &self,
        resolver: &Arc<TargetResolver>,
        until: Option<Instant>,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, Arc<Endpoint>), CloseReason> {
        let lookup = self.lookup(resolver, None);
        let target = within(until, control.race_terminated(lookup)).await??;
        let reason = match self.connect_any(&target, until, control, info).await {
            Ok(connected) => return Ok(connected),
            Err(reason) => reason,
        };
        let lookup = self.lookup(resolver, Some(Arc::clone(&target)));
        let found = match within(until, control.race_terminated(lookup)).await {
            Ok(found) => found,
            // The time is over: the first failure says more.
            Err(_) => return Err(control.or_terminated(reason)),
        };
        match found {
            Ok(other) if !other.is_covered_by(&target) => {
                self.connect_any(&other, until, control, info).await
            }
            Ok(_) => Err(reason),
            Err(error) => {
                tracing::warn!(%error, "cannot look up the server again after a failed connection");
                Err(reason)
            }
        }
    }

    /// Connects to the first address of the server that can be used.
    async fn connect_any(
        &self,
        target: &Arc<Target>,
        until: Option<Instant>,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(Server, Arc<Endpoint>), CloseReason> {
        let mut refused = CloseReason::Target(TargetError::NoAddress(target.name()));
        let addresses = target.addresses.clone();
        let addresses = self.in_order(addresses, |address| Failed::Address(*address));
        for (left, address) in (0..addresses.len()).rev().zip(addresses) {
            let by = until.unwrap_or_else(|| control.login_deadline());
            let until = fair_share(Instant::now(), by, left).or(until);
            let attempt = self.connect(target, address, until, control, info);
            let slow = || self.failed(Failed::Address(address));
            match notify_after(SLOW, attempt, slow).await {
                Ok(connected) => {
                    self.state.penalties.lift(Failed::Address(address));
                    return Ok(connected);
                }
                Err(reason) => refused = reason,
            }
            if let Some(reason) = control.terminate_reason() {
                return Err(reason.into());
            }
            if is_of_server(&refused) {
                self.failed(Failed::Address(address));
            }
        }
        Err(refused)
    }

    fn in_order<T>(&self, items: Vec<T>, key: impl Fn(&T) -> Failed) -> Vec<T> {
        let (state, now) = (&self.state, Instant::now());
        let is_penalized = |item: &T| state.penalties.applies(key(item), now);
        in_order(items, state.host_order, is_penalized, || {
            let mut bytes = [0; 4];
            // Without randomness the order is a fixed one.
            let _ = state.random.fill(&mut bytes);
            u32::from_ne_bytes(bytes)
        })
    }

    fn failed(&self, failed: Failed) {
        self.state.penalties.impose(failed, Instant::now());
    }

    /// Verifies that a server answers and is the one that it should be, without a session.
    pub(super) async fn probe(
        &self,
        target: &Arc<Target>,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> Result<(), CloseReason> {
        let until = Some(control.login_deadline());
        let (mut server, _) = self.connect_any(target, until, control, info).await?;
        server.close().await;
        Ok(())
    }

    /// Delivers a CancelRequest to every server that has sessions of this process: only the server knows whose key it has. All
    /// of them were verified before they got a session.
    pub(super) async fn cancel(
        &self,
        packet: &[u8],
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        let begun = Instant::now();
        let endpoints = self.state.endpoints.live();
        let mut endpoints = in_order(
            endpoints,
            Default::default(),
            |endpoint| {
                let failed = Failed::Address(endpoint.address);
                self.state.penalties.applies(failed, begun)
            },
            || 0,
        );
        let Some(last) = endpoints.pop() else {
            // No session is left that it could be meant for; its client waits for an answer all the same.
            return match self.connect_target(control, info).await {
                Ok((server, _)) => deliver_cancel(server, packet, begun, control).await,
                Err(reason) => reason,
            };
        };
        let mut delivered = None;
        for (left, endpoint) in (1..=endpoints.len()).rev().zip(endpoints) {
            let until = fair_share(Instant::now(), begun + CANCEL_TIMEOUT, left);
            let end = self.cancel_at(&endpoint, packet, until, begun, control, info);
            match end.await {
                CloseReason::Cancelled => delivered = Some(CloseReason::Cancelled),
                reason => {
                    if let Some(terminated) = control.terminate_reason() {
                        return terminated.into();
                    }
                    tracing::warn!(address = %endpoint.address, error = %reason, "cancel request not delivered to a server");
                }
            }
        }
        let end = self
            .cancel_at(&last, packet, None, begun, control, info)
            .await;
        delivered.unwrap_or(end)
    }

    async fn cancel_at(
        &self,
        endpoint: &Endpoint,
        packet: &[u8],
        until: Option<Instant>,
        begun: Instant,
        control: &ConnectionControl,
        info: &RefCell<ConnectionInfo>,
    ) -> CloseReason {
        let connected = self.connect(&endpoint.target, endpoint.address, until, control, info);
        let server = match connected.await {
            Ok((server, _)) => server,
            Err(reason) => return reason,
        };
        let Some(until) = until else {
            return deliver_cancel(server, packet, begun, control).await;
        };
        let fd = server.stream.raw_fd();
        let left = until.saturating_duration_since(Instant::now());
        let delivery = deliver_cancel(server, packet, begun, control);
        shut_down_after(left, fd, delivery).await.0
    }
}

/// Forwards a CancelRequest, unless it has become too old.
async fn deliver_cancel(
    server: Server,
    packet: &[u8],
    begun: Instant,
    control: &ConnectionControl,
) -> CloseReason {
    if begun.elapsed() > CANCEL_TIMEOUT {
        return CloseReason::CancelExpired;
    }
    let _fd_guard = control.register_upstream_fd(server.stream.raw_fd());
    forward_cancel(server, packet, control).await
}

/// Whether a failure says something about this server, and not only about this process.
fn is_of_server(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::Target(TargetError::Overloaded) => false,
        CloseReason::ServerDenied { denial, .. } => denial.fault() != Fault::Ours,
        _ => true,
    }
}

/// Runs `work`, which must not do I/O of this connection, and drops it at `until`.
pub(super) async fn within<T>(
    until: Option<Instant>,
    work: impl Future<Output = Result<T, CloseReason>>,
) -> Result<T, CloseReason> {
    let Some(until) = until else {
        return work.await;
    };
    let left = until.saturating_duration_since(Instant::now());
    let result = monoio::time::timeout(left, work).await;
    result.unwrap_or(Err(CloseReason::ServerTimeout))
}

/// The shorter of `limit` and the time until `until`.
pub(super) fn time_left(limit: Duration, until: Option<Instant>) -> Duration {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    left.map_or(limit, |left| left.min(limit))
}

/// Runs `work` until it completes, and calls `notify` if it has not completed after `limit`.
async fn notify_after<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    notify: impl FnOnce(),
) -> T {
    let mut work = pin!(work);
    let mut timer = pin!(monoio::time::sleep(limit));
    let mut notify = Some(notify);
    std::future::poll_fn(|cx| {
        let result = work.as_mut().poll(cx);
        if result.is_pending()
            && notify.is_some()
            && timer.as_mut().poll(cx).is_ready()
            && let Some(notify) = notify.take()
        {
            notify();
        }
        result
    })
    .await
}
