//! A forwarder that is part of a program: a task on the threads that all of them share, and the handle to it.
//!
//! The program may start it, ask it and stop it on any thread, and drop it anywhere. It must never block the program for
//! longer than [`DROP_GRACE`] when it is dropped, nor leave a thread, a socket or a file behind when it was stopped.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::signal::unix::SignalKind;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use super::error::Error;
use super::options::Options;
use super::runtime::SharedRuntime;
use crate::app::error::StartError;
use crate::app::forwarder::start::{Additions, SharedThreads, Threads, start};
use crate::app::forwarder::{dsn, host_and_port};
use crate::config::connection_uri::{ConnectionUri, DatabaseUrl, UriError};
use crate::config::{Errors, ForwarderConfig, Listen};
use crate::io::block_on::{block_on, block_on_until};
use crate::telemetry::failures::{Failure, Failures};

/// How long dropping a forwarder waits for the end of its sessions, which are terminated.
const DROP_GRACE: Duration = Duration::from_secs(1);

/// How a forwarder has ended; `None` while it runs.
type Ended = Option<Result<(), Error>>;

/// A running forwarder. Dropping it ends its sessions; [`stop`](Self::stop) lets them finish.
///
/// After a `fork`, every method returns an error of [`ErrorKind::Forked`](super::ErrorKind::Forked) in the child, which has
/// none of the threads. Start another forwarder there.
pub struct Forwarder {
    pid: u32,
    /// Taken when it is dropped.
    inner: Option<Inner>,
}

struct Inner {
    local: Listen,
    url: Option<ConnectionUri>,
    failures: Arc<Failures>,
    /// The first message is a request to drain, the second one to terminate.
    requests: mpsc::UnboundedSender<SignalKind>,
    is_stopping: AtomicBool,
    ended: watch::Receiver<Ended>,
    /// Given up when it has stopped. Locked while somebody waits for that.
    runtime: Mutex<Option<Arc<SharedRuntime>>>,
}

impl Forwarder {
    /// Starts a forwarder, and returns when drivers can connect. If the future is dropped first, the forwarder ends.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](super::ErrorKind::Configuration) with all mistakes;
    /// [`ErrorKind::Identity`](super::ErrorKind::Identity) without a client certificate;
    /// [`ErrorKind::System`](super::ErrorKind::System).
    pub async fn start(options: Options) -> Result<Self, Error> {
        let config = options.forwarder_config()?;
        let url = url_of(&config)?;
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let runtime = SharedRuntime::acquire()?;
        match Inner::start(config, url, &options, &runtime).await {
            Ok(inner) => {
                *inner.runtime.lock().await = Some(runtime);
                Ok(Self {
                    pid: std::process::id(),
                    inner: Some(inner),
                })
            }
            Err(error) => {
                runtime.release().await;
                Err(error)
            }
        }
    }

