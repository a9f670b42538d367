//! The HTTP/1.1 server under the mock PCCS, guest agent and Trust Authority: hyper on a thread with
//! its own single-threaded runtime.
//!
//! It exists so that the mocks accept every request that a real server accepts, absolute-form targets
//! and chunked bodies included. It serves one request per connection. Connections, request bodies and
//! the time that a request may take to arrive are bounded. Handlers run on the runtime's blocking pool,
//! because they sign, verify and sleep.
//!
//! Every [`Delivery`] is made with hyper: a connection that closes without a response is a service that
//! fails, and a truncated body is a body that is aborted. No fault needs a raw socket.
//!
//! Dropping [`Server`] must leave no trace: it closes all connections, ends its thread and removes its
//! socket file, unless another server has replaced that file.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// Maximum number of simultaneous connections. Further ones are closed immediately.
const MAX_CONNECTIONS: usize = 64;
/// Maximum size of a request body in bytes.
const MAX_BODY: usize = 64 << 10;
/// Maximum time for a request's head to arrive, and again for its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for running handlers to finish when the server is dropped.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause of the accept loop after an error, such as a process out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// Maximum time that [`Delivery::Stall`] and [`Delivery::Trickle`] hold a connection.
const MAX_HOLD: Duration = Duration::from_secs(60);
/// Interval between two bytes of [`Delivery::Trickle`].
const TRICKLE_INTERVAL: Duration = Duration::from_millis(100);
/// Time for hyper to flush the first half of a body before [`Delivery::Truncate`] aborts the second.
const FLUSH_TIME: Duration = Duration::from_millis(20);
/// Size in bytes of an oversized body, if the client reads that far.
const OVERSIZED_LEN: usize = 100 << 20;
/// Size in bytes of each frame of an oversized body.
const FRAME_LEN: usize = 64 << 10;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const HTML: HeaderValue = HeaderValue::from_static("text/html");

/// How a response reaches the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Complete.
    #[default]
    Complete,
    /// The connection closes without a response.
    Close,
    /// Nothing is sent, and the connection stays open for [`MAX_HOLD`].
    Stall,
    /// The body is sent one byte at a time, one every [`TRICKLE_INTERVAL`].
    Trickle,
    /// The whole length is declared, half of the body is sent, and the connection closes.
    Truncate,
    /// A body of [`OVERSIZED_LEN`] bytes is declared and sent.
    Oversized,
    /// The same, chunked, so that its length is not declared.
    OversizedChunked,
}

/// A response, and how to deliver it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Time to wait before responding.
    pub(super) delay: Duration,
    pub(super) delivery: Delivery,
}

impl Reply {
    /// An empty response. An impossible `status` becomes 500.
    pub(super) fn status(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            ..Self::default()
        }
    }

    pub(super) fn with_body(self, content_type: HeaderValue, body: impl Into<Bytes>) -> Self {
        Self {
            body: body.into(),
            ..self.with_header(CONTENT_TYPE, content_type)
        }
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// A redirect to a port of this host on which nothing listens.
    pub(super) fn redirect() -> Self {
        const ELSEWHERE: HeaderValue = HeaderValue::from_static("http://127.0.0.1:1/");
        Self::status(302).with_header(hyper::header::LOCATION, ELSEWHERE)
    }
}

/// Answers requests. It may block.
pub(super) trait Handler: Send + Sync + 'static {
    fn handle(&self, request: &Request<Bytes>) -> Reply;
}

/// The address of a [`Server`].
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
    address: Address,
    /// Device and inode of the socket file, to tell it from a later server's at the same path.
    file: Option<(u64, u64)>,
    /// Dropped to stop the thread.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Listens on a free port of 127.0.0.1.
    pub(super) fn tcp(name: &'static str, handler: Arc<impl Handler>) -> io::Result<Self> {
        Self::tcp_on(Ipv4Addr::LOCALHOST, name, handler)
    }

    /// Listens on a free port of `ip`.
    pub(super) fn tcp_on(
        ip: Ipv4Addr,
        name: &'static str,
        handler: Arc<impl Handler>,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((ip, 0))?;
        listener.set_nonblocking(true)?;
        let address = Address::Tcp(listener.local_addr()?);
        let listener = || TcpListener::from_std(listener).map(Listener::Tcp);
        Self::start(name, address, listener, handler)
    }

    /// Listens on a Unix socket. Replaces a socket file on which nothing listens.
    pub(super) fn unix(
        name: &'static str,
        path: &Path,
        handler: Arc<impl Handler>,
    ) -> io::Result<Self> {
        remove_if_dead(path)?;
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let address = Address::Unix(path.to_owned());
        let listener = || UnixListener::from_std(listener).map(Listener::Unix);
        Self::start(name, address, listener, handler)
    }

    /// `listener` is called within the new runtime.
    fn start(
        name: &'static str,
        address: Address,
        listener: impl FnOnce() -> io::Result<Listener>,
        handler: Arc<impl Handler>,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .thread_name(name)
            .max_blocking_threads(MAX_CONNECTIONS)
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            listener()?
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(runtime, listener, handler, stopped))?;
        let file = match &address {
            Address::Tcp(_) => None,
            Address::Unix(path) => identity(path),
        };
        Ok(Self {
            address,
            file,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address
            && self.file.is_some()
            && identity(path) == self.file
        {
            // It is fine if the file has been removed in the meantime.
            let _ = std::fs::remove_file(path);
        }
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed by its hook.
            let _ = thread.join();
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Removes the socket file of a server that was killed.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|f| f.file_type().is_socket());
    let is_dead = || std::os::unix::net::UnixStream::connect(path).is_err();
    match is_socket && is_dead() {
        true => std::fs::remove_file(path),
        false => Ok(()),
    }
}

