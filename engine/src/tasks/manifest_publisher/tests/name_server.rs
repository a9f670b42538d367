//! Debian's knot as a child process, with a zone that one TSIG key may update.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::update_server;
use super::{OTHER_SECRET, SECRET, record_name, tsig, update};

const PROGRAM: &str = "/usr/sbin/knotd";

pub(super) struct Knot {
    pub(super) port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Knot {
    /// `None` without the Debian package `knot`, unless the tests must not skip anything.
    pub(super) async fn start() -> Option<Self> {
        if !fs::exists(PROGRAM).unwrap() {
            let strict = std::env::var("TEESQL_TEST_STRICT").is_ok_and(|value| value == "1");
            assert!(!strict, "there is no {PROGRAM}: scripts/setup installs it");
            return None;
        }
        // Another process may take the port before knotd does.
        for _ in 0..10 {
            if let Some(knot) = Self::try_to_start().await {
                return Some(knot);
            }
        }
        panic!("knotd does not start");
    }

    async fn try_to_start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let path = folder.path().display();
        let config = format!(
            "server:\n    rundir: \"{path}\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    \
             tcp-workers: 1\n    background-workers: 1\nlog:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{path}\"\n    journal-db-max-size: 1M\n    timer-db-max-size: 1M\n    \
             kasp-db-max-size: 5M\n\
             key:\n  - id: teesql.\n    algorithm: hmac-sha256\n    secret: {SECRET}\n  \
             - id: other.\n    algorithm: hmac-sha256\n    secret: {OTHER_SECRET}\n\
             acl:\n  - id: leader\n    key: teesql.\n    action: update\n    update-type: [TXT]\n    \
             update-owner: name\n    update-owner-match: equal\n    update-owner-name: [_teesql-leader]\n\
             zone:\n  - domain: orders.test\n    storage: \"{path}\"\n    file: zone\n    acl: leader\n    \
             zonefile-sync: -1\n    zonefile-load: whole\n    journal-max-usage: 500K\n"
        );
        fs::write(folder.path().join("knot.conf"), config).unwrap();
        let zone = "@ 1 SOA ns.orders.test. admin.orders.test. 1 3600 600 86400 1\n@ 1 NS ns.orders.test.\n";
        fs::write(folder.path().join("zone"), zone).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(PROGRAM)
            .arg("-c")
            .arg(folder.path().join("knot.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut knot = Self {
            port,
            child,
            _folder: folder,
        };
        let started = poll(async || {
            if knot.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let server = update_server(update(port, tsig("teesql.", SECRET))).unwrap();
            let standing = server.standing(&record_name()).await;
            standing.is_ok().then_some(true)
        });
        started.await.then_some(knot)
    }

    /// The TXT records at the name of the manifest.
    pub(super) async fn records(&self) -> Vec<String> {
        let server = update_server(update(self.port, tsig("teesql.", SECRET))).unwrap();
        let standing = server.standing(&record_name()).await.unwrap();
        let texts = standing.iter().map(|text| text.txt_data.concat());
        texts.map(|text| String::from_utf8(text).unwrap()).collect()
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries until there is a result, for at most 60 s.
pub(super) async fn poll<T>(mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, tries)
        .await
        .expect("within 60 s")
}
