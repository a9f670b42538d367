//! Layer 6: one connection from its first byte to its last.

pub(crate) mod inbound;
pub mod outbound;
pub(crate) mod upstream;

use crate::io::buffer::Buffer;
use crate::io::stream::Stream;
use crate::session::control::ConnectionControl;
use crate::telemetry::close_reason::CloseReason;

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
