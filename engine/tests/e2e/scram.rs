//! SCRAM with clients: the offer, malformed messages, channel binding, a man in the middle, and
//! libpq with its strictest settings.

use std::env;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use postgres_protocol::authentication::sasl::ChannelBinding;
use rustls::{ServerConnection, StreamOwned};

use crate::harness::client::{Client, CloseKind, TlsNegotiation};
use crate::harness::fake_server::FakeServer;
use crate::harness::fixture::Fixture;
use crate::harness::message::{PgError, SSL_REQUEST, be32, message_of, query, tagged};
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully, write_private};
use crate::harness::scram::{Exchange, PLAIN, PLUS, binding_to, initial_response};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::{
    AuthSettings, PasswordEncryption, READ_SECRET, READER, SUPERUSER, WRITER, WRONG_SECRET, libpq,
};
use crate::login::refused;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("scram::offers_plus_to_drivers_with_tls", offer);
    suite.add("scram::any_mechanism_that_is_offered", mechanisms);
    suite.add("scram::secrets_in_upper_case", upper_case);
    suite.add("scram::malformed_messages", malformed_messages);
    suite.add("scram::refuses_downgrades", downgrade);
    suite.add("scram::certificates_without_a_binding", ed25519);
    suite.add("scram::man_in_the_middle_that_passes_on", passes_on);
    suite.add("scram::man_in_the_middle_with_password", asks_for_password);
    suite.add("scram::man_in_the_middle_with_scram", without_the_secret);
    suite.add("psql::strictest_scram_settings", strictest_settings);
    suite.add("psql::client_auth_password", password_mode);
    suite.add_requiring(&[Requirement::Psycopg], "scram::libpq_18", libpq_18);
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn offer(fixture: &Fixture) {
    let off = Sidecar::start(
        &fixture
            .settings()
            .set("TEESQL_SCRAM_CHANNEL_BINDING", "off"),
    );
    for negotiation in TlsNegotiation::ALL {
        let offered = |sidecar: &Sidecar, role| {
            let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
            client.start(role, "via_scram").mechanisms
        };
        let expected = match negotiation {
            TlsNegotiation::Raw => strings(&[PLAIN]),
            TlsNegotiation::SslRequest | TlsNegotiation::Direct => strings(&[PLUS, PLAIN]),
        };
        for role in ["teesql_read", "postgres", "unknown_role"] {
            assert_eq!(offered(&fixture.sidecar(), role), expected, "{negotiation}");
            assert_eq!(offered(&off, role), strings(&[PLAIN]), "{negotiation}");
        }
    }
}

/// Logs in as `teesql_read` by this exchange.
fn log_in(client: &mut Client, mut exchange: Exchange) -> Result<(), PgError> {
    let response = client.start(READER.0, "via_scram");
    let challenge = client.read_challenge(&exchange)?;
    client.send(&exchange.proof(&challenge));
    let answer = client.read().expect("an answer to the proof");
    if answer.tag == b'E' {
        return Err(answer.error());
    }
    assert_eq!(answer.authentication(), 12);
    exchange.finish(&answer.body[4..]);
    client.await_ready(response).map(drop)
}

fn certificate(client: &Client) -> Vec<u8> {
    let certificates = client.tls.conn.peer_certificates();
    let leaf = certificates.and_then(<[_]>::first).expect("a certificate");
    leaf.to_vec()
}

fn mechanisms(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    for negotiation in TlsNegotiation::ALL {
        let connect = || Client::connect(&fixture.harness, sidecar.address(), negotiation);
        let plain = Exchange::new(PLAIN, READER.1, ChannelBinding::unsupported());
        log_in(&mut connect(), plain).expect("without channel binding");
        if negotiation == TlsNegotiation::Raw {
            // A driver with TLS to a gateway, which opens raw TLS to the sidecar.
            let unaware = Exchange::new(PLAIN, READER.1, ChannelBinding::unrequested());
            log_in(&mut connect(), unaware).expect("PLUS was not offered");
        } else {
            let mut client = connect();
            let binding = binding_to(&certificate(&client));
            log_in(&mut client, Exchange::new(PLUS, READER.1, binding)).expect("PLUS");
        }
    }
}

