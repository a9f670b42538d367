//! The login to Postgres as a sans-I/O state machine: we are the client, with a password that our
//! own client does not know.
//!
//! It exists to inject that password. Up to AuthenticationOk it takes part in the exchange; from then
//! until Postgres is ready it only inspects complete messages that are forwarded. It must
//! never let a byte of the authentication exchange reach the client, never forward AuthenticationOk
//! from a server that began SCRAM and did not finish it, never use a method that the caller did not
//! allow ([`AuthMethods`]), and never change a message that it forwards.

use std::fmt;

use md5::Md5;
use sha2::Digest;
use zeroize::Zeroizing;

pub use crate::error::BackendError;
use crate::error::{MAX_REFUSAL_TEXT, SqlState, truncate};
use crate::message::{Cursor, Frame, FrameError, write_c_str, write_tagged, write_untagged};
use crate::scram::{self, Challenge, FirstSent, HashParams, Keys, ProofSent};
use crate::secret::Password;
use crate::startup::{ProtocolVersion, Startup};

mod ready;
pub use ready::{AwaitReady, ReadyStep};

/// Largest length word of an Authentication or NegotiateProtocolVersion message, in bytes.
/// [libpq `fe-connect.c`, PQconnectPoll: 2,000]
pub const MAX_AUTHENTICATION: usize = 2_000;

/// Largest length word of any other message before ReadyForQuery, in bytes.
/// [libpq `fe-connect.c`, MAX_ERRLEN, and `fe-protocol3.c`, pqParseInput3: 30,000]
pub const MAX_LOGIN_MESSAGE: usize = 30_000;

/// Maximum number of notices that are dropped before AuthenticationOk. Postgres itself sends none
/// there; extensions may send one or two.
pub const MAX_NOTICES: u8 = 16;

/// Maximum length of `server_version` in bytes; the rest is cut off. With the additions of
/// distributors it has up to about 50.
pub const MAX_SERVER_VERSION: usize = 128;

/// Codes of Authentication messages. [PostgreSQL 18, protocol message formats]
mod code {
    pub(super) const OK: u32 = 0;
    pub(super) const CLEARTEXT_PASSWORD: u32 = 3;
    pub(super) const MD5_PASSWORD: u32 = 5;
    pub(super) const SASL: u32 = 10;
    pub(super) const SASL_CONTINUE: u32 = 11;
    pub(super) const SASL_FINAL: u32 = 12;
}

const AUTHENTICATION_OK: [u8; 4] = code::OK.to_be_bytes();

/// The methods by which Postgres may authenticate us.
///
/// Only SCRAM authenticates Postgres too. With any other method a process that listens on its port
/// gets the password or its hash, or the client's queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthMethods {
    /// SCRAM-SHA-256, with at least [`scram::MIN_ITERATIONS`] iterations.
    #[default]
    Scram,
    /// The same, and no authentication at all (`trust`, `peer`): for a Unix socket whose
    /// server is known by its user id.
    ScramOrNone,
    /// SCRAM-SHA-256 with any number of iterations, md5, a password in cleartext, and no authentication
    /// at all.
    Any,
}

impl AuthMethods {
    /// Checks the first Authentication message's `code`.
    fn check(self, code: u32) -> Result<(), BackendError> {
        let method = match code {
            code::OK => "no password",
            code::CLEARTEXT_PASSWORD => "a password in cleartext",
            code::MD5_PASSWORD => "an MD5 hash",
            _ => return Ok(()),
        };
        match self {
            Self::Any => Ok(()),
            Self::ScramOrNone if code == code::OK => Ok(()),
            Self::Scram | Self::ScramOrNone => Err(BackendError::NotScram { method }),
        }
    }

    /// Checks the number of SCRAM iterations that Postgres asks for.
    fn check_iterations(self, iterations: u32) -> Result<(), BackendError> {
        match self {
            Self::Scram | Self::ScramOrNone if iterations < scram::MIN_ITERATIONS => {
                Err(BackendError::ScramIterationsTooFew { iterations })
            }
            Self::Any | Self::Scram | Self::ScramOrNone => Ok(()),
        }
    }

