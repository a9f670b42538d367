//! Describes a shard's connections for operators, and ends those that an operator has named.
//!
//! The shard receives a message and answers in batches through a channel, so that its other tasks run in between: a list of
//! 10,000 sessions takes about 20 ms in all. The data path stores nothing for it.
//!
//! A snapshot must never contain a secret, SQL or a startup parameter other than a known role and the database.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use attest::AttestedPeer;
use attest::values::AppId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::auth::role::Role;
use crate::io::peer::Peer;
use crate::sched::yield_now::yield_now;
use crate::session::control::{Activity, TerminateReason};
use crate::shard::connection::Connection;
use crate::shard::event_loop::Shard;
use crate::shard::handler::ConnectionHandler;
use crate::shard::message::Message;
use crate::shard::shared_thread::ShardSender;
use crate::telemetry::link_info::LinkInfo;

/// Connections that are described before the other tasks of the shard run. Each takes about 2 µs, most of it for the system
/// call.
const BATCH: usize = 32;
/// Bytes of a database's name. PostgreSQL cuts names at NAMEDATALEN - 1 = 63 bytes.
const MAX_DATABASE: usize = 63;

/// A question about the connections of a shard. The shard drops the sender when it has answered.
#[derive(Clone)]
pub(crate) struct SessionsRequest {
    pub(crate) selection: Arc<Selection>,
    /// End the connections that are selected, instead of describing them only.
    pub(crate) kill: bool,
    pub(crate) answer: UnboundedSender<Vec<SessionReport>>,
}

/// The connections that meet every criterion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Their numbers, sorted. `None` selects all.
    pub(crate) numbers: Option<Vec<u64>>,
    /// What their peers prove. `None` selects all.
    pub(crate) app_id: Option<AppId>,
}

/// One connection at one moment.
pub(crate) struct SessionReport {
    /// The number that the audit log has.
    pub(crate) number: u64,
    pub(crate) activity: Activity,
    /// Since the accept.
    pub(crate) age: Duration,
    pub(crate) address: Peer,
    /// The client's address according to a PROXY header.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) peer: Option<Arc<AttestedPeer>>,
    pub(crate) role: Option<Role>,
    pub(crate) database: Option<String>,
    /// If it is a link.
    pub(crate) link: Option<Box<LinkInfo>>,
    /// Plaintext bytes from and to the side that opened the connection.
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// Asks all shards of a process about their connections.
pub(crate) struct SessionInspector {
    pub(super) mailboxes: Arc<[ShardSender]>,
}

impl SessionInspector {
    /// Sends the question. The channel ends when every shard has answered, or has ended.
    pub(crate) fn ask(
        &self,
        selection: Selection,
        kill: bool,
    ) -> UnboundedReceiver<Vec<SessionReport>> {
        let (answer, answers) = unbounded_channel();
        let request = SessionsRequest {
            selection: Arc::new(selection),
            kill,
            answer,
        };
        for shard in self.mailboxes.iter() {
            shard.send(Message::Sessions(request.clone()));
        }
        answers
    }
}

impl Selection {
    fn includes(&self, number: u64, peer: Option<&AttestedPeer>) -> bool {
        let numbers = self.numbers.as_ref();
        let app_id = self.app_id.as_ref();
        numbers.is_none_or(|numbers| numbers.binary_search(&number).is_ok())
            && app_id
                .is_none_or(|wanted| peer.and_then(AttestedPeer::app_id).as_ref() == Some(wanted))
    }
}

impl<S: ConnectionHandler> Shard<S> {
    /// Describes the selected connections, and ends them if that is asked for.
    pub(super) async fn report_sessions(self: Rc<Self>, request: SessionsRequest) {
        // Not the connections themselves: a reference would outlast those that end in between.
        let keys: Vec<_> = {
            let connections = self.connections.borrow();
            connections
                .iter()
                .map(|(key, connection)| (key, connection.number))
                .collect()
        };
        for batch in keys.chunks(BATCH) {
            if request.answer.is_closed() {
                // The request has timed out: its audit line is written, so that nothing may be ended for it any more.
                return;
            }
            let reports: Vec<_> = {
                let connections = self.connections.borrow();
                let found = batch.iter().filter_map(|(key, number)| {
                    let connection = connections.get(*key);
                    connection.filter(|connection| connection.number == *number)
                });
                found.filter_map(|one| one.answer(&request)).collect()
            };
            if !reports.is_empty() {
                // If it was closed meanwhile, the next iteration returns.
                let _ = request.answer.send(reports);
            }
            yield_now().await;
        }
    }
}

impl Connection {
    /// `None` if this connection is not selected, or is to be ended but is closing already.
    fn answer(&self, request: &SessionsRequest) -> Option<SessionReport> {
        let peer = self.control.peer();
        if !request.selection.includes(self.number, peer.as_deref()) {
            return None;
        }
        if request.kill {
            if self.control.is_closing() {
                return None;
            }
            self.control.terminate(TerminateReason::Killed);
        }
        let info = self.info.borrow();
        let (received, sent) = self.control.bytes();
        Some(SessionReport {
            number: self.number,
            activity: self.control.activity(),
            age: info.accepted.elapsed(),
            address: info.peer,
            client: info.proxied_client,
            peer,
            role: info.role,
            database: info.role.and_then(|_| self.database()),
            link: info.link.clone(),
            received,
            sent,
        })
    }