fn upper_case(fixture: &Fixture) {
    for secret in [READ_SECRET.to_uppercase(), READ_SECRET.to_lowercase()] {
        let mut client = fixture.client(fixture.sidecar().address());
        let response = client.login(READER.0, "via_scram", &secret);
        response.expect("either case is accepted");
    }
}

struct Malformed {
    name: &'static str,
    bytes: Vec<u8>,
    code: &'static str,
    text: &'static str,
    reason: &'static str,
}

/// What a client may send instead of its first SCRAM message.
fn malformed_first_messages() -> Vec<Malformed> {
    const MALFORMED: (&str, &str, &str) = ("08P01", "malformed SCRAM message", "scram_malformed");
    const MECHANISM: &str = "client selected an invalid SASL authentication mechanism";
    const SIZE: &str = "invalid password packet size";
    let case = |name, bytes, (code, text, reason)| Malformed {
        name,
        bytes,
        code,
        text,
        reason,
    };
    let first = |text: &[u8]| initial_response(PLAIN, text);
    vec![
        case(
            "the secret",
            crate::harness::message::password(READ_SECRET),
            ("08P01", MECHANISM, "password_instead_of_scram"),
        ),
        case(
            "another mechanism",
            initial_response("SCRAM-SHA-1", b"n,,n=,r=abc"),
            ("08P01", MECHANISM, "scram_mechanism"),
        ),
        case(
            "another binding type",
            initial_response(PLUS, b"p=tls-unique,,n=,r=abc"),
            (
                "08P01",
                "unsupported SCRAM channel-binding type",
                "scram_binding_type",
            ),
        ),
        case("an empty message", first(b""), MALFORMED),
        case("no nonce", first(b"n,,n=me"), MALFORMED),
        case("an identity", first(b"n,a=postgres,n=,r=abc"), MALFORMED),
        case("an extension", first(b"n,,m=x,n=,r=abc"), MALFORMED),
        case("a NUL", first(b"n,,n=,r=a\0b"), MALFORMED),
        case(
            "no message",
            tagged(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"),
            MALFORMED,
        ),
        case("no body", tagged(b'p', b""), MALFORMED),
        case(
            "1 GB",
            [&b"p\x40\0\0\0"[..], &[b'x'; 100_000]].concat(),
            ("08P01", SIZE, "password_too_long"),
        ),
        case(
            "length 3",
            b"p\0\0\0\x03".to_vec(),
            ("08P01", SIZE, "malformed_password"),
        ),
        case(
            "a query",
            query("select 1"),
            (
                "08P01",
                "expected password response, got message type 81",
                "unexpected_message",
            ),
        ),
    ]
}

fn assert_refused(sidecar: &Sidecar, client: &mut Client, case: &Malformed) {
    let error = client.read().expect("a refusal").error();
    let expected = PgError {
        severity: "FATAL".to_owned(),
        code: case.code.to_owned(),
        message: case.text.to_owned(),
    };
    assert_eq!(error, expected, "{}", case.name);
    assert_eq!(client.expect_close(), CloseKind::Clean, "{}", case.name);
    let line = sidecar.await_connection_end(client.local_address());
    assert_eq!(line["reason"], case.reason, "{}: {line}", case.name);
}

fn malformed_messages(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let mut bystander = fixture.session(&sidecar);
    for case in malformed_first_messages() {
        let mut client = fixture.client(sidecar.address());
        client.start(READER.0, "via_scram");
        // The sidecar may refuse and close before it has received everything.
        let _ = client.try_send(&case.bytes);
        assert_refused(&sidecar, &mut client, &case);
    }
    for (name, rest, code, text, reason) in [
        (
            "another nonce",
            "c=biws,r=abc,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "08P01",
            "invalid SCRAM response",
            "scram_nonce_mismatch",
        ),
        (
            "no proof",
            "c=biws,r=abc",
            "08P01",
            "malformed SCRAM message",
            "scram_malformed",
        ),
    ] {
        let mut client = fixture.client(sidecar.address());
        client.start(READER.0, "via_scram");
        let exchange = Exchange::new(PLAIN, READER.1, ChannelBinding::unsupported());
        client.read_challenge(&exchange).expect("a challenge");
        let bytes = tagged(b'p', rest.as_bytes());
        client.send(&bytes);
        let case = Malformed {
            name,
            bytes,
            code,
            text,
            reason,
        };
        assert_refused(&sidecar, &mut client, &case);
    }
    assert_eq!(bystander.query_value("select 1"), "1");
    sidecar.assert_running();
}

fn downgrade(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    for negotiation in [TlsNegotiation::SslRequest, TlsNegotiation::Direct] {
        let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
        let unaware = Exchange::new(PLAIN, READER.1, ChannelBinding::unrequested());
        let error = log_in(&mut client, unaware).expect_err("PLUS was offered");
        assert_eq!(error.code, "28000", "{error}");
        assert_eq!(error.message, "SCRAM channel binding negotiation error");
        let line = sidecar.await_connection_end(client.local_address());
        assert_eq!(line["reason"], "scram_downgrade", "{line}");

        let mut client = Client::connect(&fixture.harness, sidecar.address(), negotiation);
        let elsewhere = Exchange::new(PLUS, READER.1, binding_to(b"another certificate"));
        let error = log_in(&mut client, elsewhere).expect_err("another certificate");
        assert_eq!(error.code, "28000", "{error}");
        assert_eq!(error.message, "SCRAM channel binding check failed");
        let line = sidecar.await_connection_end(client.local_address());
        assert_eq!(line["reason"], "scram_binding_mismatch", "{line}");
    }
}

/// A certificate whose signature algorithm has no hash function has no channel binding.
fn ed25519(fixture: &Fixture) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let leaf = params.self_signed(&key).expect("a certificate");
    let folder = fixture.harness.unique_path("ed25519");
    std::fs::create_dir(&folder).expect("a new folder");
    let write = |name: &str, pem: String| {
        let path = folder.join(name);
        write_private(&path, &pem);
        path.to_str().expect("UTF-8").to_owned()
    };
    let settings = fixture
        .settings()
        .set("TEESQL_TLS_CERT", &write("cert.pem", leaf.pem()))
        .set("TEESQL_TLS_KEY", &write("key.pem", key.serialize_pem()));
    let sidecar = Sidecar::start(&settings);
    let mut psql = libpq::command("psql", "localhost", sidecar.port(), READER, "via_scram");
    psql.env("PGSSLMODE", "require").args(libpq::PSQL_BARE);
    psql.args(["-c", "select current_user"]);
    assert_eq!(run_successfully(psql, TIMEOUT).trim(), READER.0);
}

