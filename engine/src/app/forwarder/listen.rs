//! Where drivers connect: the listeners, and the address as drivers need it.

use std::path::{Path, PathBuf};

use crate::app::error::{StartError, system};
use crate::config::{ForwarderConfig, Listen, connection_uri};
use crate::io::listener::{self, Listener};

/// libpq's name for a Unix socket is this prefix and the port number, in a directory.
const SOCKET_PREFIX: &str = ".s.PGSQL.";

/// Host and port in the form of `PGHOST` and `PGPORT`: for a Unix socket, the host is the directory of the socket.
pub(crate) fn host_and_port(local: &Listen) -> (String, u16) {
    match local {
        Listen::Tcp(address) => (address.ip().to_string(), address.port()),
        Listen::Unix(path) => {
            let folder = path.parent().unwrap_or(Path::new("/"));
            (folder.display().to_string(), socket_port(path))
        }
    }
}

/// A DSN without role, database and password.
pub(crate) fn dsn(local: &Listen) -> String {
    match (local, host_and_port(local)) {
        (Listen::Tcp(address), _) => format!("postgresql://{address}/?sslmode=disable"),
        (Listen::Unix(_), (folder, port)) => {
            let folder = connection_uri::encode(&folder);
            format!("postgresql:///?host={folder}&port={port}&sslmode=disable")
        }
    }
}

fn socket_port(path: &Path) -> u16 {
    let name = path.file_name().and_then(|name| name.to_str());
    let port = name.and_then(|name| name.strip_prefix(SOCKET_PREFIX)?.parse().ok());
    port.unwrap_or(5432)
}

/// Opens a listener for each shard.
///
/// # Errors
/// The address cannot be used.
pub(super) fn listen(config: &ForwarderConfig) -> Result<(Listen, Vec<Listener>), StartError> {
    match &config.listen {
        Listen::Tcp(address) => {
            let failed = system(format!("cannot listen on {address}"));
            let bound = listener::bind(*address, config.process.shards).and_then(|listener| {
                let address = listener.address();
                Ok((address, listener.open()?))
            });
            let (bound, listeners) = bound.map_err(failed)?;
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((Listen::Tcp(bound), listeners))
        }
        Listen::Unix(path) => {
            let failed = || system(format!("cannot listen on {}", path.display()));
            let first = listener::bind_unix(path).map_err(failed())?;
            // All shards accept from the queue of one listening socket.
            let mut listeners = Vec::new();
            for _ in 1..config.process.shards {
                let copy = first.try_clone().map_err(failed())?;
                listeners.push(Listener::Unix(copy));
            }
            listeners.push(Listener::Unix(first));
            Ok((Listen::Unix(path.clone()), listeners))
        }
    }
}

/// The path of a Unix socket, which is removed when this is dropped.
pub(super) struct SocketFile(Option<PathBuf>);

impl SocketFile {
    pub(super) fn new(local: &Listen) -> Self {
        match local {
            Listen::Unix(path) => Self(Some(path.clone())),
            Listen::Tcp(_) => Self(None),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}