    /// As [`Self::start`], and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_blocking(options: Options) -> Result<Self, Error> {
        block_on(Self::start(options))
    }

    /// Whether this process has started it, and it still runs.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`](super::ErrorKind::Forked), [`ErrorKind::Stopped`](super::ErrorKind::Stopped).
    fn running(&self) -> Result<&Inner, Error> {
        let inner = self.of_this_process()?;
        match &*inner.ended.borrow() {
            None => Ok(inner),
            Some(Ok(())) => Err(Error::stopped()),
            Some(Err(error)) => Err(error.clone()),
        }
    }

    fn of_this_process(&self) -> Result<&Inner, Error> {
        match &self.inner {
            Some(inner) if self.pid == std::process::id() => Ok(inner),
            Some(_) | None => Err(Error::forked()),
        }
    }

    /// Host and port in the form of `PGHOST` and `PGPORT`. Of a Unix socket the host is its directory.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`](super::ErrorKind::Forked), [`ErrorKind::Stopped`](super::ErrorKind::Stopped).
    pub fn host_and_port(&self) -> Result<(String, u16), Error> {
        Ok(host_and_port(&self.running()?.local))
    }

    /// The DSN for a driver: that of the setting `database_url` with this forwarder as its server and without TLS, or if it
    /// is not set, one without role, password and database. It may contain a secret.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`](super::ErrorKind::Forked), [`ErrorKind::Stopped`](super::ErrorKind::Stopped).
    pub fn dsn(&self) -> Result<String, Error> {
        let inner = self.running()?;
        match &inner.url {
            Some(url) => through(url, &inner.local),
            None => Ok(dsn(&inner.local)),
        }
    }

    /// Another DSN with this forwarder as its server. The server in `url` is ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`](super::ErrorKind::Configuration) if `url` is not a connection URI, or has a parameter
    /// that would lead a driver around the forwarder; [`ErrorKind::Forked`](super::ErrorKind::Forked),
    /// [`ErrorKind::Stopped`](super::ErrorKind::Stopped).
    pub fn rewrite(&self, url: &str) -> Result<String, Error> {
        let inner = self.running()?;
        match DatabaseUrl::parse(url) {
            DatabaseUrl::Postgres(uri) => through(&uri, &inner.local),
            DatabaseUrl::OtherDatabase => Err(uri_error(&UriError::NotUri)),
            DatabaseUrl::Unusable(error) => Err(uri_error(&error)),
        }
    }

    /// The newest connection that was refused or ended by an error. A refusal is recorded before the driver learns of it.
    #[must_use]
    pub fn last_failure(&self) -> Option<Failure> {
        self.of_this_process().ok()?.failures.last()
    }

    /// The failures after the one with this number, oldest first; with 0, all that are kept, which are the newest 32.
    #[must_use]
    pub fn failures_after(&self, sequence: u64) -> Vec<Failure> {
        match self.of_this_process() {
            Ok(inner) => inner.failures.after(sequence),
            Err(_) => Vec::new(),
        }
    }

    /// Stops accepting connections, lets sessions finish for `drain_timeout`, then terminates them. When it returns, no
    /// thread, socket or file of this forwarder is left. A further call returns when the first one does.
    ///
    /// # Errors
    /// [`ErrorKind::System`](super::ErrorKind::System) if the forwarder had failed;
    /// [`ErrorKind::Forked`](super::ErrorKind::Forked).
    pub async fn stop(&self) -> Result<(), Error> {
        let inner = self.of_this_process()?;
        inner.request_stop();
        let mut runtime = inner.runtime.lock().await;
        let ended = inner.wait().await;
        if let Some(runtime) = runtime.take() {
            runtime.release().await;
        }
        ended
    }

    /// As [`Self::stop`], and blocks the thread meanwhile.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub fn stop_blocking(&self) -> Result<(), Error> {
        block_on(self.stop())
    }

    /// Ends the sessions that [`Self::stop`] waits for. Does not wait.
    pub fn terminate(&self) {
        if let Ok(inner) = self.of_this_process() {
            inner.terminate();
        }
    }
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.inner.as_ref().map(|inner| &inner.local);
        f.debug_struct("Forwarder")
            .field("local", &local)
            .finish_non_exhaustive()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        if self.pid != std::process::id() {
            // Its threads are those of the parent.
            std::mem::forget(inner);
            return;
        }
        inner.terminate();
        // The threads end on their own if this is too short.
        let _ = block_on_until(Instant::now() + DROP_GRACE, inner.wait());
    }
}