/// The server's thread. Shutting the runtime down closes all connections.
fn run(
    runtime: Runtime,
    listener: Listener,
    handler: Arc<impl Handler>,
    stopped: oneshot::Receiver<Infallible>,
) {
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = accept(listener, handler) => {}
        }
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
}

async fn accept(listener: Listener, handler: Arc<impl Handler>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (handler, permits) = (Arc::clone(&handler), Arc::clone(&permits));
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                spawn_connection(stream, handler, permits);
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                spawn_connection(stream, handler, permits);
            }),
        };
        if accepted.is_err() {
            sleep(ACCEPT_RETRY).await;
        }
    }
}

fn spawn_connection<S>(stream: S, handler: Arc<impl Handler>, permits: Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if let Ok(permit) = permits.try_acquire_owned() {
        tokio::spawn(serve(stream, handler, permit));
    }
}

/// Serves the one request of a connection. Its errors are the client's, or faults that were injected.
async fn serve<S>(stream: S, handler: Arc<impl Handler>, _permit: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(|request| respond(request, Arc::clone(&handler)));
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Why a connection ends without a complete response.
#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("the request body is too slow, too large or broken")]
    Body,
    #[error("the handler panicked")]
    Handler,
    #[error("closed by an injected fault")]
    Fault,
}

type Body = Either<Full<Bytes>, Channel<Bytes, Closed>>;

async fn respond(
    request: Request<Incoming>,
    handler: Arc<impl Handler>,
) -> Result<Response<Body>, Closed> {
    let (head, body) = request.into_parts();
    let body = timeout(REQUEST_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let body = body.map_err(|_| Closed::Body)?.map_err(|_| Closed::Body)?;
    let request = Request::from_parts(head, body.to_bytes());
    let reply = tokio::task::spawn_blocking(move || handler.handle(&request)).await;
    let reply = reply.map_err(|_| Closed::Handler)?;
    sleep(reply.delay).await;
    deliver(reply).await
}

async fn deliver(mut reply: Reply) -> Result<Response<Body>, Closed> {
    let body = reply.body;
    let declared = match reply.delivery {
        Delivery::Oversized => Some(OVERSIZED_LEN),
        Delivery::OversizedChunked => None,
        _ => Some(body.len()),
    };
    let body = match reply.delivery {
        Delivery::Complete => Either::Left(Full::new(body)),
        Delivery::Close => return Err(Closed::Fault),
        Delivery::Stall => {
            sleep(MAX_HOLD).await;
            return Err(Closed::Fault);
        }
        Delivery::Trickle => stream(|sender| trickle(sender, body)),
        Delivery::Truncate => stream(|sender| truncate(sender, body)),
        Delivery::Oversized | Delivery::OversizedChunked => stream(oversize),
    };
    if let (Either::Right(_), Some(length)) = (&body, declared) {
        reply.headers.insert(CONTENT_LENGTH, length.into());
    }
    let mut response = Response::new(body);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    Ok(response)
}

/// A body that `send` produces. It is aborted if `send` ends early.
fn stream<F>(send: impl FnOnce(Sender<Bytes, Closed>) -> F) -> Body
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let (sender, body) = Channel::new(1);
    tokio::spawn(timeout(MAX_HOLD, send(sender)));
    Either::Right(body)
}

/// `None` once the client has gone.
async fn trickle(mut sender: Sender<Bytes, Closed>, mut body: Bytes) -> Option<()> {
    while !body.is_empty() {
        sender.send_data(body.split_to(1)).await.ok()?;
        sleep(TRICKLE_INTERVAL).await;
    }
    Some(())
}

async fn truncate(mut sender: Sender<Bytes, Closed>, mut body: Bytes) -> Option<()> {
    sender.send_data(body.split_to(body.len() / 2)).await.ok()?;
    sleep(FLUSH_TIME).await;
    sender.abort(Closed::Fault);
    Some(())
}

async fn oversize(mut sender: Sender<Bytes, Closed>) -> Option<()> {
    let frame = Bytes::from(vec![b' '; FRAME_LEN]);
    for _ in 0..OVERSIZED_LEN / FRAME_LEN {
        sender.send_data(frame.clone()).await.ok()?;
    }
    Some(())
}
