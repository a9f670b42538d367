//! Name servers on loopback: Debian's knot, with a zone for one test, and one that drops queries. A key may update the
//! record of the leader manifest.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, poll_until, signal, spawn};

pub(crate) const ZONE: &str = "teesql.test";
pub(crate) const TSIG_NAME: &str = "teesql";
/// 32 times one letter, in base64.
pub(crate) const TSIG_SECRET: &str = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=";
/// A zone without a file: queries get SERVFAIL.
const UNLOADABLE_ZONE: &str = "broken.test";

pub(crate) struct NameServer {
    child: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
    serial: AtomicU32,
}

impl NameServer {
    /// Starts it with a zone of an SOA, an NS and `records`.
    pub(crate) fn start(records: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let address = unused_port();
        let path = folder.path().display();
        let config = format!(
            "server:\n    rundir: \"{path}\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    \
             tcp-workers: 1\n    background-workers: 1\n    udp-max-payload: 1232\nlog:\n  - target: stderr\n    \
             any: info\ndatabase:\n    storage: \"{path}\"\n    journal-db-max-size: 1M\n    \
             timer-db-max-size: 1M\n    kasp-db-max-size: 5M\nkey:\n  - id: {TSIG_NAME}\n    \
             algorithm: hmac-sha256\n    secret: {TSIG_SECRET}\nacl:\n  - id: leader\n    key: {TSIG_NAME}\n    \
             action: update\n    update-type: [TXT]\n    update-owner: name\n    update-owner-match: equal\n    \
             update-owner-name: [_teesql-leader]\ntemplate:\n  - id: default\n    \
             storage: \"{path}\"\n    zonefile-sync: -1\n    zonefile-load: whole\n    \
             journal-content: none\nzone:\n  - domain: {ZONE}\n    file: zone\n    acl: leader\n  - domain: {UNLOADABLE_ZONE}\n    \
             file: missing\n",
            port = address.port()
        );
        fs::write(folder.path().join("knot.conf"), config).expect("knot.conf");
        write_zone(folder.path(), 1, records);
        let mut knotd = pdeathsig_command("knotd", "KILL", None);
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        knotd.arg("-c").arg(folder.path().join("knot.conf"));
        knotd.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        knotd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = Self {
            child: spawn(knotd).expect("knotd starts"),
            address,
            folder,
            serial: AtomicU32::new(1),
        };
        server.await_serial(1);
        server
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Replaces the records of the zone and waits until the server has loaded them.
    pub(crate) fn publish(&self, records: &str) {
        let serial = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
        write_zone(self.folder.path(), serial, records);
        signal(&self.child, Signal::SIGHUP);
        self.await_serial(serial);
    }

    /// Makes it unresponsive: queries time out, instead of being refused by the kernel.
    pub(crate) fn freeze(&self) {
        signal(&self.child, Signal::SIGSTOP);
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn await_serial(&self, wanted: u32) {
        let served = poll_until(TIMEOUT, || (self.serial() == Some(wanted)).then_some(()));
        served.unwrap_or_else(|| {
            let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
            panic!(
                "the name server does not serve serial {wanted}: {}",
                lossy(&log)
            );
        });
    }

    /// The serial number in the SOA record, whose last five fields are 32-bit numbers.
    fn serial(&self) -> Option<u32> {
        let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .ok()?;
        let mut query = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ZONE.split('.') {
            query.push(u8::try_from(label.len()).ok()?);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 6, 0, 1]);
        socket.send_to(&query, self.address).ok()?;
        let mut response = [0; 512];
        let n = socket.recv(&mut response).ok()?;
        let (answered, start) = (response[7] == 1, n.checked_sub(20)?);
        answered.then(|| crate::harness::message::be32(&response[start..]))
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn write_zone(folder: &Path, serial: u32, records: &str) {
    let mut zone = format!(
        "$ORIGIN {ZONE}.\n$TTL 1\n@ SOA ns hostmaster {serial} 60 60 3600 1\n@ NS ns\nns A 127.0.0.1\n"
    );
    writeln!(zone, "{records}").expect("a String accepts everything");
    let (new, zone_file) = (folder.join("new"), folder.join("zone"));
    fs::write(&new, zone).expect("the zone");
    fs::rename(&new, &zone_file).expect("the zone");
}

/// A port that is unused for UDP and TCP.
fn unused_port() -> SocketAddr {
    poll_until(TIMEOUT, || {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        let address = tcp.local_addr().ok()?;
        UdpSocket::bind(address).ok().map(|_| address)
    })
    .expect("a free port")
}

/// A name server, or a firewall in front of one, that does not answer some queries. All names have the address 127.0.0.1.
pub(crate) struct PartialNameServer {
    address: SocketAddr,
    edns_queries: Arc<AtomicU32>,
}

impl PartialNameServer {
    /// Runs until the tests end.
    pub(crate) fn start(drops_edns: bool, drops_aaaa: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let edns_queries = Arc::<AtomicU32>::default();
        let counter = Arc::clone(&edns_queries);
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let query = &query[..length];
                // An OPT record is the only additional record of a query.
                let has_edns = query.get(11) == Some(&1);
                counter.fetch_add(u32::from(has_edns), Ordering::SeqCst);
                let is_aaaa = record_type(query) == Some(28);
                if (has_edns && drops_edns) || (is_aaaa && drops_aaaa) {
                    continue;
                }
                if let Some(answer) = answer(query, !is_aaaa) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self {
            address,
            edns_queries,
        }
    }

    /// Queries with EDNS so far.
    pub(crate) fn edns_queries(&self) -> u32 {
        self.edns_queries.load(Ordering::SeqCst)
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }
}

/// The position after the first question's name.
fn end_of_name(query: &[u8]) -> Option<usize> {
    let mut position = 12;
    loop {
        match query.get(position)? {
            0 => return Some(position + 1),
            length => position += usize::from(*length) + 1,
        }
    }
}

fn record_type(query: &[u8]) -> Option<u16> {
    let end = end_of_name(query)?;
    let bytes = query.get(end..end + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The answer with the address 127.0.0.1, or with no record.
fn answer(query: &[u8], has_address: bool) -> Option<Vec<u8>> {
    let question = query.get(12..end_of_name(query)? + 4)?;
    // The query's id; a recursive answer without an error; one question.
    let mut all = query.get(..2)?.to_vec();
    all.extend([0x81, 0x80, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    all.extend(question);
    if has_address {
        // The name of the question; A; IN; a TTL of 1 s; 4 bytes.
        all.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    Some(all)
}
