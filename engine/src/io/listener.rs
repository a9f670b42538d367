//! Listening sockets: TCP sockets that share a port with `SO_REUSEPORT`, one or more for each shard, and Unix
//! sockets.
//!
//! A shard may have several because the kernel bounds the accept queue of each, and clients that reconnect all at once wait
//! there (docs/adr/0040-storms.md).
//!
//! A second process must never share the port unnoticed, since it would receive a part of the clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use monoio::net::{TcpListener, UnixListener};
use nix::sys::stat::Mode;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::io::peer::Peer;
use crate::io::stream::{Stream, tune};

/// Pending connections in the accept queue of one listener: as many as the kernel allows, `net.core.somaxconn`, which is
/// 4,096 since Linux 5.4. Connections that find no place there are tried again by their kernels, first after a second.
const BACKLOG: i32 = i32::MAX;
/// The kernel's limit for the accept queue of one socket. [`net.core.somaxconn`, Documentation/admin-guide/sysctl/net.rst]
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
/// Its default since Linux 5.4.
const DEFAULT_SOMAXCONN: usize = 4_096;
/// Places for clients that wait for one shard, which admits some 500 a second on a core: a minute's worth.
const PLACES_OF_A_SHARD: usize = 32_768;
/// Sockets of one shard.
pub(crate) const MAX_SOCKETS_OF_A_SHARD: usize = 8;

/// Sockets that are bound but do not listen yet. Connections are refused until [`Self::open`]. In an
/// accept queue they would hang while the process waits for its dependencies.
#[derive(Debug)]
pub(crate) struct BoundListener {
    address: SocketAddr,
    sockets: Vec<Socket>,
}

/// The number of sockets with which a shard has [`PLACES_OF_A_SHARD`], or as many as [`MAX_SOCKETS_OF_A_SHARD`] have.
pub(crate) fn sockets_of_a_shard() -> usize {
    let limit = std::fs::read_to_string(SOMAXCONN).ok();
    let limit = limit.and_then(|text| text.trim().parse().ok());
    sockets_for(limit.unwrap_or(DEFAULT_SOMAXCONN))
}

fn sockets_for(somaxconn: usize) -> usize {
    PLACES_OF_A_SHARD
        .div_ceil(somaxconn.max(1))
        .min(MAX_SOCKETS_OF_A_SHARD)
}

/// Binds `count` sockets to one address with `SO_REUSEPORT`. With port 0 all of them get the same free
/// port.
///
/// # Errors
/// The address is in use, not local, or not permitted.
pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<BoundListener> {
    check_unused(address)?;
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
    /// The address that the sockets are bound to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts listening.
    ///
    /// # Errors
    /// Another process listens on the address.
    pub(crate) fn open(self) -> io::Result<Vec<std::net::TcpListener>> {
        check_unused(self.address)?;
        for socket in &self.sockets {
            socket.listen(BACKLOG)?;
        }
        Ok(self.sockets.into_iter().map(Into::into).collect())
    }
}

