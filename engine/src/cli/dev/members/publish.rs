//! Ports on this machine for servers within the namespaces.
//!
//! A Unix socket in the temporary directory is reachable from every namespace: the outer process relays TCP connections
//! to it, the inner one relays from it to the server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Listens on this port of 127.0.0.1, or on a free one if it is taken or 0.
pub(super) async fn bind(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
        }
        bound => bound,
    }
}

/// Relays TCP connections to a Unix socket, for as long as the runtime runs.
pub(super) fn from_tcp(listener: TcpListener, socket: PathBuf) {
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut server = UnixStream::connect(socket).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
}

/// Relays connections to a Unix socket to a TCP server, for as long as the runtime runs.
pub(super) fn to_tcp(socket: PathBuf, server: SocketAddr) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(())
}
