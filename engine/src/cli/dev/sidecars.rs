//! The sidecars of `dev`. Each runs on its own control thread, as in a process, and gets the signals of
//! this process through a channel.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};

use super::error::{DevError, system};
use crate::app::error::StartError;
use crate::app::lifecycle::Outcome;
use crate::app::sidecar::{self, Addresses};
use crate::app::signals::ProcessSignals;
use crate::config::{Config, Layers, Scope, with_flags};

type SidecarResult = Result<Outcome, DevError>;

/// The running sidecars.
pub(super) struct Sidecars {
    running: usize,
    signals: Vec<mpsc::UnboundedSender<SignalKind>>,
    sender: mpsc::UnboundedSender<SidecarResult>,
    results: mpsc::UnboundedReceiver<SidecarResult>,
}

impl Default for Sidecars {
    fn default() -> Self {
        let (sender, results) = mpsc::unbounded_channel();
        Self {
            running: 0,
            signals: Vec::new(),
            sender,
            results,
        }
    }
}

impl Sidecars {
    /// Starts a sidecar. The receiver gets its addresses once clients can connect, or an error if it
    /// ends before that.
    pub(super) fn start(
        &mut self,
        settings: BTreeMap<&'static str, OsString>,
    ) -> Result<oneshot::Receiver<Addresses>, DevError> {
        let (started, addresses) = oneshot::channel();
        let (signal, signals) = mpsc::unbounded_channel();
        let sender = self.sender.clone();
        let on_start = |addresses| {
            // The receiver is dropped if a signal arrives first.
            let _ = started.send(addresses);
        };
        let run = move || {
            Ok(sidecar::run_embedded(
                configure(&settings)?,
                on_start,
                signals,
            )?)
        };
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(run));
                let panicked = |_| Err(StartError::Shard("panic".to_owned()).into());
                let _ = sender.send(result.unwrap_or_else(panicked));
            })
            .map_err(system("cannot start a thread"))?;
        self.running += 1;
        self.signals.push(signal);
        Ok(addresses)
    }

    /// Waits until a sidecar ends.
    pub(super) async fn next_outcome(&mut self) -> SidecarResult {
        match self.results.recv().await {
            Some(result) => {
                self.running = self.running.saturating_sub(1);
                result
            }
            // Unreachable: `self` has a sender.
            None => std::future::pending().await,
        }
    }

    /// Stops all sidecars; immediately, if another signal arrives. Returns the first error.
    pub(super) async fn stop(mut self, signals: &mut ProcessSignals) -> SidecarResult {
        self.send(SignalKind::terminate());
        let mut outcome = Ok(Outcome::Drained);
        while self.running > 0 {
            tokio::select! {
                result = self.next_outcome() => outcome = outcome.and(result),
                _ = signals.next() => self.send(SignalKind::terminate()),
            }
        }
        outcome
    }

    fn send(&self, signal: SignalKind) {
        for sidecar in &self.signals {
            // A sidecar that has ended needs no signal.
            let _ = sidecar.send(signal);
        }
    }
}

/// The configuration that `serve` reads from an environment with only these variables.
fn configure(settings: &BTreeMap<&'static str, OsString>) -> Result<Config, DevError> {
    let command = with_flags(clap::Command::new("serve"), Scope::Serve);
    let flags = command.get_matches_from(["serve"]);
    let environment = |name: &str| settings.get(name).cloned();
    let layers = Layers::gather(Scope::Serve, &flags, environment, std::iter::empty());
    Ok(Config::from_layers(&layers)?)
}
