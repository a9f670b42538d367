//! Watches the role of this member: asks Patroni and Postgres once a second, and publishes what follows.
//!
//! It runs on the control thread. What the answers mean is decided in [`crate::cluster::role_state`]; this has the
//! connections, the log and the metrics. It must never wait longer for an answer than [`ANSWER_TIMEOUT`], because the
//! silence of Patroni has to be noticed in time.

mod role_metrics;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin::Latch;
use tokio::time::{self, timeout};
use tokio_postgres::error::SqlState;

use crate::auth::credential::Credential;
use crate::cluster::member_names;
use crate::cluster::patroni::{Expected, parse_cluster, parse_status, parse_ttl};
use crate::cluster::role_state::{Observation, RoleSettings, RoleState, Transition};
use crate::cluster::state::ClusterState;
use crate::cluster::view::{ClusterView, FenceCause, MemberRole, WatchError};
use crate::io::stream::PgAddress;
use crate::postgres::server::PostgresServer;
use crate::postgres::superuser::standing::{Standing, StandingQuery};
use crate::postgres::superuser::{self, Superuser};
use crate::tasks::coalesced_sleep;
use crate::tasks::local_http::{self, HttpError};
pub(crate) use role_metrics::RoleMetrics;

/// Between two rounds while there is a leader, up to [`coalesced_sleep::MAX_DELAY`] longer or shorter.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two rounds while there is none: logins wait for it.
const ELECTION_INTERVAL: Duration = Duration::from_millis(250);
/// Between two rounds at least, however many logins ask for one.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The limit for each answer, less than [`INTERVAL`].
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);
/// How often Patroni's `ttl` is compared with `cluster_fence_after`.
const TTL_INTERVAL: Duration = Duration::from_secs(60);
/// How often an error that persists is logged.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What is wrong with a Patroni before [`crate::cluster::patroni::LEAST_VERSION`], and what to do.
const UNSAFE_VERSION: &str = "Patroni before 3.0.3 takes the leader lock back after a pause, and writes that the new leader has \
     acknowledged are lost: install a newer version on all members";

/// What the watcher needs.
pub(crate) struct RoleWatch {
    pub(crate) state: Arc<ClusterState>,
    pub(crate) postgres: PostgresServer,
    pub(crate) database: String,
    /// The superuser's password, which a reload may replace.
    pub(crate) password: Box<dyn Fn() -> Option<Arc<Credential>> + Send + Sync>,
    /// Tells all shards that logins are routed differently, or that sessions have to end.
    pub(crate) broadcast: Box<dyn Fn(&ClusterView) + Send + Sync>,
    pub(crate) latch: Latch,
    pub(crate) metrics: RoleMetrics,
}

