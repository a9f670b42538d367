//! The forwarder: accepts plaintext connections on this machine, and forwards them over mutually
//! attested TLS. This one has its own threads, and runs as a process:
//!
//! ```no_run
//! use engine::Forwarder;
//! use engine::config::ForwarderConfig;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = ForwarderConfig::from_settings([("target", "db.example:5433")])?;
//! let forwarder = Forwarder::start(config)?;
//! println!("connect to {}", forwarder.dsn());
//! forwarder.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! Those that are part of a program share their threads ([`crate::app::embed`]). Both start in `forwarder::start`.
//!
//! It must never listen beyond this machine, because its clients are not authenticated.

pub(crate) mod admin_source;
mod identity;
mod listen;
pub(crate) mod start;

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc as channel, oneshot};

use crate::app::error::{StartError, system};
use crate::app::lifecycle;
use crate::config::{Errors, ForwarderConfig, Listen};
use start::{Additions, Threads};

pub(crate) use listen::{dsn, host_and_port};

/// A forwarder that accepts connections until it is stopped or dropped.
pub struct Forwarder {
    local: Listen,
    /// Each message is a stop request, or with SIGHUP a request to reload.
    stop_requests: channel::UnboundedSender<SignalKind>,
    /// Closed when the control thread ends.
    ended: oneshot::Receiver<()>,
    control_thread: Option<JoinHandle<Result<(), StartError>>>,
}

impl Forwarder {
    /// Starts the threads, and waits until drivers can connect.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: ForwarderConfig) -> Result<Self, StartError> {
        Self::start_with_reload(config, || {
            Err(Errors(vec![
                "this forwarder has no configuration to reload".to_owned(),
            ]))
        })
    }

    /// As [`Self::start`]. [`Self::request_reload`] reads the configuration again with `read_config`; its policy
    /// takes effect.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) fn start_with_reload(
        config: ForwarderConfig,
        read_config: impl Fn() -> Result<ForwarderConfig, Errors> + Send + 'static,
    ) -> Result<Self, StartError> {
        let (stop_requests, requests) = channel::unbounded_channel();
        let (alive, ended) = oneshot::channel();
        let (address_sender, address_receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(move || {
                let _alive: oneshot::Sender<()> = alive;
                run_control_thread(config, read_config, requests, &address_sender)
            })
            .map_err(system("cannot start a thread"))?;
        match address_receiver.recv() {
            Ok(local) => Ok(Self {
                local,
                stop_requests,
                ended,
                control_thread: Some(thread),
            }),
            // The thread has ended, with an error.
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(StartError::Shard(
                    "the control thread ended before the forwarder started".to_owned(),
                )),
            },
        }
    }

    /// The address that drivers connect to.
    #[must_use]
    pub fn local(&self) -> &Listen {
        &self.local
    }

    /// Host and port in the form of `PGHOST` and `PGPORT`: for a Unix socket, the host is
    /// the directory of the socket.
    #[must_use]
    pub fn host_and_port(&self) -> (String, u16) {
        host_and_port(&self.local)
    }

    /// A DSN without role, database and password, which the driver adds.
    #[must_use]
    pub fn dsn(&self) -> String {
        dsn(&self.local)
    }

    /// Stops accepting, lets sessions finish for `drain_timeout`, then terminates them.
    ///
    /// # Errors
    /// A shard has failed.
    pub fn stop(mut self) -> Result<(), StartError> {
        self.request_stop();
        self.join()
    }

    /// Requests a reload of the configuration.
    pub(crate) fn request_reload(&self) {
        let _ = self.stop_requests.send(SignalKind::hangup());
    }

    /// Requests a stop. The first request starts the drain; the second one terminates the
    /// sessions.
    pub(crate) fn request_stop(&self) {
        let _ = self.stop_requests.send(SignalKind::terminate());
    }

    /// Waits until the forwarder has ended, after a stop request or because a shard failed.
    pub(crate) async fn ended(&mut self) {
        // No message is ever sent. A receiver that has completed must not be polled again.
        if !self.ended.is_terminated() {
            let _ = (&mut self.ended).await;
        }
    }

    fn join(&mut self) -> Result<(), StartError> {
        match self.control_thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(StartError::Shard("panic".to_owned())),
            None => Ok(()),
        }
    }
}

impl Drop for Forwarder {
    /// Terminates the sessions without a drain.
    fn drop(&mut self) {
        self.request_stop();
        self.request_stop();
        let _ = self.join();
    }
}

/// The control thread, from start to end.
fn run_control_thread(
    config: ForwarderConfig,
    read_config: impl Fn() -> Result<ForwarderConfig, Errors>,
    mut stop_requests: channel::UnboundedReceiver<SignalKind>,
    address_sender: &mpsc::Sender<Listen>,
) -> Result<(), StartError> {
    lifecycle::run_control_thread(async {
        let additions = Additions::default();
        let started = start::start(config, read_config, Threads::Own, additions);
        let (mut running, mut lifecycle) = started.await?;
        // The receiver is dropped if `Forwarder::start` has returned.
        let _ = address_sender.send(running.local().clone());
        lifecycle.run(&mut running, &mut stop_requests).await?;
        Ok(())
    })
}
