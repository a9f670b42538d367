//! The tokio baseline of the comparison: TLS termination in front of Postgres with tokio,
//! tokio-rustls and `copy_bidirectional`, the straightforward implementation. It does not take part
//! in the login: the client's password goes to Postgres.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use clap::{Arg, Command};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, version::TLS13};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const TLS_HANDSHAKE_RECORD: u8 = 0x16;
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

fn main() -> Result<(), Box<dyn Error>> {
    let flag = |name| Arg::new(name).long(name).required(true);
    let flags = Command::new("tokio-baseline")
        .args(["listen", "upstream", "cert", "key"].map(flag))
        .arg(Arg::new("workers").long("workers").default_value("1"))
        .get_matches();
    let text = |name| flags.get_one::<String>(name).map_or("", String::as_str);
    let listen: SocketAddr = text("listen").parse()?;
    let upstream: SocketAddr = text("upstream").parse()?;
    if !listen.ip().is_loopback() {
        return Err("only loopback addresses are allowed".into());
    }

    let chain = CertificateDer::pem_file_iter(text("cert"))?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(text("key"))?)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));

    let workers: Vec<_> = (0..text("workers").parse()?)
        .map(|_: u16| {
            let acceptor = acceptor.clone();
            thread::spawn(move || work(listen, upstream, acceptor))
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker thread panicked")??;
    }
    Ok(())
}

/// Runs one worker, with its own runtime and listener.
fn work(listen: SocketAddr, upstream: SocketAddr, acceptor: TlsAcceptor) -> io::Result<()> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::STREAM.nonblocking(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&listen.into())?;
    socket.listen(4096)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            let (client, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A failed connection must not affect the others.
                let _ = serve(client, upstream, acceptor).await;
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
    if first != [TLS_HANDSHAKE_RECORD] {
        let mut opening = [0; 8];
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