impl RoleWatch {
    /// Never returns.
    pub(crate) async fn run(self) {
        let config = &self.state.config;
        let settings = RoleSettings {
            own: config.own,
            members: config.members.len(),
            patroni: config.role.patroni.is_some(),
            fence_after: config.role.fence_after,
            first_port: config.postgres_of(0).map(|address| address.port()),
        };
        let mut round = Round {
            role: RoleState::new(settings, Instant::now()),
            local: Probe::default(),
            remote: Probe::default(),
            ttl_checked: None,
            log: ErrorLog::default(),
        };
        loop {
            let view = round.next(&self).await;
            let ended = time::Instant::now();
            let next = match view.leader {
                Some(_) => coalesced_sleep::end(INTERVAL),
                None => ended + ELECTION_INTERVAL,
            };
            // Both outcomes lead to the next round.
            coalesced_sleep::sleep_unless(self.state.check_requested(), next, ended + MIN_INTERVAL)
                .await;
        }
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            cluster: &self.state.config.name,
            member: self.state.config.own_member().name.as_str(),
        }
    }

    fn server_of(&self, member: usize) -> Option<PostgresServer> {
        let address = self.state.config.postgres_of(member)?;
        Some(PostgresServer {
            address: PgAddress::Tcp(address),
            look_for_socket: false,
            ..self.postgres.clone()
        })
    }

    fn report(&self, view: &ClusterView, transitions: &[Transition]) {
        for transition in transitions {
            self.log(*transition, view);
        }
        self.metrics.set(view, self.state.config.own);
        match view.fenced {
            _ if view.errors.contains(&WatchError::NameConflict) => {
                self.latch.set_not_ready(self.name_conflict(view));
            }
            Some(cause) => self.latch.set_not_ready(format!(
                "fenced ({}): Postgres takes writes, but this member does not hold the leader lock",
                cause.code()
            )),
            None if view.role == MemberRole::Unknown || view.role == MemberRole::Uninitialized => {
                let why = view.errors.first().map_or("", |error| error.code());
                self.latch
                    .set_not_ready(format!("the role of this member is not known: {why}"));
            }
            None if view.leader.is_none() => self
                .latch
                .set_ready_despite("the cluster has no leader that takes writes"),
            None => match view.errors.first() {
                Some(error) => self
                    .latch
                    .set_ready_despite(match self.detail(*error, view) {
                        Some(detail) => format!("{}: {detail}", error.code()),
                        None => error.code().to_owned(),
                    }),
                None => self.latch.set_ready(),
            },
        }
    }

    /// What to do about an error whose code does not say it.
    fn detail(&self, error: WatchError, view: &ClusterView) -> Option<String> {
        match error {
            WatchError::NameConflict => Some(self.name_conflict(view)),
            WatchError::PatroniUnsafeVersion => Some(UNSAFE_VERSION.to_owned()),
            _ => None,
        }
    }

    /// Says who refuses the name of this member, and what to do.
    fn name_conflict(&self, view: &ClusterView) -> String {
        let own = self.state.config.own_member().name;
        let refusing = self.state.member_names.refusing(Instant::now());
        let refusing: Vec<_> = refusing
            .filter_map(|member| self.state.name_of(member))
            .collect();
        let fenced = view.fenced.map_or("", |_| "fenced, ");
        format!(
            "{fenced}name_conflict: member {} says that the name {own} belongs to another VM, which its /cluster names: \
             stop one of the two, or give it a cluster_member of its own; after a restart of this VM, or if it replaces \
             the other one, wait until the name is free, {} s after the last link of before",
            refusing.join(", "),
            member_names::HOLD.as_secs()
        )
    }

    fn log(&self, transition: Transition, view: &ClusterView) {
        let name = |member| self.state.name_of(member).unwrap_or_default();
        let timeline = view.timeline;
        match transition {
            Transition::Role(role) => {
                tracing::info!(
                    role = role.name(),
                    timeline,
                    "the role of this member of the cluster"
                );
            }
            Transition::Leader(member) => {
                tracing::info!(
                    leader = name(member),
                    timeline,
                    "the cluster has a leader that takes writes"
                );
            }
            Transition::LeaderLost(member) => {
                tracing::warn!(
                    leader = name(member),
                    "the leader of the cluster leads no more"
                );
            }
            Transition::Fenced(cause) => {
                self.metrics.count_fence(cause);
                let why = match cause {
                    FenceCause::LockLost | FenceCause::PatroniSilent => {
                        "this member does not hold the leader lock"
                    }
                    FenceCause::NameConflict => "another VM may have the name of this member",
                };
                tracing::error!(
                    cause = cause.code(),
                    "fenced: Postgres takes writes, but {why}: its read-write sessions end"
                );
            }
            Transition::FenceEnded => tracing::warn!("no longer fenced"),
        }
    }
}

/// What one round leaves for the next.
struct Round {
    role: RoleState,
    local: Probe,
    remote: Probe,
    ttl_checked: Option<Instant>,
    log: ErrorLog,
}

impl Round {
    async fn next(&mut self, watch: &RoleWatch) -> Arc<ClusterView> {
        let before = watch.state.view();
        let observation = self.observe(watch).await;
        let (view, transitions) = self.role.observe(Instant::now(), observation);
        for error in self.log.due(&view.errors, Instant::now()) {
            let detail = watch.detail(error, &view);
            tracing::warn!(
                reason = error.code(),
                detail,
                "watching the role of this member"
            );
        }
        for error in &view.errors {
            watch.metrics.count_error(*error);
        }
        watch.report(&view, &transitions);
        watch.state.publish(view);
        let view = watch.state.view();
        if !view.routes_like(&before) {
            (watch.broadcast)(&view);
        } else if view.fenced.is_some() {
            // The sessions of this sidecar have ended; those that other members carried here have not.
            self.local.end_writers().await;
        }
        self.check_ttl(watch).await;
        view
    }

