//! Client of dstack's guest agent, which gives this TD its certificate, derived keys and quotes.
//!
//! dstack runs one agent in each CVM. It serves HTTP/1.1 with JSON on a Unix socket. The sidecar's
//! identity towards its clients comes from these responses, so every field is checked before it is used:
//! the key must match the certificate, the evidence must be bound to that key, and a quote must be over
//! the requested bytes. The agent may start after the sidecar, may be replaced while the sidecar runs,
//! and may hang. So its socket is looked up for every attempt, each attempt has a deadline, and transient
//! errors are retried with exponential back-off and jitter.
//!
//! | Type | Is |
//! | --- | --- |
//! | [`AgentAddresses`] | where to look for the agent: the standard sockets, or one configured [`AgentAddress`] |
//! | [`Agent`] | the client: one connection per request |
//! | [`AgentError`] | all errors, and which of them are transient |
//! | [`TlsKey`], [`DerivedKey`], [`Quote`], [`Info`], [`Version`] | the checked responses |
//!
//! What it must never do: put key material into an error or `Debug` output, follow a redirect, use a
//! proxy, or run on a shard. Keys are wiped when dropped; copies that the HTTP, JSON and crypto libraries
//! made in between are not.
//!
//! The protocol is that of dstack's `guest-agent/rpc/proto/agent_rpc.proto`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use crate::limits::{
    MAX_AGENT_MESSAGE_CHARS, MAX_AGENT_RESPONSE_LEN, MAX_AGENT_TEXT_LEN, MAX_KEY_PEM_LEN,
    MAX_KEY_SIGNATURE_LEN,
};
use crate::quote::REPORT_DATA_LEN;

mod address;
mod addresses;
mod derived_key;
mod error;
mod info;
mod options;
mod pem;
mod quote;
mod response;
mod tls_key;
mod transport;

pub use address::{AgentAddress, AgentAddressError, MAX_SOCKET_PATH};
pub use addresses::{AgentAddresses, STANDARD_SOCKETS};
pub use derived_key::DerivedKey;
pub use error::AgentError;
pub use info::{Info, TcbInfo, Version};
pub use options::{AgentOptions, Random};
pub use pem::certificate_pem;
pub use quote::Quote;
pub use tls_key::{TlsKey, TlsKeyRequest};

use response::ResponseFields;
use transport::{AgentTransport, Body};

/// A method of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A new key with a certificate for it.
    GetTlsKey,
    /// A derived key, which is always the same for one path.
    GetKey,
    /// A quote with its event log.
    GetQuote,
    /// A quote in an attestation envelope.
    Attest,
    /// The identity of this TD.
    Info,
    /// The version of the agent.
    Version,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 6] = [
        Self::GetTlsKey,
        Self::GetKey,
        Self::GetQuote,
        Self::Attest,
        Self::Info,
        Self::Version,
    ];

    /// The name in the URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GetTlsKey => "GetTlsKey",
            Self::GetKey => "GetKey",
            Self::GetQuote => "GetQuote",
            Self::Attest => "Attest",
            Self::Info => "Info",
            Self::Version => "Version",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A client of the guest agent. Cheap to clone.
///
/// Runs on any tokio runtime with time and I/O, `current_thread` included. Never on a shard.
#[derive(Clone, Debug)]
pub struct Agent {
    addresses: AgentAddresses,
    /// One for each address, in the same order.
    transports: Arc<[AgentTransport]>,
    options: AgentOptions,
}

#[derive(Serialize)]
struct KeyRequest<'a> {
    path: &'a str,
    purpose: &'a str,
}

#[derive(Serialize)]
struct ReportDataRequest {
    report_data: String,
}

#[derive(Serialize)]
struct EmptyRequest {}

impl Agent {
    /// Creates a client. Opens no connection, so the agent need not be running yet.
    ///
    /// # Errors
    /// [`AgentError::Client`] for an https address on a system without trusted roots.
    pub fn new(addresses: AgentAddresses, options: AgentOptions) -> Result<Self, AgentError> {
        let transports = addresses.candidates().map(AgentTransport::new);
        Ok(Self {
            transports: transports.collect::<Result<_, _>>()?,
            addresses,
            options,
        })
    }

    /// The addresses at which it looks for the agent.
    #[must_use]
    pub fn addresses(&self) -> &AgentAddresses {
        &self.addresses
    }

    /// Requests a new key with a certificate for it. With `usage_ra_tls` the agent makes a quote.
    ///
    /// The certificate's dates are not compared with a clock: see [`TlsKey::not_before`] and
    /// [`TlsKey::not_after`].
    ///
    /// # Errors
    /// Any [`AgentError`]. [`AgentError::Malformed`] also if the key is not that of the certificate, or
    /// if the request has `usage_ra_tls` and the certificate carries no evidence bound to its key.
    pub async fn tls_key(&self, request: &TlsKeyRequest) -> Result<TlsKey, AgentError> {
        let deadline = match request.usage_ra_tls {
            true => self.options.quote_deadline,
            false => self.options.deadline,
        };
        let body = self.send(Method::GetTlsKey, request, deadline).await?;
        TlsKey::from_response(&ResponseFields::parse(Method::GetTlsKey, &body)?, request)
    }

