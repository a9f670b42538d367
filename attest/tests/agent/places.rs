//! Where the agent is looked for, at each question anew.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use attest::agent::{Agent, AgentAddress, AgentAddresses, AgentError, STANDARD_SOCKETS};
use attest::mock::{self, AgentListen, AgentOptions};

use crate::{Folder, NOW, block, client, patient, pki};

fn start(folder: &Folder, name: &str, seed: u8) -> mock::Agent {
    let options = AgentOptions {
        seed: [seed; 32],
        ..AgentOptions::at(NOW)
    };
    let listen = AgentListen::Unix(folder.path(name));
    mock::Agent::start(pki(), listen, options).unwrap()
}

#[test]
fn the_standard_places_are_dstacks() {
    let places = AgentAddresses::standard();
    let shown: Vec<_> = places.candidates().map(ToString::to_string).collect();
    assert_eq!(shown, STANDARD_SOCKETS.map(|path| format!("unix:{path}")));
}

#[test]
fn the_first_socket_that_is_there_is_asked() {
    let folder = Folder::new();
    let paths = ["a", "b", "c"].map(|name| folder.path(name));
    let client = Agent::new(AgentAddresses::sockets(&paths), patient()).unwrap();
    let key = || block(client.key("path", "")).map(|key| *key.as_bytes());

    let tried = paths.to_vec();
    assert_eq!(key(), Err(AgentError::NotFound { tried }));
    let third = start(&folder, "c", 3);
    let of_third = key().unwrap();
    // What is no socket is passed over.
    std::fs::write(&paths[0], b"a file").unwrap();
    std::fs::create_dir(&paths[1]).unwrap();
    assert_eq!(key(), Ok(of_third));
    std::fs::remove_dir(&paths[1]).unwrap();
    let second = start(&folder, "b", 2);
    assert_ne!(key(), Ok(of_third), "the second place comes first");
    assert_eq!(second.requests(attest::agent::Method::GetKey), 1);
    drop(second);
    assert_eq!(key(), Ok(of_third), "and back again");
    drop(third);
    assert_eq!(key().unwrap_err().code(), "not_found");
}

#[test]
fn an_agent_may_be_replaced() {
    let folder = Folder::new();
    let first = start(&folder, "dstack.sock", 1);
    let client = client(first.endpoint(), patient());
    let key = || block(client.key("path", "")).map(|key| *key.as_bytes());
    let of_first = key().unwrap();
    drop(first);
    assert!(!folder.path("dstack.sock").exists(), "it cleans up");
    let second = start(&folder, "dstack.sock", 2);
    assert_ne!(key().unwrap(), of_first);
    drop(second);
}

#[test]
fn a_stopped_agent_leaves_its_successors_socket_alone() {
    let folder = Folder::new();
    let first = start(&folder, "dstack.sock", 1);
    std::fs::rename(folder.path("dstack.sock"), folder.path("old")).unwrap();
    let second = start(&folder, "dstack.sock", 2);
    drop(first);
    block(client(second.endpoint(), patient()).version()).unwrap();
}

#[test]
fn a_socket_that_nobody_listens_on() {
    let folder = Folder::new();
    let path = folder.path("dstack.sock");
    drop(UnixListener::bind(&path).unwrap());
    let endpoint = AgentAddress::Unix(path.clone());
    let error = block(client(endpoint.clone(), patient()).version()).unwrap_err();
    let why = "Connection refused (os error 111)".to_owned();
    assert_eq!(
        error,
        AgentError::Connect {
            address: endpoint,
            why
        }
    );
    // A new agent takes the place of one that was killed.
    let agent = start(&folder, "dstack.sock", 1);
    block(client(agent.endpoint(), patient()).version()).unwrap();
    // But not that of one that lives.
    let listen = AgentListen::Unix(path);
    let error = mock::Agent::start(pki(), listen, AgentOptions::at(NOW)).unwrap_err();
    assert!(matches!(error, mock::MockError::Io(_)), "{error}");
}

#[test]
fn a_port_that_nobody_listens_on() {
    let agent = mock::Agent::start(pki(), AgentListen::Tcp, AgentOptions::at(NOW)).unwrap();
    let endpoint = agent.endpoint();
    drop(agent);
    let error = block(client(endpoint.clone(), patient()).version()).unwrap_err();
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
fn a_place_that_this_process_may_not_use() {
    let folder = Folder::new();
    if std::fs::metadata(folder.path("")).unwrap().uid() == 0 {
        println!("skipped: root may use every socket");
        return;
    }
    let agent = start(&folder, "dstack.sock", 1);
    let endpoint = agent.endpoint();
    let version = || block(client(endpoint.clone(), patient()).version());
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
