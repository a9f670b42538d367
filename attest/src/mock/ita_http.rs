//! One request and one answer over HTTP, in each [`Manner`].

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::trust_authority::Manner;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Most bytes of a request's body: a quote in base64.
const MAX_BODY: usize = 64 << 10;
/// Longest wait for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that [`Manner::Silent`] and [`Manner::Trickle`] hold a connection.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
/// How often a held connection looks whether the server stops.
const SLICE: Duration = Duration::from_millis(20);
/// Bytes that [`Manner::Huge`] sends, if the client takes them.
const HUGE: usize = 100 << 20;

pub(super) struct Request {
    /// Method and target.
    pub(super) line: String,
    head: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }
}

/// `None` for what is no request within the caps.
pub(super) fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut bytes = Vec::new();
    let head_len = loop {
        let end = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(at) = end {
            break at + 4;
        }
        if bytes.len() > MAX_HEAD || !read_more(stream, &mut bytes)? {
            return Ok(None);
        }
    };
    let body = bytes.split_off(head_len);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let line: Vec<&str> = head.split(' ').take(2).collect();
    let mut request = Request {
        line: line.join(" "),
        head,
        body,
    };
    let declared = request.header("content-length").unwrap_or("0").parse();
    let len = declared.unwrap_or(usize::MAX);
    while request.body.len() < len {
        if len > MAX_BODY || !read_more(stream, &mut request.body)? {
            return Ok(None);
        }
    }
    Ok(Some(request))
}

fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<bool> {
    let mut chunk = [0; 4096];
    let read = stream.read(&mut chunk)?;
    bytes.extend_from_slice(chunk.get(..read).unwrap_or_default());
    Ok(read != 0)
}

/// `answer` is a body in JSON, or the status of a refusal.
pub(super) fn respond(
    stream: &mut TcpStream,
    stop: &AtomicBool,
    manner: Manner,
    answer: Result<String, u16>,
) -> std::io::Result<()> {
    let body = match answer {
        Ok(body) => body.into_bytes(),
        Err(status) if manner == Manner::Honest => return send_status(stream, status),
        Err(_) => Vec::new(),
    };
    let body = body.as_slice();
    match manner {
        Manner::Honest => stream.write_all(&[&head(body.len()), body].concat()),
        Manner::Down => Ok(()),
        Manner::Silent => hold(stop, |_| Ok(false)),
        Manner::Trickle => {
            let bytes = [&head(body.len()), body].concat();
            let mut bytes = bytes.iter();
            hold(stop, |slice| match (slice % 5, bytes.as_slice()) {
                (_, []) => Ok(true),
                (0, _) => {
                    let byte = bytes.next().copied();
                    stream.write_all(byte.as_slice()).map(|()| false)
                }
                _ => Ok(false),
            })
        }
        Manner::HalfBody => {
            let half = body.get(..body.len() / 2).unwrap_or_default();
            stream.write_all(&[&head(body.len()), half].concat())
        }
        Manner::Huge => {
            stream.write_all(&head(HUGE))?;
            send_huge(stream, b"", b"")
        }
        Manner::HugeChunked => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            send_huge(stream, b"10000\r\n", b"\r\n")
        }
        Manner::Html => {
            let page = b"<!DOCTYPE html><title>captive portal</title>";
            stream.write_all(&[&head(page.len()), &page[..]].concat())
        }
        Manner::Status(status) => send_status(stream, status),
        Manner::Redirect => stream.write_all(
            b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ),
    }
}

fn send_status(stream: &mut TcpStream, status: u16) -> std::io::Result<()> {
    stream.write_all(
        format!("HTTP/1.1 {status} Mock\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .as_bytes(),
    )
}

/// 64 KiB at a time, each between `before` and `after`.
fn send_huge(stream: &mut TcpStream, before: &[u8], after: &[u8]) -> std::io::Result<()> {
    let block = [before, &vec![b' '; 1 << 16], after].concat();
    for _ in 0..HUGE >> 16 {
        stream.write_all(&block)?;
    }
    Ok(())
}

/// Calls `each` once per slice until it says true, the server stops, or it is enough.
fn hold(
    stop: &AtomicBool,
    mut each: impl FnMut(u32) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    let slices = u32::try_from(LONGEST_HOLD.as_millis() / SLICE.as_millis()).unwrap_or(u32::MAX);
    for slice in 0..slices {
        if stop.load(Ordering::Relaxed) || each(slice)? {
            return Ok(());
        }
        std::thread::sleep(SLICE);
    }
    Ok(())
}

fn head(length: usize) -> Vec<u8> {
    let kind = "content-type: application/json";
    format!("HTTP/1.1 200 OK\r\n{kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
        .into_bytes()
}
