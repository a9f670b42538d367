//! Sockets: listeners that share a port, the dial to Postgres, and one type
//! for the two kinds of stream.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use monoio::io::{
    AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, OwnedReadHalf, OwnedWriteHalf, Splitable,
};
use monoio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::buffer::Buffer;
use crate::facts::Peer;

/// Pending connections a shard's listener holds; the kernel caps it further at
/// `net.core.somaxconn` (4,096 since Linux 5.4).
const BACKLOG: i32 = 4096;
/// A peer that vanished is noticed after 60 s + 3 × 15 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;
/// Wait between two tries on a Unix socket whose accept queue is full: unlike
/// TCP, the kernel then says EAGAIN and offers nothing to wait on.
const UNIX_QUEUE_FULL_RETRY: Duration = Duration::from_millis(5);

/// Bytes of a refused peer that are read and dropped at the most.
const LINGER_MOST: usize = 1024 * 1024;

/// Where Postgres listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket, e.g. `/run/postgresql/.s.PGSQL.5432`.
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp(address) => address.fmt(f),
            Endpoint::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Endpoint {
    /// The socket address to connect to.
    ///
    /// # Errors
    /// A Unix path past 107 bytes (`sun_path`).
    pub fn sock_addr(&self) -> io::Result<SockAddr> {
        match self {
            Endpoint::Tcp(address) => Ok(SockAddr::from(*address)),
            Endpoint::Unix(path) => SockAddr::unix(path),
        }
    }
}

/// An address that is ours, at which nobody is let in yet: until
/// [`Self::open`], connections are refused there, as is right while nobody could
/// answer them. In a listener's queue they would hang instead.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    sockets: Vec<Socket>,
}

/// Binds `count` sockets to one address with `SO_REUSEPORT`; port 0 becomes
/// one free port for all of them.
///
/// # Errors
/// The address is in use, not local, or not permitted.
pub fn bind(address: SocketAddr, count: usize) -> io::Result<Door> {
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
    Ok(Door { address, sockets })
}

impl Door {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on, clients can connect.
    ///
    /// # Errors
    /// Another process listens there meanwhile.
    pub fn open(self) -> io::Result<Vec<std::net::TcpListener>> {
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
    tune(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Binds a Unix socket, for this user only. A socket file that nobody listens
/// on any more is replaced.
///
/// # Errors
/// Somebody listens there, or the folder is not ours to write to.
pub fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
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
pub(crate) fn knock(path: &Path) {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None);
    let _ = socket.and_then(|socket| socket.connect(&SockAddr::unix(path)?));
}

/// A listener on its way to its shard.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A shard's listener.
pub(crate) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(crate) fn on_this_thread(self) -> io::Result<Accepting> {
        // io_uring answers EAGAIN for a non-blocking socket instead of waiting.
        let nonblocking = monoio::utils::is_legacy();
        Ok(match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(nonblocking)?;
                Accepting::Tcp(TcpListener::from_std(listener)?)
            }
            Listener::Unix(listener) => {
                listener.set_nonblocking(nonblocking)?;
                Accepting::Unix(UnixListener::from_std(listener)?)
            }
        })
    }
}

impl Accepting {
    pub(crate) fn raw_fd(&self) -> RawFd {
        match self {
            Accepting::Tcp(listener) => listener.as_raw_fd(),
            Accepting::Unix(listener) => listener.as_raw_fd(),
        }
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Accepting::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            Accepting::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }
}

/// What every TCP connection gets: no Nagle delay, and keepalive.
fn tune(socket: &Socket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive)
}

