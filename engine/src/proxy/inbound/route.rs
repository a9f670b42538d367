//! Which Postgres serves a login: the own one, or that of the leader of the cluster.
//!
//! Logins that may write reach the leader, and wait for one while there is none. Those that only read are always served
//! where they connect. Until the first byte of a Postgres has gone to the client, a login that failed because the leader
//! went away is tried again. No login may reach a Postgres that takes writes without being the leader's.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::select;
use metrics::Gauge;
use wire::backend::BackendError;
use wire::error::SqlState;

use super::{Client, LoginContext, OpenSession, SessionGuard};
use crate::auth::role::Role;
use crate::cluster::carried::CarriedSession;
use crate::cluster::state::ClusterState;
use crate::cluster::view::{ClusterView, MemberRole};
use crate::config::WritesOnStandby;
use crate::proxy::shut_down_after;
use crate::proxy::upstream::{AuthenticatedUpstream, LoginRequest};
use crate::session::control::WritePath;
use crate::telemetry::close_reason::CloseReason;

/// The limit for one login to a Postgres of the cluster. A link to another member needs two round trips and a handshake.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a login that waits looks whether its client is still there.
const CLIENT_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts, if the view of the cluster does not change.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Where a login goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// To the own Postgres.
    Local,
    /// To the Postgres of the leader at this position.
    Leader(usize),
    /// Nowhere until the view changes.
    Wait,
    /// It is refused with the name of the leader at this position.
    Refuse(usize),
}

fn route(view: &ClusterView, own: usize, standby: WritesOnStandby, now: Instant) -> Route {
    if view.fenced.is_some() {
        return Route::Wait;
    }
    let follows = matches!(view.role, MemberRole::Replica | MemberRole::StandbyLeader);
    match view.leader_at(now) {
        Some(leader) if leader == own => Route::Local,
        // Its Postgres is in recovery, so that it takes no writes.
        _ if standby == WritesOnStandby::Local && follows && now < view.valid_until => Route::Local,
        Some(leader) => match standby {
            WritesOnStandby::Leader => Route::Leader(leader),
            WritesOnStandby::Refuse => Route::Refuse(leader),
            WritesOnStandby::Local => Route::Wait,
        },
        None => Route::Wait,
    }
}

impl LoginContext<'_> {
    /// Logs in to the Postgres that serves this role, and forwards its messages up to ReadyForQuery.
    pub(super) async fn open_session(
        &self,
        client: &mut Client,
        request: LoginRequest<'_>,
        role: Option<Role>,
    ) -> Result<OpenSession, CloseReason> {
        let upstream_login = &self.handler.upstream_login;
        let (upstream, leader) = match &self.handler.cluster {
            Some(cluster) if role != Some(Role::Read) => {
                self.reach_writable(client, cluster, request).await?
            }
            _ => (self.log_in_locally(request).await?, None),
        };
        let _fd_guard = self.control.register_upstream_fd(upstream.raw_fd());
        let mut key = None;
        let note_key = |issued: &[u8]| {
            if leader.is_some() {
                key = Some(zeroize::Zeroizing::new(issued.to_vec()));
            }
        };
        let forwarding =
            upstream_login.forward_until_ready(upstream, client, self.control, note_key);
        let (upstream, version) = forwarding.await?;
        if leader.is_none() {
            upstream_login
                .upstream_version
                .observe_server_version(version);
        }
        let guard = match leader.zip(self.handler.cluster.as_ref()) {
            Some((leader, cluster)) => {
                let key = key.as_ref().map(|key| key.as_slice());
                SessionGuard::Carried {
                    _carried: CarriedSession::new(cluster, leader, key),
                }
            }
            None => SessionGuard::None,
        };
        Ok(OpenSession { upstream, guard })
    }

    /// Logs in to the own Postgres within the login deadline.
    async fn log_in_locally(
        &self,
        request: LoginRequest<'_>,
    ) -> Result<AuthenticatedUpstream, CloseReason> {
        let (upstream_login, control) = (&self.handler.upstream_login, self.control);
        let (stream, server) = upstream_login
            .dial_own(control.login_deadline(), control)
            .await?;
        let _fd_guard = control.register_upstream_fd(stream.raw_fd());
        upstream_login
            .authenticate(stream, &server, &request, control)
            .await
    }

    /// Logs in to a Postgres that takes writes, waiting for one for at most `cluster_leader_wait`. Returns also the
    /// position of the leader, unless it is this member.
    async fn reach_writable(
        &self,
        client: &Client,
        cluster: &Arc<ClusterState>,
        request: LoginRequest<'_>,
    ) -> Result<(AuthenticatedUpstream, Option<usize>), CloseReason> {
        // The client waits for this process: the login deadline does not pass.
        let _work = self.control.begin_work();
        let (own, config) = (cluster.config.own, cluster.config.role);
        let until = Instant::now() + config.leader_wait;
        loop {
            let view = cluster.view();
            let chosen = route(&view, own, config.writes_on_standby, Instant::now());
            let leader = match chosen {
                Route::Local => None,
                Route::Leader(leader) => Some(leader),
                Route::Refuse(leader) => {
                    let name = cluster.name_of(leader).unwrap_or_default();
                    return Err(CloseReason::ReadOnlyMember(name.into()));
                }
                Route::Wait => {
                    self.await_change(client, cluster, &view, until, CLIENT_CHECK_INTERVAL)
                        .await?;
                    continue;
                }
            };
            let attempt = self.attempt(cluster, leader, request).await;
            let now = cluster.view();
            match attempt {
                // From here on a message of the cluster's change ends the session.
                Ok(upstream)
                    if now.term == view.term
                        && chosen == route(&now, own, config.writes_on_standby, Instant::now()) =>
                {
                    self.control.set_write_path(match leader {
                        None => WritePath::Local,
                        Some(_) => WritePath::Carried { term: view.term },
                    });
                    return Ok((upstream, leader));
                }
                Ok(_) => {}
                Err(reason) if !may_pass(&reason) || Instant::now() >= until => return Err(reason),
                Err(_) => cluster.request_check(),
            }
            if now.routes_like(&view) {
                self.await_change(client, cluster, &view, until, RETRY_INTERVAL)
                    .await?;
            }
        }
    }

    /// One login, within [`ATTEMPT_TIMEOUT`].
    async fn attempt(
        &self,
        cluster: &ClusterState,
        leader: Option<usize>,
        request: LoginRequest<'_>,
    ) -> Result<AuthenticatedUpstream, CloseReason> {
        let (upstream_login, control) = (&self.handler.upstream_login, self.control);
        let other = leader.and_then(|leader| cluster.config.postgres_of(leader));
        let other = other.map(|address| Arc::new(upstream_login.other_server(address)));
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        let (stream, server) = match other {
            None => upstream_login.dial_own(deadline, control).await?,
            Some(server) => {
                let dialed = upstream_login.dial_server(&server, deadline, control).await;
                (dialed?, server)
            }
        };
        let fd = stream.raw_fd();
        let _fd_guard = control.register_upstream_fd(fd);
        let left = deadline.saturating_duration_since(Instant::now());
        let login = upstream_login.authenticate(stream, &server, &request, control);
        match shut_down_after(left, fd, login).await {
            (result, true) => result,
            (_, false) => Err(control.or_terminated(CloseReason::UpstreamTimeout)),
        }
    }

    /// Waits until logins are routed differently, for at most `pause`.
    ///
    /// # Errors
    /// `until` has passed, the client has left, or the connection was terminated.
    async fn await_change(
        &self,
        client: &Client,
        cluster: &ClusterState,
        seen: &ClusterView,
        until: Instant,
        pause: Duration,
    ) -> Result<(), CloseReason> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(match seen.fenced {
                Some(_) => CloseReason::Fenced,
                None => CloseReason::NoLeader,
            });
        }
        let _waiting = Waiting::count(&cluster.waiting_logins);
        // The shard wakes this task when the view has changed.
        let changed = poll_fn(|_| match cluster.view().routes_like(seen) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        });
        let sleep = pin!(monoio::time::sleep(left.min(pause)));
        let wait = select(changed, sleep).map(|_| ());
        self.control.race_terminated(wait).await?;
        match client.stream.peer_has_left() {
            true => Err(CloseReason::ClientGone),
            false => Ok(()),
        }
    }
}

