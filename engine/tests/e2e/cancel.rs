//! Cancelling a running query: inside TLS always, in plaintext where allowed.

use crate::harness::client::{Client, Ending, Greeting, Opening, Wire};
use crate::harness::cluster::Server;
use crate::harness::message::{self, PROTOCOL_3_0, PROTOCOL_3_2, query};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Suite, World};
use crate::harness::{READ_SECRET, Verifier};

pub(crate) fn add(suite: &mut Suite) {
    for server in suite.stage().servers() {
        for opening in Opening::ALL {
            let name = format!("cancel::{}::{opening}", server.label());
            let server = server.clone();
            suite.add(&name, move |world| inside_tls(world, &server, opening));
        }
    }
    suite.add("cancel::plaintext_refused", plaintext_refused);
    suite.add("cancel::plaintext_allowed", plaintext_allowed);
    suite.add("cancel::a_wrong_key_cancels_nothing", wrong_key);
}

/// A session that sleeps for ever, as Postgres itself says.
struct Sleeper {
    client: Client,
    greeting: Greeting,
}

impl Sleeper {
    fn start(world: &World, server: &Server, sidecar: &Sidecar, version: u32) -> Self {
        let mut client = world.client(sidecar.address());
        let parameters = [("user", "teesql_read"), ("database", "via_scram")];
        let greeting = client.start_with(version, &parameters);
        let greeting = client
            .give(READ_SECRET, greeting)
            .expect("the login succeeds");
        client.send(&query("select pg_sleep(3600)"));
        let asleep = Self { client, greeting };
        asleep.await_asleep(world, server);
        asleep
    }

    fn await_asleep(&self, world: &World, server: &Server) {
        let sql = format!(
            "select wait_event from pg_stat_activity where pid = {}",
            self.greeting.pid
        );
        world
            .stage
            .cluster(server, Verifier::Scram)
            .await_answer(&sql, "PgSleep");
    }

    fn request(&self) -> Vec<u8> {
        message::cancel(self.greeting.pid, &self.greeting.key)
    }

    fn expect_cancelled(&mut self) {
        self.client.expect(b'T');
        let error = self.client.expect(b'E').error();
        assert_eq!(error.code, "57014", "{error}");
        assert_eq!(error.message, "canceling statement due to user request");
        self.client.expect(b'Z');
        assert_eq!(self.client.ask("select 'still here'"), "still here");
    }
}

fn inside_tls(world: &World, server: &Server, opening: Opening) {
    let sidecar = world.sidecar_for(server, Verifier::Scram);
    for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
        // Several, so that other shards than the session's own forward some.
        for _ in 0..4 {
            let mut sleeper = Sleeper::start(world, server, &sidecar, version);
            let mut canceller = Client::open(&world.stage, sidecar.address(), opening);
            canceller.send(&sleeper.request());
            assert_eq!(canceller.expect_end(), Ending::Closed);
            sleeper.expect_cancelled();
        }
    }
}

fn plaintext_refused(world: &World) {
    let server = &world.stage.installed;
    let sidecar = Sidecar::start(&world.settings());
    let mut sleeper = Sleeper::start(world, server, &sidecar, PROTOCOL_3_0);
    let mut wire = Wire::connect(sidecar.address());
    wire.send(&sleeper.request());
    assert_eq!(wire.read_to_end(), b"");
    let line = sidecar.await_end(wire.peer_name());
    assert_eq!(line["reason"], "plaintext_cancel", "{line}");
    sleeper.await_asleep(world, server);

    let mut canceller = Client::open(&world.stage, sidecar.address(), Opening::Raw);
    canceller.send(&sleeper.request());
    assert_eq!(canceller.expect_end(), Ending::Closed);
    let line = sidecar.await_end(canceller.peer_name());
    assert_eq!(line["reason"], "cancel_forwarded", "{line}");
    sleeper.expect_cancelled();
}

fn plaintext_allowed(world: &World) {
    for server in world.stage.servers() {
        let upstream = world
            .stage
            .cluster(&server, Verifier::Scram)
            .address()
            .to_string();
        let settings = world
            .settings_for(&upstream)
            .set("TEESQL_PLAINTEXT_CANCEL", "true");
        let sidecar = Sidecar::start(&settings);
        for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
            let mut sleeper = Sleeper::start(world, &server, &sidecar, version);
            // Byte by byte: the packet need not arrive in one piece.
            let mut wire = Wire::connect(sidecar.address());
            for byte in sleeper.request() {
                wire.send(&[byte]);
            }
            assert_eq!(wire.read_to_end(), b"");
            sleeper.expect_cancelled();
        }
    }
}

fn wrong_key(world: &World) {
    let server = &world.stage.installed;
    let sidecar = world.sidecar();
    let mut sleeper = Sleeper::start(world, server, &sidecar, PROTOCOL_3_0);
    let mut key = sleeper.greeting.key.clone();
    key[3] ^= 1;
    let mut canceller = world.client(sidecar.address());
    canceller.send(&message::cancel(sleeper.greeting.pid, &key));
    assert_eq!(canceller.expect_end(), Ending::Closed);
    // Postgres has seen it by now, as it has closed.
    sleeper.await_asleep(world, server);
    let mut canceller = world.client(sidecar.address());
    canceller.send(&sleeper.request());
    assert_eq!(canceller.expect_end(), Ending::Closed);
    sleeper.expect_cancelled();
}
