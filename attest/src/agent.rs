//! The guest agent: who gives this TD its certificate, its derived keys and its quotes.
//!
//! dstack runs one beside every application and lets it be asked over a Unix socket, with HTTP/1.1 and
//! JSON. What it answers is what the sidecar *is* to its clients, so every field is checked before it is
//! used: the key must be the certificate's, the evidence must be bound to that key, a quote must be over
//! the very bytes that were asked for. And an agent is a process like any other: it starts later than
//! the sidecar, is replaced while the sidecar runs, hangs. So its socket is looked up anew for every
//! attempt, each attempt has a deadline, and what may pass is tried again.
//!
//! | Type | Is |
//! | --- | --- |
//! | [`AgentAddresses`] | where to look for the agent: the usual sockets, or the one [`AgentAddress`] that was configured |
//! | [`Agent`] | asks: one connection per question |
//! | [`AgentError`] | every way in which that fails, and whether it may pass |
//! | [`TlsKey`], [`DerivedKey`], [`Quote`], [`Info`], [`Version`] | the answers, checked |
//!
//! What it must never do: put key material into an error or Debug, follow a redirect, use a proxy, or
//! run on a shard. Keys are wiped when dropped; what the HTTP, JSON and crypto libraries copied on the way
//! here is not.
//!
//! Facts: contract, section 4; dstack `guest-agent/rpc/proto/agent_rpc.proto`.

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

/// What an agent can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A new key with a certificate.
    GetTlsKey,
    /// A key that is always the same for one path.
    GetKey,
    /// A quote with its event log.
    GetQuote,
    /// A quote in an attestation envelope.
    Attest,
    /// Who this TD is.
    Info,
    /// Which agent it is.
    Version,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::GetTlsKey,
        Self::GetKey,
        Self::GetQuote,
        Self::Attest,
        Self::Info,
        Self::Version,
    ];

    /// As the URL names it.
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

/// The way to the guest agent. Cheap to clone.
///
/// Runs on any tokio runtime with time and I/O, `current_thread` included. Never on a shard.
#[derive(Clone, Debug)]
pub struct Agent {
    addresses: AgentAddresses,
    /// One for each place, in their order.
    lines: Arc<[AgentTransport]>,
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
    /// Opens no connection: the agent may come later.
    ///
    /// # Errors
    /// [`AgentError::Client`] for an https address on a system without trusted roots.
    pub fn new(addresses: AgentAddresses, options: AgentOptions) -> Result<Self, AgentError> {
        let lines = addresses.candidates().map(AgentTransport::to);
        Ok(Self {
            lines: lines.collect::<Result<_, _>>()?,
            addresses,
            options,
        })
    }

    /// Where it looks for the agent.
    #[must_use]
    pub fn addresses(&self) -> &AgentAddresses {
        &self.addresses
    }

    /// A new key with a certificate for it. With `usage_ra_tls` it costs a quote.
    ///
    /// The certificate's dates are not compared with a clock: see [`TlsKey::not_before`] and
    /// [`TlsKey::not_after`].
    ///
    /// # Errors
    /// [`AgentError`]; [`AgentError::Malformed`] also for a key that is not the certificate's, and for
    /// a certificate without evidence of its key that was asked for with `usage_ra_tls`.
    pub async fn tls_key(&self, request: &TlsKeyRequest) -> Result<TlsKey, AgentError> {
        let deadline = match request.usage_ra_tls {
            true => self.options.quote_deadline,
            false => self.options.deadline,
        };
        let body = self.send(Method::GetTlsKey, request, deadline).await?;
        TlsKey::from_response(&ResponseFields::parse(Method::GetTlsKey, &body)?, request)
    }

    /// The application's key for `path`: always the same 32 bytes. `purpose` is only signed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn key(&self, path: &str, purpose: &str) -> Result<DerivedKey, AgentError> {
        let request = KeyRequest { path, purpose };
        let body = self
            .send(Method::GetKey, &request, self.options.deadline)
            .await?;
        DerivedKey::from_response(&ResponseFields::parse(Method::GetKey, &body)?)
    }

    /// A quote over `report_data`, which is filled up with zeros on the right.
    ///
    /// # Errors
    /// [`AgentError::ReportDataTooLong`] for more than 64 bytes; [`AgentError::Malformed`] also for a
    /// quote over anything else; otherwise any [`AgentError`].
    pub async fn quote(&self, report_data: &[u8]) -> Result<Quote, AgentError> {
        let expected = pad_report_data(report_data)?;
        let body = self
            .request_with_report_data(Method::GetQuote, report_data)
            .await?;
        Quote::from_response(&ResponseFields::parse(Method::GetQuote, &body)?, &expected)
    }

    /// An attestation envelope over `report_data`, as [`UnboundEvidence::from_envelope`] reads it.
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

    /// Who this TD is, as the agent says: a claim, unlike what a quote proves.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn info(&self) -> Result<Info, AgentError> {
        let body = self
            .send(Method::Info, &EmptyRequest {}, self.options.deadline)
            .await?;
        Info::from_response(&ResponseFields::parse(Method::Info, &body)?)
    }

    /// Which agent it is.
    ///
    /// # Errors
    /// [`AgentError`]; [`AgentError::Status`] from agents that do not know the method.
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

    /// Asks until there is an response, an error that will not pass, or no attempt left.
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
            tokio::time::sleep(self.options.wait(attempt)).await;
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
        let line = self.lines.iter().find(|line| *line.address() == found);
        let line = line.ok_or_else(|| AgentError::Client(format!("no way to {found}")))?;
        tokio::time::timeout(after, line.send(method, request))
            .await
            .map_err(|_| AgentError::Timeout { method, after })?
    }
}

/// `report_data` and zeros.
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
    fn it_crosses_threads() {
        fn crosses<T: Send + Sync>(_: &T) {}
        let agent = Agent::new(AgentAddresses::standard(), AgentOptions::default()).unwrap();
        crosses(&agent);
    }
}
