//! The Postgres behind the sidecar: what it speaks, the dial, and the login
//! with a password that the client never sees.

use std::cell::RefCell;
use std::sync::Arc;

use wire::backend::{AwaitKeys, AwaitReady, BackendError, BackendLogin, BackendStep, ReadyStep};
use wire::scram::{self};
use wire::startup::{ProtocolVersion, Startup};

use crate::auth::credential::Credential;
use crate::io::buffer::{Buffer, Size};
use crate::io::offload::{OffloadThread, PendingJobs};
use crate::io::stream::{PgAddress, Stream};
use crate::session::control::ConnectionControl;
use crate::session::tls_stream::TlsStream;
use crate::tasks::upstream_version::UpstreamVersion;
use crate::telemetry::close_reason::CloseReason;
use crate::tls::session;

/// SCRAM keys kept per shard. A role's verifier has one salt until its
/// password is changed, so three are in use at a time.
const KEYS_KEPT: usize = 16;

/// Everything a login into Postgres needs from its shard.
pub(crate) struct UpstreamLogin {
    pub(crate) endpoint: PgAddress,
    pub(crate) upstream_version: Arc<UpstreamVersion>,
    pub(crate) worker: OffloadThread,
    pub(crate) jobs: PendingJobs,
    pub(crate) keys: RefCell<Vec<CachedKeys>>,
    pub(crate) random: &'static dyn rustls::crypto::SecureRandom,
}

pub(crate) struct CachedKeys {
    credential: u64,
    salt: Vec<u8>,
    iterations: u32,
    keys: Arc<scram::Keys>,
}

/// A session that is ready for queries.
pub(crate) struct LoggedIn {
    pub(crate) stream: Stream,
    /// Bytes that came behind ReadyForQuery.
    pub(crate) first: Buffer,
}

impl UpstreamLogin {
    /// Dials Postgres within the login deadline.
    pub(crate) async fn dial(&self, control: &ConnectionControl) -> Result<Stream, CloseReason> {
        let dialled = Stream::dial(&self.endpoint, control.login_deadline()).await;
        dialled.map_err(|error| {
            self.upstream_version.stale.notify_one();
            control.or_terminated(CloseReason::UpstreamUnreachable(error))
        })
    }

    /// Logs in as the client asked, but with the role's own password, and
    /// passes Postgres' answers on, from AuthenticationOk to ReadyForQuery.
    pub(crate) async fn login<E: session::TlsSide>(
        &self,
        mut stream: Stream,
        client: &mut TlsStream<E>,
        startup: &Startup,
        version: ProtocolVersion,
        credential: &Arc<Credential>,
        control: &ConnectionControl,
    ) -> Result<LoggedIn, CloseReason> {
        let mut answers = Buffer::take(Size::Small);
        let ready = self
            .authenticate(&mut stream, &mut answers, startup, version, credential)
            .await
            .map_err(|error| {
                self.upstream_version.stale.notify_one();
                control.or_terminated(error)
            })?;
        let version =
            forward_until_ready(&mut stream, &mut answers, ready, client, control).await?;
        self.upstream_version.saw_version(version);
        Ok(LoggedIn {
            stream,
            first: answers,
        })
    }

    async fn authenticate(
        &self,
        stream: &mut Stream,
        answers: &mut Buffer,
        startup: &Startup,
        version: ProtocolVersion,
        credential: &Arc<Credential>,
    ) -> Result<AwaitReady, CloseReason> {
        let mut nonce = [0_u8; 18];
        self.random
            .fill(&mut nonce)
            .map_err(|_| BackendError::NoRandomness)?;
        let mut out = Vec::new();
        let mut backend = BackendLogin::start(startup, version, nonce, &mut out);
        loop {
            if !out.is_empty() {
                let message = std::mem::take(&mut out);
                stream
                    .write_secret(message)
                    .await
                    .map_err(CloseReason::UpstreamIo)?;
            }
            match backend.advance(answers.filled(), &credential.password, &mut out) {
                BackendStep::Read { next, consumed } => {
                    answers.consume(consumed);
                    backend = next;
                    if out.is_empty() {
                        read_answer(stream, answers).await?;
                    }
                }
                BackendStep::DeriveKeys {
                    salt,
                    iterations,
                    consumed,
                    next,
                } => {
                    answers.consume(consumed);
                    backend = self
                        .prove(next, credential, salt, iterations, &mut out)
                        .await?;
                }
                BackendStep::Authenticated { consumed, next } => {
                    answers.consume(consumed);
                    return Ok(next);
                }
                BackendStep::Refuse(error) => return Err(error.into()),
            }
        }
    }

