//! The cluster of `teesql-sidecar dev --members`: its control socket, and what its Patroni says.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{Error, Result, io_context};

/// The running cluster.
pub(super) struct Cluster {
    control: PathBuf,
    members: Vec<String>,
}

impl Cluster {
    /// # Errors
    /// This is not the command of `dev --members`.
    pub(super) fn from_environment() -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| {
                Error::Usage(format!(
                    "{name} is not set: run this as the command of `teesql-sidecar dev --members`"
                ))
            })
        };
        let members = variable("TEESQL_DEV_MEMBERS")?;
        Ok(Self {
            control: variable("TEESQL_DEV_CONTROL")?.into(),
            members: members.split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// Sends a request, and returns its output.
    pub(super) fn request(&self, words: &[&str]) -> Result<String> {
        request(&self.control, words)
    }

    /// The same for a request that takes long, without stopping the clients.
    async fn request_in_background(&self, words: &[&str]) -> Result<String> {
        let control = self.control.clone();
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let send = move || {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            request(&control, &words)
        };
        let sent = tokio::task::spawn_blocking(send).await;
        sent.map_err(|_| Error::Peer("a request panicked".to_owned()))?
    }

    /// Runs a shell line on a member.
    pub(super) async fn shell(&self, member: &str, line: &str) -> Result<String> {
        self.request_in_background(&["exec", member, "sh", "-c", line])
            .await
    }

    /// Patroni's list of the members, from the first member that answers.
    async fn list(&self) -> Result<Vec<Value>> {
        for member in &self.members {
            let words = ["exec", member, "patronictl", "list", "--format", "json"];
            if let Ok(text) = self.request_in_background(&words).await
                && let Some(line) = text.lines().find(|line| line.starts_with('['))
                && let Ok(Value::Array(members)) = serde_json::from_str(line)
            {
                return Ok(members);
            }
        }
        Err(Error::Peer("no member answers".to_owned()))
    }

    /// The name of the leader.
    pub(super) async fn leader(&self) -> Result<String> {
        let list = self.list().await?;
        let leader = list.iter().find(|member| field(member, "Role") == "Leader");
        let name = leader.map(|member| field(member, "Member").to_owned());
        name.ok_or_else(|| Error::Peer("no member leads".to_owned()))
    }

    /// The name of a member that does not lead.
    pub(super) async fn standby(&self) -> Result<String> {
        let leader = self.leader().await?;
        let other = self.members.iter().find(|name| **name != leader);
        other
            .cloned()
            .ok_or_else(|| Error::Peer("there is no standby".to_owned()))
    }

    /// The position of a member, which gives its port numbers.
    pub(super) fn position(&self, name: &str) -> usize {
        self.members
            .iter()
            .position(|member| member == name)
            .unwrap_or(0)
    }

    /// Whether one member leads, all others run, and one of them is synchronous.
    pub(super) async fn is_complete(&self) -> bool {
        let Ok(list) = self.list().await else {
            return false;
        };
        let count = |role: &str| {
            list.iter()
                .filter(|member| field(member, "Role") == role)
                .count()
        };
        let running = |member: &Value| matches!(field(member, "State"), "running" | "streaming");
        list.len() == self.members.len()
            && list.iter().all(running)
            && count("Leader") == 1
            && count("Sync Standby") == 1
            && list.iter().all(|member| {
                field(member, "Role") == "Leader" || member.get("Lag in MB") == Some(&json!(0))
            })
    }

    /// Asks Patroni for a switchover to any standby.
    pub(super) async fn switch_over(&self, leader: &str) -> Result<()> {
        let line = format!(
            "address=$(sed -n 's/^  listen: *\"\\{{0,1\\}}\\([^\"]*\\)\"\\{{0,1\\}}$/\\1/p' patroni.yml | head -n 1); \
             curl -sS -X POST -d '{{\"leader\":\"{leader}\"}}' \"http://$address/switchover\""
        );
        self.shell(leader, &line).await.map(drop)
    }
}

fn field<'a>(member: &'a Value, name: &str) -> &'a str {
    member.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn request(control: &PathBuf, words: &[&str]) -> Result<String> {
    let send = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(control)?;
        stream.write_all(format!("{}\n", json!(words)).as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = send().map_err(io_context("cannot ask the cluster"))?;
    let answer: Value =
        serde_json::from_str(&text).map_err(|_| Error::Peer("the cluster has ended".to_owned()))?;
    let output = field(&answer, "output").to_owned();
    match answer.get("code").and_then(Value::as_u64) {
        Some(0) => Ok(output),
        _ => Err(Error::Peer(format!(
            "{}: {}",
            words.join(" "),
            output.trim()
        ))),
    }
}
