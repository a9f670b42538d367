//! Measures what a crowd of strangers costs those who are inside: the latency
//! of running sessions (pgbench) while 1,000 clients with certificates that
//! nobody has seen before log in at once, beside the same without them.
//!
//! Needs a Postgres that `teesql-sidecar provision` has set up, and pgbench with
//! its tables in the database `postgres`:
//!
//! ```text
//! STORM_POSTGRES=127.0.0.1:5432 STORM_PG_PASSWORD=… cargo run --release -p engine --example storm
//! ```
//!
//! The strangers' own handshakes run on the same cores and are part of what is
//! seen, so the ratio is an upper bound.
#![allow(clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Machine, MachineOptions, Pccs,
    PccsAnswers, Pki,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

const SEED: [u8; 32] = [0x57; 32];
const STRANGERS: usize = 1_000;
const SECRET: &str = "5757575757575757575757575757575757575757575757575757575757575757";
/// Seconds of pgbench, with and without strangers.
const SECONDS: &str = "6";
/// When the strangers come.
const QUIET_FIRST: Duration = Duration::from_secs(1);

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::new(&SEED).expect("a PKI");
    let machine = Machine::new(&pki, &MachineOptions::default()).expect("a machine");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock");
    let options = CollateralOptions::at(now.as_secs());
    let collateral = pki.collateral(&options).expect("collateral");
    let pccs = Pccs::start(PccsAnswers::none().with(machine.key(), collateral)).expect("a PCCS");
    let issue = |name: &str| {
        let key = Key::derive(&SEED, name).expect("a key");
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        Certificate::issue(&pki, &machine, &key, &evidence, &leaf).expect("a leaf")
    };
    println!("issuing {STRANGERS} certificates");
    let insider = issue("insider");
    write(folder.path(), "root.pem", pki.root_pem());
    write(folder.path(), "cert.pem", &insider.chain_pem());
    write(
        folder.path(),
        "key.pem",
        &insider.key().to_pkcs8_pem().expect("a key"),
    );
    for round in 0..3 {
        let strangers: Vec<_> = (0..STRANGERS)
            .map(|i| config(&issue(&format!("stranger {round} {i}"))))
            .collect();
        let (mut sidecar, port) = sidecar(folder.path(), &pccs.url());
        finish(pgbench(folder.path(), port, "quiet"));
        let quiet = p99(folder.path(), "quiet", 0..u128::MAX);
        let running = pgbench(folder.path(), port, "storm");
        std::thread::sleep(QUIET_FIRST);
        let (begun, clock) = (Instant::now(), unix_micros());
        let refused = storm(strangers, port);
        let took = begun.elapsed();
        finish(running);
        // Only what ended while they came.
        let storm = p99(folder.path(), "storm", clock..clock + took.as_micros());
        println!(
            "round {round}: p99 quiet {quiet} µs, with strangers {storm} µs, ratio {:.2}; \
             {STRANGERS} logins in {took:?}, refused: {refused}",
            storm as f64 / quiet as f64
        );
        sidecar.kill().expect("the sidecar runs");
        let _ = sidecar.wait();
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("permissions");
}

/// A program that does not have to share its core with the strangers, where
/// this one runs under `nice -n 19` and as root.
fn preferred(program: &Path) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "-19"]).arg(program);
    command
}

fn sidecar(folder: &Path, pccs: &str) -> (Child, u16) {
    let program = std::env::current_exe().expect("a path");
    let program = program
        .parent()
        .and_then(Path::parent)
        .expect("a target folder");
    let mut child = preferred(&program.join("teesql-sidecar"))
        .arg("serve")
        .env("TEESQL_LISTEN", "127.0.0.1:0")
        .env("TEESQL_LOG_FORMAT", "json")
        .env(
            "TEESQL_POSTGRES",
            std::env::var("STORM_POSTGRES").expect("STORM_POSTGRES"),
        )
        .env("TEESQL_PG_PASSWORD_READ", "unused")
        .env(
            "TEESQL_PG_PASSWORD_READWRITE",
            std::env::var("STORM_PG_PASSWORD").unwrap_or_else(|_| "unused".to_owned()),
        )
        .env("TEESQL_READ_SECRET", "11".repeat(32))
        .env("TEESQL_READWRITE_SECRET", SECRET)
        .env("TEESQL_TLS_CERT", folder.join("cert.pem"))
        .env("TEESQL_TLS_KEY", folder.join("key.pem"))
        .env("TEESQL_DANGEROUS_TDX_ROOT_CA", folder.join("root.pem"))
        .env("TEESQL_PCCS", pccs)
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo build --release first");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let port = loop {
        let line = lines.next().expect("it listens").expect("a line");
        if let Some((_, rest)) = line.split_once("\"address\":\"127.0.0.1:") {
            break rest.split('"').next().and_then(|port| port.parse().ok());
        }
    };
    // Nobody reads the rest: lines are lost rather than waited for.
    std::thread::spawn(move || lines.for_each(drop));
    (child, port.expect("a port"))
}

