//! A real name server as a child process, with the configuration that the documentation shows: Debian's knot, or with
//! `TEESQL_TEST_NAME_SERVER` BIND or PowerDNS (`scripts/name-servers`).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::update_server;
use super::{DOMAIN, OTHER_SECRET, SECRET, record_name, tsig, update};

/// The configuration is that of this page.
const PAGE: &str = include_str!("../../../../../docs/how-to/publish-the-leader.md");

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Knot,
    Bind,
    PowerDns,
}

pub(super) struct NameServer {
    pub(super) port: u16,
    pub(super) kind: Kind,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Kind {
    fn chosen() -> Self {
        match std::env::var("TEESQL_TEST_NAME_SERVER").as_deref() {
            Err(_) | Ok("knot") => Self::Knot,
            Ok("bind") => Self::Bind,
            Ok("powerdns") => Self::PowerDns,
            Ok(other) => {
                panic!("TEESQL_TEST_NAME_SERVER = {other}: expected knot, bind or powerdns")
            }
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Knot => "/usr/sbin/knotd",
            Self::Bind => "/usr/sbin/named",
            Self::PowerDns => "/usr/sbin/pdns_server",
        }
    }

    /// How the page calls it, and where its part of the page ends.
    fn section(self) -> (&'static str, &'static str) {
        match self {
            Self::Knot => ("\nKnot DNS:\n", "\nBIND:\n"),
            Self::Bind => ("\nBIND:\n", "\nPowerDNS,"),
            Self::PowerDns => ("\nPowerDNS,", "\nUpdates use TCP."),
        }
    }

    /// The code blocks of the page, with the secret.
    fn documented(self) -> Vec<String> {
        let (begin, end) = self.section();
        let (_, section) = PAGE.split_once(begin).unwrap();
        let (section, _) = section.split_once(end).unwrap();
        let blocks = section.split("\n```").skip(1).step_by(2);
        let blocks = blocks.map(|block| block.split_once('\n').unwrap().1);
        blocks
            .map(|block| block.replace("<base64>", SECRET) + "\n")
            .collect()
    }

    /// Writes the configuration and the zone to `folder`. Returns the server as a foreground process.
    fn configure(self, folder: &Path, port: u16) -> Command {
        let zone = format!(
            "@ 1 SOA ns.{DOMAIN}. admin.{DOMAIN}. 1 3600 600 86400 1\n@ 1 NS ns.{DOMAIN}.\nns 1 A 127.0.0.1\n"
        );
        fs::write(folder.join(format!("{DOMAIN}.zone")), zone).unwrap();
        let mut command = Command::new(self.program());
        match self {
            Self::Knot => {
                fs::write(folder.join("knot.conf"), self.knot(folder, port)).unwrap();
                command.arg("-c").arg(folder.join("knot.conf"));
            }
            Self::Bind => {
                fs::write(folder.join("named.conf"), self.bind(folder, port)).unwrap();
                command.args(["-g", "-n", "1", "-c"]);
                command.arg(folder.join("named.conf"));
            }
            Self::PowerDns => {
                self.power_dns(folder, port);
                command.arg(format!("--config-dir={}", folder.display()));
            }
        }
        command
    }

    fn knot(self, folder: &Path, port: u16) -> String {
        let path = folder.display();
        format!(
            "server:\n    rundir: \"{path}\"\n    listen: 127.0.0.1@{port}\n    udp-workers: 1\n    \
             tcp-workers: 1\n    background-workers: 1\nlog:\n  - target: stderr\n    any: info\n\
             database:\n    storage: \"{path}\"\n    journal-db-max-size: 1M\n    timer-db-max-size: 1M\n    \
             kasp-db-max-size: 5M\n\
             key:\n  - id: other\n    algorithm: hmac-sha256\n    secret: {OTHER_SECRET}\n\
             template:\n  - id: default\n    storage: \"{path}\"\n    journal-max-usage: 500K\n{}",
            self.documented().concat()
        )
    }

    fn bind(self, folder: &Path, port: u16) -> String {
        let path = folder.display();
        format!(
            "options {{ directory \"{path}\"; pid-file none; lock-file none; session-keyfile \"session.key\";\n  listen-on port {port} {{ 127.0.0.1; }};\n  \
             listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; }};\ncontrols {{ }};\n\
             key \"other\" {{ algorithm hmac-sha256; secret \"{OTHER_SECRET}\"; }};\n{}",
            self.documented().concat()
        )
    }

    fn power_dns(self, folder: &Path, port: u16) {
        let path = folder.display().to_string();
        let [config, policy, commands] = <[String; 3]>::try_from(self.documented()).unwrap();
        let config = config.replace("/etc/powerdns", &path);
        let config = format!(
            "launch=gsqlite3\ngsqlite3-database={path}/db\nlocal-address=127.0.0.1\nlocal-port={port}\n\
             socket-dir={path}\ndaemon=no\nguardian=no\nsecurity-poll-suffix=\n{config}"
        );
        fs::write(folder.join("pdns.conf"), config).unwrap();
        fs::write(folder.join("leader.lua"), policy).unwrap();
        let script = format!(
            "cd '{path}'\nsqlite3 db </usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql\n\
             pdnsutil() {{ command pdnsutil --config-dir='{path}' \"$@\"; }}\n\
             pdnsutil load-zone {DOMAIN} {DOMAIN}.zone\n\
             pdnsutil import-tsig-key other hmac-sha256 {OTHER_SECRET}\n{commands}"
        );
        let output = Command::new("sh").args(["-euc", &script]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl NameServer {
    /// `None` without the Debian package `knot`, unless the tests must not skip anything.
    pub(super) async fn start() -> Option<Self> {
        let kind = Kind::chosen();
        let program = kind.program();
        if !fs::exists(program).unwrap() {
            let strict = std::env::var("TEESQL_TEST_STRICT").is_ok_and(|value| value == "1");
            assert!(!strict, "there is no {program}: scripts/setup installs it");
            return None;
        }
        // Another process may take the port before the server does.
        for _ in 0..10 {
            if let Some(server) = Self::try_to_start(kind).await {
                return Some(server);
            }
        }
        panic!("{program} does not start");
    }

    async fn try_to_start(kind: Kind) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let mut command = kind.configure(folder.path(), port);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self {
            port,
            kind,
            child,
            _folder: folder,
        };
        let started = poll(async || {
            if server.child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let server = update_server(update(port, tsig("teesql.", SECRET))).unwrap();
            let standing = server.standing(&record_name()).await;
            standing.is_ok().then_some(true)
        });
        started.await.then_some(server)
    }

    /// The TXT records at the name of the manifest.
    pub(super) async fn records(&self) -> Vec<String> {
        let server = update_server(update(self.port, tsig("teesql.", SECRET))).unwrap();
        let standing = server.standing(&record_name()).await.unwrap();
        let texts = standing.iter().map(|text| text.txt_data.concat());
        texts.map(|text| String::from_utf8(text).unwrap()).collect()
    }
}

impl Drop for NameServer {
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
