//! One request over HTTP/1.1: a new connection, one request, a response of limited size.

use std::error::Error;
use std::io;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::sanitized;
use super::{AgentAddress, AgentError, Method};
use crate::limits::MAX_AGENT_RESPONSE_LEN;

/// The body of a response. It may hold a private key.
pub(super) type Body = Zeroizing<Vec<u8>>;

/// Sends requests to one address. Each request opens a new connection, so that a replaced agent is found
/// immediately.
#[derive(Clone, Debug)]
pub(super) struct AgentTransport {
    address: AgentAddress,
    base: String,
    client: Client,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

impl AgentTransport {
    /// Creates the HTTP client. Opens no connection.
    pub(super) fn new(address: &AgentAddress) -> Result<Self, AgentError> {
        let client = Client::builder()
            .http1_only()
            .pool_max_idle_per_host(0)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("teesql/", env!("CARGO_PKG_VERSION")));
        let (base, client) = match address {
            // Not resolved: the name only fills in the Host header.
            AgentAddress::Unix(path) => ("http://localhost", client.unix_socket(path.as_path())),
            AgentAddress::Url(url) => (url.as_str(), client),
        };
        // Plain HTTP needs no trusted roots, so the client works on a system without any.
        let client = match base.starts_with("https:") {
            true => client,
            false => client.tls_certs_only([]),
        };
        let wrong = |error: reqwest::Error| AgentError::Client(root_cause(&error).to_string());
        Ok(Self {
            address: address.clone(),
            base: base.to_owned(),
            client: client.build().map_err(wrong)?,
        })
    }

    pub(super) fn address(&self) -> &AgentAddress {
        &self.address
    }

    /// Sends one request. The caller enforces the deadline.
    pub(super) async fn send(&self, method: Method, request: &[u8]) -> Result<Body, AgentError> {
        let sent = self
            .client
            .post(format!("{}/{method}", self.base))
            .header(CONTENT_TYPE, "application/json")
            .body(request.to_vec())
            .send()
            .await;
        let response = sent.map_err(|error| self.classify_send_error(method, &error))?;
        let status = response.status();
        let body = read(method, response).await;
        match status {
            StatusCode::OK => body,
            _ => Err(AgentError::Status {
                method,
                status: status.as_u16(),
                message: body.map_or_else(|_| String::new(), |body| error_message(&body)),
            }),
        }
    }

    fn classify_send_error(&self, method: Method, error: &reqwest::Error) -> AgentError {
        if !error.is_connect() {
            return AgentError::ConnectionClosed { method };
        }
        let address = self.address.clone();
        let cause = root_cause(error);
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        match kind {
            Some(io::ErrorKind::PermissionDenied) => AgentError::Forbidden { address },
            _ => AgentError::Connect {
                address,
                why: sanitized(&cause.to_string()),
            },
        }
    }
}

async fn read(method: Method, mut response: Response) -> Result<Body, AgentError> {
    let too_large = AgentError::TooLarge {
        method,
        limit: MAX_AGENT_RESPONSE_LEN,
    };
    let stated = response.content_length().unwrap_or(0);
    let Some(stated) = usize::try_from(stated)
        .ok()
        .filter(|n| *n <= MAX_AGENT_RESPONSE_LEN)
    else {
        return Err(too_large);
    };
    // Allocated once at the stated size: growing would leave copies of a key in freed memory.
    let mut body = Zeroizing::new(Vec::with_capacity(stated));
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|_| AgentError::ConnectionClosed { method })?
    {
        if body.len() + chunk.len() > MAX_AGENT_RESPONSE_LEN {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The message of an `{"error": …}` body; empty for any other body.
fn error_message(body: &[u8]) -> String {
    serde_json::from_slice(body).map_or_else(
        |_| String::new(),
        |refusal: ErrorBody| sanitized(&refusal.error),
    )
}

/// The innermost error, which is the operating system's.
fn root_cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}
