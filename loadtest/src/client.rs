//! A PostgreSQL client that is as cheap as one can be: messages made in
//! advance, one write for each, and no look at what comes back but for its end.

use wire::backend::{AwaitReady, Backend, BackendStep, ReadyStep};
use wire::scram::{Keys, RAW_NONCE_LEN};
use wire::startup::ProtocolVersion;

use crate::endpoint::{Endpoint, PreparedLogin};
use crate::error::{Error, Result, io_context};
use crate::message::{Event, Scanner, TERMINATE, query};
use crate::stream::{Stream, closed};

/// A session.
pub struct Client {
    stream: Stream,
    scanner: Scanner,
}

impl Client {
    /// Connects and logs in, up to ReadyForQuery.
    ///
    /// # Errors
    /// Whatever can go wrong on the way.
    pub async fn log_in(endpoint: &Endpoint, prepared: &PreparedLogin) -> Result<Self> {
        let mut stream = Stream::open(endpoint).await?;
        authenticate(&mut stream, prepared).await?;
        let scanner = Scanner::default();
        Ok(Self { stream, scanner })
    }

    /// Sends `bytes` and waits for as many ReadyForQuery as `ready` says.
    ///
    /// # Errors
    /// Whatever can go wrong; the server's ErrorResponse too.
    pub async fn request(&mut self, bytes: &[u8], ready: usize) -> Result<()> {
        self.stream.send(bytes).await?;
        self.wait_ready(ready, |_| {}).await
    }

    /// Waits for as many ReadyForQuery as `ready` says, and shows the release_buffers to
    /// `on_event`.
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

    /// The only column of the only row that a query gives, as text.
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
        // Two bytes for the number of columns, four for the first one's length.
        let value = row.get(6..).unwrap_or_default();
        Ok(String::from_utf8_lossy(value).into_owned())
    }

    /// Sends `bytes`.
    ///
    /// # Errors
    /// The system's or TLS'.
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

    /// Terminate, and the end of the connection.
    ///
    /// # Errors
    /// The system's or TLS'.
    pub async fn close(mut self) -> Result<()> {
        self.stream.send(&TERMINATE).await?;
        self.stream.close().await
    }
}

/// From the StartupMessage to ReadyForQuery.
async fn authenticate(stream: &mut Stream, prepared: &PreparedLogin) -> Result<()> {
    let mut nonce = [0; RAW_NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|error| io_context("no randomness")(error.into()))?;
    let (mut out, mut read) = (Vec::new(), Vec::new());
    let mut backend = Backend::start(&prepared.startup, ProtocolVersion::V3_0, nonce, &mut out);
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
            Step::AwaitReady_(next) => return await_ready(stream, next, read).await,
        };
    }
}

enum Step {
    Continue(Backend),
    Read(Backend),
    AwaitReady_(AwaitReady),
}

fn step(
    backend: Backend,
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
            Ok(Step::AwaitReady_(next))
        }
        BackendStep::Refuse(error) => Err(error.into()),
    }
}

async fn await_ready(stream: &mut Stream, mut state: AwaitReady, mut read: Vec<u8>) -> Result<()> {
    loop {
        match state.advance(&read) {
            ReadyStep::Pass { whole, next } => {
                read.drain(..whole);
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

/// The first message's tag after a StartupMessage: `R` means that whoever
/// answers has looked at the client's certificate and let it in.
///
/// # Errors
/// Whatever can go wrong; a closed connection too.
pub async fn first_response(stream: &mut Stream, prepared: &PreparedLogin) -> Result<u8> {
    let (mut out, nonce) = (Vec::new(), [0; RAW_NONCE_LEN]);
    let _login = Backend::start(&prepared.startup, ProtocolVersion::V3_0, nonce, &mut out);
    stream.send(&out).await?;
    let answer = stream.receive().await?;
    answer.first().copied().ok_or_else(closed)
}
