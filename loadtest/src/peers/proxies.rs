//! All other proxies: the plain relay and the baselines of this crate, and Debian's packages.
//!
//! Each is configured to do what the sidecar does and no more: one thread, TLS 1.3, the same
//! certificate, no logging of connections.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::kind::{Peer, PeerKind, Upstream};
use super::process::{Process, command, find, free_address, version};
use super::workspace::Workspace;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result, io_context};

/// Starts a proxy and waits until it listens.
fn start_proxy(
    kind: PeerKind,
    workspace: &Workspace,
    command: Command,
    address: SocketAddr,
    version: String,
) -> Result<Peer> {
    let log = workspace.path(&format!("{kind}-{}.log", address.port()));
    let end = match kind {
        // Newer versions of PgBouncer wait for their clients on SIGTERM.
        PeerKind::PgBouncer => Signal::SIGINT,
        _ => Signal::SIGTERM,
    };
    let mut process = Process::start(kind.name(), command, log, end)?;
    process.wait_listening(address)?;
    Ok(Peer {
        kind,
        endpoint: Endpoint::loopback(address, kind.opening(), None)?,
        handshake: None,
        login: workspace.plain_login(),
        version,
        process: Some(process),
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(io_context(path.display().to_string()))
}

pub(super) fn relay(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    let address = free_address()?;
    let mut relay = command(
        &workspace.program("teesql-loadtest")?,
        &workspace.cores.proxy,
        false,
    );
    relay.args(["relay", "--listen", &address.to_string()]);
    relay.args(["--upstream", &upstream.address.to_string()]);
    start_proxy(
        PeerKind::PlainRelay,
        workspace,
        relay,
        address,
        "monoio, io_uring, no TLS".to_owned(),
    )
}

/// Starts the tokio or the monoio baseline, each of which has one thread.
pub(super) fn baseline(kind: PeerKind, workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    let address = free_address()?;
    let version = match kind {
        PeerKind::MonoioBaseline => "monoio, monoio-rustls",
        _ => "tokio, tokio-rustls",
    };
    let program = workspace.program(kind.name())?;
    let mut baseline = command(&program, &workspace.cores.proxy, false);
    baseline.args(["--listen", &address.to_string()]);
    baseline.args(["--upstream", &upstream.address.to_string()]);
    baseline.arg("--cert").arg(workspace.path("cert.pem"));
    baseline.arg("--key").arg(workspace.path("key.pem"));
    start_proxy(kind, workspace, baseline, address, version.to_owned())
}

/// `server_lifetime = 0`: each client has a new Postgres process, as with the other arms.
pub(super) fn pgbouncer(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    let (program, address) = (find("pgbouncer")?, free_address()?);
    let settings = workspace.path(&format!("pgbouncer-{}.ini", address.port()));
    let users = workspace.path("pgbouncer-users.txt");
    write(&users, "\"teesql_read\" \"\"\n")?;
    write(
        &settings,
        &format!(
            "[databases]\npostgres = host=127.0.0.1 port={upstream}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {users}\npool_mode = session\n\
             default_pool_size = {max}\nmax_client_conn = {max}\n\
             server_lifetime = 0\n\
             client_tls_sslmode = require\nclient_tls_protocols = tlsv1.3\n\
             client_tls_cert_file = {cert}\nclient_tls_key_file = {key}\n\
             log_connections = 0\nlog_disconnections = 0\n",
            upstream = upstream.address.port(),
            max = workspace.max_connections(),
            port = address.port(),
            users = users.display(),
            cert = workspace.path("cert.pem").display(),
            key = workspace.path("key.pem").display(),
        ),
    )?;
    let mut pgbouncer = command(&program, &workspace.cores.proxy, true);
    pgbouncer.arg(&settings);
    start_proxy(
        PeerKind::PgBouncer,
        workspace,
        pgbouncer,
        address,
        version(&program, "--version"),
    )
}

pub(super) fn stunnel(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    let (program, address) = (
        find("stunnel4").or_else(|_| find("stunnel"))?,
        free_address()?,
    );
    let settings = workspace.path(&format!("stunnel-{}.conf", address.port()));
    write(
        &settings,
        &format!(
            "foreground = yes\npid =\ndebug = err\n\
             [postgres]\naccept = {address}\nconnect = {upstream}\nprotocol = pgsql\n\
             sslVersionMin = TLSv1.3\nlibwrap = no\nTIMEOUTidle = 3600\n\
             cert = {cert}\nkey = {key}\n",
            upstream = upstream.address,
            cert = workspace.path("cert.pem").display(),
            key = workspace.path("key.pem").display(),
        ),
    )?;
    let mut stunnel = command(&program, &workspace.cores.proxy, false);
    stunnel.arg(&settings);
    start_proxy(
        PeerKind::Stunnel,
        workspace,
        stunnel,
        address,
        version(&program, "-version"),
    )
}

/// Starts HAProxy with a second listener that closes every connection after its handshake. HAProxy
/// connects to its server before the client has sent anything, and the measured cost of a handshake
/// must not include that.
pub(super) fn haproxy(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    let (program, address, handshake) = (find("haproxy")?, free_address()?, free_address()?);
    let settings = workspace.path(&format!("haproxy-{}.cfg", address.port()));
    let both = workspace.path("both.pem").display().to_string();
    write(
        &settings,
        &format!(
            "global\n  nbthread 1\n  maxconn {max}\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             listen postgres\n  bind {address} ssl crt {both} alpn postgresql ssl-min-ver TLSv1.3\n  \
             server postgres {upstream}\n\
             frontend handshakes\n  bind {handshake} ssl crt {both} ca-file {ca} verify required \
             alpn postgresql ssl-min-ver TLSv1.3\n  tcp-request session reject\n",
            upstream = upstream.address,
            max = workspace.max_connections(),
            ca = workspace.path("kms.pem").display(),
        ),
    )?;
    let mut haproxy = command(&program, &workspace.cores.proxy, false);
    haproxy.arg("-db").arg("-f").arg(&settings);
    let version = version(&program, "-v");
    let mut peer = start_proxy(PeerKind::HaProxy, workspace, haproxy, address, version)?;
    let client = workspace.tdx.identity("client")?;
    peer.handshake = Some(Endpoint::loopback(
        handshake,
        PeerKind::HaProxy.opening(),
        Some(&client),
    )?);
    Ok(peer)
}

/// Starts nginx without its master process, so that the process that is measured does the work.
pub(super) fn nginx(workspace: &Workspace, upstream: &Upstream) -> Result<Peer> {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let (program, address) = (find("nginx")?, free_address()?);
    if !Path::new(MODULE).is_file() {
        return Err(Error::Peer(
            "libnginx-mod-stream is not installed".to_owned(),
        ));
    }
    let settings = workspace.path(&format!("nginx-{}.conf", address.port()));
    write(
        &settings,
        &format!(
            "load_module {MODULE};\ndaemon off;\nmaster_process off;\nworker_processes 1;\n\
             error_log stderr error;\npid {pid};\nevents {{ worker_connections {max}; }}\n\
             stream {{\n  access_log off;\n  proxy_timeout 1h;\n  server {{\n    \
             listen {address} ssl backlog=4096;\n    ssl_protocols TLSv1.3;\n    \
             ssl_alpn postgresql;\n    ssl_certificate {cert};\n    ssl_certificate_key {key};\n    \
             proxy_pass {upstream};\n  }}\n}}\n",
            pid = workspace
                .path(&format!("nginx-{}.pid", address.port()))
                .display(),
            // A connection for each side.
            max = 2 * workspace.max_connections(),
            upstream = upstream.address,
            cert = workspace.path("cert.pem").display(),
            key = workspace.path("key.pem").display(),
        ),
    )?;
    let mut nginx = command(&program, &workspace.cores.proxy, false);
    nginx
        .arg("-p")
        .arg(workspace.folder())
        .arg("-c")
        .arg(&settings);
    start_proxy(
        PeerKind::Nginx,
        workspace,
        nginx,
        address,
        version(&program, "-v"),
    )
}
