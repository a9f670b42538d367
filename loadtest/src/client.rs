//! A PostgreSQL client that is as cheap as one can be: messages made in
//! advance, one write for each, and no look at what comes back but for its end.

use wire::backend::{AwaitReady, BackendLogin, BackendStep, ReadyStep};
use wire::scram::{Keys, RAW_NONCE_LEN};
use wire::startup::ProtocolVersion;

use crate::endpoint::{Member, Target};
use crate::error::{Error, Result, doing};
use crate::message::{Scanner, Seen, TERMINATE, query};
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
    pub async fn log_in(target: &Target, member: &Member) -> Result<Self> {
        let mut stream = Stream::open(target).await?;
        authenticate(&mut stream, member).await?;
        let scanner = Scanner::default();
        Ok(Self { stream, scanner })
    }

    /// Sends `bytes` and waits for as many ReadyForQuery as `ready` says.
    ///
    /// # Errors
    /// Whatever can go wrong; the server's ErrorResponse too.
    pub async fn ask(&mut self, bytes: &[u8], ready: usize) -> Result<()> {
        self.stream.send(bytes).await?;
        self.until_ready(ready, |_| {}).await
    }

    /// Waits for as many ReadyForQuery as `ready` says, and shows the rest to
    /// `see`.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn until_ready(
        &mut self,
        mut ready: usize,
        mut see: impl FnMut(Seen<'_>),
    ) -> Result<()> {
        while ready > 0 {
            self.next(|seen| match seen {
                Seen::Ready => ready = ready.saturating_sub(1),
                other => see(other),
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for CopyInResponse.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn until_copy_in(&mut self) -> Result<()> {
        let mut begun = false;
        while !begun {
            self.next(|seen| begun |= seen == Seen::CopyIn).await?;
        }
        Ok(())
    }

    async fn next(&mut self, see: impl FnMut(Seen<'_>)) -> Result<()> {
        let bytes = self.stream.receive().await?;
        if bytes.is_empty() {
            return Err(closed());
        }
        self.scanner.take(bytes, see).map_err(Error::Server)
    }

    /// The only column of the only row that a query gives, as text.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn value(&mut self, sql: &str) -> Result<String> {
        self.send(&query(sql)).await?;
        let mut row = Vec::new();
        self.until_ready(1, |seen| {
            if let Seen::Row(bytes) = seen {
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

    /// See [`Stream::widen`].
    pub fn widen(&mut self, bytes: usize) {
        self.stream.widen(bytes);
    }

    /// See [`Stream::rest`].
    pub fn rest(&mut self) {
        self.stream.rest();
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
async fn authenticate(stream: &mut Stream, member: &Member) -> Result<()> {
    let mut nonce = [0; RAW_NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|error| doing("no randomness")(error.into()))?;
    let (mut out, mut read) = (Vec::new(), Vec::new());
    let mut backend = BackendLogin::start(&member.startup, ProtocolVersion::V3_0, nonce, &mut out);
    loop {
        if !out.is_empty() {
            stream.send(&out).await?;
            out.clear();
        }
        backend = match step(backend, member, &mut read, &mut out)? {
            Step::GoOn(next) => next,
            Step::Read(next) if out.is_empty() => {
                more(stream, &mut read).await?;
                next
            }
            Step::Read(next) => next,
            Step::Watch(next) => return watch(stream, next, read).await,
        };
    }
}

enum Step {
    GoOn(BackendLogin),
    Read(BackendLogin),
    Watch(AwaitReady),
}

fn step(
    backend: BackendLogin,
    member: &Member,
    read: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<Step> {
    match backend.advance(read, &member.password, out) {
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
            let mut known = member.keys.borrow_mut();
            let derive =
                |(salt, rounds): &(Vec<u8>, u32)| Keys::derive(&member.password, salt, *rounds);
            let keys = known.entry((salt, iterations)).or_insert_with_key(derive);
            Ok(Step::GoOn(next.resume(keys, out)))
        }
        BackendStep::Authenticated { consumed, next } => {
            read.drain(..consumed);
            Ok(Step::Watch(next))
        }
        BackendStep::Refuse(error) => Err(error.into()),
    }
}

async fn watch(stream: &mut Stream, mut state: AwaitReady, mut read: Vec<u8>) -> Result<()> {
    loop {
        match state.advance(&read) {
            ReadyStep::Forward { forward_len, next } => {
                read.drain(..forward_len);
                state = next;
                more(stream, &mut read).await?;
            }
            ReadyStep::Ready { .. } => return Ok(()),
            ReadyStep::Failed { sqlstate, .. } => {
                return Err(Error::Server(format!("login refused: {sqlstate:?}")));
            }
            ReadyStep::Refuse(error) => return Err(error.into()),
        }
    }
}

async fn more(stream: &mut Stream, read: &mut Vec<u8>) -> Result<()> {
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
pub async fn first_answer(stream: &mut Stream, member: &Member) -> Result<u8> {
    let (mut out, nonce) = (Vec::new(), [0; RAW_NONCE_LEN]);
    let _login = BackendLogin::start(&member.startup, ProtocolVersion::V3_0, nonce, &mut out);
    stream.send(&out).await?;
    let answer = stream.receive().await?;
    answer.first().copied().ok_or_else(closed)
}
