//! The cluster of `teesql-sidecar dev --members`, of which this program is the command: requests over its control
//! socket, what its Patroni says, and sessions on its leader.
//!
//! A request is a JSON array of words on one line, and its answer an object with `code` and `output`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls};

use crate::error::{Error, Result, io_context};

/// An SQL expression for the timeline that the server writes. A promoted server has a new one.
pub(crate) const TIMELINE: &str =
    "('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";

/// The limit for one request, more than `dev` has for a program.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(310);

/// The running cluster.
#[derive(Clone, Debug)]
pub(crate) struct DevCluster {
    control: PathBuf,
    members: Vec<String>,
}

/// What Patroni says of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) name: String,
    role: String,
    state: String,
    /// `None` of the leader, and if it is not known.
    lag_in_mb: Option<u64>,
}

impl DevCluster {
    /// The cluster that the variables of `dev` name.
    ///
    /// # Errors
    /// A variable is not set: this is not the command of `dev --members`.
    pub(crate) fn from_environment() -> Result<Self> {
        let members = variable("TEESQL_DEV_MEMBERS")?;
        Ok(Self {
            control: variable("TEESQL_DEV_CONTROL")?.into(),
            members: members.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// The names of the members.
    pub(crate) fn members(&self) -> &[String] {
        &self.members
    }

    /// The position of a member, which gives its port numbers.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.members.iter().position(|member| member == name)
    }

    /// Sends a request, and returns its output.
    ///
    /// # Errors
    /// The cluster has ended, or refuses the request.
    pub(crate) fn request(&self, words: &[&str]) -> Result<String> {
        let send = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(&self.control)?;
            stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            writeln!(stream, "{}", json!(words))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = send().map_err(io_context("cannot ask the cluster"))?;
        let answer: Value = serde_json::from_str(&text)
            .map_err(|_| Error::Peer("the cluster has ended".to_owned()))?;
        let output = text_of(&answer, "output");
        match answer.get("code").and_then(Value::as_u64) {
            Some(0) => Ok(output),
            _ => {
                let what = words.join(" ");
                Err(Error::Peer(format!("{what}: {}", output.trim())))
            }
        }
    }

    /// Calls `work` on another thread, so that the tasks of this one continue.
    pub(crate) async fn in_background<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cluster = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&cluster)).await;
        done.map_err(|_| Error::Peer("a request panicked".to_owned()))?
    }

    /// Patroni's list of the members, as `member` sees it.
    ///
    /// # Errors
    /// The member does not run, or has no answer of etcd.
    pub(crate) fn list_of(&self, member: &str) -> Result<Vec<MemberState>> {
        let words = ["exec", member, "patronictl", "list", "--format", "json"];
        let text = self.request(&words)?;
        // Warnings may come before it.
        let line = text.lines().find(|line| line.starts_with('['));
        parse_list(line.unwrap_or_default())
            .ok_or_else(|| Error::Peer(format!("patronictl list: {}", text.trim())))
    }

    /// The list of the first member that answers.
    ///
    /// # Errors
    /// None does.
    pub(crate) fn list(&self) -> Result<Vec<MemberState>> {
        let mut lists = self.members.iter().map(|member| self.list_of(member));
        lists
            .find_map(Result::ok)
            .ok_or_else(|| Error::Peer("no member answers".to_owned()))
    }

    /// Whether one member leads and all others follow it, one of them synchronously.
    pub(crate) fn is_complete(&self, list: &[MemberState]) -> bool {
        let count_of = |role: &str| list.iter().filter(|member| member.role == role).count();
        list.len() == self.members.len()
            && count_of("Leader") == 1
            && count_of("Sync Standby") >= 1
            && list.iter().all(MemberState::works)
    }
}

impl MemberState {
    pub(crate) fn leads(&self) -> bool {
        self.role == "Leader"
    }

    /// Patroni says `running` of a standby up to 3.0 and `streaming` since 3.1.
    fn works(&self) -> bool {
        let runs = matches!(self.state.as_str(), "running" | "streaming");
        runs && (self.leads() || self.lag_in_mb == Some(0))
    }
}

