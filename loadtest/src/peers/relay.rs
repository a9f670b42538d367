//! The plain relay: monoio and two copy loops for each connection, as in the engine, without TLS,
//! login or inspection of the bytes.
//!
//! The engine deliberately has no listener without TLS. The cost of TLS is therefore measured
//! against this separate program with the same loop: one read, then the write of what was read, 8
//! KiB per read and 128 KiB while a stream fills them. It has no read delays in streams, and uses
//! the system's congestion control.

use std::io;
use std::net::SocketAddr;

use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use monoio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result, io_context};
use crate::runtime::Runtime;

/// Bytes of one read: while idle, and while a stream fills the reads.
const SMALL: usize = 8 * 1024;
const LARGE: usize = 128 * 1024;
/// Number of consecutive short reads after which the buffer shrinks again.
const SHRINK_AFTER: u32 = 8;

/// Relays until the process is stopped. Listens on loopback only.
///
/// # Errors
/// The address is not loopback or cannot be listened on.
pub fn serve(listen: SocketAddr, upstream: SocketAddr) -> Result<()> {
    let listener = listener(listen)?;
    Runtime::new()?.block_on(async move {
        let listener = TcpListener::from_std(listener).map_err(io_context("cannot listen"))?;
        loop {
            let (client, _) = listener
                .accept()
                .await
                .map_err(io_context("cannot accept"))?;
            monoio::spawn(async move {
                // A failed connection must not affect the others.
                let _ = relay(client, upstream).await;
            });
        }
    })
}

/// Creates a listener on loopback.
pub(super) fn listener(listen: SocketAddr) -> Result<std::net::TcpListener> {
    const BACKLOG: i32 = 4096;
    if !listen.ip().is_loopback() {
        return Err(Error::Usage(format!(
            "{listen}: only loopback addresses are allowed"
        )));
    }
    let failed = || io_context(format!("cannot listen on {listen}"));
    let domain = socket2::Domain::for_address(listen);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).map_err(failed())?;
    socket.set_reuse_address(true).map_err(failed())?;
    socket.bind(&listen.into()).map_err(failed())?;
    socket.listen(BACKLOG).map_err(failed())?;
    Ok(socket.into())
}

async fn relay(client: TcpStream, upstream: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let postgres = TcpStream::connect_addr(upstream).await?;
    postgres.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (postgres_read, postgres_write) = postgres.into_split();
    let to_postgres = copy_one_way(client_read, postgres_write);
    let to_client = copy_one_way(postgres_read, client_write);
    futures_util::future::try_join(to_postgres, to_client)
        .await
        .map(drop)
}

async fn copy_one_way(mut read: TcpOwnedReadHalf, mut write: TcpOwnedWriteHalf) -> io::Result<()> {
    let (mut buffer, mut small_reads) = (Vec::with_capacity(SMALL), 0);
    loop {
        let (result, filled) = read.read(buffer).await;
        let count = result?;
        if count == 0 {
            return write.shutdown().await;
        }
        let (result, emptied) = write.write_all(filled).await;
        result?;
        small_reads = if count < SMALL { small_reads + 1 } else { 0 };
        buffer = match emptied.capacity() {
            SMALL if count == SMALL => Vec::with_capacity(LARGE),
            LARGE if small_reads == SHRINK_AFTER => Vec::with_capacity(SMALL),
            _ => emptied,
        };
    }
}