/// What a man in the middle saw inside TLS.
#[derive(Default)]
struct Seen(Mutex<Vec<u8>>);

impl Seen {
    fn add(&self, bytes: &[u8]) {
        self.0.lock().expect("no panic while locked").extend(bytes);
    }

    fn assert_no_secret(&self) {
        let seen = lossy(&self.0.lock().expect("no panic while locked"));
        assert!(seen.contains(READER.0), "it has seen the client: {seen:?}");
        assert!(!seen.contains(READ_SECRET), "{seen:?}");
    }
}

type ManInTheMiddle = StreamOwned<ServerConnection, TcpStream>;

/// A server with a certificate of the same authority, which answers SSLRequest.
fn impostor(
    fixture: &Fixture,
    script: impl Fn(ManInTheMiddle, &Seen) -> io::Result<()> + Send + Sync + 'static,
) -> (FakeServer, Arc<Seen>) {
    let (config, seen) = (
        Arc::clone(&fixture.harness.certificates.impostor),
        Arc::default(),
    );
    let record = Arc::clone(&seen);
    let server = FakeServer::start(move |mut stream| {
        let mut request = [0; SSL_REQUEST.len()];
        stream.read_exact(&mut request)?;
        assert_eq!(request, SSL_REQUEST);
        stream.write_all(b"S")?;
        let connection = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        script(StreamOwned::new(connection, stream), &record)
    });
    (server, seen)
}