    /// Asks all at the same time.
    async fn observe(&mut self, watch: &RoleWatch) -> Observation {
        let candidate = self.role.candidate();
        let remote_server = candidate.and_then(|member| Some((member, watch.server_of(member)?)));
        if remote_server.is_none() {
            self.remote.forget();
        }
        let patroni = watch.state.config.role.patroni;
        let (status, cluster, local, remote) = tokio::join!(
            ask(patroni, "/primary", |status, body| parse_status(
                status,
                body,
                watch.expected()
            )),
            ask(patroni, "/cluster", |status, body| {
                let members = watch.state.config.members.iter();
                let names: Vec<_> = members.map(|member| member.name.as_str()).collect();
                parse_cluster(status, body, &watch.state.config.name, &names)
            }),
            self.local.ask(&watch.postgres, watch),
            async {
                let (member, server) = remote_server?;
                Some((member, self.remote.ask(&server, watch).await))
            }
        );
        Observation {
            status,
            cluster,
            local: local.map_err(|silence| match silence {
                Silence::Down => WatchError::PostgresUnreachable,
                Silence::Other => WatchError::PostgresSilent,
            }),
            remote: remote.map(|(member, standing)| {
                (member, standing.map_err(|_| WatchError::LeaderUnreachable))
            }),
            name_refused: watch
                .state
                .member_names
                .refusing(Instant::now())
                .next()
                .is_some(),
        }
    }

    /// Warns if another member can be promoted before this one is fenced.
    async fn check_ttl(&mut self, watch: &RoleWatch) {
        let now = Instant::now();
        let config = &watch.state.config.role;
        let due = |at: Instant| now.saturating_duration_since(at) >= TTL_INTERVAL;
        let (Some(patroni), true) = (config.patroni, self.ttl_checked.is_none_or(due)) else {
            return;
        };
        // Also if there is no answer: a Patroni that hangs must not delay each round.
        self.ttl_checked = Some(now);
        let answer = local_http::get(patroni, "/config", ANSWER_TIMEOUT).await;
        let Some(ttl) = answer
            .ok()
            .and_then(|(status, body)| parse_ttl(status, &body))
        else {
            return;
        };
        let look = INTERVAL + coalesced_sleep::MAX_DELAY + ANSWER_TIMEOUT;
        if config.fence_after + look >= Duration::from_secs(ttl) {
            tracing::warn!(
                fence_after = ?config.fence_after,
                ttl,
                "cluster_fence_after and the 2 s that a look takes are not less than Patroni's ttl: another member may be promoted before this one is fenced"
            );
        }
        if Duration::from_secs(ttl) > member_names::HOLD {
            tracing::warn!(
                ttl,
                hold = ?member_names::HOLD,
                "Patroni's ttl is longer than a member's name stays with its VM: two VMs with one name may both hold the leader lock"
            );
        }
    }
}

async fn ask<T>(
    patroni: Option<SocketAddr>,
    path: &'static str,
    parse: impl Fn(u16, &[u8]) -> Result<T, WatchError>,
) -> Option<Result<T, WatchError>> {
    let answer = local_http::get(patroni?, path, ANSWER_TIMEOUT).await;
    let answer = answer.map_err(patroni_error);
    Some(answer.and_then(|(status, body)| parse(status, &body)))
}

fn patroni_error(error: HttpError) -> WatchError {
    match error {
        HttpError::Unreachable => WatchError::PatroniUnreachable,
        HttpError::Timeout => WatchError::PatroniTimeout,
        HttpError::TooLarge => WatchError::PatroniTooLarge,
        HttpError::Malformed => WatchError::PatroniMalformed,
    }
}

/// A session with a server, and the query that was prepared in it.
struct ProbeSession {
    address: PgAddress,
    superuser: Superuser,
    query: StandingQuery,
}

impl ProbeSession {
    async fn standing(&self) -> Result<Standing, superuser::Error> {
        self.superuser.standing(&self.query).await
    }
}

/// A session of the superuser that is kept from round to round.
#[derive(Default)]
struct Probe {
    session: Option<ProbeSession>,
}