fn pgbench(folder: &Path, port: u16, log: &str) -> Child {
    preferred(Path::new("pgbench"))
        .args([
            "-n", "-S", "-M", "prepared", "-c", "8", "-T", SECONDS, "--log",
        ])
        .arg(format!("--log-prefix={}", folder.join(log).display()))
        .args(["-h", "127.0.0.1", "-U", "teesql_readwrite", "postgres"])
        .env("PGPORT", port.to_string())
        .env("PGPASSWORD", SECRET)
        .env("PGSSLMODE", "require")
        .env("PGSSLCERT", folder.join("cert.pem"))
        .env("PGSSLKEY", folder.join("key.pem"))
        .stdout(Stdio::null())
        .spawn()
        .expect("pgbench")
}

fn finish(mut child: Child) {
    assert!(child.wait().expect("it ran").success(), "pgbench failed");
}

fn unix_micros() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_micros()
}

/// In µs, over the transactions that ended in `window`, in µs since 1970. The
/// log's third column is the latency, the fifth and sixth are when it ended.
fn p99(folder: &Path, log: &str, window: std::ops::Range<u128>) -> u64 {
    let latency = |line: &str| {
        let mut columns = line.split(' ').skip(2);
        let latency = columns.next()?.parse().ok()?;
        let seconds: u128 = columns.nth(1)?.parse().ok()?;
        let micros: u128 = columns.next()?.parse().ok()?;
        window
            .contains(&(seconds * 1_000_000 + micros))
            .then_some(latency)
    };
    let files = std::fs::read_dir(folder).expect("the folder");
    let mut latencies: Vec<u64> = files
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with(log))
        .flat_map(|file| {
            let text = std::fs::read_to_string(file.path()).expect("a log");
            std::fs::remove_file(file.path()).expect("a log");
            text.lines().filter_map(latency).collect::<Vec<u64>>()
        })
        .collect();
    latencies.sort_unstable();
    let index = latencies.len() * 99 / 100;
    *latencies.get(index).expect("transactions")
}

/// How many were refused.
fn storm(strangers: Vec<Arc<ClientConfig>>, port: u16) -> usize {
    let gate = Arc::new(Barrier::new(strangers.len()));
    let threads: Vec<_> = strangers
        .into_iter()
        .map(|config| {
            let gate = Arc::clone(&gate);
            std::thread::Builder::new()
                .stack_size(256 * 1024)
                .spawn(move || {
                    gate.wait();
                    log_in(config, port).is_err()
                })
                .expect("a thread")
        })
        .collect();
    threads
        .into_iter()
        .filter_map(|thread| thread.join().ok())
        .filter(|refused| *refused)
        .count()
}

/// Up to the password request, which comes after the verdict; then away.
fn log_in(config: Arc<ClientConfig>, port: u16) -> std::io::Result<()> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(config, name).expect("good settings");
    let mut tls = StreamOwned::new(connection, stream);
    let body = b"\0\x03\0\0user\0teesql_readwrite\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).expect("short").to_be_bytes();
    tls.write_all(&[&length[..], body].concat())?;
    let mut head = [0; 1];
    tls.read_exact(&mut head)?;
    match head {
        [b'R'] => Ok(()),
        _ => Err(std::io::ErrorKind::PermissionDenied.into()),
    }
}

fn config(certificate: &Certificate) -> Arc<ClientConfig> {
    let key = certificate.key().to_pkcs8_der().expect("a key");
    let key = PrivateKeyDer::try_from(key).expect("PKCS#8");
    let chain = certificate
        .chain_der()
        .map(|der| CertificateDer::from(der.to_vec()));
    let config = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("versions")
    .dangerous()
    .with_custom_certificate_verifier(Arc::new(Anybody))
    .with_client_auth_cert(chain.to_vec(), key)
    .expect("a key of its certificate");
    Arc::new(config)
}

/// The sidecar is not what is measured here.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