/// Reads one message of the client; `tag` 0 is a packet of the start-up phase.
fn read_client(client: &mut ManInTheMiddle, seen: &Seen, tag: u8) -> io::Result<Vec<u8>> {
    let mut head = vec![0; if tag == 0 { 4 } else { 5 }];
    client.read_exact(&mut head)?;
    let mut body = vec![0; be32(&head[head.len() - 4..]) as usize - 4];
    client.read_exact(&mut body)?;
    seen.add(&body);
    Ok([head, body].concat())
}

fn strict_psql(fixture: &Fixture, address: SocketAddr) -> Command {
    let ca = &fixture.harness.certificates.ca;
    let mut psql = libpq::verify_full_command("psql", address.port(), READER, "via_scram", ca);
    psql.env("PGCHANNELBINDING", "require");
    psql.args(["-X", "-c", "select 1"]);
    psql
}

fn fails_with(command: Command, text: &str) {
    let output = run(command, TIMEOUT);
    let stderr = lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(stderr.contains(text), "{text:?} is not in {stderr}");
}

/// It passes the messages of both sides on, in two TLS sessions. The proof is bound to its
/// certificate, so the sidecar refuses it.
fn passes_on(fixture: &Fixture) {
    let sidecar = Sidecar::start(&fixture.settings());
    let (address, harness) = (sidecar.address(), Arc::clone(&fixture.harness));
    let (server, seen) = impostor(fixture, move |mut client, seen| {
        let mut upstream = Client::connect(&harness, address, TlsNegotiation::SslRequest);
        upstream.send(&read_client(&mut client, seen, 0)?);
        for _ in 0..3 {
            let Ok(answer) = upstream.read() else { break };
            client.write_all(&message_of(&answer))?;
            client.flush()?;
            if answer.tag == b'E' {
                break;
            }
            upstream.send(&read_client(&mut client, seen, b'p')?);
        }
        Ok(())
    });
    let psql = strict_psql(fixture, server.address());
    fails_with(psql, "SCRAM channel binding check failed");
    seen.assert_no_secret();
    sidecar.await_reason("scram_binding_mismatch");
    let none = "select count(*) from pg_stat_activity where usename = 'teesql_read' and query = 'select 1'";
    fixture.cluster().await_result(none, "0");
}

fn asks_for_password(fixture: &Fixture) {
    let (server, seen) = impostor(fixture, |mut client, seen| {
        read_client(&mut client, seen, 0)?;
        client.write_all(&tagged(b'R', &3_u32.to_be_bytes()))?;
        client.flush()?;
        read_client(&mut client, seen, b'p').map(drop)
    });
    let psql = strict_psql(fixture, server.address());
    fails_with(psql, "channel binding required");
    seen.assert_no_secret();
}

