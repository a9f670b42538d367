//! The thread, the listener and the connections.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener};
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

/// Most bytes of a request's head. What operators and scrapers send has below 1 KiB; this is the least
/// that hyper can be told.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Most headers of a request: browsers behind two proxies send about 30.
const MAX_HEADERS: usize = 64;
/// A socket that is closed with bytes unread is reset, and the reset can overtake the answer. So what a
/// client still sends is read for this long, ...
const LINGERING_TIME: Duration = Duration::from_secs(1);
/// ... and up to this many bytes, more than anybody sends here by mistake.
const LINGERING_BYTES: usize = 256 << 10;
/// From a failed accept, most often for want of descriptors, to the next.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long stopping waits for the thread. It needs a millisecond, unless the source blocks it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The running server. Stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stats: Arc<Stats>,
    stop: Option<oneshot::Sender<()>>,
    /// Disconnected when the thread has nothing left to do.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// Serves `listener` on a thread of its own, named `admin`, with a runtime of its own.
///
/// # Errors
/// The listener cannot be used, or the system has no thread or descriptor left.
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
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Closes the listener and every connection. True when the thread has ended within 2 s; false when
    /// the source blocks it, and it ends with the process.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.shut_down()
    }

    fn shut_down(&mut self) -> bool {
        if let Some(stop) = self.stop.take() {
            // A thread that has ended before needs no order.
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

/// The thread.
fn run(
    runtime: Runtime,
    state: ServerState,
    listener: &tokio::net::TcpListener,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        tokio::select! {
            // An error is a server that is gone: the same.
            _ = stopped => {}
            () = state.accept_loop(listener) => {}
        }
    });
    // Without waiting for what the source may have on blocking threads.
    runtime.shutdown_background();
}

/// What all connections share.
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
            // One answer, then the end. Where two parties could disagree on where a request ends,
            // there is no second request.
            .keep_alive(false);
        let router = Router::new(readiness, source, Arc::clone(&stats), settings);
        Self {
            http,
            slots: ConnectionSlots::new(settings),
            router: Arc::new(router),
            stats,
        }
    }

    /// Until it is dropped.
    async fn accept_loop(&self, listener: &tokio::net::TcpListener) {
        let mut failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    failing = false;
                    self.admit(stream).await;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "the admin server cannot accept connections");
                    }
                    failing = true;
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    async fn admit(&self, stream: TcpStream) {
        self.stats.connections.increment();
        match self.slots.acquire() {
            Some(guard) => drop(tokio::spawn(self.serve(stream, guard))),
            None => self.stats.evicted.increment(),
        }
        // Before the next one comes, all that have something to do get a turn: who was displaced
        // goes, and a request that has arrived is read instead of displaced by a crowd.
        tokio::task::yield_now().await;
    }

    /// The whole life of one connection.
    fn serve(&self, stream: TcpStream, guard: SlotGuard) -> impl Future<Output = ()> + use<> {
        let (router, stats) = (Arc::clone(&self.router), Arc::clone(&self.stats));
        let http = self.http.clone();
        async move {
            let slot = Arc::clone(guard.slot());
            tokio::select! {
                () = serve_request(&http, stream, &slot, router, &stats) => {}
                reason = slot.wait_for_eviction() => match reason {
                    EvictReason::NewerConnection => stats.evicted.increment(),
                    EvictReason::Timeout => stats.timed_out.increment(),
                },
            }
        }
    }
}

/// One request and its answer.
async fn serve_request(
    http: &http1::Builder,
    stream: TcpStream,
    slot: &Arc<Slot>,
    router: Arc<Router>,
    stats: &Stats,
) {
    let service =
        service_fn(|request| handle_request(request, Arc::clone(slot), Arc::clone(&router)));
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    match poll_fn(|cx| connection.poll_without_shutdown(cx)).await {
        Ok(()) => {}
        // hyper has said so to the client.
        Err(error) if error.is_parse() => {
            stats.record_response(Route::Other, StatusCode::BAD_REQUEST);
        }
        Err(error) if error.is_timeout() => return stats.timed_out.increment(),
        // The client has gone.
        Err(_) => return,
    }
    lingering_close(connection.into_parts().io.into_inner()).await;
}

type ResponseFuture =
    Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

fn handle_request(
    request: Request<Incoming>,
    slot: Arc<Slot>,
    router: Arc<Router>,
) -> ResponseFuture {
    Box::pin(async move {
        slot.request_received();
        // The body, if there is one, is never looked at.
        let (head, _) = request.into_parts();
        let response = router.handle(&head).await;
        slot.response_ready();
        Ok(response)
    })
}

/// Sends FIN, and reads what still comes.
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
    // Whatever comes of it, the answer has been sent.
    let _ = timeout(LINGERING_TIME, drained).await;
}
