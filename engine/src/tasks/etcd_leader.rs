//! Keeps the leadership of etcd away from the member that leads the database: leadership transfer (Raft, section 3.10).
//!
//! A new leader of etcd gives every lease its whole time to live again, as it does not know when it was last renewed.
//! If the leader of the database is lost and leads etcd as well, its lock therefore lives longer: until the election,
//! and from then on for Patroni's `ttl`. With the two on different members the lock ends within `ttl` of its last renewal.
//!
//! It acts only on the member that leads the database, hands over only to a member that answers and has caught up, and
//! leaves etcd alone after a failure for [`RETRY_INTERVAL`]. It must never be a reason why this member is not ready.

use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::time::sleep;

use super::local_http::{self, HttpError};
use crate::cluster::etcd::{EtcdStatus, transfer_to};
use crate::cluster::state::ClusterState;
use crate::telemetry::metrics::Metrics;

/// Between two looks, and between a promotion and the first one: an election of etcd may go on.
const INTERVAL: Duration = Duration::from_secs(10);
/// After a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// The limit for the answer of one member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The limit for a transfer. etcd gives it up after an election timeout: 1 s by default, 2.5 s by `cluster config`.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(6);

const STATUS: &str = "/v3/maintenance/status";
const TRANSFER: &str = "/v3/maintenance/transfer-leadership";

/// Moves the leadership of etcd.
pub(crate) struct EtcdLeader {
    state: Arc<ClusterState>,
    moved: Counter,
    failed: Counter,
}

/// Why the leadership stays here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum MoveError {
    #[error("this member's etcd does not answer: {0}")]
    Silent(HttpError),
    #[error("this member's etcd gives no status")]
    NoStatus,
    #[error("no other member of etcd answers and has caught up")]
    NoFollower,
    #[error("the transfer failed: {0}")]
    Transfer(HttpError),
    #[error("etcd refused the transfer with HTTP status {0}")]
    Refused(u16),
}

impl EtcdLeader {
    /// `None` if the setting is off, or there is no other member or no service `etcd-client`.
    pub(crate) fn new(state: &Arc<ClusterState>, metrics: &Metrics) -> Option<Self> {
        let config = &state.config;
        let moves = config.role.move_etcd_leader && config.members.len() > 1;
        config.etcd_of(config.own).filter(|_| moves)?;
        let counter =
            |result| metrics.counter("teesql_cluster_etcd_moves_total", &[("result", result)]);
        Some(Self {
            state: Arc::clone(state),
            moved: counter("moved"),
            failed: counter("failed"),
        })
    }

    /// Never returns.
    pub(crate) async fn run(self) {
        let mut leadership = self.state.leadership();
        let mut known = None;
        loop {
            // The sender is dropped with the process.
            if leadership.wait_for(Option::is_some).await.is_err() {
                return;
            }
            sleep(INTERVAL).await;
            if leadership.borrow().is_none() {
                continue;
            }
            let error = match self.keep_away().await {
                Ok(None) => None,
                Ok(Some(member)) => {
                    self.moved.increment(1);
                    tracing::info!(
                        member = self.state.name_of(member),
                        "handed the leadership of etcd to another member, because this one leads the database"
                    );
                    None
                }
                Err(error) => Some(error),
            };
            if let Some(error) = &error {
                self.failed.increment(1);
                if known.as_ref() != Some(error) {
                    tracing::warn!(
                        %error,
                        "this member leads the database, and keeps the leadership of etcd: a failover would take longer"
                    );
                }
                sleep(RETRY_INTERVAL).await;
            }
            known = error;
        }
    }

    /// Hands the leadership over if this member has it. Returns the position of the member that has it now, if it was
    /// moved.
    async fn keep_away(&self) -> Result<Option<usize>, MoveError> {
        let config = &self.state.config;
        let own = self.status(config.own).await?;
        if !own.leads() {
            return Ok(None);
        }
        for member in 0..config.members.len() {
            // Without a link the port on loopback would lead nowhere.
            if self.state.open_links_to(member).unwrap_or_default() == 0 {
                continue;
            }
            let Ok(other) = self.status(member).await else {
                continue;
            };
            if own.can_hand_over_to(&other) {
                self.transfer(&other).await?;
                return Ok(Some(member));
            }
        }
        Err(MoveError::NoFollower)
    }

    async fn status(&self, member: usize) -> Result<EtcdStatus, MoveError> {
        let address = self.state.config.etcd_of(member);
        let address = address.ok_or(MoveError::NoStatus)?;
        let answer = local_http::post(address, STATUS, "{}".to_owned(), ANSWER_TIMEOUT).await;
        let (status, body) = answer.map_err(MoveError::Silent)?;
        EtcdStatus::parse(status, &body).ok_or(MoveError::NoStatus)
    }

