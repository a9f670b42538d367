//! One attempt over HTTP: one connection, one question, an answer with a cap on its bytes.

use std::error::Error;
use std::io;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::sanitized;
use super::{AgentError, Endpoint, Method};
use crate::limits::MAX_AGENT_RESPONSE_LEN;

/// An answer's bytes: they may hold a private key.
pub(super) type Body = Zeroizing<Vec<u8>>;

/// The way to one place. Every question opens a connection of its own, so that an agent that was
/// replaced is found at once.
#[derive(Clone, Debug)]
pub(super) struct Line {
    endpoint: Endpoint,
    base: String,
    client: Client,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

impl Line {
    /// Opens no connection.
    pub(super) fn to(endpoint: &Endpoint) -> Result<Self, AgentError> {
        let client = Client::builder()
            .http1_only()
            .pool_max_idle_per_host(0)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("teesql/", env!("CARGO_PKG_VERSION")));
        let (base, client) = match endpoint {
            // The name is not resolved: it only fills in the Host header.
            Endpoint::Unix(path) => ("http://localhost", client.unix_socket(path.as_path())),
            Endpoint::Url(url) => (url.as_str(), client),
        };
        // Without TLS no trusted roots are needed, and a system without any is fine.
        let client = match base.starts_with("https:") {
            true => client,
            false => client.tls_certs_only([]),
        };
        let wrong = |error: reqwest::Error| AgentError::Client(cause(&error).to_string());
        Ok(Self {
            endpoint: endpoint.clone(),
            base: base.to_owned(),
            client: client.build().map_err(wrong)?,
        })
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks once. Whoever calls it has the deadline.
    pub(super) async fn ask(&self, method: Method, request: &[u8]) -> Result<Body, AgentError> {
        let sent = self
            .client
            .post(format!("{}/{method}", self.base))
            .header(CONTENT_TYPE, "application/json")
            .body(request.to_vec())
            .send()
            .await;
        let response = sent.map_err(|error| self.not_sent(method, &error))?;
        let status = response.status();
        let body = read(method, response).await;
        match status {
            StatusCode::OK => body,
            _ => Err(AgentError::Status {
                method,
                status: status.as_u16(),
                message: body.map_or_else(|_| String::new(), |body| refusal(&body)),
            }),
        }
    }

    fn not_sent(&self, method: Method, error: &reqwest::Error) -> AgentError {
        if !error.is_connect() {
            return AgentError::HungUp { method };
        }
        let endpoint = self.endpoint.clone();
        let cause = cause(error);
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        match kind {
            Some(io::ErrorKind::PermissionDenied) => AgentError::Forbidden { endpoint },
            _ => AgentError::Connect {
                endpoint,
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
    // Never grown, as far as the agent says how much comes: growing leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(stated));
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|_| AgentError::HungUp { method })?
    {
        if body.len() + chunk.len() > MAX_AGENT_RESPONSE_LEN {
            return Err(too_large);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What `{"error": …}` says. Of anything else nothing is shown.
fn refusal(body: &[u8]) -> String {
    serde_json::from_slice(body).map_or_else(
        |_| String::new(),
        |refusal: Refusal| sanitized(&refusal.error),
    )
}

/// The innermost error: what the system said.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}
