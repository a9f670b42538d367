//! The monoio baseline of the comparison: TLS termination in front of Postgres with monoio,
//! monoio-rustls and a copy loop for each direction. It stands for what the sidecar's own TLS code
//! and relay have to beat, on the same runtime with the same ring flags. It does not take part in
//! the login: the client's password goes to Postgres.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::io::Cursor;
use std::net::SocketAddr;

use loadtest::message::SSL_REQUEST;
use loadtest::peers::baseline::{Baseline, OPENING_LEN, is_direct_tls};
use loadtest::runtime::Runtime;
use monoio::io::{
    AsyncReadRent, AsyncReadRentExt, AsyncWriteRent, AsyncWriteRentExt, PrefixedReadIo, Splitable,
};
use monoio::net::{TcpListener, TcpStream};
use monoio_rustls::TlsAcceptor;

/// Bytes of one read: the plaintext of a full TLS record.
const READ: usize = 16 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let baseline = Baseline::from_args("monoio-baseline")?;
    let acceptor = TlsAcceptor::from(baseline.tls);
    Runtime::new()?.block_on(async {
        let listener = TcpListener::from_std(baseline.listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            monoio::spawn(async move {
                // A failed connection must not affect the others.
                let _ = serve(client, baseline.upstream, acceptor).await;
            });
        }
    })
}

async fn serve(
    mut client: TcpStream,
    upstream: SocketAddr,
    acceptor: TlsAcceptor,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (result, opening) = client.read_exact(vec![0; OPENING_LEN]).await;
    result?;
    // monoio cannot peek: with direct TLS the bytes that were read are given to TLS first.
    let prefix = if opening == SSL_REQUEST {
        client.write_all(b"S").await.0?;
        Vec::new()
    } else if opening.first().copied().is_some_and(is_direct_tls) {
        opening
    } else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let client = PrefixedReadIo::new(client, Cursor::new(prefix));
    let tls = acceptor.accept(client).await.map_err(io::Error::other)?;
    let postgres = TcpStream::connect_addr(upstream).await?;
    postgres.set_nodelay(true)?;
    let (client_read, client_write) = tls.into_split();
    let (postgres_read, postgres_write) = postgres.into_split();
    let to_postgres = copy_one_way(client_read, postgres_write);
    let to_client = copy_one_way(postgres_read, client_write);
    futures_util::future::try_join(to_postgres, to_client)
        .await
        .map(drop)
}

async fn copy_one_way(
    mut read: impl AsyncReadRent,
    mut write: impl AsyncWriteRent,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(READ);
    loop {
        let (result, filled) = read.read(buffer).await;
        if result? == 0 {
            return write.shutdown().await;
        }
        let (result, emptied) = write.write_all(filled).await;
        result?;
        buffer = emptied;
    }
}