    async fn transfer(&self, to: &EtcdStatus) -> Result<(), MoveError> {
        let address = self.state.config.etcd_of(self.state.config.own);
        let address = address.ok_or(MoveError::NoStatus)?;
        let answer = local_http::post(address, TRANSFER, transfer_to(to), TRANSFER_TIMEOUT).await;
        match answer.map_err(MoveError::Transfer)? {
            (200, _) => Ok(()),
            (status, _) => Err(MoveError::Refused(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{ClusterConfig, Member, RoleConfig, Service, WritesOnStandby};

    /// Requests that a fake etcd got: path and body.
    type Requests = Arc<Mutex<Vec<(usize, String)>>>;

    /// Two listeners at consecutive ports.
    async fn listeners() -> [TcpListener; 2] {
        for _ in 0..100 {
            let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let next = first.local_addr().unwrap().port().saturating_add(1);
            if let Ok(second) = TcpListener::bind(("127.0.0.1", next)).await {
                return [first, second];
            }
        }
        panic!("no two consecutive ports are free")
    }

    /// Answers each request for the status with `status`, and others with 200 and `{}`.
    async fn serve(listener: TcpListener, member: usize, status: String, requests: Requests) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            // The body is JSON, and ends with a brace.
            while !request.ends_with(b"}") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let request = String::from_utf8(request).unwrap();
            let body = match request.starts_with("POST /v3/maintenance/status ") {
                true => &status,
                false => "{}",
            };
            requests.lock().unwrap().push((member, request.clone()));
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    fn status(id: u64, leader: u64) -> String {
        format!(
            r#"{{"header":{{"member_id":"{id}"}},"leader":"{leader}","raftTerm":"4","raftAppliedIndex":"90"}}"#
        )
    }

    /// What the first of two members does if the two members of etcd answer so. Returns that with the transfers.
    async fn keep_away(answers: [String; 2]) -> (Result<Option<usize>, MoveError>, Vec<String>) {
        let listeners = listeners().await;
        let first_port = listeners[0].local_addr().unwrap().port();
        let requests = Requests::default();
        for (member, (listener, answer)) in listeners.into_iter().zip(answers).enumerate() {
            tokio::spawn(serve(listener, member, answer, Arc::clone(&requests)));
        }
        let member = |name: &str| Member {
            name: name.parse().unwrap(),
            host: name.to_owned(),
            port: 5433,
        };
        let config = ClusterConfig {
            name: "orders".to_owned(),
            members: vec![member("a"), member("b")],
            own: 0,
            services: vec![Service {
                name: "etcd-client".parse().unwrap(),
                port: 2379,
                first_port,
            }],
            max_links: 1,
            role: RoleConfig {
                patroni: None,
                writes_on_standby: WritesOnStandby::Local,
                leader_wait: Duration::ZERO,
                fence_after: Duration::from_secs(5),
                move_etcd_leader: true,
            },
        };
        let metrics = Metrics::new().unwrap();
        let state = ClusterState::new(&config, 10, &metrics);
        let _link = state.link_opened(1);
        let etcd = EtcdLeader::new(&state, &metrics).unwrap();
        let kept = etcd.keep_away().await;
        let requests = requests.lock().unwrap();
        let transfers = requests.iter().filter(|(_, text)| text.contains(TRANSFER));
        let transfers = transfers.map(|(member, text)| {
            assert_eq!(*member, 0, "only the leader can hand over");
            text.rsplit("\r\n\r\n").next().unwrap().to_owned()
        });
        (kept, transfers.collect())
    }

    #[tokio::test]
    async fn a_leader_hands_over_to_a_follower() {
        let (kept, transfers) = keep_away([status(7, 7), status(8, 7)]).await;
        assert_eq!(kept, Ok(Some(1)));
        assert_eq!(transfers, [r#"{"targetID":"8"}"#]);
    }

    #[tokio::test]
    async fn a_follower_leaves_etcd_alone() {
        let (kept, transfers) = keep_away([status(7, 8), status(8, 8)]).await;
        assert_eq!(kept, Ok(None));
        assert!(transfers.is_empty());
    }

    #[tokio::test]
    async fn a_leader_without_a_follower_keeps_the_leadership() {
        for other in [status(8, 9), "not JSON".to_owned()] {
            let (kept, transfers) = keep_away([status(7, 7), other]).await;
            assert_eq!(kept, Err(MoveError::NoFollower));
            assert!(transfers.is_empty());
        }
    }
}