/// It speaks SCRAM, but does not know the secret.
fn without_the_secret(fixture: &Fixture) {
    let (server, seen) = impostor(fixture, |mut client, seen| {
        read_client(&mut client, seen, 0)?;
        let send = |client: &mut ManInTheMiddle, code: u32, data: &[u8]| {
            let body = [&code.to_be_bytes()[..], data].concat();
            client.write_all(&tagged(b'R', &body))?;
            client.flush()
        };
        send(&mut client, 10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")?;
        let first = lossy(&read_client(&mut client, seen, b'p')?);
        let nonce = first.rsplit("r=").next().unwrap_or_default();
        let challenge = format!("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=4096");
        send(&mut client, 11, challenge.as_bytes())?;
        read_client(&mut client, seen, b'p')?;
        send(
            &mut client,
            12,
            b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        )?;
        client.write_all(&tagged(b'R', &0_u32.to_be_bytes()))?;
        client.flush()
    });
    let psql = strict_psql(fixture, server.address());
    fails_with(psql, "incorrect server signature");
    seen.assert_no_secret();
}

fn strictest_settings(fixture: &Fixture) {
    for server in fixture.harness.servers() {
        let sidecar = fixture.sidecar_for(&server, PasswordEncryption::Scram);
        for (role, secret) in [READER, WRITER, SUPERUSER] {
            let mut psql = strict_psql(fixture, sidecar.address());
            psql.env("PGUSER", role).env("PGPASSWORD", secret);
            run_successfully(psql, TIMEOUT);
        }
        let mut wrong = strict_psql(fixture, sidecar.address());
        wrong.env("PGPASSWORD", WRONG_SECRET);
        fails_with(wrong, &refused().message);
    }
}

/// Prints `current_user`, by the libpq 18 of psycopg's wheel: psql 18 of the tests has no TLS.
const LIBPQ_18: &str = "\
import psycopg
assert psycopg.pq.version() >= 180000, psycopg.pq.version()
with psycopg.connect('') as connection:
    print(connection.execute('select current_user').fetchone()[0])
";

fn python(fixture: &Fixture, sidecar: &Sidecar) -> Command {
    let ca = &fixture.harness.certificates.ca;
    let python = env::var("TEESQL_TEST_PYTHON").expect("a requirement");
    let mut python = libpq::verify_full_command(&python, sidecar.port(), READER, "via_scram", ca);
    python.args(["-B", "-c", LIBPQ_18]);
    python
}

fn libpq_18(fixture: &Fixture) {
    let sidecar = fixture.sidecar();
    for negotiation in ["postgres", "direct"] {
        for binding in ["require", "prefer", "disable"] {
            let mut python = python(fixture, &sidecar);
            python
                .env("PGREQUIREAUTH", "scram-sha-256")
                .env("PGSSLNEGOTIATION", negotiation)
                .env("PGCHANNELBINDING", binding);
            let user = run_successfully(python, TIMEOUT);
            assert_eq!(user.trim(), READER.0, "{negotiation} {binding}");
        }
    }
    let installed = &fixture.harness.installed;
    let weak = fixture.sidecar_with(installed, PasswordEncryption::Scram, AuthSettings::Weak);
    let mut refuses = python(fixture, &weak);
    refuses.env("PGREQUIREAUTH", "scram-sha-256");
    fails_with(refuses, "server requested a cleartext password");
    let mut accepts = python(fixture, &weak);
    accepts.env("PGREQUIREAUTH", "password");
    assert_eq!(run_successfully(accepts, TIMEOUT).trim(), READER.0);
}

fn password_mode(fixture: &Fixture) {
    let installed = &fixture.harness.installed;
    let weak = fixture.sidecar_with(installed, PasswordEncryption::Scram, AuthSettings::Weak);
    let ca = &fixture.harness.certificates.ca;
    for (role, secret) in [READER, WRITER, SUPERUSER] {
        let credentials = (role, secret);
        let mut psql =
            libpq::verify_full_command("psql", weak.port(), credentials, "via_scram", ca);
        psql.args(["-X", "-A", "-t", "-c", "select current_user"]);
        assert_eq!(run_successfully(psql, TIMEOUT).trim(), role);
    }
    let psql = strict_psql(fixture, weak.address());
    fails_with(psql, "channel binding required");
    for setting in ["client_auth = password", "postgres_auth = any"] {
        weak.await_log(setting, |line| {
            let text = line["message"].as_str().unwrap_or_default();
            line["level"] == "WARN" && text.starts_with(setting)
        });
    }
}
