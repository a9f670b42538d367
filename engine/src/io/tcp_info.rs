//! What the kernel says of a TCP socket (TCP_INFO): the length of a listener's backlog.
//!
//! It exists because the handshake queue is paced by the number of clients that wait, and clients in the backlog
//! wait as well. No crate in use has this option.
//!
//! It must never be called on the data path: it is a system call.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::RawFd;

use nix::libc;

/// Connections that the kernel has completed and that are not accepted yet; 0 if the kernel does not say, as for a
/// Unix socket.
pub(crate) fn backlog_len(listener: RawFd) -> u32 {
    // Of a listener, this field is the length of the accept queue. [tcp_get_info in net/ipv4/tcp.c]
    tcp_info(listener).map_or(0, |info| info.tcpi_unacked)
}

#[allow(unsafe_code)]
fn tcp_info(socket: RawFd) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which has that size, and to `size`.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    // SAFETY: it was zeroed, which is valid for integers, and the kernel has written the front of it.
    (result == 0).then(|| unsafe { info.assume_init() })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn counts_connections_that_are_not_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(backlog_len(listener.as_raw_fd()), 0);
        let _clients: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        assert_eq!(backlog_len(listener.as_raw_fd()), 3);
        listener.accept().unwrap();
        assert_eq!(backlog_len(listener.as_raw_fd()), 2);
    }

    #[test]
    fn knows_nothing_of_other_sockets() {
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(backlog_len(socket.as_raw_fd()), 0);
        assert_eq!(backlog_len(-1), 0);
    }
}
