//! The small HTTP/1.1 server under the mock's PCCS, guest agent and Trust Authority.
//!
//! Bounded (connections, request size, time); one request a connection, a thread for each. It stops when
//! dropped, and takes its socket file along. What is answered, and how badly, is the handler's business.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most connections at once; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// Most bytes of a request's head: those that are sent here have at most 300.
const MAX_HEAD: usize = 8 << 10;
/// Most bytes of a request's body.
const MAX_BODY: usize = 64 << 10;
/// Longest wait for a request, and for a client that does not read.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a held connection looks whether the server stops.
pub(super) const SLICE: Duration = Duration::from_millis(20);
/// Bytes of an answer that is far too large, if the client takes them.
pub(super) const HUGE: usize = 100 << 20;

/// One request.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    /// Content-Type, lowercase, without parameters.
    pub(super) content_type: Option<String>,
    /// X-Api-Key.
    pub(super) api_key: Option<String>,
    pub(super) body: Vec<u8>,
}

/// A client's connection.
pub(super) trait Connection: Read + Write {}

impl Connection for TcpStream {}
impl Connection for UnixStream {}

/// Answers one request. An error ends the connection: what the client does to it is its business.
pub(super) trait Handler: Send + Sync + 'static {
    fn answer(&self, request: &Request, to: &mut dyn Connection, stop: &Stop) -> io::Result<()>;
}

/// Whether the server stops.
#[derive(Default)]
pub(super) struct Stop(AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Calls `each` once per [`SLICE`] until it says true, the server stops, or `longest` is over.
    pub(super) fn hold(
        &self,
        longest: Duration,
        mut each: impl FnMut(u32) -> io::Result<bool>,
    ) -> io::Result<()> {
        let slices = longest.as_millis().div_ceil(SLICE.as_millis());
        for slice in 0..u32::try_from(slices).unwrap_or(u32::MAX) {
            if self.is_set() || each(slice)? {
                return Ok(());
            }
            std::thread::sleep(SLICE);
        }
        Ok(())
    }
}

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// `http://127.0.0.1:<port>`, or `unix:<path>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A server that listens until it is dropped.
pub(super) struct Server {
    stop: Arc<Stop>,
    address: Address,
    /// Device and inode of the socket file: a later server may have put its own in its place.
    file: Option<(u64, u64)>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on 127.0.0.1, on a free port.
    pub(super) fn tcp(name: &'static str, handler: Arc<impl Handler>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = Address::Tcp(listener.local_addr()?);
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
            Ok(stream)
        };
        Self::run(name, address, None, accept, handler)
    }

    /// Listens on a Unix socket. A socket file that nobody listens on is replaced.
    pub(super) fn unix(
        name: &'static str,
        path: &Path,
        handler: Arc<impl Handler>,
    ) -> io::Result<Self> {
        remove_if_dead(path)?;
        let listener = UnixListener::bind(path)?;
        let file = identity(path);
        let accept = move || {
            let (stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
            stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
            Ok(stream)
        };
        Self::run(name, Address::Unix(path.to_owned()), file, accept, handler)
    }

    fn run<C: Connection + Send + 'static>(
        name: &'static str,
        address: Address,
        file: Option<(u64, u64)>,
        accept: impl Fn() -> io::Result<C> + Send + 'static,
        handler: Arc<impl Handler>,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let accepting = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve_all(name, &accept, &handler, &accepting))?;
        Ok(Self {
            stop,
            address,
            file,
            thread: Some(thread),
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let woken = match &self.address {
            Address::Tcp(address) => {
                TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok()
            }
            Address::Unix(path) => {
                let ours = self.file.is_some() && identity(path) == self.file;
                ours && UnixStream::connect(path).is_ok()
            }
        };
        if let Address::Unix(path) = &self.address
            && self.file.is_some()
            && identity(path) == self.file
        {
            // It was there a moment ago; if not, so much the better.
            let _ = std::fs::remove_file(path);
        }
        if let Some(thread) = self.thread.take()
            && woken
        {
            // A panic of that thread has been printed, and ends with it.
            let _ = thread.join();
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Removes the socket file that a server which was killed has left behind.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|f| f.file_type().is_socket());
    match is_socket && UnixStream::connect(path).is_err() {
        true => std::fs::remove_file(path),
        false => Ok(()),
    }
}

fn serve_all<C: Connection + Send + 'static>(
    name: &str,
    accept: &impl Fn() -> io::Result<C>,
    handler: &Arc<impl Handler>,
    stop: &Arc<Stop>,
) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = accept();
        if stop.is_set() {
            return;
        }
        let Ok(mut stream) = accepted else {
            // Out of descriptors, perhaps: not in a tight loop.
            std::thread::sleep(SLICE);
            continue;
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (handler, stop) = (Arc::clone(handler), Arc::clone(stop));
        let serving = Arc::clone(&connections);
        let spawned = std::thread::Builder::new()
            .name(format!("{name}-conn"))
            .spawn(move || {
                let _ = serve(&mut stream, &*handler, &stop);
                serving.fetch_sub(1, Ordering::Relaxed);
            });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(stream: &mut dyn Connection, handler: &impl Handler, stop: &Stop) -> io::Result<()> {
    match read(stream)? {
        Some(request) => handler.answer(&request, stream, stop),
        None => Ok(()),
    }
}

/// A request with its body; `None` for what is none, or beyond a cap.
fn read(stream: &mut dyn Connection) -> io::Result<Option<Request>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
        let read = stream.read(&mut chunk)?;
        if read == 0 || bytes.len() > MAX_HEAD {
            return Ok(None);
        }
        bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
    };
    let mut body = bytes.split_off(end + 4);
    let Some((mut request, length)) = parse_head(&String::from_utf8_lossy(&bytes)) else {
        return Ok(None);
    };
    if length > MAX_BODY {
        return Ok(None);
    }
    while body.len() < length {
        let read = stream.read(&mut chunk)?;
        if read == 0 {
            return Ok(None);
        }
        body.extend_from_slice(chunk.get(..read).unwrap_or_default());
    }
    body.truncate(length);
    request.body = body;
    Ok(Some(request))
}

/// The request without its body, and the body's length.
fn parse_head(head: &str) -> Option<(Request, usize)> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |name: &str| {
        let mut named = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    };
    let length = header("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let content_type = header("content-type").and_then(|value| value.split(';').next());
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        content_type: content_type.map(|value| value.trim().to_ascii_lowercase()),
        api_key: header("x-api-key").map(str::to_owned),
        body: Vec::new(),
    };
    Some((request, length))
}

/// The head of an answer whose body has `length` bytes. `headers` end with a line end each.
pub(super) fn head(status: u16, headers: &str, length: usize) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Mock",
    };
    format!(
        "HTTP/1.1 {status} {reason}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes()
}

/// [`HUGE`] bytes, 64 KiB at a time, each after `prefix` (and with a line end after it, if there is one).
pub(super) fn send_huge(to: &mut dyn Connection, prefix: &[u8]) -> io::Result<()> {
    let block = vec![b' '; 1 << 16];
    let suffix: &[u8] = if prefix.is_empty() { b"" } else { b"\r\n" };
    for _ in 0..HUGE / block.len() {
        to.write_all(&[prefix, &block, suffix].concat())?;
    }
    Ok(())
}
