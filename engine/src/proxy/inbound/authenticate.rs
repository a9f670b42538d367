//! The authentication of a client: SCRAM, or its secret in cleartext. Postgres is not involved.
//!
//! Unknown roles, wrong roles and wrong secrets must not differ in any byte or in time. So all
//! steps are the same for every role, up to the one response to all three.

use std::sync::Arc;

use wire::backend::BackendError;
use wire::frontend::scram::{
    AwaitScramFinal, AwaitScramFirst, ScramFinalStep, ScramFirstStep, ScramProof, request_scram,
};
use wire::frontend::{AwaitPassword, PasswordStep, request_password};
use wire::scram::RAW_NONCE_LEN;
use wire::scram::server::{Challenge, ChannelBinding};
use wire::startup::{ProtocolVersion, Startup};

use super::{Client, LoginContext, read_more};
use crate::auth::client_auth::ClientAuth;
use crate::auth::credential::Credential;
use crate::auth::role::Role;
use crate::telemetry::close_reason::CloseReason;

impl LoginContext<'_> {
    /// Authenticates the client. Returns the credential to inject and the negotiated version.
    pub(super) async fn authenticate(
        &self,
        client: &mut Client,
        startup: &Startup,
        role: Option<Role>,
    ) -> Result<(Arc<Credential>, ProtocolVersion), CloseReason> {
        let upstream_version = &self.handler.upstream_login.upstream_version;
        let newest = upstream_version.newest_or_fallback().await;
        let mut request = Vec::new();
        match self.handler.client_auth {
            ClientAuth::Password => {
                let (next, version) = request_password(startup, newest, &mut request);
                self.send(client, &request).await?;
                Ok((self.check_password(client, next, role).await?, version))
            }
            ClientAuth::Scram => {
                let challenge = self.challenge()?;
                let (next, version) = request_scram(startup, newest, challenge, &mut request);
                self.send(client, &request).await?;
                let proof = self.read_proof(client, next).await?;
                Ok((self.check_proof(client, &proof, role).await?, version))
            }
        }
    }

    async fn send(&self, client: &mut Client, message: &[u8]) -> Result<(), CloseReason> {
        let sent = client.send(message).await;
        sent.map_err(|error| error.into_close_reason(self.control))
    }

    /// Reads the secret and compares it with all secrets.
    async fn check_password(
        &self,
        client: &mut Client,
        mut await_password: AwaitPassword,
        role: Option<Role>,
    ) -> Result<Arc<Credential>, CloseReason> {
        loop {
            match await_password.advance(client.plain.filled()) {
                PasswordStep::Read(next) => await_password = next,
                PasswordStep::Password { password, consumed } => {
                    let authenticator = &self.snapshot.authenticator;
                    let credential = authenticator.authenticate(role, password).cloned();
                    wipe(client, consumed);
                    return credential.ok_or(CloseReason::AuthenticationFailed);
                }
                PasswordStep::Refuse(error) => return Err(error.into()),
            }
            read_more(client, self.control).await?;
        }
    }

    /// Our part of a SCRAM exchange.
    fn challenge(&self) -> Result<Challenge, CloseReason> {
        let mut nonce = [0; RAW_NONCE_LEN];
        let random = self.handler.upstream_login.random;
        random
            .fill(&mut nonce)
            .map_err(|_| BackendError::NoRandomness)?;
        Ok(Challenge {
            nonce,
            salt: self.snapshot.authenticator.salt(),
            binding: self.channel_binding(),
        })
    }

    /// The channel binding, if SCRAM-SHA-256-PLUS is offered.
    ///
    /// A client that did not ask for TLS in the way of PostgreSQL's drivers is a forwarder or a
    /// gateway: its driver has no TLS with us, and libpq refuses the offer there.
    fn channel_binding(&self) -> Option<ChannelBinding> {
        let offer = self.handler.scram_channel_binding && (self.ssl_request || self.alpn);
        self.snapshot.channel_binding.filter(|_| offer)
    }

    /// Runs SCRAM up to the client's proof.
    async fn read_proof(
        &self,
        client: &mut Client,
        await_first: AwaitScramFirst,
    ) -> Result<ScramProof, CloseReason> {
        let await_final = self.read_client_first(client, await_first).await?;
        self.read_client_final(client, await_final).await
    }

    async fn read_client_first(
        &self,
        client: &mut Client,
        mut await_first: AwaitScramFirst,
    ) -> Result<AwaitScramFinal, CloseReason> {
        let mut reply = Vec::new();
        loop {
            match await_first.advance(client.plain.filled(), &mut reply) {
                ScramFirstStep::Read(next) => await_first = next,
                ScramFirstStep::Challenged { consumed, next } => {
                    client.plain.consume(consumed);
                    self.send(client, &reply).await?;
                    return Ok(next);
                }
                ScramFirstStep::Refuse(error) => {
                    // It may have been the secret.
                    wipe(client, usize::MAX);
                    return Err(error.into());
                }
            }
            read_more(client, self.control).await?;
        }
    }

    async fn read_client_final(
        &self,
        client: &mut Client,
        mut await_final: AwaitScramFinal,
    ) -> Result<ScramProof, CloseReason> {
        loop {
            match await_final.advance(client.plain.filled()) {
                ScramFinalStep::Read(next) => await_final = next,
                ScramFinalStep::Proof { consumed, proof } => {
                    client.plain.consume(consumed);
                    return Ok(proof);
                }
                ScramFinalStep::Refuse(error) => {
                    wipe(client, usize::MAX);
                    return Err(error.into());
                }
            }
            read_more(client, self.control).await?;
        }
    }

    /// Compares the proof with all secrets, and proves to the client that we know the same one.
    async fn check_proof(
        &self,
        client: &mut Client,
        proof: &ScramProof,
        role: Option<Role>,
    ) -> Result<Arc<Credential>, CloseReason> {
        let mut message = Vec::new();
        let authenticator = &self.snapshot.authenticator;
        let credential = authenticator.authenticate_scram(role, proof, &mut message);
        let credential = credential.ok_or(CloseReason::AuthenticationFailed)?;
        self.send(client, &message).await?;
        Ok(Arc::clone(credential))
    }
}

/// Consumes bytes that may hold a secret, and overwrites them.
fn wipe(client: &mut Client, consumed: usize) {
    client.plain.consume(consumed);
    client.plain.wipe_consumed();
    client.incoming.wipe_consumed();
}
