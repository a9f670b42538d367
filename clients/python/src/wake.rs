//! A socket that becomes readable when there is something to do (self-pipe), by which native threads wake Python's event loops.
//!
//! It must never block: it is written by the threads that carry connections.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Wake;

/// A pair of sockets (self-pipe trick), closed when it is dropped.
pub(crate) struct WakeSocket {
    reader: UnixStream,
    writer: UnixStream,
}

impl WakeSocket {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        Ok(Self { reader, writer })
    }

    pub(crate) fn fileno(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// Makes it readable.
    pub(crate) fn set(&self) {
        // It fails when it is full, and then it is readable.
        let _ = (&self.writer).write(&[0]);
    }

    /// Makes it unreadable. What happens after this makes it readable again.
    pub(crate) fn clear(&self) {
        let mut buffer = [0; 256];
        // It ends when nothing is left.
        while matches!((&self.reader).read(&mut buffer), Ok(count) if count == buffer.len()) {}
    }
}

impl Wake for WakeSocket {
    fn wake(self: Arc<Self>) {
        self.set();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
    }
}
