//! Control of the members of `teesql-sidecar dev --members`, through its Unix socket.
//!
//! A request is a JSON array of words, and the answer an object with `code` and `output`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::Fault;
use crate::error::{Error, Result, io_context};

/// The limit for one request: `patronictl switchover` waits for the new leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// The time between two looks at the state of the cluster.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The members, in the order of the cluster.
pub struct Members {
    control: PathBuf,
    names: Vec<String>,
}

/// What Patroni says of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    name: String,
    role: String,
    state: String,
}

impl Members {
    /// Those that the variables of `dev` name.
    ///
    /// # Errors
    /// A variable is not set: this does not run below `dev --members`.
    pub fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| {
                Error::Usage(format!(
                    "{name} is not set: run this as the command of `teesql-sidecar dev --members 3`"
                ))
            })
        };
        Ok(Self {
            control: variable("TEESQL_DEV_CONTROL")?.into(),
            names: variable("TEESQL_DEV_MEMBERS")?
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        })
    }

    /// The names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Makes a fault happen to a member.
    ///
    /// # Errors
    /// `dev` refuses the request. A switchover may fail: Patroni refuses it while no standby is in sync.
    pub fn inject(&self, member: &str, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => self.request(&["kill", member]),
            Fault::Pause => self.request(&["pause", member]),
            Fault::CutOff => self.request(&["isolate", member]),
            Fault::ClockOffset(seconds) => {
                self.request(&["clock", member, &format!("{seconds:+}")])
            }
            Fault::Switchover => {
                self.request(&["exec", member, "patronictl", "switchover", "--force"])
            }
        }
        .map(drop)
    }

    /// Ends the fault.
    ///
    /// # Errors
    /// `dev` refuses the request.
    pub fn heal(&self, member: &str, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => self.request(&["start", member]),
            Fault::Pause => self.request(&["resume", member]),
            Fault::CutOff => self.request(&["join", member]),
            Fault::ClockOffset(_) => self.request(&["clock", member, "+0"]),
            Fault::Switchover => return Ok(()),
        }
        .map(drop)
    }

    /// Waits until one member leads and all others follow it. Returns whether that happened in time.
    #[must_use]
    pub fn await_healthy(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if self.is_healthy() {
                return true;
            }
            if Instant::now() + POLL_INTERVAL > deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn is_healthy(&self) -> bool {
        self.names.iter().all(|name| {
            let list = self.request(&["exec", name, "patronictl", "list", "--format", "json"]);
            list.is_ok_and(|list| is_healthy(&members_of(&list), self.names.len()))
        })
    }

    fn request(&self, words: &[&str]) -> Result<String> {
        let context = || io_context(format!("cannot ask dev to {}", words.join(" ")));
        let mut stream = UnixStream::connect(&self.control).map_err(context())?;
        stream
            .set_read_timeout(Some(REQUEST_TIMEOUT))
            .map_err(context())?;
        writeln!(stream, "{}", json!(words)).map_err(context())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(context())?;
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| answer.get(name).cloned().unwrap_or_default();
        let output = field("output").as_str().unwrap_or_default().to_owned();
        match field("code").as_u64() {
            Some(0) => Ok(output),
            _ => Err(Error::Peer(format!(
                "{}: {}",
                words.join(" "),
                output.trim()
            ))),
        }
    }
}

/// The answer of `patronictl list --format json`.
fn members_of(list: &str) -> Vec<Seen> {
    let list: Vec<Value> = serde_json::from_str(list).unwrap_or_default();
    let text = |member: &Value, key: &str| {
        let text = member.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let seen = |member: &Value| Seen {
        name: text(member, "Member"),
        role: text(member, "Role"),
        state: text(member, "State"),
    };
    list.iter().map(seen).collect()
}

/// Patroni says `running` of a standby up to 3.0 and `streaming` since 3.1.
fn is_healthy(members: &[Seen], count: usize) -> bool {
    let works = |member: &Seen| matches!(member.state.as_str(), "running" | "streaming");
    let count_of = |role: &str| members.iter().filter(|member| member.role == role).count();
    members.len() == count
        && members.iter().all(works)
        && count_of("Leader") == 1
        && count_of("Sync Standby") > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers of patronictl 3.0.2.
    const HEALTHY: &str = r#"[
        {"Cluster": "dev", "Member": "a", "Host": "127.0.0.1:15432", "Role": "Leader", "State": "running", "TL": 1},
        {"Cluster": "dev", "Member": "b", "Host": "127.0.0.1:15433", "Role": "Sync Standby", "State": "running", "TL": 1, "Lag in MB": 0},
        {"Cluster": "dev", "Member": "c", "Host": "127.0.0.1:15434", "Role": "Replica", "State": "streaming", "TL": 1, "Lag in MB": 0}]"#;

    #[test]
    fn a_cluster_is_healthy_with_one_leader_that_all_follow() {
        let healthy = |list: &str| is_healthy(&members_of(list), 3);
        assert!(healthy(HEALTHY));
        assert!(!healthy("[]"));
        assert!(!healthy("<html>"));
        assert!(!healthy(&HEALTHY.replace("Leader", "Replica")));
        assert!(!healthy(&HEALTHY.replace("Replica", "Leader")));
        assert!(!healthy(&HEALTHY.replace("streaming", "start failed")));
        assert!(!healthy(&HEALTHY.replace("Sync Standby", "Replica")));
    }
}
