//! Transient errors are retried with exponential back-off, and permanent ones are not.
//!
//! These tests do not depend on timing. The client draws a random number before each wait, for the jitter,
//! and that is when a test changes the agent.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attest::agent::{AgentAddress, AgentError, AgentOptions, Method, Random};
use attest::mock::{self, AgentBehaviour, AgentListen};

use crate::{Folder, NOW, agent, block_on, client, pki};

/// `attempts` with waits of about a millisecond. `before_wait` receives the number of each wait, from 1.
fn options(attempts: u32, before_wait: impl Fn(u32) + Send + Sync + 'static) -> AgentOptions {
    let waits = AtomicU32::new(0);
    let random: Random = Arc::new(move || {
        before_wait(waits.fetch_add(1, Ordering::SeqCst) + 1);
        0
    });
    AgentOptions {
        attempts,
        initial_backoff: Duration::from_millis(1),
        max_backoff: Duration::from_millis(2),
        random: Some(random),
        ..AgentOptions::default()
    }
}

fn call_version(behaviour: AgentBehaviour, attempts: u32) -> (usize, Result<(), AgentError>) {
    let mock = agent();
    let mut options = options(attempts, |_| ());
    if matches!(behaviour, AgentBehaviour::Delay(_)) {
        options.deadline = Duration::from_millis(100);
    }
    mock.agent.set_behaviour(behaviour);
    let client = client(mock.agent.endpoint(), options);
    let outcome = block_on(client.version()).map(drop);
    (mock.agent.requests(Method::Version), outcome)
}

#[test]
fn only_transient_errors_are_retried() {
    let status = |code| AgentBehaviour::Status(code, "{}".to_owned());
    for (behaviour, requests, code) in [
        (AgentBehaviour::Close, 3, "hung_up"),
        (AgentBehaviour::TruncatedBody, 3, "hung_up"),
        (AgentBehaviour::Delay(Duration::from_secs(60)), 3, "timeout"),
        (status(500), 3, "status"),
        (status(503), 3, "status"),
        (status(400), 1, "status"),
        (status(404), 1, "status"),
        (AgentBehaviour::Redirect, 1, "status"),
        (status(200), 1, "malformed"),
        (AgentBehaviour::Html, 1, "not_json"),
        (AgentBehaviour::Garbage, 1, "not_json"),
        (AgentBehaviour::Oversized, 1, "too_large"),
    ] {
        let (requested, outcome) = call_version(behaviour.clone(), 3);
        let error = outcome.unwrap_err();
        assert_eq!((requested, error.code()), (requests, code), "{behaviour:?}");
        assert_eq!(error.is_transient(), requests > 1);
    }
}

#[test]
fn number_of_attempts_is_limited() {
    for (attempts, requests) in [(0, 1), (1, 1), (2, 2), (5, 5)] {
        let (requested, outcome) = call_version(AgentBehaviour::Close, attempts);
        assert_eq!((requested, outcome.is_err()), (requests, true));
    }
}

#[test]
fn agent_that_starts_late_is_found() {
    let folder = Folder::new();
    let path = folder.path("dstack.sock");
    let started = Arc::new(Mutex::new(None));
    let (slot, at) = (Arc::clone(&started), path.clone());
    let start = move |wait| {
        if wait == 2 {
            let listen = AgentListen::Unix(at.clone());
            let agent = mock::Agent::start(pki(), listen, mock::AgentOptions::at(NOW));
            *slot.lock().unwrap() = Some(agent.unwrap());
        }
    };
    let client = client(AgentAddress::Unix(path), options(3, start));
    let version = block_on(client.version()).unwrap();
    assert_eq!(version.version, "0.6.0");
    let agent = started.lock().unwrap().take().unwrap();
    assert_eq!(agent.requests(Method::Version), 1);
}

#[test]
fn missing_agent_fails_after_all_attempts() {
    let folder = Folder::new();
    let waits = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&waits);
    let options = options(4, move |wait| counted.store(wait, Ordering::SeqCst));
    let path = folder.path("dstack.sock");
    let error = block_on(client(AgentAddress::Unix(path.clone()), options).version());
    assert_eq!(error, Err(AgentError::NotFound { tried: vec![path] }));
    assert_eq!(waits.load(Ordering::SeqCst), 3);
}

#[test]
fn call_succeeds_once_the_agent_recovers() {
    let mock = Arc::new(agent());
    mock.agent.set_behaviour(AgentBehaviour::Close);
    let recovering = Arc::clone(&mock);
    let recover = move |wait| {
        recovering.agent.set_behaviour(match wait {
            1 => AgentBehaviour::Status(503, "{}".to_owned()),
            _ => AgentBehaviour::Normal,
        });
    };
    let client = client(mock.agent.endpoint(), options(3, recover));
    block_on(client.key("path", "")).unwrap();
    assert_eq!(mock.agent.requests(Method::GetKey), 3);
}
