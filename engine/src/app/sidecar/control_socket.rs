//! The control socket: a Unix socket on which operators of this machine list the connections and end some of them
//! (`teesql-sidecar sessions` and `kill`). One request and one answer for each connection, as JSON lines (docs/reference/cli.md).
//!
//! It exists because the HTTP server needs no authentication and must not name clients, and because Postgres sees only the
//! sidecar's address: operators could not find out which application holds a session.
//!
//! It runs on the control thread. It must never serve a user other than root and the sidecar's own, never block a shard, and never
//! wait without a deadline.

pub(crate) mod protocol;
mod refusals;
mod report;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use attest::values::AppId;
use nix::unistd::Uid;
use tokio::io::{
    AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::app::error::{StartError, system};
use crate::config::ControlSocket;
use crate::io::listener::bind_unix;
use crate::shard::sessions::{Selection, SessionInspector, SessionReport};
use crate::telemetry::audit::{Kill, OperatorAudit};
use protocol::{End, MAX_IDS, MAX_REQUEST, Request};
use refusals::Refusals;

/// Concurrent requests of operators. Further ones wait in the backlog of the socket.
const MAX_REQUESTS: usize = 4;
/// From the connection to the end of the request, which the commands send at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the answers of all shards. They take milliseconds, unless a shard is overloaded.
const SHARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the whole answer. For 10,000 sessions it has about 5 MB.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for an answer that is an error. It fits into the buffer of the socket.
const ERROR_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The open socket. It closes, and its file is removed, when this is dropped.
pub(super) struct OpenControlSocket {
    path: PathBuf,
    accepting: JoinHandle<()>,
}

impl Drop for OpenControlSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What all requests share.
struct Operators {
    inspector: SessionInspector,
    audit: Option<OperatorAudit>,
    permits: Arc<Semaphore>,
}

/// Opens the socket, if there is to be one.
///
/// # Errors
/// It cannot be opened at the path that is set.
pub(super) fn open(
    setting: &ControlSocket,
    inspector: SessionInspector,
    audit: Option<OperatorAudit>,
) -> Result<Option<OpenControlSocket>, StartError> {
    let Some(path) = setting.path() else {
        return Ok(None);
    };
    let automatic = *setting == ControlSocket::Auto;
    if automatic && !path.parent().is_some_and(Path::is_dir) {
        return Ok(None);
    }
    let listener = match listen(path) {
        Ok(listener) => listener,
        Err(error) if automatic => {
            let path = path.display();
            tracing::warn!(%path, %error, "no control socket: set control_socket to another path, or to off");
            return Ok(None);
        }
        Err(error) => {
            let what = format!("cannot open the control socket {}", path.display());
            return Err(system(what)(error));
        }
    };
    let operators = Arc::new(Operators {
        inspector,
        audit,
        permits: Arc::new(Semaphore::new(MAX_REQUESTS)),
    });
    Ok(Some(OpenControlSocket {
        path: path.to_owned(),
        accepting: tokio::spawn(accept_all(listener, operators)),
    }))
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = bind_unix(path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn accept_all(listener: UnixListener, operators: Arc<Operators>) {
    let mut refusals = Refusals::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&operators.permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_BACKOFF).await;
            continue;
        };
        // The kernel knows who has connected, whether or not the client is still there.
        let Ok(who) = stream.peer_cred() else {
            continue;
        };
        if !is_operator(who.uid()) {
            refusals.refuse(stream, who.uid());
            continue;
        }
        let operators = Arc::clone(&operators);
        tokio::spawn(async move {
            // An error means that the client has disconnected.
            let _ = operators.serve(stream, who).await;
            drop(permit);
        });
    }
}