impl Inner {
    async fn start(
        config: ForwarderConfig,
        url: Option<ConnectionUri>,
        options: &Options,
        runtime: &SharedRuntime,
    ) -> Result<Self, Error> {
        let failures = Arc::<Failures>::default();
        let mut additions = Additions {
            failures: Arc::clone(&failures),
            ..Additions::default()
        };
        if let Some(own) = &options.verifier {
            let place = match own.instead_of_dcap {
                true => &mut additions.instead_of_dcap,
                false => &mut additions.verifier,
            };
            *place = Some(own.start(runtime)?);
        }
        let threads = runtime.forwarder_threads()?;
        let (requests, received) = mpsc::unbounded_channel();
        let (started, address) = oneshot::channel();
        let (end, mut ended) = watch::channel(None);
        let task = run(config, threads, additions, received, started);
        runtime.control().spawn(async move {
            let result = match AssertUnwindSafe(task).catch_unwind().await {
                Ok(result) => result.map_err(Error::from),
                Err(_) => Err(Error::internal("a panic on the control thread")),
            };
            end.send_replace(Some(result));
        });
        match address.await {
            Ok(local) => Ok(Self {
                local,
                url,
                failures,
                requests,
                is_stopping: AtomicBool::new(false),
                ended,
                runtime: Mutex::const_new(None),
            }),
            // The task has ended, with an error.
            Err(_) => match wait(&mut ended).await {
                Err(error) => Err(error),
                Ok(()) => Err(Error::internal("the forwarder ended before it had started")),
            },
        }
    }

    async fn wait(&self) -> Result<(), Error> {
        wait(&mut self.ended.clone()).await
    }

    /// Requests a drain, once. Returns whether that was requested before.
    fn request_stop(&self) -> bool {
        let was_stopping = self.is_stopping.swap(true, Ordering::AcqRel);
        if !was_stopping {
            let _ = self.requests.send(SignalKind::terminate());
        }
        was_stopping
    }

    fn terminate(&self) {
        self.request_stop();
        let _ = self.requests.send(SignalKind::terminate());
    }
}

async fn wait(ended: &mut watch::Receiver<Ended>) -> Result<(), Error> {
    let lost = || Err(Error::internal("the control thread has ended"));
    match ended.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or_else(lost),
        Err(_) => lost(),
    }
}

/// The forwarder, on the control thread.
async fn run(
    config: ForwarderConfig,
    threads: SharedThreads,
    additions: Additions,
    mut requests: mpsc::UnboundedReceiver<SignalKind>,
    mut started: oneshot::Sender<Listen>,
) -> Result<(), StartError> {
    let read_config = || {
        let error = "this forwarder has no configuration to reload";
        Err::<ForwarderConfig, _>(Errors(vec![error.to_owned()]))
    };
    let threads = match config.process.sets_shards {
        true => Threads::OwnShards(threads),
        false => Threads::Shared(threads),
    };
    let begun = tokio::select! {
        begun = start(config, read_config, threads, additions) => begun,
        // No caller waits for it any more.
        () = started.closed() => return Ok(()),
    };
    let (mut running, mut lifecycle) = begun?;
    if started.send(running.local().clone()).is_err() {
        // As above. Without sessions it ends at once.
        let (stop, stops) = mpsc::unbounded_channel();
        let _ = stop.send(SignalKind::terminate());
        requests = stops;
    }
    lifecycle.run(&mut running, &mut requests).await?;
    Ok(())
}

/// The connection URI of the configuration, if it is one for Postgres.
fn url_of(config: &ForwarderConfig) -> Result<Option<ConnectionUri>, Error> {
    match &config.database_url {
        None | Some(DatabaseUrl::OtherDatabase) => Ok(None),
        Some(DatabaseUrl::Unusable(error)) => Err(uri_error(error)),
        Some(DatabaseUrl::Postgres(uri)) => {
            // Whether it can be built does not depend on the address.
            let built = uri.through_forwarder("127.0.0.1", 1);
            built.map_err(|error| uri_error(&error))?;
            Ok(Some(uri.clone()))
        }
    }
}

fn through(url: &ConnectionUri, local: &Listen) -> Result<String, Error> {
    let (host, port) = host_and_port(local);
    let built = url.through_forwarder(&host, port);
    built.map_err(|error| uri_error(&error))
}

fn uri_error(error: &UriError) -> Error {
    Error::configuration(error.to_string())
}