/// The answer of `patronictl list --format json`.
fn parse_list(text: &str) -> Option<Vec<MemberState>> {
    let list: Vec<Value> = serde_json::from_str(text).ok()?;
    let state = |member: &Value| MemberState {
        name: text_of(member, "Member"),
        role: text_of(member, "Role"),
        state: text_of(member, "State"),
        // Until Patroni 4.0, since 4.1.
        lag_in_mb: ["Lag in MB", "Replay Lag"]
            .iter()
            .find_map(|name| member.get(name)?.as_u64()),
    };
    Some(list.iter().map(state).collect())
}

fn text_of(value: &Value, key: &str) -> String {
    let text = value.get(key).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// A variable that `dev --members` sets.
///
/// # Errors
/// It is not set.
pub(crate) fn variable(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| {
        Error::Usage(format!(
            "{name} is not set: run this as the command of `teesql-sidecar dev --members`"
        ))
    })
}

/// Sessions on the leader, by libpq's variables: through the forwarder, or with `--plain` by a list of hosts.
///
/// # Errors
/// A variable is not set.
pub(crate) fn leader_config() -> Result<Config> {
    let mut config = Config::new();
    for host in variable("PGHOST")?.split(',') {
        match host.starts_with('/') {
            true => config.host_path(Path::new(host)),
            false => config.host(host),
        };
    }
    if std::env::var("PGTARGETSESSIONATTRS").as_deref() == Ok("read-write") {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    let port = variable("PGPORT")?.parse();
    config
        .port(port.map_err(|_| Error::Usage("PGPORT is not a port".to_owned()))?)
        .user(variable("PGUSER")?)
        .password(variable("PGPASSWORD")?)
        .dbname(variable("PGDATABASE")?);
    Ok(config)
}

/// Opens a session.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub(crate) async fn connect(config: &Config) -> std::result::Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // The client learns only that it has ended.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// The error of a server, with its own message.
pub(crate) fn server_error(error: tokio_postgres::Error) -> Error {
    let message = error.as_db_error().map(|error| error.message().to_owned());
    Error::Server(message.unwrap_or_else(|| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of patronictl 3.0.2 and 3.3.
    const COMPLETE: &str = r#"[
        {"Cluster": "dev", "Member": "a", "Host": "127.0.0.1:15432", "Role": "Leader", "State": "running", "TL": 1},
        {"Cluster": "dev", "Member": "b", "Host": "127.0.0.1:15433", "Role": "Sync Standby", "State": "running", "TL": 1, "Lag in MB": 0},
        {"Cluster": "dev", "Member": "c", "Host": "127.0.0.1:15434", "Role": "Replica", "State": "streaming", "TL": 1, "Lag in MB": 0}]"#;

    #[test]
    fn a_cluster_is_complete_with_one_leader_that_all_follow() {
        let cluster = DevCluster {
            control: PathBuf::new(),
            members: ["a", "b", "c"].map(str::to_owned).to_vec(),
        };
        let complete = |list: &str| parse_list(list).is_some_and(|list| cluster.is_complete(&list));
        assert!(complete(COMPLETE));
        // As Patroni 4.1 says it.
        let lags = |replay: &str| {
            COMPLETE.replace(
                "\"Lag in MB\": 0",
                &format!("\"Receive Lag\": 0, \"Replay Lag\": {replay}"),
            )
        };
        assert!(complete(&lags("0")));
        assert!(!complete(&lags("1")));
        assert!(!complete("[]"));
        assert!(!complete("<html>"));
        assert!(!complete(&COMPLETE.replace("Leader", "Replica")));
        assert!(!complete(&COMPLETE.replace("Replica", "Leader")));
        assert!(!complete(&COMPLETE.replace("streaming", "start failed")));
        assert!(!complete(&COMPLETE.replace("Sync Standby", "Replica")));
        assert!(!complete(
            &COMPLETE.replace("\"Lag in MB\": 0", "\"Lag in MB\": \"unknown\"")
        ));
    }
}
