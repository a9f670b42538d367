//! The sidecars of `dev`, each on a thread of its own as in a process of its
//! own; the signals are ours, and passed on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::signal::unix::SignalKind;
use tokio::sync::{mpsc, oneshot};

use super::{DevError, system};
use crate::app::error::StartError;
use crate::app::lifecycle::Outcome;
use crate::app::sidecar::{self, Addresses};
use crate::app::signals::ProcessSignals;
use crate::config::{Config, Layers, Scope, with_flags};

type End = Result<Outcome, DevError>;

/// Those that run.
pub(super) struct Sidecars {
    running: usize,
    orders: Vec<mpsc::UnboundedSender<SignalKind>>,
    report: mpsc::UnboundedSender<End>,
    ended: mpsc::UnboundedReceiver<End>,
}

impl Default for Sidecars {
    fn default() -> Self {
        let (report, ended) = mpsc::unbounded_channel();
        Self {
            running: 0,
            orders: Vec::new(),
            report,
            ended,
        }
    }
}

impl Sidecars {
    /// Starts one. Its addresses come when clients can connect, and never where
    /// it ended before.
    pub(super) fn start(
        &mut self,
        settings: BTreeMap<&'static str, OsString>,
    ) -> Result<oneshot::Receiver<Addresses>, DevError> {
        let (started, addresses) = oneshot::channel();
        let (order, orders) = mpsc::unbounded_channel();
        let report = self.report.clone();
        let tell = |addresses| {
            // Who waits for it may have given up.
            let _ = started.send(addresses);
        };
        let run = move || Ok(sidecar::run_embedded(configure(&settings)?, tell, orders)?);
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                let ended = catch_unwind(AssertUnwindSafe(run));
                let panicked = |_| Err(StartError::Shard("panic".to_owned()).into());
                let _ = report.send(ended.unwrap_or_else(panicked));
            })
            .map_err(system("cannot start a thread"))?;
        self.running += 1;
        self.orders.push(order);
        Ok(addresses)
    }

    /// The end of one of them.
    pub(super) async fn next_end(&mut self) -> End {
        match self.ended.recv().await {
            Some(end) => {
                self.running = self.running.saturating_sub(1);
                end
            }
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Lets them end in order, or at once where another signal asks for that.
    pub(super) async fn end(mut self, signals: &mut ProcessSignals) -> End {
        self.tell(SignalKind::terminate());
        let mut outcome = Ok(Outcome::Drained);
        while self.running > 0 {
            tokio::select! {
                ended = self.next_end() => outcome = outcome.and(ended),
                _ = signals.next() => self.tell(SignalKind::terminate()),
            }
        }
        outcome
    }

    fn tell(&self, order: SignalKind) {
        for sidecar in &self.orders {
            // One that has ended needs no order.
            let _ = sidecar.send(order);
        }
    }
}

/// As `serve` would read it from an environment of just these.
fn configure(settings: &BTreeMap<&'static str, OsString>) -> Result<Config, DevError> {
    let command = with_flags(clap::Command::new("serve"), Scope::Serve);
    let flags = command.get_matches_from(["serve"]);
    let said = |name: &str| settings.get(name).cloned();
    let layers = Layers::gather(Scope::Serve, &flags, said, std::iter::empty());
    Ok(Config::from_layers(&layers)?)
}
