//! Fault injection for the mocks that serve plain HTTP: the PCCS and Trust Authority.

use super::http::{Delivery, HTML, Reply};

/// How a server responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Correctly.
    #[default]
    Normal,
    /// Closes each connection without a response.
    Close,
    /// Reads the request and never responds.
    Stall,
    /// Sends the response's body one byte at a time, one every 100 ms.
    Trickle,
    /// Sends half of the body and closes the connection.
    TruncatedBody,
    /// Declares and sends a body of 100 MiB.
    Oversized,
    /// Sends a chunked body of 100 MiB, so that its size is not declared.
    OversizedChunked,
    /// Responds 200 with an HTML page.
    Html,
    /// Responds with this status and no body.
    Status(u16),
    /// Sends the correct body without the headers that belong to it.
    MissingHeader,
    /// Redirects to another port.
    Redirect,
}

impl Behaviour {
    /// `reply`, with this fault.
    pub(super) fn apply(self, reply: Reply) -> Reply {
        let delivered = |delivery, reply| Reply { delivery, ..reply };
        match self {
            Self::Normal => reply,
            Self::Close => delivered(Delivery::Close, reply),
            Self::Stall => delivered(Delivery::Stall, reply),
            Self::Trickle => delivered(Delivery::Trickle, reply),
            Self::TruncatedBody => delivered(Delivery::Truncate, reply),
            Self::Oversized => delivered(Delivery::Oversized, reply),
            Self::OversizedChunked => delivered(Delivery::OversizedChunked, reply),
            Self::Html => reply.with_body(HTML, "<!DOCTYPE html><title>captive portal</title>"),
            Self::Status(status) => Reply::status(status),
            Self::MissingHeader => Reply {
                body: reply.body,
                ..Reply::default()
            },
            Self::Redirect => Reply::redirect(),
        }
    }
}