    /// Checks the beginning of a login by another implementation: all bytes that Postgres sent, up
    /// to the first Authentication message, which selects the method. Returns `None` if more bytes
    /// are needed. An ErrorResponse, which ends the login, is left to that implementation.
    ///
    /// # Errors
    /// [`BackendError::NotScram`] for a method that is not allowed, and the errors of messages that
    /// are not legal before it.
    pub fn check_first_response(self, bytes: &[u8]) -> Result<Option<FirstResponse>, BackendError> {
        let Some((frame, end)) = first_but_notices(bytes)? else {
            return Ok(None);
        };
        match frame.tag() {
            b'R' => {
                let (code, _) = authentication_code(frame.body())?;
                self.check(code)?;
                Ok(Some(match code {
                    code::SASL => FirstResponse::Scram { len: end },
                    _ => FirstResponse::Other,
                }))
            }
            // It asks for 3.0, which every server supports.
            b'v' => Err(BackendError::NegotiatedDown),
            _ => Ok(Some(FirstResponse::Other)),
        }
    }

    /// Checks what Postgres sent after [`FirstResponse::Scram`], up to the SCRAM challenge. Returns
    /// `None` if more bytes are needed. Whatever else Postgres sends is left to the other
    /// implementation.
    ///
    /// # Errors
    /// [`BackendError::ScramIterationsTooFew`], [`BackendError::ScramIterationsTooMany`], and the
    /// errors of messages that are not legal there.
    pub fn check_challenge(self, bytes: &[u8]) -> Result<Option<()>, BackendError> {
        let Some((frame, _)) = first_but_notices(bytes)? else {
            return Ok(None);
        };
        if frame.tag() == b'R'
            && let (code::SASL_CONTINUE, server_first) = authentication_code(frame.body())?
        {
            self.check_iterations(scram::ServerFirst::parse(server_first)?.iterations)?;
        }
        Ok(Some(()))
    }
}

/// What the first response of Postgres to a StartupMessage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstResponse {
    /// A request for SCRAM, which ends after `len` bytes. [`AuthMethods::check_challenge`] checks what
    /// follows.
    Scram {
        /// Number of bytes up to the end of the request.
        len: usize,
    },
    /// The request for another method that is allowed, or an ErrorResponse.
    Other,
}

/// The first message of `bytes` that is not a notice, and where it ends; `None` if more bytes are
/// needed.
fn first_but_notices(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, BackendError> {
    let mut start: usize = 0;
    loop {
        let rest = bytes.get(start..).unwrap_or_default();
        let Some(frame) = login_frame(rest)? else {
            return Ok(None);
        };
        let end = start.saturating_add(frame.wire_len());
        if frame.tag() != b'N' {
            return Ok(Some((frame, end)));
        }
        start = end;
    }
}

/// A login in progress. Holds no password.
pub struct BackendLogin {
    role: String,
    methods: AuthMethods,
    notices: u8,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    /// The StartupMessage has been sent.
    Started {
        nonce: [u8; scram::RAW_NONCE_LEN],
    },
    PasswordSent,
    ScramFirstSent(FirstSent),
    ScramProofSent(ProofSent),
    ScramVerified,
}

impl State {
    /// Whether AuthenticationOk is legal in this state.
    fn may_authenticate(&self) -> bool {
        match self {
            Self::Started { .. } | Self::PasswordSent | Self::ScramVerified => true,
            Self::ScramFirstSent(_) | Self::ScramProofSent(_) => false,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "Started",
            Self::PasswordSent => "PasswordSent",
            Self::ScramFirstSent(_) => "ScramFirstSent",
            Self::ScramProofSent(_) => "ScramProofSent",
            Self::ScramVerified => "ScramVerified",
        }
    }
}

/// Shows the state only.
impl fmt::Debug for BackendLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendLogin({})", self.state.name())
    }
}

/// What to do next. Before any step except [`Refuse`](Self::Refuse), send what was appended to
/// `out`.
#[derive(Debug)]
pub enum BackendStep {
    /// Drop `consumed` bytes, then read more. A buffer of [`MAX_LOGIN_MESSAGE`] + 1 bytes is
    /// enough.
    Read {
        /// Number of bytes processed.
        consumed: usize,
        /// The next state.
        next: BackendLogin,
    },
    /// Drop `consumed` bytes, derive [`Keys`] from the password, then [`AwaitKeys::resume`].
    DeriveKeys {
        /// The salt for [`Keys::derive`]. Not empty.
        salt: Vec<u8>,
        /// The count for [`Keys::derive`]: 1 to [`MAX_ITERATIONS`](scram::MAX_ITERATIONS).
        iterations: u32,
        /// Number of bytes processed.
        consumed: usize,
        /// The next state.
        next: AwaitKeys,
    },
    /// Drop `consumed` bytes. AuthenticationOk is next; it and everything after it is for the
    /// client. At least one byte after it has been read too.
    Authenticated {
        /// Number of bytes processed.
        consumed: usize,
        /// The next state.
        next: AwaitReady,
    },
    /// Close, and send the client [`BackendError::response`].
    Refuse(BackendError),
}

