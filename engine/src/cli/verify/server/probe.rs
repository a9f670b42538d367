//! Blocking sockets under one deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Trouble;

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

const AT_NAME: &str = "resolving the name";
const AT_CONNECT: &str = "connecting";
pub(super) const AT_SSL_REQUEST: &str = "after an SSLRequest";
pub(super) const AT_HANDSHAKE: &str = "in the TLS handshake";

/// What is left; a time-out if nothing is.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// The addresses of `host`. The system's resolver knows no deadline, so it has a
/// thread of its own, which is left behind if it takes too long.
pub(super) fn resolve(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, Trouble> {
    let (answer, question) = (mpsc::channel(), host.to_owned());
    let (sender, receiver) = answer;
    std::thread::spawn(move || {
        let found = (question.as_str(), port).to_socket_addrs();
        let found = found.map(|found| found.take(MAX_ADDRESSES).collect::<Vec<_>>());
        // Nobody listens any more after the deadline.
        let _ = sender.send(found);
    });
    let patience = left(deadline).map_err(|_| Trouble::Timeout(AT_NAME))?;
    let found = receiver
        .recv_timeout(patience)
        .map_err(|_| Trouble::Timeout(AT_NAME))?
        .map_err(|error| Trouble::Unreachable(error.to_string()))?;
    match found.is_empty() {
        true => Err(Trouble::Unreachable("the name has no address".to_owned())),
        false => Ok(found),
    }
}

/// The first address that takes a connection, each with an equal share of the time
/// that is left.
pub(super) fn connect(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Trouble> {
    let mut last = Trouble::Timeout(AT_CONNECT);
    for (address, others) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let Ok(left) = left(deadline) else {
            break;
        };
        let share = left / u32::try_from(others).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) if timed_out(&error) => last = Trouble::Timeout(AT_CONNECT),
            Err(error) => last = Trouble::Unreachable(format!("{address}: {error}")),
        }
    }
    Err(last)
}

fn timed_out(error: &io::Error) -> bool {
    // A socket's own time-out is WouldBlock on Linux.
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// What it means that a server's bytes end here.
pub(super) fn broken(error: &io::Error, step: &'static str) -> Trouble {
    if timed_out(error) {
        Trouble::Timeout(step)
    } else if matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ) {
        Trouble::NoTls(format!("the server hung up {step}"))
    } else {
        Trouble::Unreachable(error.to_string())
    }
}

/// A stream whose reads and writes all end by one deadline.
pub(super) struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    pub(super) fn new(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    /// With another deadline.
    pub(super) fn until(self, deadline: Instant) -> Self {
        Self { deadline, ..self }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
