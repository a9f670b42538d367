//! Learns what the Postgres behind speaks, before a client asks.
//!
//! The answer to a client's StartupMessage has to say which protocol version
//! it gets before the password is asked for, and Postgres is only dialled when
//! the password was right: so it has to be known beforehand.

use std::io;
use std::time::Duration;

use admin::Latch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::startup::ProtocolVersion;
use wire::version_probe::{ProbeStep, parse_probe_response, write_probe_request};

use crate::io::backoff::Backoff;
use crate::io::stream::PgAddress;
use crate::tasks::upstream_version::UpstreamVersion;

/// For one try.
const DEADLINE: Duration = Duration::from_secs(2);
/// Delays between attempts while Postgres does not answer.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// Least time between two probes, however often something looks stale.
const BETWEEN_PROBES: Duration = Duration::from_secs(1);
/// Between two probes where nothing looks stale: how late `/ready` learns that
/// Postgres is gone while nobody logs in.
const NOW_AND_THEN: Duration = Duration::from_secs(4);

/// Probes now, now and then, and whenever [`UpstreamVersion::stale`] is rung, for
/// ever. Tells `latch` whether Postgres answers.
pub(crate) async fn run(endpoint: &PgAddress, upstream_version: &UpstreamVersion, latch: &Latch) {
    loop {
        learn(endpoint, upstream_version, latch).await;
        tokio::time::sleep(BETWEEN_PROBES).await;
        // Passed or rung, it is time.
        let _ = tokio::time::timeout(NOW_AND_THEN, upstream_version.stale.notified()).await;
    }
}

async fn learn(endpoint: &PgAddress, upstream_version: &UpstreamVersion, latch: &Latch) {
    let mut backoff = RETRY;
    let mut complained = false;
    loop {
        let probed = tokio::time::timeout(DEADLINE, probe(endpoint)).await;
        match probed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(newest) => {
                if upstream_version.newest() != Some(newest) {
                    tracing::info!(%newest, "learned what Postgres speaks");
                }
                upstream_version.learned(newest);
                latch.set_ready();
                return;
            }
            Err(error) if !complained => {
                latch.set_not_ready(format!("Postgres does not answer: {error}"));
                tracing::warn!(%error, postgres = %endpoint, "Postgres does not answer");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn probe(endpoint: &PgAddress) -> io::Result<ProtocolVersion> {
    match endpoint {
        PgAddress::Tcp(address) => ask(tokio::net::TcpStream::connect(address).await?).await,
        PgAddress::Unix(path) => ask(tokio::net::UnixStream::connect(path).await?).await,
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<ProtocolVersion> {
    let mut request = Vec::new();
    // Postgres answers the version before it looks at the role.
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