impl BackendLogin {
    /// Starts a login: appends the StartupMessage to `out`.
    ///
    /// `version` is the version that was negotiated with the client. The parameters are sent as the
    /// client sent them and in the same order, without the `_pq_.` options. `nonce` must be fresh
    /// randomness; it is used if Postgres requests SCRAM, the only method that is allowed unless
    /// [`with_methods`](Self::with_methods) allows others.
    #[must_use]
    pub fn start(
        startup: &Startup,
        version: ProtocolVersion,
        nonce: [u8; scram::RAW_NONCE_LEN],
        out: &mut Vec<u8>,
    ) -> Self {
        write_untagged(out, |out| {
            out.extend_from_slice(&version.to_u32().to_be_bytes());
            for (name, value) in startup.forwarded_parameters() {
                write_c_str(out, name);
                write_c_str(out, value);
            }
            out.push(0);
        });
        Self {
            role: startup.role().to_owned(),
            methods: AuthMethods::default(),
            notices: 0,
            state: State::Started { nonce },
        }
    }

    /// The same, with these methods allowed instead of SCRAM alone.
    #[must_use]
    pub fn with_methods(self, methods: AuthMethods) -> Self {
        Self { methods, ..self }
    }

    /// Processes all bytes read from Postgres and not yet consumed, and appends replies to `out`.
    ///
    /// `password` is the password to inject. An empty one counts as missing, because Postgres
    /// accepts no empty password.
    #[must_use]
    pub fn advance(mut self, bytes: &[u8], password: &Password, out: &mut Vec<u8>) -> BackendStep {
        let mut consumed: usize = 0;
        loop {
            let rest = bytes.get(consumed..).unwrap_or_default();
            let frame = match login_frame(rest) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    return BackendStep::Read {
                        consumed,
                        next: self,
                    };
                }
                Err(error) => return BackendStep::Refuse(error),
            };
            let after = consumed.saturating_add(frame.wire_len());
            if frame.tag() != b'R' {
                if let Err(error) = self.other_message(frame.tag(), frame.body()) {
                    return BackendStep::Refuse(error);
                }
                consumed = after;
                continue;
            }
            if let State::Started { .. } = self.state
                && let Err(error) =
                    authentication_code(frame.body()).and_then(|(code, _)| self.methods.check(code))
            {
                return BackendStep::Refuse(error);
            }
            if frame.body() == AUTHENTICATION_OK && self.state.may_authenticate() {
                match refused_after_ok(bytes.get(after..).unwrap_or_default()) {
                    Ok(Some(())) => {}
                    Ok(None) => {
                        return BackendStep::Read {
                            consumed,
                            next: self,
                        };
                    }
                    Err(error) => return BackendStep::Refuse(error),
                }
            }
            match authentication(self.state, &self.role, frame.body(), password, out) {
                Ok(Transition::State(state)) => self.state = state,
                Ok(Transition::Authenticated) => {
                    return BackendStep::Authenticated {
                        consumed,
                        next: AwaitReady::new(),
                    };
                }
                Ok(Transition::DeriveKeys(params, challenge)) => {
                    if let Err(error) = self.methods.check_iterations(params.iterations) {
                        return BackendStep::Refuse(error);
                    }
                    return BackendStep::DeriveKeys {
                        salt: params.salt,
                        iterations: params.iterations,
                        consumed: after,
                        next: AwaitKeys {
                            role: self.role,
                            methods: self.methods,
                            notices: self.notices,
                            challenge,
                        },
                    };
                }
                Err(error) => return BackendStep::Refuse(error),
            }
            consumed = after;
        }
    }

    /// Handles a message other than Authentication.
    fn other_message(&mut self, tag: u8, body: &[u8]) -> Result<(), BackendError> {
        match tag {
            b'E' => Err(parse_error_response(body)),
            b'v' => Err(BackendError::NegotiatedDown),
            b'N' if self.notices == MAX_NOTICES => Err(BackendError::TooManyNotices),
            b'N' => {
                self.notices = self.notices.saturating_add(1);
                Ok(())
            }
            tag => Err(BackendError::UnexpectedMessage { tag }),
        }
    }
}

/// The effect of one Authentication message.
enum Transition {
    State(State),
    DeriveKeys(HashParams, Challenge),
    Authenticated,
}

const OUT_OF_ORDER: BackendError = BackendError::Malformed("Authentication out of order");

