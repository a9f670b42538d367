//! The client's side of SCRAM, by another implementation than the product's.

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use sha2::{Digest, Sha256};

use crate::harness::client::Client;
use crate::harness::message::{PgError, tagged};

pub(crate) const PLAIN: &str = "SCRAM-SHA-256";
pub(crate) const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// An exchange in progress.
pub(crate) struct Exchange {
    mechanism: &'static str,
    scram: ScramSha256,
}

impl Exchange {
    pub(crate) fn new(mechanism: &'static str, secret: &str, binding: ChannelBinding) -> Self {
        Self {
            mechanism,
            scram: ScramSha256::new(secret.as_bytes(), binding),
        }
    }

    /// SASLInitialResponse.
    pub(crate) fn initial_response(&self) -> Vec<u8> {
        initial_response(self.mechanism, self.scram.message())
    }

    /// Reads AuthenticationSASLContinue's data, and returns SASLResponse with the proof.
    pub(crate) fn proof(&mut self, data: &[u8]) -> Vec<u8> {
        self.scram.update(data).expect("a valid challenge");
        tagged(b'p', self.scram.message())
    }

    /// Checks AuthenticationSASLFinal's data: the server knows the same secret.
    pub(crate) fn finish(mut self, data: &[u8]) {
        self.scram.finish(data).expect("the server's own proof");
    }
}

/// SASLInitialResponse.
pub(crate) fn initial_response(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("a short message");
    let parts = [mechanism.as_bytes(), &[0], &length.to_be_bytes(), data];
    tagged(b'p', &parts.concat())
}

/// The channel binding `tls-server-end-point` of a certificate that is signed with SHA-256.
pub(crate) fn binding_to(certificate: &[u8]) -> ChannelBinding {
    ChannelBinding::tls_server_end_point(Sha256::digest(certificate).to_vec())
}

impl Client {
    /// Starts an exchange by the strongest mechanism that the server offered.
    pub(crate) fn exchange(&self, secret: &str, mechanisms: &[String]) -> Exchange {
        if mechanisms.iter().any(|mechanism| mechanism == PLUS) {
            let certificates = self.tls.conn.peer_certificates();
            let certificate = certificates.and_then(<[_]>::first).expect("a certificate");
            Exchange::new(PLUS, secret, binding_to(certificate))
        } else {
            Exchange::new(PLAIN, secret, ChannelBinding::unsupported())
        }
    }

    /// Sends the first message and reads the challenge: the data of AuthenticationSASLContinue.
    pub(crate) fn read_challenge(&mut self, exchange: &Exchange) -> Result<Vec<u8>, PgError> {
        self.send(&exchange.initial_response());
        let answer = self.read().expect("an answer to the first message");
        if answer.tag == b'E' {
            return Err(answer.error());
        }
        assert_eq!(answer.authentication(), 11, "AuthenticationSASLContinue");
        Ok(answer.body[4..].to_vec())
    }
}
