//! Layer 6: one connection from its first byte to its last.

pub(crate) mod inbound;
pub(crate) mod link;
pub mod outbound;
pub(crate) mod upstream;

use std::future::poll_fn;
use std::os::fd::RawFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::io::buffer::Buffer;
use crate::io::stream::Stream;
use crate::session::control::ConnectionControl;
use crate::telemetry::close_reason::CloseReason;

/// How long a CancelRequest may take to reach Postgres. A later one could cancel a statement that it was not meant for.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads more plaintext of the opening into `incoming`.
///
/// # Errors
/// The client closed the connection, or it failed or was terminated.
async fn read_opening(
    stream: &mut Stream,
    incoming: Buffer,
    control: &ConnectionControl,
) -> Result<Buffer, CloseReason> {
    let (result, incoming) = stream.read(incoming.make_room()).await;
    match result {
        Ok(0) => Err(control.or_terminated(CloseReason::ClientGone)),
        Ok(_) => Ok(incoming),
        Err(error) => Err(control.or_terminated(CloseReason::ClientIo(error))),
    }
}

/// Sends the one-byte response to a request for encryption.
///
/// # Errors
/// The connection failed or was terminated.
async fn reply_opening(
    stream: &mut Stream,
    byte: u8,
    control: &ConnectionControl,
) -> Result<(), CloseReason> {
    let result = stream.write_all(vec![byte]).await;
    result.map_err(|error| control.or_terminated(CloseReason::ClientIo(error)))
}

/// Runs `work` until it completes. After `limit` it shuts down the socket `fd`, which ends the reads
/// of `work`, because completion I/O must not be dropped before it has completed. Returns `false`
/// if that was necessary.
async fn shut_down_after<T>(
    limit: Duration,
    fd: RawFd,
    work: impl Future<Output = T>,
) -> (T, bool) {
    let mut work = pin!(work);
    let mut timer = pin!(monoio::time::sleep(limit));
    let mut in_time = true;
    poll_fn(|cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready((result, in_time));
        }
        if in_time && timer.as_mut().poll(cx).is_ready() {
            in_time = false;
            let _ = nix::sys::socket::shutdown(fd, nix::sys::socket::Shutdown::Both);
            return work.as_mut().poll(cx).map(|result| (result, false));
        }
        Poll::Pending
    })
    .await
}
