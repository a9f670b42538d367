//! A minimal PostgreSQL client with little CPU cost: it sends pre-built messages, one write each,
//! and scans the responses only for their end.

use wire::backend::{AuthMethods, AwaitReady, BackendLogin, BackendStep, ReadyStep};
use wire::scram::{Keys, RAW_NONCE_LEN};
use wire::startup::ProtocolVersion;

use crate::endpoint::{Endpoint, PreparedLogin};
use crate::error::{Error, Result, io_context};
use crate::message::{Event, Scanner, TERMINATE, query};
use crate::stream::{Stream, closed};

/// A logged-in session.
pub struct Client {
    stream: Stream,
    scanner: Scanner,
}

impl Client {
    /// Connects and logs in, up to ReadyForQuery.
    ///
    /// # Errors
    /// Connection, TLS and login errors.
    pub async fn log_in(endpoint: &Endpoint, prepared: &PreparedLogin) -> Result<Self> {
        Self::log_in_over(Stream::open(endpoint).await?, prepared).await
    }

    /// Logs in over an open connection, up to ReadyForQuery.
    ///
    /// # Errors
    /// Connection, TLS and login errors.
    pub async fn log_in_over(mut stream: Stream, prepared: &PreparedLogin) -> Result<Self> {
        authenticate(&mut stream, prepared).await?;
        let scanner = Scanner::default();
        Ok(Self { stream, scanner })
    }

    /// Sends `bytes` and waits for `ready` ReadyForQuery messages.
    ///
    /// # Errors
    /// Connection and TLS errors, and an ErrorResponse.
    pub async fn request(&mut self, bytes: &[u8], ready: usize) -> Result<()> {
        self.stream.send(bytes).await?;
        self.wait_ready(ready, |_| {}).await
    }

    /// Waits for `ready` ReadyForQuery messages, and passes all other events to `on_event`.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn wait_ready(
        &mut self,
        mut ready: usize,
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<()> {
        while ready > 0 {
            self.next(|event| match event {
                Event::Ready => ready = ready.saturating_sub(1),
                other => on_event(other),
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for CopyInResponse.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn wait_copy_in(&mut self) -> Result<()> {
        let mut started = false;
        while !started {
            self.next(|event| started |= event == Event::CopyIn).await?;
        }
        Ok(())
    }

    async fn next(&mut self, on_event: impl FnMut(Event<'_>)) -> Result<()> {
        let bytes = self.stream.receive().await?;
        if bytes.is_empty() {
            return Err(closed());
        }
        self.scanner.feed(bytes, on_event).map_err(Error::Server)
    }

    /// Runs a query and returns its first column of its only row, as text.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn query_value(&mut self, sql: &str) -> Result<String> {
        self.send(&query(sql)).await?;
        let mut row = Vec::new();
        self.wait_ready(1, |event| {
            if let Event::Row(bytes) = event {
                row.extend_from_slice(bytes);
            }
        })
        .await?;
        // Two bytes for the number of columns, four for the length of the first one.
        let value = row.get(6..).unwrap_or_default();
        Ok(String::from_utf8_lossy(value).into_owned())
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.send(bytes).await
    }

    /// See [`Stream::set_read_size`].
    pub fn set_read_size(&mut self, bytes: usize) {
        self.stream.set_read_size(bytes);
    }

    /// See [`Stream::release_buffers`].
    pub fn release_buffers(&mut self) {
        self.stream.release_buffers();
    }

    /// Sends Terminate and closes the connection.
    ///
    /// # Errors
    /// Connection and TLS errors.
    pub async fn close(mut self) -> Result<()> {
        self.stream.send(&TERMINATE).await?;
        self.stream.close().await
    }
}

/// Runs the login, from StartupMessage to ReadyForQuery.
async fn authenticate(stream: &mut Stream, prepared: &PreparedLogin) -> Result<()> {
    let mut nonce = [0; RAW_NONCE_LEN];
    getrandom::fill(&mut nonce)
        .map_err(|error| io_context("cannot read random bytes")(error.into()))?;
    let (mut out, mut read) = (Vec::new(), Vec::new());
    let mut backend =
        BackendLogin::start(&prepared.startup, ProtocolVersion::V3_0, nonce, &mut out)
            .with_methods(AuthMethods::Any);
    loop {
        if !out.is_empty() {
            stream.send(&out).await?;
            out.clear();
        }
        backend = match step(backend, prepared, &mut read, &mut out)? {
            Step::Continue(next) => next,
            Step::Read(next) if out.is_empty() => {
                read_more(stream, &mut read).await?;
                next
            }
            Step::Read(next) => next,
            Step::LoggedIn(next) => return await_ready(stream, next, read).await,
        };
    }
}

enum Step {
    Continue(BackendLogin),
    Read(BackendLogin),
    LoggedIn(AwaitReady),
}

fn step(
    backend: BackendLogin,
    prepared: &PreparedLogin,
    read: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Step> {
    match backend.advance(read, &prepared.password, out) {
        BackendStep::Read { consumed, next } => {
            read.drain(..consumed);
            Ok(Step::Read(next))
        }
        BackendStep::DeriveKeys {
            salt,
            iterations,
            consumed,
            next,
        } => {
            read.drain(..consumed);
            let mut known = prepared.keys.borrow_mut();
            let derive =
                |(salt, rounds): &(Vec<u8>, u32)| Keys::derive(&prepared.password, salt, *rounds);
            let keys = known.entry((salt, iterations)).or_insert_with_key(derive);
            Ok(Step::Continue(next.resume(keys, out)))
        }
        BackendStep::Authenticated { consumed, next } => {
            read.drain(..consumed);
            Ok(Step::LoggedIn(next))
        }
        BackendStep::Refuse(error) => Err(error.into()),
    }
}

async fn await_ready(stream: &mut Stream, mut state: AwaitReady, mut read: Vec<u8>) -> Result<()> {
    loop {
        match state.advance(&read) {
            ReadyStep::Forward { forward_len, next } => {
                read.drain(..forward_len);
                state = next;
                read_more(stream, &mut read).await?;
            }
            ReadyStep::Ready { .. } => return Ok(()),
            ReadyStep::Failed { sqlstate, .. } => {
                return Err(Error::Server(format!("login refused: {sqlstate:?}")));
            }
            ReadyStep::Refuse(error) => return Err(error.into()),
        }
    }
}

async fn read_more(stream: &mut Stream, read: &mut Vec<u8>) -> Result<()> {
    let bytes = stream.receive().await?;
    if bytes.is_empty() {
        return Err(closed());
    }
    read.extend_from_slice(bytes);
    Ok(())
}

/// Sends the StartupMessage and returns the tag of the first response. `R` means that the server
/// has accepted the client's certificate.
///
/// # Errors
/// Connection and TLS errors, including a closed connection.
pub async fn first_response(stream: &mut Stream, prepared: &PreparedLogin) -> Result<u8> {
    let (mut out, nonce) = (Vec::new(), [0; RAW_NONCE_LEN]);
    let _login = BackendLogin::start(&prepared.startup, ProtocolVersion::V3_0, nonce, &mut out);
    stream.send(&out).await?;
    let response = stream.receive().await?;
    response.first().copied().ok_or_else(closed)
}
