//! A fake Postgres server: it accepts any login and responds to every query with the same row, with
//! the bytes that a real server sends.
//!
//! A real Postgres has one process for each session and cannot hold 5,000 of them on a machine that
//! is also being measured. Loads about many connections, their memory and their growth therefore
//! run against this server, and the report says so.

use std::io;
use std::net::SocketAddr;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use nix::sys::signal::Signal;

use super::kind::Upstream;
use super::process::{Process, command, free_address};
use super::relay::listener;
use super::workspace::Workspace;
use crate::error::{Result, io_context};
use crate::message::{SSL_REQUEST, tagged, text};
use crate::runtime::Runtime;

/// Bytes of one read.
const READ: usize = 4 * 1024;
/// Maximum length of a message.
const MAX_MESSAGE: usize = 16 * 1024;

/// Starts the fake Postgres as a separate process, which ends when the first of the results is dropped.
///
/// # Errors
/// It cannot be started.
pub fn start(workspace: &Workspace) -> Result<(Process, Upstream)> {
    let address = free_address()?;
    let program = workspace.program("teesql-loadtest")?;
    let mut fake = command(&program, &workspace.cores.others, false);
    fake.args(["fake-postgres", "--listen", &address.to_string()]);
    let log = workspace.path(&format!("fake-{}.log", address.port()));
    let mut process = Process::start("fake-postgres", fake, log, Signal::SIGTERM)?;
    process.wait_listening(address)?;
    let socket = None;
    Ok((process, Upstream { address, socket }))
}

/// Serves until the process is stopped. Listens on loopback only.
///
/// # Errors
/// The address is not loopback or cannot be listened on.
pub fn serve(listen: SocketAddr) -> Result<()> {
    let listener = listener(listen)?;
    Runtime::new()?.block_on(async move {
        let listener = TcpListener::from_std(listener).map_err(io_context("cannot listen"))?;
        loop {
            let (client, _) = listener
                .accept()
                .await
                .map_err(io_context("cannot accept"))?;
            monoio::spawn(async move {
                // A failed connection must not affect the others.
                let _ = session(client).await;
            });
        }
    })
}

async fn session(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut state, mut input) = (State::Startup, Vec::new());
    let mut buffer = Vec::with_capacity(READ);
    loop {
        let (result, filled) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        input.extend_from_slice(&filled);
        buffer = filled;
        let mut output = Vec::new();
        while let Some((consumed, next)) = handle_message(state, &input, &mut output)? {
            input.drain(..consumed);
            state = next;
        }
        if !output.is_empty() {
            stream.write_all(output).await.0?;
        }
        if state == State::Ended {
            return Ok(());
        }
        if input.is_empty() {
            input = Vec::new();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Startup,
    Session,
    Ended,
}

/// Handles the first message of `input` and returns its length and the next state. `None` if the
/// message is incomplete.
fn handle_message(
    state: State,
    input: &[u8],
    output: &mut Vec<u8>,
) -> io::Result<Option<(usize, State)>> {
    let untagged = usize::from(state == State::Session);
    let length = input
        .get(untagged..untagged + 4)
        .and_then(|word| word.try_into().ok());
    let Some(length) = length.filter(|_| state != State::Ended) else {
        return Ok(None);
    };
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if size > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let Some(message) = input.get(..untagged + size) else {
        return Ok(None);
    };
    let next = match (state, message) {
        (State::Startup, message) if message == SSL_REQUEST => {
            output.push(b'N');
            State::Startup
        }
        (State::Startup, _) => {
            login_response(output);
            State::Session
        }
        (_, [b'X', ..]) => State::Ended,
        (_, [tag, ..]) => {
            respond(*tag, output);
            State::Session
        }
        (_, []) => return Ok(None),
    };
    Ok(Some((message.len().max(1), next)))
}

fn login_response(output: &mut Vec<u8>) {
    tagged(output, b'R', |out| out.extend_from_slice(&[0; 4]));
    let parameters = [
        ("server_version", "15.0 (fake)"),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "Etc/UTC"),
        ("standard_conforming_strings", "on"),
        ("application_name", ""),
    ];
    for (name, value) in parameters {
        tagged(output, b'S', |out| {
            text(out, name);
            text(out, value);
        });
    }
    tagged(output, b'K', |out| {
        out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1])
    });
    ready(output);
}

fn respond(tag: u8, output: &mut Vec<u8>) {
    match tag {
        b'Q' => {
            describe(output);
            row(output);
            ready(output);
        }
        b'P' => tagged(output, b'1', |_| {}),
        b'B' => tagged(output, b'2', |_| {}),
        b'D' => describe(output),
        b'E' => row(output),
        b'S' => ready(output),
        _ => {}
    }
}

fn ready(output: &mut Vec<u8>) {
    tagged(output, b'Z', |out| out.push(b'I'));
}

/// RowDescription of one int4 column `abalance`.
fn describe(output: &mut Vec<u8>) {
    tagged(output, b'T', |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        text(out, "abalance");
        out.extend_from_slice(&[0, 0, 0x40, 0, 0, 3, 0, 0, 0, 23, 0, 4]);
        out.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0]);
    });
}

fn row(output: &mut Vec<u8>) {
    tagged(output, b'D', |out| {
        out.extend_from_slice(&[0, 1, 0, 0, 0, 1, b'0'])
    });
    tagged(output, b'C', |out| text(out, "SELECT 1"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{TERMINATE, query, startup};

    /// Feeds `input` in two pieces. Returns the output and the last state.
    fn converse(input: &[u8], cut: usize) -> (Vec<u8>, State) {
        let (mut state, mut output, mut pending) = (State::Startup, Vec::new(), Vec::new());
        let (head, tail) = input.split_at(cut);
        for piece in [head, tail] {
            pending.extend_from_slice(piece);
            while let Some((consumed, next)) = handle_message(state, &pending, &mut output).unwrap()
            {
                pending.drain(..consumed);
                state = next;
            }
        }
        (output, state)
    }

    #[test]
    fn responses_do_not_depend_on_read_sizes() {
        let mut input = SSL_REQUEST.to_vec();
        input.extend(startup("role", "database"));
        input.extend(query("SELECT 1"));
        input.extend(TERMINATE);
        let whole = converse(&input, input.len());
        assert!(whole.0.starts_with(b"NR"));
        assert_eq!(whole.1, State::Ended);
        for cut in 0..input.len() {
            assert_eq!(converse(&input, cut), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_oversized_message_is_rejected() {
        let outcome = handle_message(State::Session, b"Q\xff\xff\xff\xff", &mut Vec::new());
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
