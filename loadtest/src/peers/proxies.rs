//! The others: the relay and the twin of our own, and Debian's.
//!
//! Each is configured to do what ours does and no more: one thread, TLS 1.3,
//! the same certificate, no log of single connections.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::kind::{Kind, Peer, Upstream};
use super::process::{Process, command, find, free_address, version};
use super::workspace::House;
use crate::endpoint::Target;
use crate::error::{Result, doing};

/// Starts it and waits until it listens.
fn run(
    kind: Kind,
    house: &House,
    command: Command,
    address: SocketAddr,
    version: String,
) -> Result<Peer> {
    let log = house.path(&format!("{kind}-{}.log", address.port()));
    let end = match kind {
        // PgBouncer waits for its clients on SIGTERM in newer versions.
        Kind::PgBouncer => Signal::SIGINT,
        _ => Signal::SIGTERM,
    };
    let mut process = Process::start(kind.name(), command, log, end)?;
    process.until_listening(address)?;
    Ok(Peer {
        kind,
        target: Target::loopback(address, kind.opening(), None)?,
        handshake: None,
        login: house.plain_login(),
        version,
        process: Some(process),
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(doing(path.display().to_string()))
}

pub(super) fn relay(house: &House, upstream: &Upstream) -> Result<Peer> {
    let address = free_address()?;
    let mut relay = command(
        &house.program("teesql-loadtest")?,
        &house.cores.proxy,
        false,
    );
    relay.args(["relay", "--listen", &address.to_string()]);
    relay.args(["--upstream", &upstream.address.to_string()]);
    run(
        Kind::Relay,
        house,
        relay,
        address,
        "monoio, io_uring, no TLS".to_owned(),
    )
}

pub(super) fn twin(house: &House, upstream: &Upstream) -> Result<Peer> {
    let address = free_address()?;
    let mut twin = command(&house.program("tokio-baseline")?, &house.cores.proxy, false);
    twin.args(["--listen", &address.to_string(), "--workers", "1"]);
    twin.args(["--upstream", &upstream.address.to_string()]);
    twin.arg("--cert").arg(house.path("cert.pem"));
    twin.arg("--key").arg(house.path("key.pem"));
    run(
        Kind::Twin,
        house,
        twin,
        address,
        "tokio, tokio-rustls".to_owned(),
    )
}

pub(super) fn pgbouncer(house: &House, upstream: &Upstream) -> Result<Peer> {
    let (program, address) = (find("pgbouncer")?, free_address()?);
    let settings = house.path(&format!("pgbouncer-{}.ini", address.port()));
    let users = house.path("pgbouncer-users.txt");
    write(&users, "\"teesql_read\" \"\"\n")?;
    write(
        &settings,
        &format!(
            "[databases]\npostgres = host=127.0.0.1 port={upstream}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {users}\npool_mode = session\n\
             default_pool_size = {most}\nmax_client_conn = {most}\n\
             client_tls_sslmode = require\nclient_tls_protocols = tlsv1.3\n\
             client_tls_cert_file = {cert}\nclient_tls_key_file = {key}\n\
             log_connections = 0\nlog_disconnections = 0\n",
            upstream = upstream.address.port(),
            most = house.most_connections(),
            port = address.port(),
            users = users.display(),
            cert = house.path("cert.pem").display(),
            key = house.path("key.pem").display(),
        ),
    )?;
    let mut pgbouncer = command(&program, &house.cores.proxy, true);
    pgbouncer.arg(&settings);
    run(
        Kind::PgBouncer,
        house,
        pgbouncer,
        address,
        version(&program, "--version"),
    )
}

pub(super) fn stunnel(house: &House, upstream: &Upstream) -> Result<Peer> {
    let (program, address) = (
        find("stunnel4").or_else(|_| find("stunnel"))?,
        free_address()?,
    );
    let settings = house.path(&format!("stunnel-{}.conf", address.port()));
    write(
        &settings,
        &format!(
            "foreground = yes\npid =\ndebug = err\n\
             [postgres]\naccept = {address}\nconnect = {upstream}\nprotocol = pgsql\n\
             sslVersionMin = TLSv1.3\nlibwrap = no\nTIMEOUTidle = 3600\n\
             cert = {cert}\nkey = {key}\n",
            upstream = upstream.address,
            cert = house.path("cert.pem").display(),
            key = house.path("key.pem").display(),
        ),
    )?;
    let mut stunnel = command(&program, &house.cores.proxy, false);
    stunnel.arg(&settings);
    run(
        Kind::Stunnel,
        house,
        stunnel,
        address,
        version(&program, "-version"),
    )
}

/// With a second listener that ends every connection once its handshake is
/// complete: HAProxy dials its server before the client has said anything, and
/// a handshake's price has to be without that.
pub(super) fn haproxy(house: &House, upstream: &Upstream) -> Result<Peer> {
    let (program, address, handshake) = (find("haproxy")?, free_address()?, free_address()?);
    let settings = house.path(&format!("haproxy-{}.cfg", address.port()));
    let both = house.path("both.pem").display().to_string();
    write(
        &settings,
        &format!(
            "global\n  nbthread 1\n  maxconn {most}\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen postgres\n  bind {address} ssl crt {both} alpn postgresql ssl-min-ver TLSv1.3\n  \
             server postgres {upstream}\n\
             frontend handshakes\n  bind {handshake} ssl crt {both} ca-file {ca} verify required \
             alpn postgresql ssl-min-ver TLSv1.3\n  tcp-request session reject\n",
            upstream = upstream.address,
            most = house.most_connections(),
            ca = house.path("kms.pem").display(),
        ),
    )?;
    let mut haproxy = command(&program, &house.cores.proxy, false);
    haproxy.arg("-db").arg("-f").arg(&settings);
    let version = version(&program, "-v");
    let mut peer = run(Kind::HaProxy, house, haproxy, address, version)?;
    let client = house.tdx.chain("client")?;
    peer.handshake = Some(Target::loopback(
        handshake,
        Kind::HaProxy.opening(),
        Some(&client),
    )?);
    Ok(peer)
}