    /// The database that the client has asked for, cut as Postgres does. Without a known role it is not shown: the default is the
    /// name of the role, which may be a mistyped password.
    fn database(&self) -> Option<String> {
        let name = self.control.requested()?.database?;
        let cut = name.get(..MAX_DATABASE).unwrap_or(&name);
        Some(String::from_utf8_lossy(cut).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Instant;

    use super::*;
    use crate::session::activity::ShardActivity;
    use crate::session::control::ConnectionControl;
    use crate::telemetry::connection_info::ConnectionInfo;
    use crate::telemetry::metrics::Metrics;
    use crate::telemetry::shard_metrics::ShardMetrics;

    fn connection(number: u64) -> Connection {
        let metrics = ShardMetrics::new(&Metrics::new().unwrap(), 0);
        let control = ConnectionControl::new(
            Instant::now(),
            Rc::new(metrics),
            Rc::new(ShardActivity::idle()),
        );
        let info = ConnectionInfo::new(number, Peer::Local);
        Connection {
            number,
            control: Rc::new(control),
            info: Rc::new(RefCell::new(info)),
        }
    }

    fn request(selection: Selection, kill: bool) -> SessionsRequest {
        SessionsRequest {
            selection: Arc::new(selection),
            kill,
            answer: unbounded_channel().0,
        }
    }

    #[test]
    fn only_the_selected_connection_ends_and_only_once() {
        let (listed, other) = (connection(7), connection(8));
        let numbers = Some(vec![3, 7]);
        let kill = request(
            Selection {
                numbers,
                app_id: None,
            },
            true,
        );
        assert!(other.answer(&kill).is_none());
        assert_eq!(other.control.terminate_reason(), None);
        assert_eq!(listed.answer(&kill).unwrap().number, 7);
        let reason = listed.control.terminate_reason();
        assert_eq!(reason, Some(TerminateReason::Killed));
        assert!(listed.answer(&kill).is_none());
        let all = request(Selection::default(), false);
        let activity = listed.answer(&all).unwrap().activity;
        assert_eq!(activity, Activity::Closing);
        assert_eq!(other.answer(&all).unwrap().activity, Activity::Login);
    }

    #[test]
    fn a_connection_without_evidence_has_no_app_id() {
        let one = connection(1);
        let selection = Selection {
            app_id: Some(AppId([0; 20])),
            ..Selection::default()
        };
        assert!(one.answer(&request(selection, false)).is_none());
    }
}
