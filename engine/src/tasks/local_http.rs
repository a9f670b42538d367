//! A client of the HTTP APIs of Patroni and etcd on this machine: one request on one connection.
//!
//! Their answers are claims, so that this does little: it follows no redirect, reads no proxy setting, keeps no
//! connection, and stops at [`MAX_ANSWER`] bytes and at the caller's deadline.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Method;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::patroni::MAX_ANSWER;

/// Maximum size of an answer's head in bytes. hyper accepts no less; Patroni's has 150.
const MAX_HEAD: usize = 8 * 1024;

/// An answer's status and body.
pub(super) type Answer = (u16, Bytes);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HttpError {
    /// It refuses connections, or the connection broke.
    #[error("unreachable")]
    Unreachable,
    #[error("no answer in time")]
    Timeout,
    /// It is larger than [`MAX_ANSWER`].
    #[error("the answer is too large")]
    TooLarge,
    #[error("the answer is not HTTP")]
    Malformed,
}

/// Sends a GET to `address`, and waits up to `limit` for the whole answer.
///
/// # Errors
/// [`HttpError`].
pub(super) async fn get(
    address: SocketAddr,
    path: &'static str,
    limit: Duration,
) -> Result<Answer, HttpError> {
    send(address, Method::GET, path, String::new(), limit).await
}

/// Sends a POST with a JSON body to `address`, and waits up to `limit` for the whole answer.
///
/// # Errors
/// [`HttpError`].
pub(super) async fn post(
    address: SocketAddr,
    path: &'static str,
    body: String,
    limit: Duration,
) -> Result<Answer, HttpError> {
    send(address, Method::POST, path, body, limit).await
}

async fn send(
    address: SocketAddr,
    method: Method,
    path: &'static str,
    body: String,
    limit: Duration,
) -> Result<Answer, HttpError> {
    match timeout(limit, exchange(address, method, path, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(HttpError::Timeout),
    }
}

async fn exchange(
    address: SocketAddr,
    method: Method,
    path: &'static str,
    body: String,
) -> Result<Answer, HttpError> {
    let unreachable = |_| HttpError::Unreachable;
    let stream = TcpStream::connect(address).await.map_err(unreachable)?;
    let handshake = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream));
    let broken = |_: hyper::Error| HttpError::Unreachable;
    let (mut sender, connection) = handshake.await.map_err(broken)?;
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| HttpError::Malformed)?;
    let answer = async move {
        let response =
            sender
                .send_request(request)
                .await
                .map_err(|error| match error.is_parse() {
                    true => HttpError::Malformed,
                    false => HttpError::Unreachable,
                })?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(
            |error| match error.is::<http_body_util::LengthLimitError>() {
                true => HttpError::TooLarge,
                false => HttpError::Unreachable,
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
        } => Err(HttpError::Unreachable),
    }
}