/// Handles one Authentication message.
fn authentication(
    state: State,
    role: &str,
    body: &[u8],
    password: &Password,
    out: &mut Vec<u8>,
) -> Result<Transition, BackendError> {
    let (code, data) = authentication_code(body)?;
    match (state, code) {
        (State::Started { .. } | State::PasswordSent | State::ScramVerified, code::OK) => {
            expect_empty(data)?;
            Ok(Transition::Authenticated)
        }
        (State::ScramFirstSent(_) | State::ScramProofSent(_), code::OK) => {
            Err(BackendError::AuthOkWithoutServerProof)
        }
        (State::Started { nonce }, code) => {
            start_method(code, data, nonce, role, password, out).map(Transition::State)
        }
        (State::ScramFirstSent(first), code::SASL_CONTINUE) => {
            let (params, challenge) = first.challenge(data)?;
            Ok(Transition::DeriveKeys(params, challenge))
        }
        (State::ScramProofSent(proof), code::SASL_FINAL) => {
            proof.verify(data)?;
            Ok(Transition::State(State::ScramVerified))
        }
        (
            State::PasswordSent
            | State::ScramFirstSent(_)
            | State::ScramProofSent(_)
            | State::ScramVerified,
            _,
        ) => Err(OUT_OF_ORDER),
    }
}

/// The code of an Authentication message, and the data after it.
fn authentication_code(body: &[u8]) -> Result<(u32, &[u8]), BackendError> {
    let mut cursor = Cursor::new(body);
    let code = cursor.u32();
    let code = code.ok_or(BackendError::Malformed("Authentication without a code"))?;
    Ok((code, cursor.rest()))
}

/// Handles the first Authentication message other than AuthenticationOk, which selects the method.
fn start_method(
    code: u32,
    data: &[u8],
    nonce: [u8; scram::RAW_NONCE_LEN],
    role: &str,
    password: &Password,
    out: &mut Vec<u8>,
) -> Result<State, BackendError> {
    match code {
        code::CLEARTEXT_PASSWORD => {
            expect_empty(data)?;
            write_password(out, non_empty(password)?.as_bytes());
            Ok(State::PasswordSent)
        }
        code::MD5_PASSWORD => {
            let salt = data
                .try_into()
                .map_err(|_| BackendError::Malformed("md5 salt"))?;
            let hash = md5_password(role.as_bytes(), non_empty(password)?, salt);
            write_password(out, hash.as_bytes());
            Ok(State::PasswordSent)
        }
        code::SASL => {
            expect_scram_offer(data)?;
            non_empty(password)?;
            let first = FirstSent::new(nonce);
            write_client_first(out, &first);
            Ok(State::ScramFirstSent(first))
        }
        code::SASL_CONTINUE | code::SASL_FINAL => Err(OUT_OF_ORDER),
        code => Err(BackendError::UnsupportedAuthMethod { code }),
    }
}

/// A login that waits for the SCRAM keys.
pub struct AwaitKeys {
    role: String,
    methods: AuthMethods,
    notices: u8,
    challenge: Challenge,
}

/// Shows nothing of the exchange.
impl fmt::Debug for AwaitKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwaitKeys")
    }
}

impl AwaitKeys {
    /// Continues with `keys`, derived from the password with the salt and iteration count of
    /// [`BackendStep::DeriveKeys`]. Appends SCRAM's client-final-message to `out`.
    pub fn resume(self, keys: &Keys, out: &mut Vec<u8>) -> BackendLogin {
        let (message, proof) = self.challenge.client_final(keys);
        write_tagged(out, b'p', |out| out.extend_from_slice(message.as_bytes()));
        BackendLogin {
            role: self.role,
            methods: self.methods,
            notices: self.notices,
            state: State::ScramProofSent(proof),
        }
    }
}

/// Checks the message after AuthenticationOk for a refusal of the login; `None` if more bytes are
/// needed.
///
/// Under the method `trust`, Postgres sends AuthenticationOk even to a role that does not exist,
/// and refuses it in the next message, which it always sends together with AuthenticationOk. That
/// is a failure of the injected login and must not look to the client like a failure of its login.
fn refused_after_ok(bytes: &[u8]) -> Result<Option<()>, BackendError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'E') => match read_frame(bytes, MAX_LOGIN_MESSAGE)? {
            None => Ok(None),
            Some(frame) => match parse_error_response(frame.body()) {
                error @ BackendError::Refused { sqlstate, .. } if sqlstate.is_authorization() => {
                    Err(error)
                }
                _ => Ok(Some(())),
            },
        },
        Some(_) => Ok(Some(())),
    }
}

