//! The agent's address, which is resolved again for every call.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use attest::agent::{Agent, AgentAddress, AgentAddresses, AgentError, STANDARD_SOCKETS};
use attest::mock::{self, AgentListen, AgentOptions};

use crate::{Folder, NOW, block_on, client, pki, single_attempt};

fn start(folder: &Folder, name: &str, seed: u8) -> mock::Agent {
    let options = AgentOptions {
        seed: [seed; 32],
        ..AgentOptions::at(NOW)
    };
    let listen = AgentListen::Unix(folder.path(name));
    mock::Agent::start(pki(), listen, options).unwrap()
}

#[test]
fn standard_addresses_are_dstacks() {
    let places = AgentAddresses::standard();
    let shown: Vec<_> = places.candidates().map(ToString::to_string).collect();
    assert_eq!(shown, STANDARD_SOCKETS.map(|path| format!("unix:{path}")));
}

#[test]
fn first_existing_socket_is_used() {
    let folder = Folder::new();
    let paths = ["a", "b", "c"].map(|name| folder.path(name));
    let client = Agent::new(AgentAddresses::sockets(&paths), single_attempt()).unwrap();
    let key = || block_on(client.key("path", "")).map(|key| *key.as_bytes());

    let tried = paths.to_vec();
    assert_eq!(key(), Err(AgentError::NotFound { tried }));
    let third = start(&folder, "c", 3);
    let of_third = key().unwrap();
    // Files that are not sockets are skipped.
    std::fs::write(&paths[0], b"a file").unwrap();
    std::fs::create_dir(&paths[1]).unwrap();
    assert_eq!(key(), Ok(of_third));
    std::fs::remove_dir(&paths[1]).unwrap();
    let second = start(&folder, "b", 2);
    assert_ne!(
        key(),
        Ok(of_third),
        "the second path has precedence over the third"
    );
    assert_eq!(second.requests(attest::agent::Method::GetKey), 1);
    drop(second);
    assert_eq!(
        key(),
        Ok(of_third),
        "falls back once the second agent has stopped"
    );
    drop(third);
    assert_eq!(key().unwrap_err().code(), "not_found");
}

#[test]
fn replaced_agent_is_found() {
    let folder = Folder::new();
    let first = start(&folder, "dstack.sock", 1);
    let client = client(first.endpoint(), single_attempt());
    let key = || block_on(client.key("path", "")).map(|key| *key.as_bytes());
    let of_first = key().unwrap();
    drop(first);
    assert!(
        !folder.path("dstack.sock").exists(),
        "a stopped agent removes its socket"
    );
    let second = start(&folder, "dstack.sock", 2);
    assert_ne!(key().unwrap(), of_first);
    drop(second);
}

#[test]
fn stopped_agent_keeps_the_socket_of_its_successor() {
    let folder = Folder::new();
    let first = start(&folder, "dstack.sock", 1);
    std::fs::rename(folder.path("dstack.sock"), folder.path("old")).unwrap();
    let second = start(&folder, "dstack.sock", 2);
    drop(first);
    block_on(client(second.endpoint(), single_attempt()).version()).unwrap();
}

#[test]
fn dead_socket_refuses_connections() {
    let folder = Folder::new();
    let path = folder.path("dstack.sock");
    drop(UnixListener::bind(&path).unwrap());
    let endpoint = AgentAddress::Unix(path.clone());
    let error = block_on(client(endpoint.clone(), single_attempt()).version()).unwrap_err();
    let why = "Connection refused (os error 111)".to_owned();
    assert_eq!(
        error,
        AgentError::Connect {
            address: endpoint,
            why
        }
    );
    // A new agent replaces the socket of one that was killed.
    let agent = start(&folder, "dstack.sock", 1);
    block_on(client(agent.endpoint(), single_attempt()).version()).unwrap();
    // It does not replace the socket of a running one.
    let listen = AgentListen::Unix(path);
    let error = mock::Agent::start(pki(), listen, AgentOptions::at(NOW)).unwrap_err();
    assert!(matches!(error, mock::MockError::Io(_)), "{error}");
}

#[test]
fn closed_port_refuses_connections() {
    let agent = mock::Agent::start(pki(), AgentListen::Tcp, AgentOptions::at(NOW)).unwrap();
    let endpoint = agent.endpoint();
    drop(agent);
    let error = block_on(client(endpoint.clone(), single_attempt()).version()).unwrap_err();
    let why = "Connection refused (os error 111)".to_owned();
    assert_eq!(
        error,
        AgentError::Connect {
            address: endpoint,
            why
        }
    );
}

#[test]
fn socket_without_permission_is_forbidden() {
    let folder = Folder::new();
    if std::fs::metadata(folder.path("")).unwrap().uid() == 0 {
        println!("skipped: root may use every socket");
        return;
    }
    let agent = start(&folder, "dstack.sock", 1);
    let endpoint = agent.endpoint();
    let version = || block_on(client(endpoint.clone(), single_attempt()).version());
    let chmod = |name: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path(name), mode).unwrap();
    };
    let forbidden = AgentError::Forbidden {
        address: endpoint.clone(),
    };
    chmod("dstack.sock", 0o000);
    assert_eq!(version(), Err(forbidden.clone()));
    chmod("dstack.sock", 0o600);
    chmod("", 0o000);
    let hidden = version();
    chmod("", 0o700);
    assert_eq!(hidden, Err(forbidden));
    version().unwrap();
}