impl Probe {
    /// Asks a server for its standing.
    ///
    /// # Errors
    /// It does not answer in time, refuses, or is down.
    async fn ask(
        &mut self,
        server: &PostgresServer,
        watch: &RoleWatch,
    ) -> Result<Standing, Silence> {
        let kept = self
            .session
            .take()
            .filter(|session| session.address == server.address);
        let asked = timeout(ANSWER_TIMEOUT, async {
            if let Some(session) = kept
                && let Ok(standing) = session.standing().await
            {
                return Ok((session, standing));
            }
            // It has restarted, or the session was ended.
            let password = (watch.password)();
            let password = password.as_ref().map(|credential| &credential.password);
            let superuser = Superuser::connect(server, password, &watch.database).await?;
            let query = superuser.prepare_standing().await?;
            let session = ProbeSession {
                address: server.address.clone(),
                superuser,
                query,
            };
            let standing = session.standing().await?;
            Ok((session, standing))
        });
        match asked.await {
            Ok(Ok((session, standing))) => {
                self.session = Some(session);
                Ok(standing)
            }
            Ok(Err(error)) => Err(Silence::of(&error)),
            Err(_) => Err(Silence::Other),
        }
    }

    fn forget(&mut self) {
        self.session = None;
    }

    async fn end_writers(&self) {
        if let Some(session) = &self.session
            && let Ok(Ok(ended)) = timeout(ANSWER_TIMEOUT, session.superuser.end_writers()).await
            && ended > 0
        {
            tracing::warn!(
                sessions = ended,
                "fenced: ended the remaining sessions of teesql_readwrite"
            );
        }
    }
}

/// Why a server does not say its standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    /// It is down, starts or stops: it takes no writes.
    Down,
    Other,
}

impl Silence {
    fn of(error: &superuser::Error) -> Self {
        match error {
            // A listener that is gone. Other errors are those of a machine without descriptors, time or room in a queue,
            // whose Postgres may go on taking writes.
            superuser::Error::Unreachable { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) =>
            {
                Self::Down
            }
            superuser::Error::Server { code, .. } if *code == SqlState::CANNOT_CONNECT_NOW => {
                Self::Down
            }
            _ => Self::Other,
        }
    }
}

/// Which errors were logged when.
#[derive(Default)]
struct ErrorLog(Vec<(WatchError, Instant)>);

impl ErrorLog {
    /// The errors that are new, or were logged long ago.
    fn due(&mut self, errors: &[WatchError], now: Instant) -> Vec<WatchError> {
        self.0.retain(|(error, at)| {
            errors.contains(error) && now.saturating_duration_since(*at) < ERROR_LOG_INTERVAL
        });
        let is_new = |error: &&WatchError| self.0.iter().all(|(known, _)| known != *error);
        let due: Vec<_> = errors.iter().filter(is_new).copied().collect();
        self.0.extend(due.iter().map(|error| (*error, now)));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listener_that_is_gone_is_down() {
        let silence = |kind: io::ErrorKind| {
            Silence::of(&superuser::Error::Unreachable {
                address: PgAddress::Tcp(([127, 0, 0, 1], 5432).into()),
                source: kind.into(),
            })
        };
        assert_eq!(silence(io::ErrorKind::ConnectionRefused), Silence::Down);
        assert_eq!(silence(io::ErrorKind::NotFound), Silence::Down);
        assert_eq!(silence(io::ErrorKind::WouldBlock), Silence::Other);
        assert_eq!(silence(io::ErrorKind::TimedOut), Silence::Other);
    }

    #[test]
    fn an_error_that_persists_is_logged_once_in_a_while() {
        let (mut log, start) = (ErrorLog::default(), Instant::now());
        let timeout = [WatchError::PatroniTimeout];
        assert_eq!(log.due(&timeout, start), timeout);
        assert_eq!(log.due(&timeout, start + INTERVAL), []);
        assert_eq!(log.due(&[], start + 2 * INTERVAL), []);
        assert_eq!(log.due(&timeout, start + 3 * INTERVAL), timeout);
        assert_eq!(log.due(&timeout, start + ERROR_LOG_INTERVAL * 2), timeout);
    }
}
