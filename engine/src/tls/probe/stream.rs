//! Blocking sockets with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::ProbeError;
use crate::io::target::MAX_ADDRESSES;

const AT_NAME: &str = "while resolving the name";
const AT_CONNECT: &str = "while connecting";
pub(super) const AT_SSL_REQUEST: &str = "after an SSLRequest";
pub(super) const AT_HANDSHAKE: &str = "during the TLS handshake";

/// The time until the deadline.
///
/// # Errors
/// It has passed.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    match remaining.is_zero() {
        true => Err(ErrorKind::TimedOut.into()),
        false => Ok(remaining),
    }
}

/// Resolves `host`. The system's resolver has no deadline, so it runs on a separate thread, which is
/// abandoned if it takes too long.
pub(super) fn resolve(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, ProbeError> {
    let (sender, receiver) = mpsc::channel();
    let host = host.to_owned();
    std::thread::spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs();
        let addresses = addresses.map(|all| all.take(MAX_ADDRESSES).collect::<Vec<_>>());
        // The receiver is gone after the deadline.
        let _ = sender.send(addresses);
    });
    let timeout = remaining(deadline).map_err(|_| ProbeError::Timeout(AT_NAME))?;
    let addresses = receiver
        .recv_timeout(timeout)
        .map_err(|_| ProbeError::Timeout(AT_NAME))?
        .map_err(|error| ProbeError::Unreachable(error.to_string()))?;
    match addresses.is_empty() {
        true => Err(ProbeError::Unreachable(
            "the name has no address".to_owned(),
        )),
        false => Ok(addresses),
    }
}

/// Connects to the first address that accepts, each with an equal share of the remaining time.
pub(super) fn connect(
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), ProbeError> {
    let mut last = ProbeError::Timeout(AT_CONNECT);
    for (address, others) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let Ok(remaining) = remaining(deadline) else {
            break;
        };
        let share = remaining / u32::try_from(others).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => return Ok((stream, *address)),
            Err(error) if timed_out(&error) => last = ProbeError::Timeout(AT_CONNECT),
            Err(error) => last = ProbeError::Unreachable(format!("{address}: {error}")),
        }
    }
    Err(last)
}

fn timed_out(error: &io::Error) -> bool {
    // On Linux, a socket's own timeout is WouldBlock.
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Classifies an I/O error of a server's connection at `step`.
pub(super) fn io_error(error: &io::Error, step: &'static str) -> ProbeError {
    if timed_out(error) {
        ProbeError::Timeout(step)
    } else if matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ) {
        ProbeError::NoTls(format!("the server closed the connection {step}"))
    } else {
        ProbeError::Unreachable(error.to_string())
    }
}

/// A stream whose reads and writes fail after a deadline.
pub(super) struct DeadlineStream {
    stream: TcpStream,
    deadline: Instant,
}

impl DeadlineStream {
    pub(super) fn new(stream: TcpStream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    /// Changes the deadline.
    pub(super) fn with_deadline(self, deadline: Instant) -> Self {
        Self { deadline, ..self }
    }
}

impl Read for DeadlineStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream
            .set_read_timeout(Some(remaining(self.deadline)?))?;
        self.stream.read(buffer)
    }
}

impl Write for DeadlineStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream
            .set_write_timeout(Some(remaining(self.deadline)?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
