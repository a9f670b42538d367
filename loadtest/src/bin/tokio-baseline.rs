//! The tokio baseline of the comparison: TLS termination in front of Postgres with tokio,
//! tokio-rustls and `copy_bidirectional`, the straightforward implementation. It does not take part
//! in the login: the client's password goes to Postgres.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use loadtest::message::SSL_REQUEST;
use loadtest::peers::baseline::{Baseline, OPENING_LEN, is_direct_tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

fn main() -> Result<(), Box<dyn Error>> {
    let baseline = Baseline::from_args("tokio-baseline")?;
    let acceptor = TlsAcceptor::from(baseline.tls);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        baseline.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(baseline.listener)?;
        loop {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
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
    let mut first = [0; 1];
    client.peek(&mut first).await?;
    if !is_direct_tls(first[0]) {
        let mut opening = [0; OPENING_LEN];
        client.read_exact(&mut opening).await?;
        if opening != SSL_REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        client.write_all(b"S").await?;
    }
    let mut tls = acceptor.accept(client).await?;
    let mut postgres = TcpStream::connect(upstream).await?;
    postgres.set_nodelay(true)?;
    copy_bidirectional(&mut tls, &mut postgres).await?;
    Ok(())
}
