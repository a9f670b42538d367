//! Links between the members of a cluster: sidecars on this machine, each with its own ports, whose services are
//! an echo server and a real Postgres.

mod carry;
mod names;
mod refusals;
mod revocation;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use attest::mock::Evidence;
use wire::link::{BOOT_ID_LEN, BootId, LINK_ALPN};

use crate::harness::client::{Client, TlsNegotiation, set_timeouts};
use crate::harness::cluster::unused_ports;
use crate::harness::fixture::Fixture;
use crate::harness::settings::Settings;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::unverified_tls;

pub(crate) fn add(suite: &mut Suite) {
    carry::add(suite);
    if suite.adds_driver_independent() {
        names::add(suite);
        refusals::add(suite);
        revocation::add(suite);
    }
}

/// What the echo server says after the end of the client's stream and a pause.
const GOODBYE: &[u8] = b"goodbye";
/// Longer than a session that is being closed may take.
const PAUSE: Duration = Duration::from_secs(5);

/// Sends back what it receives. After the end of the stream it pauses, says [`GOODBYE`] and closes.
fn start_echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || echo(stream));
        }
    });
    port
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if stream.write_all(&buffer[..n]).is_ok() => {}
            _ => return,
        }
    }
    thread::sleep(PAUSE);
    let _ = stream.write_all(GOODBYE);
}

/// The configuration of one member.
struct Member {
    name: &'static str,
    settings: Settings,
    /// The ports that lead to the members' services.
    echo: u16,
    postgres: u16,
    missing: u16,
}

impl Member {
    fn start(&self) -> Sidecar {
        let sidecar = Sidecar::start(&self.settings);
        sidecar.await_message("members of the cluster prove the same as this sidecar");
        sidecar
    }

    /// A connection to the echo server of the member at this position.
    fn connect(&self, member: u16) -> TcpStream {
        connect(self.echo + member)
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.settings = self.settings.set(name, value);
        self
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the sidecar accepts");
    set_timeouts(&stream);
    stream
}

/// Sends a word to an echo server and reads it again.
fn exchange(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<()> {
    stream.write_all(word)?;
    let mut received = vec![0; word.len()];
    stream.read_exact(&mut received)?;
    assert_eq!(received, word);
    Ok(())
}

/// The members of a cluster, which run the same application on the mock's operating system.
fn members<const N: usize>(
    fixture: &Fixture,
    tdx: &TdxFixture,
    names: [&'static str; N],
) -> [Member; N] {
    let addresses = names.map(|name| (name, unused_ports(1)));
    let list: Vec<_> = addresses
        .iter()
        .map(|(name, port)| format!("{name}=localhost:{port}"))
        .collect();
    let list = list.join(",");
    addresses.map(|(name, port)| member(fixture, tdx, &list, (name, port)))
}

fn member(
    fixture: &Fixture,
    tdx: &TdxFixture,
    list: &str,
    (name, listen): (&'static str, u16),
) -> Member {
    let count = u16::try_from(list.split(',').count()).expect("few members");
    let [echo, postgres, missing] = [(); 3].map(|()| unused_ports(count));
    let database = fixture.cluster().address().port();
    let services = format!(
        "echo={}:{echo},postgres={database}:{postgres},missing={}:{missing}",
        start_echo(),
        unused_ports(1)
    );
    let settings = tdx
        .member_settings(fixture.settings(), name, list)
        .set("TEESQL_LISTEN", &format!("127.0.0.1:{listen}"))
        // Fencing would end sessions of other tests: the database is shared.
        .set("TEESQL_CLUSTER_PATRONI", "off")
        .set("TEESQL_CLUSTER_SERVICES", &services);
    Member {
        name,
        settings,
        echo,
        postgres,
        missing,
    }
}

/// Evidence of the members' application in another instance.
fn instance(byte: u8) -> Evidence {
    Evidence {
        instance_id: vec![byte; 20],
        ..Evidence::default()
    }
}

/// TLS as a member begins it, with the certificate of this name in the folder of the TDX fixture.
fn raw_link(certificate: Option<(&TdxFixture, &str)>, address: SocketAddr) -> Client {
    let mut config = unverified_tls::config_of(certificate);
    config.alpn_protocols = vec![LINK_ALPN.to_vec()];
    Client::connect_with(config, address, TlsNegotiation::Raw).expect("TLS")
}

/// The boot id of this machine, and so of all members on it.
fn boot_id() -> BootId {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    text.trim_end().parse().expect("a UUID")
}

/// The request of the member `from` for a service of the member `to`, with names of any bytes.
fn request(from: &[u8], to: &[u8], service: &[u8]) -> Vec<u8> {
    request_of_boot(from, to, service, boot_id())
}

fn request_of_boot(from: &[u8], to: &[u8], service: &[u8], boot_id: BootId) -> Vec<u8> {
    let names = [from, to, service].map(|name| {
        let length = u8::try_from(name.len()).expect("short");
        [&[length], name].concat()
    });
    [&names.concat()[..], boot_id.as_bytes()].concat()
}

/// The first byte of a member's answer, or `None` at the end of the stream. An answer that opens the link is read to its
/// end.
fn answer(link: &mut Client) -> Option<u8> {
    let mut byte = [0];
    match link.tls.read(&mut byte) {
        Ok(1) => {}
        Ok(_) | Err(_) => return None,
    }
    if byte == [0] {
        let mut id = [0; BOOT_ID_LEN];
        link.tls.read_exact(&mut id).expect("the whole answer");
        assert_eq!(BootId::new(id), boot_id());
    }
    Some(byte[0])
}

/// Closes our direction, and reads to the end.
fn finish(mut stream: TcpStream) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).expect("open");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("an orderly end");
    rest
}
