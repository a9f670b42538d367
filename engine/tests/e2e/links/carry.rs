//! What links carry: bytes in both directions, half-closed streams, Postgres, and the loss of a member.

use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{GOODBYE, Member, connect, exchange, finish, members};
use crate::harness::READ_PASSWORD;
use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, poll_until, run_successfully};
use crate::harness::scrape::{Scrape, await_scrape};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;
use crate::sessions;

pub(super) fn add(suite: &mut Suite) {
    suite.add("links::carry_services", carry_services);
    if suite.adds_driver_independent() {
        suite.add("links::follow_a_member_that_dies_and_returns", member_dies);
    }
}

/// Bytes that are sent to the echo server and back at the same time.
const BULK: usize = 32 << 20;

fn carry_services(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]).map(|member| {
        let path = fixture.harness.unique_path("control");
        member.set("TEESQL_CONTROL_SOCKET", path.to_str().expect("UTF-8"))
    });
    let (first, second) = (a.start(), b.start());
    let mut kept = a.connect(1);
    exchange(&mut kept, b"hello").expect("an echo");
    let seconds = transfer(&a, 1).as_secs_f64();
    eprintln!(
        "{}: {:.0} MB/s in each direction",
        fixture.variant,
        BULK as f64 / seconds / 1e6
    );
    // This member's own services are at ports of the same kind.
    transfer(&a, 0);
    for port in [a.postgres, a.postgres + 1, b.postgres] {
        let output = run_successfully(psql(port), TIMEOUT);
        assert_eq!(output, "100000\n", "{port}");
    }
    check_metrics(&first, &second);
    check_list(&a, &b);
    exchange(&mut kept, b"still here").expect("an echo");
    drop(kept);
    check_log(&first, &second);
}

/// Both ends of the link that is open are listed, with the instance that the other member has proved.
fn check_list(a: &Member, b: &Member) {
    for (member, direction, named, other) in [(a, "opened", "b", b'b'), (b, "accepted", "a", b'a')]
    {
        let links = sessions::list(&member.settings);
        let link = links
            .iter()
            .find(|link| link["direction"] == direction && link["service"] == "echo")
            .unwrap_or_else(|| panic!("no link: {links:#?}"));
        assert_eq!(link["kind"], "link", "{link}");
        assert_eq!(link["member"], named, "{link}");
        assert_eq!(
            link["instance_id"],
            format!("{other:02x}").repeat(20),
            "{link}"
        );
        assert!(link["received"].as_u64() > Some(0), "{link}");
    }
}

/// Sends [`BULK`] bytes while they come back, closes the direction to the service, and reads the rest. Gives the time
/// that the bytes took.
fn transfer(from: &Member, member: u16) -> Duration {
    let stream = from.connect(member);
    let started = Instant::now();
    let mut writer = stream.try_clone().expect("a descriptor");
    let sending = thread::spawn(move || {
        for part in 0..BULK / 65_536 {
            writer.write_all(&pattern(part)).expect("the member reads");
        }
    });
    let mut reader = stream.try_clone().expect("a descriptor");
    for part in 0..BULK / 65_536 {
        let mut received = vec![0; 65_536];
        reader.read_exact(&mut received).expect("an echo");
        assert!(received == pattern(part), "part {part}");
    }
    sending.join().expect("all is sent");
    let took = started.elapsed();
    assert_eq!(finish(stream), GOODBYE);
    took
}

fn pattern(part: usize) -> Vec<u8> {
    let start = part as u64 * 8_192;
    (start..start + 8_192).flat_map(u64::to_le_bytes).collect()
}

/// Reads some 20 MB from the Postgres behind `port`.
fn psql(port: u16) -> Command {
    let query = "select repeat(md5(n::text), 6) from generate_series(1, 100000) n";
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .args(["-U", "teesql_read", "-d", "via_scram"])
        .arg("-c")
        .arg(format!("\\copy ({query}) to program 'wc -l'"))
        .env("PGPASSWORD", READ_PASSWORD)
        .env("PGSSLMODE", "disable")
        .env("PGCLIENTENCODING", "UTF8");
    psql
}

fn check_metrics(first: &Sidecar, second: &Sidecar) {
    let opened = "teesql_links{direction=\"opened\",service=\"echo\"}";
    let accepted = "teesql_links{direction=\"accepted\",service=\"echo\"}";
    let scrape = await_scrape(first.admin_address(), |scrape| scrape.value(opened) == 1.0);
    let bulk = BULK as f64;
    let bytes = |scrape: &Scrape, direction: &str, flow: &str| {
        let labels = format!("direction=\"{direction}\",service=\"echo\",flow=\"{flow}\"");
        scrape.sum("teesql_link_bytes_total", &labels)
    };
    // To the other member, and to the own service.
    assert!(bytes(&scrape, "opened", "received") >= 2.0 * bulk);
    let total = "teesql_links_opened_total{direction=\"opened\",service=\"echo\"}";
    assert_eq!(scrape.value(total), 3.0);
    let scrape = await_scrape(second.admin_address(), |scrape| {
        scrape.value(accepted) == 1.0
    });
    assert!(bytes(&scrape, "accepted", "sent") >= bulk);
    // Links are no sessions, and their bytes no client's.
    assert_eq!(scrape.sum("teesql_connections", ""), 0.0);
    assert!(scrape.sum("teesql_bytes_total", "") < bulk);
}

fn check_log(first: &Sidecar, second: &Sidecar) {
    let line = first.await_log("the end of a link", |line| {
        line["message"] == "link ended" && line["service"] == "echo" && line["member"] == "b"
    });
    assert_eq!(line["kind"], "link", "{line}");
    assert_eq!(line["direction"], "opened", "{line}");
    assert_eq!(line["reason"], "client_closed", "{line}");
    let line = second.await_log("the end of a link", |line| {
        line["direction"] == "accepted" && line["service"] == "echo"
    });
    assert_eq!(line["instance"], hex::encode([b'a'; 20]), "{line}");
}

/// A stream that ends with its member must not look complete.
fn member_dies(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let [a, b] = members(fixture, &tdx, ["a", "b"]);
    let (first, second) = (a.start(), b.start());
    let mut link = a.connect(1);
    exchange(&mut link, b"hello").expect("an echo");
    let mut own = a.connect(0);
    exchange(&mut own, b"hello").expect("an echo");
    second.signal(Signal::SIGKILL);
    let end = link.read(&mut [0]).expect_err("no orderly end");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    second.await_exit();
    let mut refused = connect(a.echo + 1);
    assert!(exchange(&mut refused, b"anybody?").is_err());
    let line = first.await_reason("server_unreachable");
    assert_eq!(line["message"], "link not opened", "{line}");
    assert_eq!(line["member"], b.name, "{line}");
    exchange(&mut own, b"unharmed").expect("an echo");

    let second = b.start();
    poll_until(TIMEOUT, || exchange(&mut a.connect(1), b"again").ok())
        .expect("links follow the member");
    // A service that is down on the other member.
    assert!(exchange(&mut connect(a.missing + 1), b"anybody?").is_err());
    for sidecar in [&first, &second] {
        let line = sidecar.await_reason("link_service_unreachable");
        assert_eq!(line["service"], "missing", "{line}");
    }
    exchange(&mut own, b"unharmed").expect("an echo");
}
