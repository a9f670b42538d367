//! Limits of the admin server. The port is unauthenticated, so each resource has a cap.

use std::time::Duration;

/// One quote per second is about 4 % of the machine's capacity, at 39 ms each.
const ATTESTATION_INTERVAL: Duration = Duration::from_secs(1);
/// A quote takes 39 ms and may be queued after others; a guest agent that needs 15 s has hung.
const ATTESTATION_TIMEOUT: Duration = Duration::from_secs(15);
/// A request is one packet. Five seconds allow for two retransmissions.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest responses have about 200 KB: 10 KB/s is slower than any link that an operator uses.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than all other timeouts together; the last resort.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// Several times what probes, scrapers and people need; half a megabyte at 8 KiB each.
const MAX_CONNECTIONS: usize = 64;

/// The configurable limits. The others are constants next to the code that enforces them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Minimum time from the end of one quote to the start of the next, over all clients; 1 s. A
    /// report made without a nonce is cached for as long; requests with nonces wait for the next one, if it is at
    /// most 5 s. Zero disables the rate limit and leaves
    /// only single flight: requests can then use all of the machine's quotes.
    pub attestation_interval: Duration,
    /// Maximum time for one quote; 15 s.
    pub attestation_timeout: Duration,
    /// Maximum time from the accept to the end of the request's headers; 5 s.
    pub header_timeout: Duration,
    /// Maximum time to send a response; 10 s.
    pub write_timeout: Duration,
    /// Maximum lifetime of a connection; 60 s.
    pub connection_lifetime: Duration,
    /// Maximum number of concurrent connections; 64. One more evicts the oldest connection that is
    /// still sending its request or reading its response, so that deliberately slow clients only
    /// evict each other. Refusing the newest connection would let 64 slow clients block the server.
    pub max_connections: usize,
    /// Whether `/` is the status page; true.
    pub status_page: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            attestation_interval: ATTESTATION_INTERVAL,
            attestation_timeout: ATTESTATION_TIMEOUT,
            header_timeout: HEADER_TIMEOUT,
            write_timeout: WRITE_TIMEOUT,
            connection_lifetime: CONNECTION_LIFETIME,
            max_connections: MAX_CONNECTIONS,
            status_page: true,
        }
    }
}
