//! Starts, describes and stops forwarders.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use napi::bindgen_prelude::Function;
use napi_derive::napi;
use teesql::{Builder, Error, Failure, Forwarder};

use crate::environment::{Environment, Slot};
use crate::error::{Arguments, ErrorParts, Outcome, outcome};
use crate::executor;
use crate::options::StartSettings;
use crate::verifier::{JsVerifier, Question};

fn with_verifier(builder: Builder, verifier: Option<JsVerifier>, instead_of_dcap: bool) -> Builder {
    match verifier {
        None => builder,
        Some(verifier) if instead_of_dcap => builder.dangerous_verifier_instead_of_dcap(verifier),
        Some(verifier) => builder.verifier(verifier),
    }
}

/// Starts a forwarder, which belongs to the thread of `environment`.
#[napi(catch_unwind)]
pub fn start(
    environment: &Environment,
    settings: StartSettings,
    ask: Option<Function<'_, Question, ()>>,
    done: Function<'_, Arguments<RunningForwarder>, ()>,
) -> napi::Result<()> {
    let instead_of_dcap = settings.verifier_instead_of_dcap;
    let verifier = ask.map(|ask| JsVerifier::new(&ask)).transpose()?;
    let builder = settings.into_builder();
    let builder = builder.map(|builder| with_verifier(builder, verifier, instead_of_dcap));
    let slot = environment.slot();
    executor::run(&done, async move {
        let forwarder = builder?.start().await?;
        if let Some(unwanted) = slot.fill(forwarder) {
            unwanted.terminate();
            unwanted.stop().await?;
        }
        Ok(RunningForwarder { slot })
    })
}

/// A forwarder that has started. It ends when the object is collected as garbage, or when the JavaScript thread ends.
#[napi]
pub struct RunningForwarder {
    slot: Arc<Slot>,
}

#[napi(object)]
pub struct HostAndPort {
    pub host: String,
    pub port: u16,
}

impl RunningForwarder {
    fn ask<T>(&self, ask: impl FnOnce(&Forwarder) -> Result<T, Error>) -> Outcome<T> {
        match self.slot.forwarder() {
            Some(forwarder) => outcome(ask(&forwarder)),
            None => (Some(ErrorParts::stopped()), None),
        }
    }
}

#[napi]
impl RunningForwarder {
    #[napi(catch_unwind)]
    pub fn dsn(&self) -> Outcome<String> {
        self.ask(Forwarder::dsn)
    }

    #[napi(catch_unwind)]
    pub fn host_and_port(&self) -> Outcome<HostAndPort> {
        self.ask(|forwarder| {
            let (host, port) = forwarder.host_and_port()?;
            Ok(HostAndPort { host, port })
        })
    }

    #[napi(catch_unwind)]
    pub fn rewrite(&self, url: String) -> Outcome<String> {
        self.ask(|forwarder| forwarder.rewrite(&url))
    }

    #[napi(catch_unwind)]
    pub fn last_failure(&self) -> Option<FailureParts> {
        let failure = self.slot.forwarder()?.last_failure();
        failure.as_ref().map(FailureParts::from)
    }

    #[napi(catch_unwind)]
    pub fn failures_after(&self, sequence: i64) -> Vec<FailureParts> {
        let sequence = u64::try_from(sequence).unwrap_or_default();
        let forwarder = self.slot.forwarder();
        let failures = forwarder.map(|forwarder| forwarder.failures_after(sequence));
        failures.iter().flatten().map(FailureParts::from).collect()
    }

    #[napi(catch_unwind)]
    pub fn terminate(&self) {
        if let Some(forwarder) = self.slot.forwarder() {
            forwarder.terminate();
        }
    }

    #[napi(catch_unwind)]
    pub fn stop(&self, done: Function<'_, Arguments<()>, ()>) -> napi::Result<()> {
        let forwarder = self.slot.forwarder();
        executor::run(&done, async move {
            match forwarder {
                Some(forwarder) => forwarder.stop().await,
                None => Ok(()),
            }
        })
    }
}

/// The parts of a `ConnectionFailure`.
#[napi(object)]
pub struct FailureParts {
    pub error: ErrorParts,
    pub sequence: i64,
    pub sqlstate: Option<String>,
    pub in_session: bool,
    pub client: Option<String>,
    /// In milliseconds since 1970.
    pub at: f64,
}

impl From<&Failure> for FailureParts {
    fn from(failure: &Failure) -> Self {
        Self {
            error: ErrorParts::from(&failure.to_error()),
            sequence: i64::try_from(failure.sequence).unwrap_or(i64::MAX),
            sqlstate: failure.sqlstate.clone(),
            in_session: failure.in_session,
            client: failure.client.map(|address| address.to_string()),
            at: milliseconds(failure.at),
        }
    }
}

/// A time as JavaScript has it.
pub(crate) fn milliseconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Whole milliseconds: below 2^53 for 285,000 years.
    (since.as_secs_f64() * 1000.0).floor()
}
