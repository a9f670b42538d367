//! Where clients come in: listeners that share a port, and Unix sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use monoio::net::{TcpListener, UnixListener};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::io::peer::Peer;
use crate::io::stream::{Stream, tune};

/// Pending connections a shard's listener holds; the kernel caps it further at
/// `net.core.somaxconn` (4,096 since Linux 5.4).
const BACKLOG: i32 = 4096;

/// An address that is ours, at which nobody is let in yet: until
/// [`Self::open`], connections are refused there, as is right while nobody could
/// answer them. In a listener's queue they would hang instead.
#[derive(Debug)]
pub(crate) struct BoundListener {
    address: SocketAddr,
    sockets: Vec<Socket>,
}

/// Binds `count` sockets to one address with `SO_REUSEPORT`; port 0 becomes
/// one free port for all of them.
///
/// # Errors
/// The address is in use, not local, or not permitted.
pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<BoundListener> {
    check_alone(address)?;
    let first = bound_socket(address, true)?;
    let address = first
        .local_addr()?
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bound_socket(address, true)?);
    }
    Ok(BoundListener { address, sockets })
}

impl BoundListener {
    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on, clients can connect.
    ///
    /// # Errors
    /// Another process listens there meanwhile.
    pub(crate) fn open(self) -> io::Result<Vec<std::net::TcpListener>> {
        check_alone(self.address)?;
        for socket in &self.sockets {
            socket.listen(BACKLOG)?;
        }
        Ok(self.sockets.into_iter().map(Into::into).collect())
    }
}

/// `SO_REUSEPORT` would let a second copy of the process join in silently and
/// take half of the connections. A plain bind fails where anybody listens.
fn check_alone(address: SocketAddr) -> io::Result<()> {
    bound_socket(address, false).map(drop)
}

fn bound_socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // What is accepted inherits it: five system calls less for each connection.
    tune(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Binds a Unix socket, for this user only. A socket file that nobody listens
/// on any more is replaced.
///
/// # Errors
/// Somebody listens there, or the folder is not ours to write to.
pub(crate) fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The path of a Unix socket.
pub(crate) fn unix_path(fd: RawFd) -> Option<PathBuf> {
    use nix::sys::socket::{SockaddrStorage, getsockname};
    let address = getsockname::<SockaddrStorage>(fd).ok()?;
    address.as_unix_addr()?.path().map(Path::to_owned)
}

/// Connects and hangs up, without waiting. Where the queue is full there is
/// something to accept anyway.
pub(crate) fn wake_accept(path: &Path) {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None);
    let _ = socket.and_then(|socket| socket.connect(&SockAddr::unix(path)?));
}

/// A listener on its way to its shard.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A shard's listener.
pub(crate) enum ActiveListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(crate) fn on_this_thread(self) -> io::Result<ActiveListener> {
        // io_uring answers EAGAIN for a non-blocking socket instead of waiting.
        let nonblocking = monoio::utils::is_legacy();
        Ok(match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(nonblocking)?;
                ActiveListener::Tcp(TcpListener::from_std(listener)?)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(nonblocking)?;
                ActiveListener::Unix(UnixListener::from_std(listener)?)
            }
        })
    }
}

impl ActiveListener {
    pub(crate) fn raw_fd(&self) -> RawFd {
        match self {
            ActiveListener::Tcp(listener) => listener.as_raw_fd(),
            ActiveListener::Unix(listener) => listener.as_raw_fd(),
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            ActiveListener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            ActiveListener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::stream::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES};

    fn free() -> BoundListener {
        bind("127.0.0.1:0".parse().unwrap(), 3).unwrap()
    }

    #[test]
    fn listeners_share_one_free_port() {
        let door = free();
        let address = door.address();
        assert_ne!(address.port(), 0);
        let listeners = door.open().unwrap();
        let addresses: Vec<_> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        assert_eq!(addresses, [address; 3]);
    }

    #[test]
    fn what_is_accepted_is_tuned_like_its_listener() {
        let door = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = door.address();
        let listeners = door.open().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (accepted, _) = listeners[0].accept().unwrap();
        let accepted = Socket::from(accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(
            accepted.tcp_keepalive_interval().unwrap(),
            KEEPALIVE_INTERVAL
        );
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert!(accepted.tcp_congestion().unwrap().starts_with(b"reno"));
    }

    #[test]
    fn what_comes_over_a_network_has_the_systems_congestion_control() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let untouched = socket.tcp_congestion().unwrap();
        for address in ["0.0.0.0:5433", "192.0.2.1:5433"] {
            tune(&socket, address.parse().unwrap()).unwrap();
            assert_eq!(socket.tcp_congestion().unwrap(), untouched, "{address}");
        }
    }

    #[test]
    fn nobody_connects_before_it_is_open() {
        let door = free();
        let address = door.address();
        let error = std::net::TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let _listeners = door.open().unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }

    #[test]
    fn a_second_process_cannot_join_the_port_unnoticed() {
        let (first, second) = (free(), free());
        let address = first.address();
        // Both are waiting: whoever opens first has it.
        let rival = bind(address, 2).unwrap();
        let _listeners = first.open().unwrap();
        let error = rival.open().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let error = bind(address, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        second.open().unwrap();
    }
}
