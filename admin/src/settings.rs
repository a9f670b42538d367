//! How much the surface gives to whoever asks.

use std::time::Duration;

/// One quote a second takes about 4 % of what the machine can make, at 39 ms each.
const ATTESTATION_INTERVAL: Duration = Duration::from_secs(1);
/// A quote takes 39 ms, and may have to wait for others; 15 s is a guest agent that hangs.
const ATTESTATION_TIMEOUT: Duration = Duration::from_secs(15);
/// A request is one packet. Five seconds let two lost ones be sent again.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answers have some 100 KB: 10 KB/s is slower than any link that an operator works with.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than all the other waits together; the last resort.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// Probes, scrapers and people, several times over; at 8 KiB each, half a megabyte.
const MAX_CONNECTIONS: usize = 64;

/// Limits that are worth setting. Those that are not are constants where they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the end of one quote to the start of the next, whoever asks; 1 s. A report made without a
    /// nonce is shared for as long. Zero leaves only single flight, and nothing to those who need quotes
    /// too.
    pub attestation_interval: Duration,
    /// Longest wait for one quote; 15 s.
    pub attestation_timeout: Duration,
    /// From the connection to the end of the request's headers; 5 s.
    pub header_timeout: Duration,
    /// From the answer to its last byte sent; 10 s.
    pub write_timeout: Duration,
    /// From the connection to its end, whatever it does; 60 s.
    pub connection_lifetime: Duration,
    /// Most connections at once; 64. One more makes the oldest go that is still sending its request or
    /// still reading its answer: who is slow on purpose then only displaces others like it. Refusing
    /// the newcomer would let 64 slow ones shut the door.
    pub max_connections: usize,
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
        }
    }
}