/// Fails if another process listens on the address. With `SO_REUSEPORT`, a second copy of this
/// process would start without an error and receive half of the connections; a bind without it fails.
fn check_unused(address: SocketAddr) -> io::Result<()> {
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
    // Accepted sockets inherit these options, which saves five system calls for each connection.
    tune(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Binds a Unix socket that only the user of this process can connect to. A stale socket file is
/// replaced.
///
/// # Errors
/// Another process listens on the path, or may do so: this one may not connect to it. Or the directory is not writable.
pub(crate) fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        remove_stale(path)?;
    }
    let socket = private_unix_socket(path)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Removes the file of a socket that no process listens on.
///
/// # Errors
/// A process listens on it, or that cannot be found out.
fn remove_stale(path: &Path) -> io::Result<()> {
    match connect_without_waiting(path) {
        // The accept queue of a process that listens may be full.
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(io::ErrorKind::AddrInUse.into())
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        // It was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Connects and closes the connection. If the accept queue is full, the error is `WouldBlock`, where a blocking connect would
/// wait without a deadline. [connect(2)]
fn connect_without_waiting(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// Binds a socket whose file has the mode 0600 from the beginning. Linux creates the file with the mode of the socket's
/// own inode, less the umask. [unix_bind in net/unix/af_unix.c] So the umask need not be changed, which would affect all
/// threads, and there is no moment at which others can connect.
pub(crate) fn private_unix_socket(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// The path that a Unix socket is bound to.
pub(crate) fn unix_path(fd: RawFd) -> Option<PathBuf> {
    use nix::sys::socket::{SockaddrStorage, getsockname};
    let address = getsockname::<SockaddrStorage>(fd).ok()?;
    address.as_unix_addr()?.path().map(Path::to_owned)
}

/// Makes a pending accept return, by a connection that is closed immediately. This never waits: if
/// the accept queue is full, a connection is pending anyway.
pub(crate) fn wake_accept(path: &Path) {
    let _ = connect_without_waiting(path);
}

/// A listener before it is moved to the thread of its shard.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A listener on the monoio runtime of its shard.
pub(crate) enum ActiveListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Registers the listener with the runtime of this thread.
    pub(crate) fn on_this_thread(self) -> io::Result<ActiveListener> {
        // io_uring completes with EAGAIN on a non-blocking socket instead of waiting.
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

    /// Accepts the next connection.
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

    fn bind_free_port() -> BoundListener {
        bind("127.0.0.1:0".parse().unwrap(), 3).unwrap()
    }

    #[test]
    fn listeners_share_one_free_port() {
        let bound = bind_free_port();
        let address = bound.address();
        assert_ne!(address.port(), 0);
        let listeners = bound.open().unwrap();
        let addresses: Vec<_> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap())
            .collect();
        assert_eq!(addresses, [address; 3]);
    }

    #[test]
    fn a_shard_has_as_many_sockets_as_its_places_take() {
        assert_eq!(sockets_for(65_535), 1);
        assert_eq!(sockets_for(PLACES_OF_A_SHARD), 1);
        assert_eq!(sockets_for(20_000), 2);
        assert_eq!(sockets_for(DEFAULT_SOMAXCONN), 8);
        // Before Linux 5.4, and what no system has.
        assert_eq!(sockets_for(128), MAX_SOCKETS_OF_A_SHARD);
        assert_eq!(sockets_for(0), MAX_SOCKETS_OF_A_SHARD);
        assert!((1..=MAX_SOCKETS_OF_A_SHARD).contains(&sockets_of_a_shard()));
    }

    #[test]
    fn an_accepted_socket_inherits_the_options_of_its_listener() {
        let bound = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = bound.address();
        let listeners = bound.open().unwrap();
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
    fn a_socket_not_on_loopback_keeps_the_default_congestion_control() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let untouched = socket.tcp_congestion().unwrap();
        for address in ["0.0.0.0:5433", "192.0.2.1:5433"] {
            tune(&socket, address.parse().unwrap()).unwrap();
            assert_eq!(socket.tcp_congestion().unwrap(), untouched, "{address}");
        }
    }

    #[test]
    fn connections_are_refused_before_open() {
        let bound = bind_free_port();
        let address = bound.address();
        let error = std::net::TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let _listeners = bound.open().unwrap();
        std::net::TcpStream::connect(address).unwrap();
    }

    #[test]
    fn a_second_process_cannot_share_the_port() {
        let (first, second) = (bind_free_port(), bind_free_port());
        let address = first.address();
        // Two processes may bind the address; only the first one can listen on it.
        let late = bind(address, 2).unwrap();
        let _listeners = first.open().unwrap();
        let error = late.open().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let error = bind(address, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        second.open().unwrap();
    }

    #[test]
    fn the_file_of_a_unix_socket_is_private_from_the_beginning() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let bound = private_unix_socket(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(bound);
        let listener = bind_unix(&path).unwrap();
        assert_eq!(mode(), 0o600);
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn only_a_stale_unix_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = bind_unix(&path).unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        bind_unix(&path).unwrap();
    }

    #[test]
    fn a_unix_socket_with_a_full_accept_queue_is_not_stale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = private_unix_socket(&path).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            match socket.connect(&SockAddr::unix(&path).unwrap()) {
                Ok(()) => waiting.push(socket),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_that_cannot_be_connected_to_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Of another type: the error is EPROTOTYPE. That of another user's socket, EACCES, does not occur as root.
        let _other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EPROTOTYPE));
        assert!(path.exists());
    }
}