/// Whether a user may send requests: root, or the user of this process. The mode of the file allows the same users, but it can be
/// changed.
fn is_operator(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

impl Operators {
    async fn serve(&self, stream: UnixStream, who: UCred) -> io::Result<()> {
        let (mut reader, writer) = stream.into_split();
        let request = match timeout(REQUEST_TIMEOUT, read_request(&mut reader)).await {
            Err(_) => Err("no request within 2 s".to_owned()),
            // A request is ASCII: what is not UTF-8 is not a known request either.
            Ok(line) => Request::parse(&String::from_utf8_lossy(&line?)),
        };
        let request = request.and_then(|request| Ok((selection(&request)?, request)));
        match request {
            Err(error) => send_error(writer, error).await,
            Ok((selection, request)) => {
                let mut writer = BufWriter::new(writer);
                let answer = self.answer(&who, &request, selection, &mut writer);
                timeout(ANSWER_TIMEOUT, answer).await?
            }
        }
    }

    /// Asks the shards, and sends what they answer.
    async fn answer(
        &self,
        who: &UCred,
        request: &Request,
        selection: Selection,
        writer: &mut BufWriter<OwnedWriteHalf>,
    ) -> io::Result<()> {
        let kill = request.is_kill();
        let app_id = selection.app_id;
        let (reports, complete) = collect(self.inspector.ask(selection, kill)).await;
        let sessions = reports.len() as u64;
        if kill {
            // Before anything is sent: a client that does not read its answer must not prevent the record.
            self.record_kill(who, request, app_id, sessions);
        }
        for report in &reports {
            send_line(writer, &report::document(report)).await?;
        }
        send(writer, &End::done(sessions, complete)).await
    }

    fn record_kill(&self, who: &UCred, request: &Request, app_id: Option<AppId>, sessions: u64) {
        let (uid, pid) = (who.uid(), who.pid());
        tracing::warn!(uid, pid, sessions, "connections ended by an operator");
        if let Some(audit) = &self.audit {
            audit.killed(Kill {
                uid,
                pid,
                connections: request.ids().map(<[u64]>::to_vec),
                app_id,
                sessions,
            });
        }
    }
}

/// The reports of the shards, and whether all shards have answered.
async fn collect(mut answers: UnboundedReceiver<Vec<SessionReport>>) -> (Vec<SessionReport>, bool) {
    let deadline = Instant::now() + SHARD_TIMEOUT;
    let mut all = Vec::new();
    loop {
        match timeout_at(deadline, answers.recv()).await {
            Ok(Some(reports)) => all.extend(reports),
            Ok(None) => return (all, true),
            Err(_) => return (all, false),
        }
    }
}

/// The connections that a request selects.
///
/// # Errors
/// What is wrong with it. The text does not quote it.
fn selection(request: &Request) -> Result<Selection, String> {
    let app_id = request.app_id().map(str::parse::<AppId>).transpose();
    let app_id = app_id.map_err(|_| "an app id has 40 hex characters".to_owned())?;
    let numbers = request.ids().map(|ids| {
        let sorted: BTreeSet<_> = ids.iter().copied().collect();
        sorted.into_iter().collect::<Vec<_>>()
    });
    if request.is_kill() && numbers.is_none() && app_id.is_none() {
        return Err("nothing to end: the request has neither ids nor app_id".to_owned());
    }
    if numbers
        .as_ref()
        .is_some_and(|numbers| numbers.len() > MAX_IDS)
    {
        return Err(format!("at most {MAX_IDS} connections in one request"));
    }
    Ok(Selection { numbers, app_id })
}

/// The first line that the client sends, without what is above [`MAX_REQUEST`].
async fn read_request(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    reader.read_until(b'\n', &mut line).await?;
    Ok(line)
}

/// Answers that nothing was done, and why.
async fn send_error(writer: OwnedWriteHalf, error: impl Into<String>) -> io::Result<()> {
    let mut writer = BufWriter::new(writer);
    timeout(ERROR_TIMEOUT, send(&mut writer, &End::error(error))).await?
}

async fn send(writer: &mut BufWriter<OwnedWriteHalf>, end: &End) -> io::Result<()> {
    send_line(writer, &end.document()).await?;
    writer.shutdown().await
}

async fn send_line(
    writer: &mut BufWriter<OwnedWriteHalf>,
    document: &serde_json::Value,
) -> io::Result<()> {
    writer.write_all(document.to_string().as_bytes()).await?;
    writer.write_all(b"\n").await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Selection, String> {
        selection(&Request::parse(text)?)
    }

    #[test]
    fn a_kill_must_say_what() {
        let error = parse(r#"{"command":"kill"}"#).unwrap_err();
        assert!(error.contains("nothing"), "{error}");
        let error = parse(r#"{"command":"kill","app_id":"zz"}"#).unwrap_err();
        assert!(error.contains("40 hex"), "{error}");
        let none = parse(r#"{"command":"kill","ids":[]}"#).unwrap();
        assert_eq!(none.numbers, Some(Vec::new()));
    }

    #[test]
    fn the_numbers_are_sorted_and_limited() {
        let some = parse(r#"{"command":"kill","ids":[9,2,9]}"#).unwrap();
        assert_eq!(some.numbers, Some(vec![2, 9]));
        let many: Vec<_> = (0..=MAX_IDS).collect();
        let error = parse(&format!(r#"{{"command":"kill","ids":{many:?}}}"#)).unwrap_err();
        assert!(error.contains("at most"), "{error}");
    }

    #[test]
    fn a_list_may_be_of_all_or_of_one_application() {
        assert_eq!(parse(r#"{"command":"sessions"}"#), Ok(Selection::default()));
        let app_id = "5a".repeat(20);
        let one = parse(&format!(r#"{{"command":"sessions","app_id":"{app_id}"}}"#)).unwrap();
        assert_eq!(one.app_id, Some(AppId([0x5a; 20])));
    }

    #[tokio::test]
    async fn an_error_does_not_wait_for_a_client_that_reads_nothing() {
        let (_client, server) = UnixStream::pair().unwrap();
        let (_reader, writer) = server.into_split();
        loop {
            writer.writable().await.unwrap();
            match writer.try_write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        let error = send_error(writer, "no").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn root_and_the_own_user_are_operators() {
        let own = Uid::effective().as_raw();
        assert!(is_operator(0) && is_operator(own));
        assert!(!is_operator(own + 1));
    }
}
