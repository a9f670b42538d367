//! The ways in which the mock's servers can misbehave over HTTP.

use std::io;
use std::time::Duration;

use super::http::{Connection, HUGE, Stop, head, send_huge};

/// Longest time that [`Behaviour::Stall`] and [`Behaviour::Trickle`] hold a connection.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// How a server over HTTP answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    #[default]
    Normal,
    /// Closes each connection without an answer.
    Close,
    /// Takes the request and says nothing.
    Stall,
    /// Sends one byte of the answer every 100 ms.
    Trickle,
    /// Sends half of the body and closes.
    TruncatedBody,
    /// Declares and sends 100 MB.
    Oversized,
    /// Sends 100 MB in chunks, without saying before how much it will be.
    OversizedChunked,
    /// 200 with a page of HTML.
    Html,
    /// This status, without a body.
    Status(u16),
    /// The right body without the headers that belong to it.
    MissingHeader,
    /// Sends a redirect to another host.
    Redirect,
}

impl Behaviour {
    /// Answers 200 with `body` and `headers`, each with a line end, in this way.
    pub(super) fn answer(
        self,
        to: &mut dyn Connection,
        stop: &Stop,
        headers: &str,
        body: &[u8],
    ) -> io::Result<()> {
        match self {
            Self::Normal => to.write_all(&[&head(200, headers, body.len()), body].concat()),
            Self::MissingHeader => to.write_all(&[&head(200, "", body.len()), body].concat()),
            Self::Close => Ok(()),
            Self::Stall => stop.hold(LONGEST_HOLD, |_| Ok(false)),
            Self::Trickle => {
                let bytes = [&head(200, headers, body.len()), body].concat();
                let mut bytes = bytes.iter();
                stop.hold(LONGEST_HOLD, |slice| match slice % 5 {
                    0 => bytes
                        .next()
                        .map_or(Ok(true), |byte| to.write_all(&[*byte]).map(|()| false)),
                    _ => Ok(false),
                })
            }
            Self::TruncatedBody => {
                let half = body.get(..body.len() / 2).unwrap_or_default();
                to.write_all(&[&head(200, headers, body.len()), half].concat())
            }
            Self::Oversized => {
                to.write_all(&head(200, headers, HUGE))?;
                send_huge(to, b"")
            }
            Self::OversizedChunked => {
                to.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                send_huge(to, b"10000\r\n")
            }
            Self::Html => {
                let page = b"<!DOCTYPE html><title>captive portal</title>";
                to.write_all(&[&head(200, headers, page.len()), &page[..]].concat())
            }
            Self::Status(status) => to.write_all(&head(status, "", 0)),
            Self::Redirect => to.write_all(&head(302, "location: http://127.0.0.1:1/\r\n", 0)),
        }
    }
}
