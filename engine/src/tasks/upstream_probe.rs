//! Probes at regular intervals whether Postgres is up, and which protocol version it supports.
//!
//! The sidecar negotiates the protocol version with a client before it requests the password,
//! and dials Postgres only after the password was correct. So the version must be known
//! beforehand.

use std::io;
use std::time::Duration;

use admin::Latch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use wire::startup::ProtocolVersion;
use wire::version_probe::{ProbeStep, parse_probe_response, write_probe_request};

use crate::io::backoff::Backoff;
use crate::io::peer_uid::peer_uid;
use crate::io::stream::PgAddress;
use crate::postgres::server::PostgresServer;
use crate::tasks::coalesced_sleep;
use crate::tasks::upstream_version::UpstreamVersion;

/// The limit for one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Delays between attempts while Postgres does not answer.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// Minimum time between two probes, however often the version is invalidated.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Time until the next probe if nothing invalidates the version, as [`coalesced_sleep`] rounds it. While no client logs in,
/// `/ready` notices within this time that Postgres is down.
const INTERVAL: Duration = Duration::from_secs(5);

/// Probes immediately, at regular intervals, and after [`UpstreamVersion::invalidate`]. Sets
/// `latch` to whether Postgres answers. Never returns.
pub(crate) async fn run(
    server: &PostgresServer,
    upstream_version: &UpstreamVersion,
    latch: &Latch,
) {
    loop {
        probe_until_success(server, upstream_version, latch).await;
        let (ended, next) = (Instant::now(), coalesced_sleep::end(INTERVAL));
        // Both outcomes lead to the next probe.
        coalesced_sleep::sleep_unless(upstream_version.invalidated(), next, ended + MIN_INTERVAL)
            .await;
    }
}

async fn probe_until_success(
    server: &PostgresServer,
    upstream_version: &UpstreamVersion,
    latch: &Latch,
) {
    let mut backoff = RETRY;
    let mut warned = false;
    loop {
        let probed = tokio::time::timeout(PROBE_TIMEOUT, probe(server)).await;
        match probed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(newest) => {
                if upstream_version.newest() != Some(newest) {
                    tracing::info!(%newest, "probed the protocol version of Postgres");
                }
                upstream_version.set(newest);
                latch.set_ready();
                return;
            }
            Err(error) if !warned => {
                latch.set_not_ready(format!("Postgres does not answer: {error}"));
                tracing::warn!(%error, postgres = %server.address, "Postgres does not answer");
                warned = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn probe(server: &PostgresServer) -> io::Result<ProtocolVersion> {
    match &server.address {
        PgAddress::Tcp(address) => probe_on(tokio::net::TcpStream::connect(address).await?).await,
        PgAddress::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await?;
            server
                .check_listener(peer_uid(&stream))
                .map_err(|error| io::Error::other(error.to_string()))?;
            probe_on(stream).await
        }
    }
}

async fn probe_on(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<ProtocolVersion> {
    let mut request = Vec::new();
    // Postgres negotiates the version before it looks at the role.
    write_probe_request("teesql_read", &mut request);
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match parse_probe_response(&answer) {
            ProbeStep::Read => {}
            ProbeStep::Supports(newest) => return Ok(newest),
            ProbeStep::Refuse(error) => return Err(io::Error::other(error.to_string())),
        }
    }
}