    /// Answers SCRAM's challenge with keys from the cache, or derived on the
    /// worker: 4,096 rounds of HMAC are about a millisecond.
    async fn prove(
        &self,
        next: AwaitKeys,
        credential: &Arc<Credential>,
        salt: Vec<u8>,
        iterations: u32,
        out: &mut Vec<u8>,
    ) -> Result<BackendLogin, CloseReason> {
        let cached = self
            .keys
            .borrow()
            .iter()
            .find(|kept| {
                kept.credential == credential.id
                    && kept.iterations == iterations
                    && kept.salt == salt
            })
            .map(|kept| Arc::clone(&kept.keys));
        if let Some(keys) = cached {
            return Ok(next.resume(&keys, out));
        }
        let (password, asked) = (Arc::clone(credential), salt.clone());
        let keys = self
            .jobs
            .offload(&self.worker, move || {
                Arc::new(scram::Keys::derive(&password.password, &asked, iterations))
            })
            .await
            .map_err(|_| BackendError::Overloaded)?;
        let backend = next.resume(&keys, out);
        let mut kept = self.keys.borrow_mut();
        if kept.len() >= KEYS_KEPT {
            kept.remove(0);
        }
        kept.push(CachedKeys {
            credential: credential.id,
            salt,
            iterations,
            keys,
        });
        Ok(backend)
    }
}

/// Hands Postgres' own messages to the client until it is ready for queries.
/// Returns its `server_version`, where it named one.
async fn forward_until_ready<E: session::TlsSide>(
    stream: &mut Stream,
    answers: &mut Buffer,
    mut ready: AwaitReady,
    client: &mut TlsStream<E>,
    control: &ConnectionControl,
) -> Result<Option<String>, CloseReason> {
    loop {
        let (forward_len, outcome) = match ready.advance(answers.filled()) {
            ReadyStep::Forward { forward_len, next } => (forward_len, Ok(next)),
            ReadyStep::Ready {
                forward_len,
                server_version,
            } => (forward_len, Err(Ok(server_version))),
            ReadyStep::Failed {
                forward_len,
                sqlstate,
            } => (
                forward_len,
                Err(Err(CloseReason::UpstreamRefused(sqlstate))),
            ),
            ReadyStep::Refuse(error) => (0, Err(Err(error.into()))),
        };
        if let Some(message) = answers.filled().get(..forward_len)
            && forward_len > 0
        {
            control.count_sent(forward_len);
            client
                .send(message)
                .await
                .map_err(|error| error.into_close_reason(control))?;
            answers.consume(forward_len);
        }
        match outcome {
            Ok(next) => ready = next,
            Err(outcome) => return outcome,
        }
        read_answer(stream, answers)
            .await
            .map_err(|error| control.or_terminated(error))?;
    }
}

async fn read_answer(stream: &mut Stream, answers: &mut Buffer) -> Result<(), CloseReason> {
    let buffer = std::mem::replace(answers, Buffer::none());
    let (result, filled) = stream.read(buffer.make_room()).await;
    *answers = filled;
    match result {
        Ok(0) => Err(BackendError::EarlyEof.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(CloseReason::UpstreamIo(error)),
    }
}

/// Hands a CancelRequest to Postgres. Any core may do it: the key in it is
/// Postgres' own, so there is nothing to look up.
pub(crate) async fn cancel(
    upstream_login: &UpstreamLogin,
    packet: Vec<u8>,
    control: &ConnectionControl,
) -> CloseReason {
    let mut stream = match upstream_login.dial(control).await {
        Ok(stream) => stream,
        Err(end) => return end,
    };
    let _fd_guard = control.register_upstream_fd(stream.raw_fd());
    if let Err(error) = stream.write_secret(packet).await {
        return control.or_terminated(CloseReason::UpstreamIo(error));
    }
    // Postgres closes when the signal is on its way; clients wait for our
    // close, to be sure that the cancel does not hit their next query.
    let _ = stream.read(Buffer::take(Size::Small)).await;
    control.or_terminated(CloseReason::Cancelled)
}
