//! What the kernel says of a TCP socket (TCP_INFO): the length of a listener's backlog, when a connection has
//! last transferred data, and whether its peer has closed it.
//!
//! The backlog exists because the handshake queue is paced by the number of clients that wait, and clients in the
//! backlog wait as well. The times exist because an operator asks which sessions are idle, and noting them here would cost every
//! read and write. No crate in use has this option.
//!
//! It must never be called on the data path: it is a system call.

use std::mem::{MaybeUninit, size_of};
use std::os::fd::RawFd;
use std::time::Duration;

use nix::libc;

/// States of a connection. [include/net/tcp_states.h]
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;

/// How long ago a connection has transferred data. The kernel counts in ticks of 1 to 10 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastTransfer {
    pub(crate) received: Duration,
    pub(crate) sent: Duration,
}

/// Connections that the kernel has completed and that are not accepted yet; 0 if the kernel does not report it, as for a
/// Unix socket.
pub(crate) fn backlog_len(listener: RawFd) -> u32 {
    // Of a listener, this field is the length of the accept queue. [tcp_get_info in net/ipv4/tcp.c]
    tcp_info(listener).map_or(0, |info| info.tcpi_unacked)
}

/// When a connection has last transferred data; `None` if the kernel does not report it, as for a Unix socket. Of a direction
/// without data it is the time since the connection was accepted or opened.
pub(crate) fn last_transfer(connection: RawFd) -> Option<LastTransfer> {
    let info = tcp_info(connection)?;
    Some(LastTransfer {
        received: Duration::from_millis(info.tcpi_last_data_recv.into()),
        sent: Duration::from_millis(info.tcpi_last_data_sent.into()),
    })
}

/// Whether the peer has closed or reset the connection, also if there are bytes of it that have not been read;
/// `false` if the kernel does not report it, as for a Unix socket.
pub(crate) fn peer_has_closed(connection: RawFd) -> bool {
    tcp_info(connection).is_some_and(|info| matches!(info.tcpi_state, TCP_CLOSE | TCP_CLOSE_WAIT))
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
    use std::io::{Read as _, Write as _};
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
        assert_eq!(last_transfer(socket.as_raw_fd()), None);
        assert!(!peer_has_closed(socket.as_raw_fd()));
    }

    #[test]
    fn sees_the_end_of_a_peer_behind_unread_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"hello").unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (client, server) = connect();
        assert!(!peer_has_closed(server.as_raw_fd()));
        drop(client);
        assert!(peer_has_closed(server.as_raw_fd()));
        let (client, server) = connect();
        crate::io::stream::reset(client.as_raw_fd());
        drop(client);
        assert!(peer_has_closed(server.as_raw_fd()));
    }

    /// The side that has spoken last has the shorter time.
    #[test]
    fn tells_which_side_has_spoken_last() {
        let pause = Duration::from_millis(50);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut buffer = [0; 8];
        client.write_all(b"question").unwrap();
        server.read_exact(&mut buffer).unwrap();
        server.write_all(b"answer..").unwrap();
        client.read_exact(&mut buffer).unwrap();
        std::thread::sleep(pause);
        let times = last_transfer(server.as_raw_fd()).unwrap();
        assert!(times.received >= pause / 2 && times.sent >= pause / 2);
        client.write_all(b"question").unwrap();
        server.read_exact(&mut buffer).unwrap();
        let times = last_transfer(server.as_raw_fd()).unwrap();
        assert!(times.received < times.sent, "{times:?}");
    }
}
