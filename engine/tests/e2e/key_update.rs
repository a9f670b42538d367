//! TLS 1.3 KeyUpdates by the client, each with a request for one by the sidecar (RFC 8446,
//! 4.6.3), between queries and while data flows in either direction, and storms of them.

use engine::tls::record_layer::RecordLayer;

use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::message::query;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    suite.add("key_update::between_queries", between_queries);
    suite.add("key_update::during_a_large_result", large_result);
    suite.add("key_update::during_a_large_query", large_query);
    suite.add("key_update::one_for_each_record_in_flight", storm);
    suite.add("key_update::without_progress_end_the_session", no_progress);
}

/// Sends a KeyUpdate at once.
fn update_keys(client: &mut Client) {
    client
        .tls
        .conn
        .refresh_traffic_keys()
        .expect("TLS 1.3, established");
    client.send(b"");
}

fn between_queries(fixture: &Fixture) {
    let mut client = fixture.session(&fixture.sidecar());
    for i in 0..20 {
        update_keys(&mut client);
        client.send(&query(&format!("select {i}")));
        client.expect(b'T');
        let row = client.expect(b'D').columns();
        assert_eq!(row, [Some(i.to_string())]);
        client.expect(b'C');
        client.expect(b'Z');
    }
    client.terminate();
}

fn large_result(fixture: &Fixture) {
    const ROWS: usize = 20_000;
    let mut client = fixture.session(&fixture.sidecar());
    let sql = format!("select n, repeat('x', 1000) from generate_series(1, {ROWS}) n");
    client.send(&query(&sql));
    client.expect(b'T');
    for n in 1..=ROWS {
        // At most 20, without data from us between them: the limit is 32.
        if n % (ROWS / 20) == 1 {
            update_keys(&mut client);
        }
        let row = client.expect(b'D').columns();
        assert_eq!(row[0].as_deref(), Some(n.to_string().as_str()));
    }
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}

fn large_query(fixture: &Fixture) {
    let mut client = fixture.session(&fixture.sidecar());
    let literal = "0123456789".repeat(400_000);
    let message = query(&format!(
        "select md5('{literal}') = md5(repeat('0123456789', 400000))"
    ));
    for part in message.chunks(100_001) {
        client.send(part);
        update_keys(&mut client);
    }
    client.expect(b'T');
    assert_eq!(client.expect(b'D').columns(), [Some("t".to_owned())]);
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}

/// As a JDK that has reached its key limit: a KeyUpdate for each record that arrives, while both sides stream.
fn storm(fixture: &Fixture) {
    const ROWS: usize = 20_000;
    if fixture.variant.record_layer == RecordLayer::Rustls {
        // rustls allows 32 KeyUpdates in a row, whatever it sends.
        return;
    }
    let mut client = fixture.session(&fixture.sidecar());
    let sql = format!("select n, repeat('x', 1000) from generate_series(1, {ROWS}) n");
    client.send(&query(&sql));
    client.expect(b'T');
    let mut updates = 0;
    for n in 1..=ROWS {
        // A record has at most 2^14 bytes.
        if n % 16 == 0 {
            update_keys(&mut client);
            updates += 1;
        }
        let row = client.expect(b'D').columns();
        assert_eq!(row[0].as_deref(), Some(n.to_string().as_str()));
    }
    assert_eq!(updates, ROWS / 16);
    client.expect(b'C');
    client.expect(b'Z');
    // The other direction, with a KeyUpdate for each full record.
    let literal = "0123456789".repeat(200_000);
    let message = query(&format!("select length('{literal}')"));
    for part in message.chunks(1 << 14) {
        client.send(part);
        update_keys(&mut client);
    }
    client.expect(b'T');
    assert_eq!(client.expect(b'D').columns(), [Some("2000000".to_owned())]);
    client.expect(b'C');
    client.expect(b'Z');
    client.terminate();
}

/// KeyUpdates that nothing justifies, also if single bytes of a message come between them.
fn no_progress(fixture: &Fixture) {
    for with_data in [false, true] {
        if with_data && fixture.variant.record_layer == RecordLayer::Rustls {
            continue;
        }
        let sidecar = fixture.sidecar();
        let mut client = fixture.session(&sidecar);
        let peer = client.local_address();
        let message = query(&format!("select '{}'", "x".repeat(100)));
        for byte in message.iter().take(50) {
            client.tls.conn.refresh_traffic_keys().expect("TLS 1.3");
            let data: &[u8] = if with_data { &[*byte] } else { b"" };
            if client.try_send(data).is_err() {
                break;
            }
        }
        let line = sidecar.await_connection_end(peer);
        assert_eq!(line["reason"], "tls_misbehaved", "{line}");
    }
}