/// A connected byte stream.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A [`Stream`] between two threads.
pub(crate) enum Moving {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Moving {
    pub(crate) fn on_this_thread(self) -> io::Result<Stream> {
        Ok(match self {
            Moving::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Moving::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// The reading half of a [`Stream`].
pub(crate) enum ReadHalf {
    Tcp(OwnedReadHalf<TcpStream>),
    Unix(OwnedReadHalf<UnixStream>),
}

/// The writing half of a [`Stream`]; dropping it sends FIN.
pub(crate) enum WriteHalf {
    Tcp(OwnedWriteHalf<TcpStream>),
    Unix(OwnedWriteHalf<UnixStream>),
}

impl Stream {
    /// Connects, or fails by `deadline`.
    ///
    /// The connect itself is a non-blocking call of our own: on loopback it is
    /// done when the call returns, and cancelling monoio 0.2.4's connect
    /// operation leaks its descriptor.
    pub(crate) async fn dial(endpoint: &Endpoint, deadline: Instant) -> io::Result<Self> {
        let address = endpoint.sock_addr()?;
        let socket = Socket::new(address.domain(), Type::STREAM.nonblocking().cloexec(), None)?;
        let mut in_progress = None;
        while let Err(error) = socket.connect(&address) {
            match error.raw_os_error() {
                Some(nix::libc::EINPROGRESS) => {
                    // monoio closes its streams itself: a second descriptor
                    // to ask how it went.
                    in_progress = Some(socket.try_clone()?);
                    break;
                }
                Some(nix::libc::EAGAIN) if Instant::now() < deadline => {
                    monoio::time::sleep(UNIX_QUEUE_FULL_RETRY).await;
                }
                _ => return Err(error),
            }
        }
        // io_uring answers EAGAIN for a non-blocking socket instead of waiting.
        socket.set_nonblocking(monoio::utils::is_legacy())?;
        let stream = match endpoint {
            Endpoint::Tcp(_) => {
                tune(&socket)?;
                Stream::Tcp(TcpStream::from_std(socket.into())?)
            }
            Endpoint::Unix(_) => Stream::Unix(UnixStream::from_std(socket.into())?),
        };
        if let Some(socket) = in_progress {
            let left = deadline.saturating_duration_since(Instant::now());
            monoio::time::timeout(left, stream.writable())
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Ok(stream)
    }

    /// The same connection for another thread; this stream is to be dropped.
    ///
    /// By a second descriptor: monoio 0.2.4 gives its own away over uninitialised
    /// memory (`SharedFd::try_unwrap`).
    ///
    /// # Errors
    /// No descriptors are left.
    #[allow(unsafe_code)]
    pub(crate) fn moving(&self) -> io::Result<Moving> {
        // SAFETY: `self` keeps the descriptor open meanwhile.
        let own = unsafe { BorrowedFd::borrow_raw(self.raw_fd()) };
        let copy = own.try_clone_to_owned()?;
        Ok(match self {
            Stream::Tcp(_) => Moving::Tcp(copy.into()),
            Stream::Unix(_) => Moving::Unix(copy.into()),
        })
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.writable(true).await,
            Stream::Unix(stream) => stream.writable(true).await,
        }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Reads once; 0 is the end of the stream.
    pub(crate) async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        match self {
            Stream::Tcp(stream) => stream.read(buffer).await,
            Stream::Unix(stream) => stream.read(buffer).await,
        }
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.write(bytes).await.0
    }

    /// Writes all of `bytes` and wipes them.
    pub(crate) async fn write_secret(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let (result, bytes) = self.write(bytes).await;
        drop(zeroize::Zeroizing::new(bytes));
        result
    }

    async fn write(&mut self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let (result, bytes) = match self {
            Stream::Tcp(stream) => stream.write_all(bytes).await,
            Stream::Unix(stream) => stream.write_all(bytes).await,
        };
        (result.map(drop), bytes)
    }

    /// Sends FIN and reads what the peer still has to say, until it closes too
    /// or the watchdog cuts it off. Closing over unread bytes would reset the
    /// connection and could take our last words with it.
    pub(crate) async fn linger(&mut self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown().await,
            Stream::Unix(stream) => stream.shutdown().await,
        };
        let mut buffer = Buffer::take(crate::buffer::Size::Small);
        let mut left = LINGER_MOST;
        loop {
            buffer.consume(usize::MAX);
            let (result, back) = self.read(buffer).await;
            buffer = back;
            match result {
                Ok(n) if n > 0 && n < left => left -= n,
                _ => return,
            }
        }
    }

    /// Both halves, to be used at the same time.
    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Unix(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
        }
    }
}

impl ReadHalf {
    /// Reads once; 0 is the end of the stream.
    #[inline]
    pub(crate) async fn read(&mut self, buffer: Buffer) -> (io::Result<usize>, Buffer) {
        match self {
            ReadHalf::Tcp(half) => half.read(buffer).await,
            ReadHalf::Unix(half) => half.read(buffer).await,
        }
    }

    /// Waits until a read would bring something: bytes, the end, or an error. Who
    /// waits so holds no buffer, and pays half a microsecond for it.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        // On epoll `relaxed` would believe a readiness that the last read used up.
        const RELAXED: bool = false;
        match self {
            ReadHalf::Tcp(half) => tcp(half).readable(RELAXED).await,
            ReadHalf::Unix(half) => unix(half).readable(RELAXED).await,
        }
    }

    /// Reads what is there into `buffer`'s room; 0 is the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing is there.
    pub(crate) fn read_now(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        let fd = match self {
            ReadHalf::Tcp(half) => tcp(half).as_raw_fd(),
            ReadHalf::Unix(half) => unix(half).as_raw_fd(),
        };
        loop {
            // With io_uring the sockets are blocking ones.
            match recv(fd, buffer.room_mut(), MsgFlags::MSG_DONTWAIT) {
                Ok(n) => {
                    buffer.advance(n);
                    return Ok(n);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// monoio's halves have the stream in them and lend it to nobody, although all
/// that is wanted of it takes `&self`.
#[allow(unsafe_code)]
fn tcp(half: &OwnedReadHalf<TcpStream>) -> &TcpStream {
    // SAFETY: the cell is alive as long as `half`, this thread is the only one
    // that has it, and monoio's own methods of a half borrow it in the same way:
    // none changes the stream, which is a counted descriptor.
    unsafe { &*half.0.get() }
}

/// As [`tcp`].
#[allow(unsafe_code)]
fn unix(half: &OwnedReadHalf<UnixStream>) -> &UnixStream {
    // SAFETY: as above.
    unsafe { &*half.0.get() }
}

impl WriteHalf {
    /// Writes all that `buffer` holds and gives it back empty.
    #[inline]
    pub(crate) async fn write_all(&mut self, mut buffer: Buffer) -> (io::Result<()>, Buffer) {
        while !buffer.is_empty() {
            let (result, back) = match self {
                WriteHalf::Tcp(half) => half.write(buffer).await,
                WriteHalf::Unix(half) => half.write(buffer).await,
            };
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(n) => buffer.consume(n),
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends FIN: the peer reads the end of the stream.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(half) => half.shutdown().await,
            WriteHalf::Unix(half) => half.shutdown().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free() -> Door {
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