/// Reads the message at the start of `bytes`, if it is legal before AuthenticationOk.
pub(crate) fn login_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, BackendError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'R' | b'v') => read_frame(bytes, MAX_AUTHENTICATION),
        Some(b'E' | b'N') => read_frame(bytes, MAX_LOGIN_MESSAGE),
        Some(tag) => Err(BackendError::UnexpectedMessage { tag: *tag }),
    }
}

fn read_frame(bytes: &[u8], cap: usize) -> Result<Option<Frame<'_>>, BackendError> {
    Frame::read(bytes, cap).map_err(|error| match error {
        FrameError::TooLong { tag, length } => BackendError::MessageTooLong { tag, length },
        FrameError::TooShort { .. } => BackendError::Malformed("length below 4"),
    })
}

/// Parses an ErrorResponse into [`BackendError::Refused`], or [`BackendError::Malformed`].
pub(crate) fn parse_error_response(body: &[u8]) -> BackendError {
    const MALFORMED: BackendError = BackendError::Malformed("ErrorResponse");
    let mut cursor = Cursor::new(body);
    let (mut sqlstate, mut message) = (None, None);
    loop {
        match (cursor.u8(), &sqlstate) {
            (None, _) => return MALFORMED,
            (Some(0), _) => break,
            (Some(field), _) => match (field, cursor.c_str()) {
                (_, None) => return MALFORMED,
                (b'C', Some(text)) => sqlstate = SqlState::new(text),
                (b'M', Some(text)) => message = Some(sanitize(text, MAX_REFUSAL_TEXT)),
                (_, Some(_)) => {}
            },
        }
    }
    match (sqlstate, message, cursor.is_empty()) {
        (Some(sqlstate), Some(message), true) => BackendError::Refused { sqlstate, message },
        _ => MALFORMED,
    }
}

/// Prepares a text of the server for one line of a log: truncates it to `cap` bytes and replaces
/// control characters.
fn sanitize(text: &[u8], cap: usize) -> String {
    // Truncate before decoding, to bound the work too.
    let text = String::from_utf8_lossy(text.get(..cap).unwrap_or(text));
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    truncate(&text, cap).to_owned()
}

fn expect_empty(data: &[u8]) -> Result<(), BackendError> {
    if data.is_empty() {
        Ok(())
    } else {
        Err(BackendError::Malformed(
            "trailing bytes in an Authentication message",
        ))
    }
}

/// Treats an empty password as missing, like libpq: Postgres accepts no empty password.
fn non_empty(password: &Password) -> Result<&Password, BackendError> {
    if password.as_bytes().is_empty() {
        return Err(BackendError::PasswordMissing);
    }
    Ok(password)
}

/// Checks that a list of mechanisms offers SCRAM-SHA-256. The -PLUS variant is never used: there is
/// no TLS channel to bind to.
fn expect_scram_offer(list: &[u8]) -> Result<(), BackendError> {
    let mut cursor = Cursor::new(list);
    let mut offered = false;
    loop {
        match cursor.c_str() {
            None => return Err(BackendError::Malformed("list of SASL mechanisms")),
            Some(b"") => break,
            Some(mechanism) => offered |= mechanism == scram::MECHANISM,
        }
    }
    if !cursor.is_empty() {
        return Err(BackendError::Malformed("list of SASL mechanisms"));
    }
    if !offered {
        return Err(BackendError::UnsupportedAuthMethod { code: code::SASL });
    }
    Ok(())
}

fn write_password(out: &mut Vec<u8>, password: &[u8]) {
    write_tagged(out, b'p', |out| write_c_str(out, password));
}

fn write_client_first(out: &mut Vec<u8>, first: &FirstSent) {
    let message = first.message();
    write_tagged(out, b'p', |out| {
        write_c_str(out, scram::MECHANISM);
        // About 40 bytes.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(message.as_bytes());
    });
}

/// `"md5" + hex(md5(hex(md5(password + role)) + salt))`.
/// [PostgreSQL 18, protocol message flow, AuthenticationMD5Password]
fn md5_password(role: &[u8], password: &Password, salt: [u8; 4]) -> Zeroizing<String> {
    let digest = Md5::new()
        .chain_update(password.as_bytes())
        .chain_update(role);
    let inner = Zeroizing::new(format!("{:x}", digest.finalize()));
    let digest = Md5::new().chain_update(inner.as_bytes()).chain_update(salt);
    Zeroizing::new(format!("md5{:x}", digest.finalize()))
}
