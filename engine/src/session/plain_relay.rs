//! The relay between two plain connections of this machine: to a service of this member itself, which its neighbours
//! reach by links.
//!
//! Two half-relays in one task, as in [`relay`](super::relay). Each direction ends by itself; an error on one side
//! resets the other, whose bytes may be incomplete.

use std::future::Future;

use futures_util::FutureExt as _;
use futures_util::future::try_join;

use crate::io::buffer::Buffer;
use crate::io::stream::{Stream, WriteHalf};
use crate::session::control::ConnectionControl;
use crate::session::reader::Reader;
use crate::telemetry::close_reason::CloseReason;

/// Relays bytes until both directions have ended or one has failed.
pub(crate) fn relay_plain(
    client: Stream,
    service: Stream,
    control: &ConnectionControl,
) -> impl Future<Output = CloseReason> {
    let (client_read, client_write) = client.into_split();
    let (service_read, service_write) = service.into_split();
    let to_service = HalfRelay {
        read: Reader::new(client_read),
        write: service_write,
        control,
        is_to_client: false,
    };
    let to_client = HalfRelay {
        read: Reader::new(service_read),
        write: client_write,
        control,
        is_to_client: true,
    };
    try_join(to_service.run(), to_client.run()).map(|outcome| {
        control.or_terminated(match outcome {
            Ok(_) => CloseReason::ClientClosed,
            Err(reason) => reason,
        })
    })
}

struct HalfRelay<'a> {
    read: Reader<'a>,
    write: WriteHalf,
    control: &'a ConnectionControl,
    is_to_client: bool,
}

impl HalfRelay<'_> {
    async fn run(mut self) -> Result<(), CloseReason> {
        let mut bytes = Buffer::none();
        loop {
            let (result, filled) = self.read.read(bytes).await;
            bytes = filled;
            match result {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(self.failed(error, !self.is_to_client)),
            }
            match self.is_to_client {
                true => self.control.count_sent(bytes.len()),
                false => self.control.count_received(bytes.len()),
            }
            let (result, empty) = self.write.write_all(bytes).await;
            bytes = empty;
            if let Err(error) = result {
                return Err(self.failed(error, self.is_to_client));
            }
        }
        drop(bytes);
        if let Some(reason) = self.control.terminate_reason() {
            return Err(reason.into());
        }
        let _ = self.write.shutdown().await;
        self.control.half_closed();
        Ok(())
    }

    /// One side has failed: the other must not take what it has for complete.
    fn failed(&self, error: std::io::Error, of_client: bool) -> CloseReason {
        self.control.reset_plain(!of_client);
        match of_client {
            true => CloseReason::ClientIo(error),
            false => CloseReason::UpstreamIo(error),
        }
    }
}
