//! The guest agent's client from outside: against the mock agent, against recorded exchanges, and against
//! agents that misbehave.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not the helpers beside them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod admitted;
mod answers;
mod failures;
#[path = "../attest/fixtures.rs"]
#[allow(dead_code)]
mod fixtures;
mod places;
mod raw;
mod recorded;
mod replay;
mod retries;
mod secrets;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attest::agent::{Agent, AgentAddress, AgentAddresses, AgentError, AgentOptions, TlsKeyRequest};
use attest::mock::{self, AgentListen, Pki};

/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
const SEED: [u8; 32] = [7; 32];
/// Longest time of any one question here, waits and further attempts included.
const BOUND: Duration = Duration::from_secs(20);

fn pki() -> Arc<Pki> {
    Arc::new(Pki::new(&SEED).unwrap())
}

/// A folder for a socket; gone with the value.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A mock agent on a socket of its own.
struct Mock {
    agent: mock::Agent,
    _folder: Folder,
}

fn agent_with(options: mock::AgentOptions) -> Mock {
    let folder = Folder::new();
    let listen = AgentListen::Unix(folder.path("dstack.sock"));
    Mock {
        agent: mock::Agent::start(pki(), listen, options).unwrap(),
        _folder: folder,
    }
}

fn agent() -> Mock {
    agent_with(mock::AgentOptions::at(NOW))
}

/// One attempt, long deadlines.
fn patient() -> AgentOptions {
    AgentOptions {
        attempts: 1,
        ..AgentOptions::default()
    }
}

fn client(endpoint: AgentAddress, options: AgentOptions) -> Agent {
    Agent::new(AgentAddresses::only(endpoint), options).unwrap()
}

impl Mock {
    fn client(&self) -> Agent {
        client(self.agent.endpoint(), patient())
    }
}

/// What a question gives, within [`BOUND`].
fn block<T>(question: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(BOUND, question).await })
        .expect("the bound holds")
}

/// What the sidecar will ask for.
fn server_request() -> TlsKeyRequest {
    TlsKeyRequest {
        subject: "pg.sim.test".to_owned(),
        alt_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        usage_ra_tls: true,
        usage_server_auth: true,
        usage_client_auth: true,
        ..TlsKeyRequest::default()
    }
}

fn malformed(error: AgentError) -> (&'static str, &'static str) {
    match error {
        AgentError::Malformed { field, why, .. } => (field, why),
        other => panic!("{other}"),
    }
}