    /// Requests the application's key for `path`: always the same 32 bytes. `purpose` only goes into the
    /// signature.
    ///
    /// # Errors
    /// Any [`AgentError`].
    pub async fn key(&self, path: &str, purpose: &str) -> Result<DerivedKey, AgentError> {
        let request = KeyRequest { path, purpose };
        let body = self
            .send(Method::GetKey, &request, self.options.deadline)
            .await?;
        DerivedKey::from_response(&ResponseFields::parse(Method::GetKey, &body)?)
    }

    /// Requests a quote over `report_data`, padded with zeros on the right to 64 bytes.
    ///
    /// # Errors
    /// [`AgentError::ReportDataTooLong`] for more than 64 bytes, or any other [`AgentError`].
    /// [`AgentError::Malformed`] also if the quote is over other report data.
    pub async fn quote(&self, report_data: &[u8]) -> Result<Quote, AgentError> {
        let expected = pad_report_data(report_data)?;
        let body = self
            .request_with_report_data(Method::GetQuote, report_data)
            .await?;
        Quote::from_response(&ResponseFields::parse(Method::GetQuote, &body)?, &expected)
    }

    /// Requests an attestation envelope over `report_data`, as [`UnboundEvidence::from_envelope`] parses it.
    ///
    /// # Errors
    /// As [`Agent::quote`].
    ///
    /// [`UnboundEvidence::from_envelope`]: crate::evidence::UnboundEvidence::from_envelope
    pub async fn attest(&self, report_data: &[u8]) -> Result<Vec<u8>, AgentError> {
        let expected = pad_report_data(report_data)?;
        let body = self
            .request_with_report_data(Method::Attest, report_data)
            .await?;
        quote::envelope(&ResponseFields::parse(Method::Attest, &body)?, &expected)
    }

    /// Requests the identity of this TD. The agent claims it; only a quote proves it.
    ///
    /// # Errors
    /// Any [`AgentError`].
    pub async fn info(&self) -> Result<Info, AgentError> {
        let body = self
            .send(Method::Info, &EmptyRequest {}, self.options.deadline)
            .await?;
        Info::from_response(&ResponseFields::parse(Method::Info, &body)?)
    }

    /// Requests the version of the agent.
    ///
    /// # Errors
    /// Any [`AgentError`]. [`AgentError::Status`] from agents without this method.
    pub async fn version(&self) -> Result<Version, AgentError> {
        let body = self
            .send(Method::Version, &EmptyRequest {}, self.options.deadline)
            .await?;
        Version::from_response(&ResponseFields::parse(Method::Version, &body)?)
    }

    async fn request_with_report_data(
        &self,
        method: Method,
        report_data: &[u8],
    ) -> Result<Body, AgentError> {
        let request = ReportDataRequest {
            report_data: hex::encode(report_data),
        };
        self.send(method, &request, self.options.quote_deadline)
            .await
    }

    /// Sends a request until there is a response, a permanent error, or no attempt left.
    async fn send(
        &self,
        method: Method,
        request: &impl Serialize,
        deadline: Duration,
    ) -> Result<Body, AgentError> {
        let request =
            serde_json::to_vec(request).map_err(|error| AgentError::Client(error.to_string()))?;
        let mut attempt = 1;
        loop {
            match self.attempt(method, &request, deadline).await {
                Err(error) if error.is_transient() && attempt < self.options.attempts => {}
                done => return done,
            }
            tokio::time::sleep(self.options.backoff(attempt)).await;
            attempt += 1;
        }
    }

    async fn attempt(
        &self,
        method: Method,
        request: &[u8],
        after: Duration,
    ) -> Result<Body, AgentError> {
        let found = self.addresses.find()?;
        let transport = self
            .transports
            .iter()
            .find(|transport| *transport.address() == found);
        let transport =
            transport.ok_or_else(|| AgentError::Client(format!("no client for {found}")))?;
        tokio::time::timeout(after, transport.send(method, request))
            .await
            .map_err(|_| AgentError::Timeout { method, after })?
    }
}

/// Pads `report_data` with zeros on the right.
fn pad_report_data(report_data: &[u8]) -> Result<[u8; REPORT_DATA_LEN], AgentError> {
    let mut padded = [0; REPORT_DATA_LEN];
    let too_long = AgentError::ReportDataTooLong {
        bytes: report_data.len(),
    };
    padded
        .get_mut(..report_data.len())
        .ok_or(too_long)?
        .copy_from_slice(report_data);
    Ok(padded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_data_is_padded_and_capped() {
        let mut expected = [0; 64];
        expected[0] = 7;
        assert_eq!(pad_report_data(&[7]), Ok(expected));
        assert_eq!(pad_report_data(&[7; 64]), Ok([7; 64]));
        assert_eq!(
            pad_report_data(&[7; 65]),
            Err(AgentError::ReportDataTooLong { bytes: 65 })
        );
    }

    #[test]
    fn agent_is_send_and_sync() {
        fn assert_send_sync<T: Send + Sync>(_: &T) {}
        let agent = Agent::new(AgentAddresses::standard(), AgentOptions::default()).unwrap();
        assert_send_sync(&agent);
    }
}
