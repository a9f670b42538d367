//! A client of Patroni's REST API: one GET on one connection.
//!
//! Patroni is on this machine and its answers are claims ([`crate::cluster::patroni`]), so that this does little: it
//! follows no redirect, reads no proxy setting, keeps no connection, and stops at [`MAX_ANSWER`] bytes and at the
//! caller's deadline.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::patroni::MAX_ANSWER;
use crate::cluster::view::WatchError;

/// Maximum size of an answer's head in bytes. hyper accepts no less; Patroni's has 150.
const MAX_HEAD: usize = 8 * 1024;

/// An answer's status and body.
pub(super) type Answer = (u16, Bytes);

/// Asks Patroni at `address` for `path`, within `limit` in all.
///
/// # Errors
/// There is no answer, or it is too large.
pub(super) async fn get(
    address: SocketAddr,
    path: &'static str,
    limit: Duration,
) -> Result<Answer, WatchError> {
    match timeout(limit, request(address, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(WatchError::PatroniTimeout),
    }
}

async fn request(address: SocketAddr, path: &'static str) -> Result<Answer, WatchError> {
    let unreachable = |_| WatchError::PatroniUnreachable;
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream));
    let broken = |_: hyper::Error| WatchError::PatroniUnreachable;
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let request = hyper::Request::get(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|_| WatchError::PatroniMalformed)?;
    let answer = async move {
        let response =
            sender
                .send_request(request)
                .await
                .map_err(|error| match error.is_parse() {
                    true => WatchError::PatroniMalformed,
                    false => WatchError::PatroniUnreachable,
                })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(
            |error| match error.is::<http_body_util::LengthLimitError>() {
                true => WatchError::PatroniTooLarge,
                false => WatchError::PatroniUnreachable,
            },
        )?;
        Ok((status, body.to_bytes()))
    };
    // The connection ends with this function, whether or not it is done.
    tokio::select! {
        answer = answer => answer,
        _ = async {
            let _ = connection.await;
            std::future::pending::<()>().await
        } => Err(WatchError::PatroniUnreachable),
    }
}