/// A login that is counted as waiting until this is dropped.
struct Waiting<'a>(&'a Gauge);

impl<'a> Waiting<'a> {
    fn count(gauge: &'a Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Whether a login may succeed later, at this Postgres or at that of the next leader.
fn may_pass(reason: &CloseReason) -> bool {
    match reason {
        CloseReason::UpstreamUnreachable(_)
        | CloseReason::UpstreamIo(_)
        | CloseReason::UpstreamTimeout
        | CloseReason::UpstreamLoginFailed(BackendError::EarlyEof) => true,
        // It starts, stops or recovers.
        CloseReason::UpstreamLoginFailed(BackendError::Refused { sqlstate, .. }) => {
            *sqlstate == SqlState::CANNOT_CONNECT_NOW
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::view::FenceCause;

    #[test]
    fn the_route_follows_from_the_view() {
        let now = Instant::now();
        let view = |role, leader, fenced| ClusterView {
            role,
            leader,
            fenced,
            ..ClusterView::unknown(2, now, Duration::from_secs(5))
        };
        let leads = view(MemberRole::Leader, Some(0), None);
        let follows = view(MemberRole::Replica, Some(1), None);
        let alone = view(MemberRole::Replica, None, None);
        let unknown = view(MemberRole::Unknown, None, None);
        let fenced = view(MemberRole::Unknown, None, Some(FenceCause::LockLost));
        let unlocked = view(MemberRole::Unknown, Some(1), Some(FenceCause::LockLost));
        use Route::{Leader, Local, Refuse, Wait};
        for (view, leader, local, refuse) in [
            (&leads, Local, Local, Local),
            (&follows, Leader(1), Local, Refuse(1)),
            (&alone, Wait, Local, Wait),
            (&unknown, Wait, Wait, Wait),
            (&fenced, Wait, Wait, Wait),
            (&unlocked, Wait, Wait, Wait),
        ] {
            let routes = [
                WritesOnStandby::Leader,
                WritesOnStandby::Local,
                WritesOnStandby::Refuse,
            ]
            .map(|standby| route(view, 0, standby, now));
            assert_eq!(routes, [leader, local, refuse], "{view:?}");
            // The watcher is late: nothing is known any more.
            let late = now + Duration::from_secs(5);
            for standby in [
                WritesOnStandby::Leader,
                WritesOnStandby::Local,
                WritesOnStandby::Refuse,
            ] {
                assert_eq!(route(view, 0, standby, late), Wait);
            }
        }
    }

    #[test]
    fn only_what_a_new_leader_may_resolve_is_tried_again() {
        let refused = |sqlstate| {
            CloseReason::UpstreamLoginFailed(BackendError::Refused {
                sqlstate,
                message: String::new(),
            })
        };
        assert!(may_pass(&refused(SqlState::CANNOT_CONNECT_NOW)));
        assert!(!may_pass(&refused(SqlState::TOO_MANY_CONNECTIONS)));
        assert!(may_pass(&CloseReason::UpstreamTimeout));
        assert!(!may_pass(&CloseReason::Shutdown));
    }
}
