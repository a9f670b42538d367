//! The admin thread, its listener and its connections.
//!
//! Each connection gets one response and a lingering close. The server must never block the rest of
//! the process: a source that blocks affects the admin thread only.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::connection_slots::{ConnectionSlots, EvictReason, Slot, SlotGuard};
use crate::readiness::Readiness;
use crate::route::Route;
use crate::router::Router;
use crate::settings::Settings;
use crate::source::Source;
use crate::stats::Stats;

/// Maximum size of a request head in bytes. Operators and scrapers send less than 1 KiB; this is
/// the smallest value that hyper accepts.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Maximum number of request headers: browsers behind two proxies send about 30.
const MAX_HEADERS: usize = 64;
/// Duration of the lingering close: a socket that is closed with unread bytes is reset, and the
/// reset can overtake the response. So the server reads and discards for this long, ...
const LINGERING_TIME: Duration = Duration::from_secs(1);
/// ... and up to this many bytes, more than a client sends here by mistake.
const LINGERING_BYTES: usize = 256 << 10;
/// Pause after a failed accept, which usually means that the process is out of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long stopping waits for the thread. The thread needs a millisecond unless the source blocks
/// it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle to the running server, which stops when the handle is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stats: Arc<Stats>,
    stop: Option<oneshot::Sender<()>>,
    /// Disconnects when the thread has finished.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Serves `listener` on a dedicated thread named `admin`, with its own single-threaded runtime.
///
/// # Errors
/// If the listener cannot be used, or the system is out of threads or file descriptors.
pub fn start(
    listener: TcpListener,
    readiness: Readiness,
    source: Arc<impl Source>,
    settings: Settings,
) -> io::Result<Server> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _guard = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let stats = Arc::new(Stats::default());
    let state = ServerState::new(readiness, source, Arc::clone(&stats), &settings);
    let (stop, stopped) = oneshot::channel();
    let (alive, ended) = mpsc::channel();
    let thread = thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            run(runtime, state, &listener, stopped);
            drop(alive);
        })?;
    Ok(Server {
        address,
        stats,
        stop: Some(stop),
        ended,
        thread: Some(thread),
    })
}

impl Server {
    /// The address that the server listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Closes the listener and every connection.
    ///
    /// Returns true if the thread ended within 2 s. False means that the source blocks the thread,
    /// which then ends with the process.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.shut_down()
    }

    fn shut_down(&mut self) -> bool {
        if let Some(stop) = self.stop.take() {
            // Fails if the thread has already ended.
            let _ = stop.send(());
        }
        let received = self.ended.recv_timeout(STOP_TIMEOUT);
        let ended = received == Err(RecvTimeoutError::Disconnected);
        match self.thread.take() {
            Some(thread) if ended => thread.join().is_ok(),
            _ => ended,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.shut_down();
        }
    }
}

/// The body of the admin thread.
fn run(
    runtime: Runtime,
    state: ServerState,
    listener: &tokio::net::TcpListener,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        tokio::select! {
            // An error means that the handle was dropped, which stops the server too.
            _ = stopped => {}
            () = state.accept_loop(listener) => {}
        }
    });
    // Does not wait for what the source may run on blocking threads.
    runtime.shutdown_background();
}

/// State shared by all connections.
struct ServerState {
    http: http1::Builder,
    slots: Arc<ConnectionSlots>,
    router: Arc<Router>,
    stats: Arc<Stats>,
}

impl ServerState {
    fn new(
        readiness: Readiness,
        source: Arc<dyn Source>,
        stats: Arc<Stats>,
        settings: &Settings,
    ) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            // One response per connection: without a second request, no request smuggling.
            .keep_alive(false);
        let router = Router::new(readiness, source, Arc::clone(&stats), settings);
        Self {
            http,
            slots: ConnectionSlots::new(settings),
            router: Arc::new(router),
            stats,
        }
    }

    /// Accepts connections until the future is dropped.
    async fn accept_loop(&self, listener: &tokio::net::TcpListener) {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    failing = false;
                    self.admit(stream, client.ip()).await;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "admin server: accept failed, retrying");
                    }
                    failing = true;
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream, client: IpAddr) {
        self.stats.connections.increment();
        match self.slots.acquire() {
            Some(guard) => drop(tokio::spawn(self.serve(stream, client, guard))),
            None => self.stats.evicted.increment(),
        }
        // Let the other tasks run before the next accept: an evicted connection closes, and a
        // request that has already arrived is read before its connection can be evicted.
        tokio::task::yield_now().await;
    }

    /// Serves one connection until it is complete or evicted.
    fn serve(
        &self,
        stream: TcpStream,
        client: IpAddr,
        guard: SlotGuard,
    ) -> impl Future<Output = ()> + use<> {
        let (router, stats) = (Arc::clone(&self.router), Arc::clone(&self.stats));
        let http = self.http.clone();
        async move {
            let slot = Arc::clone(guard.slot());
            tokio::select! {
                () = serve_request(&http, stream, client, &slot, router, &stats) => {}
                reason = slot.wait_for_eviction() => match reason {
                    EvictReason::NewerConnection => stats.evicted.increment(),
                    EvictReason::Timeout => stats.timed_out.increment(),
                },
            }
        }
    }
}

/// Reads one request and sends its response.
async fn serve_request(
    http: &http1::Builder,
    stream: TcpStream,
    client: IpAddr,
    slot: &Arc<Slot>,
    router: Arc<Router>,
    stats: &Stats,
) {
    let service = service_fn(|request| {
        handle_request(request, client, Arc::clone(slot), Arc::clone(&router))
    });
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    match poll_fn(|cx| connection.poll_without_shutdown(cx)).await {
        Ok(()) => {}
        // hyper has already sent a 400.
        Err(error) if error.is_parse() => {
            stats.record_response(Route::Other, StatusCode::BAD_REQUEST);
        }
        Err(error) if error.is_timeout() => return stats.timed_out.increment(),
        // The client has disconnected.
        Err(_) => return,
    }
    lingering_close(connection.into_parts().io.into_inner()).await;
}

type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

fn handle_request(
    request: Request<Incoming>,
    client: IpAddr,
    slot: Arc<Slot>,
    router: Arc<Router>,
) -> ResponseFuture {
    Box::pin(async move {
        slot.request_received();
        // A request body is never read.
        let (head, _) = request.into_parts();
        let response = router.handle(&head, client).await;
        slot.response_ready();
        Ok(response)
    })
}

/// Lingering close: sends FIN, then discards what the client still sends.
async fn lingering_close(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let (mut remaining, mut scratch) = (LINGERING_BYTES, [0; 4 << 10]);
        while remaining > 0 {
            match stream.read(&mut scratch).await? {
                0 => break,
                read => remaining = remaining.saturating_sub(read),
            }
        }
        io::Result::Ok(())
    };
    // The response has been sent, so errors no longer matter.
    let _ = timeout(LINGERING_TIME, drained).await;
}
