//! Tests of the guest agent's client through the public API: with the mock agent, with recorded exchanges,
//! and with injected faults.

#![cfg(feature = "mock")]
// `.clippy.toml` lets test functions panic, but not their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod addresses;
mod failures;
mod methods;
mod raw;
mod recorded;
mod replay_server;
mod retries;
mod secrets;
mod verification;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attest::agent::{Agent, AgentAddress, AgentAddresses, AgentError, AgentOptions, TlsKeyRequest};
use attest::mock::{self, AgentListen, Fixture, Pki};

const NOW: u64 = Fixture::NOW;
/// Maximum time of one call, with back-off and retries.
const TIMEOUT: Duration = Duration::from_secs(20);

fn pki() -> Arc<Pki> {
    Arc::new(Pki::new(&Fixture::SEED).unwrap())
}

/// A temporary directory for sockets.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A mock agent on its own Unix socket.
struct MockAgent {
    agent: mock::Agent,
    _folder: Folder,
}

fn agent_with(options: mock::AgentOptions) -> MockAgent {
    let folder = Folder::new();
    let listen = AgentListen::Unix(folder.path("dstack.sock"));
    MockAgent {
        agent: mock::Agent::start(pki(), listen, options).unwrap(),
        _folder: folder,
    }
}

fn agent() -> MockAgent {
    agent_with(mock::AgentOptions::at(NOW))
}

/// One attempt with the default deadlines.
fn single_attempt() -> AgentOptions {
    AgentOptions {
        attempts: 1,
        ..AgentOptions::default()
    }
}

fn client(endpoint: AgentAddress, options: AgentOptions) -> Agent {
    Agent::new(AgentAddresses::only(endpoint), options).unwrap()
}

impl MockAgent {
    fn client(&self) -> Agent {
        client(self.agent.endpoint(), single_attempt())
    }
}

/// Runs a call to its end, for at most [`TIMEOUT`].
fn block_on<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(TIMEOUT, call).await })
        .expect("the call ends in time")
}

/// The sidecar's request.
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
