//! Layers, their order, and mistakes that are all told at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;

use super::{Config, Layers, command};

const SECRET: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// Files, environment and flags of one imagined start.
struct Start {
    folder: tempfile::TempDir,
    environment: BTreeMap<String, String>,
    flags: Vec<String>,
}

impl Start {
    /// Everything that has no default, and nothing else.
    fn minimal() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut start = Self {
            folder,
            environment: BTreeMap::new(),
            flags: Vec::new(),
        };
        let cert = start.file("cert.pem", "a certificate");
        for (name, value) in [
            ("TLS_CERT", cert.as_str()),
            ("TLS_KEY", &cert),
            ("READ_SECRET", SECRET),
            ("READWRITE_SECRET", OTHER),
            ("PG_PASSWORD_READ", "reader's"),
            ("PG_PASSWORD_READWRITE", "writer's"),
            ("REQUIRE_CLIENT_ATTESTATION", "false"),
            ("ALLOW_UNATTESTED_CLIENTS", "true"),
        ] {
            start.set(name, value);
        }
        start
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment
            .insert(format!("TEESQL_{name}"), value.to_owned());
        self
    }

    fn unset(&mut self, name: &str) -> &mut Self {
        self.environment.remove(&format!("TEESQL_{name}"));
        self
    }

    fn flag(&mut self, flag: &str, value: &str) -> &mut Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    fn layers(&self) -> Layers {
        let arguments = std::iter::once("serve".to_owned()).chain(self.flags.clone());
        let matches = command("serve", "")
            .try_get_matches_from(arguments)
            .unwrap();
        Layers::gather(
            &matches,
            |name| self.environment.get(name).map(OsString::from),
            self.environment.keys().cloned(),
        )
    }

    fn config(&self) -> Config {
        match Config::from_layers(&self.layers()) {
            Ok(config) => config,
            Err(errors) => panic!("{errors}"),
        }
    }

    /// The mistakes, with the folder's changing name taken out.
    fn mistakes(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        match Config::from_layers(&self.layers()) {
            Ok(_) => Vec::new(),
            Err(errors) => errors
                .0
                .iter()
                .map(|line| line.replace(&folder, ""))
                .collect(),
        }
    }
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let mut start = Start::minimal();
    let file = start.file(
        "sidecar.toml",
        "listen = \"127.0.0.1:1\"\nshards = 1\nmax_connections = 1\npin = false\n",
    );
    start
        .set("CONFIG", &file)
        .set("LISTEN", "127.0.0.1:2")
        .set("SHARDS", "2")
        .flag("--listen", "127.0.0.1:3");
    let config = start.config();
    assert_eq!(config.listen, "127.0.0.1:3".parse().unwrap());
    assert_eq!(config.shards, 2);
    assert_eq!(config.max_connections, 1);
    assert!(!config.pin);
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let mut start = Start::minimal();
    let file = start.file(
        "sidecar.toml",
        "driver = \"kqueue\"\n\nlissten = \"x\"\nidle_timeout = [1]\n",
    );
    start
        .set("CONFIG", &file)
        .set("READ_SECRET", "too short")
        .unset("PG_PASSWORD_READ")
        .flag("--login-timeout", "0s")
        .flag("--postgres", "db.example:5432");
    assert_eq!(
        start.mistakes(),
        [
            "sidecar.toml:3: lissten: there is no such setting",
            "sidecar.toml:4: idle_timeout: expected a text, a whole number or true/false",
            "flag --postgres: postgres = \"db.example:5432\": expected IP:PORT or the path of a \
             Unix socket, e.g. 127.0.0.1:5432",
            "sidecar.toml:1: driver = \"kqueue\": expected auto, io_uring or epoll",
            "environment TEESQL_READ_SECRET: read_secret: a cluster secret is 64 hex \
             characters, and this has 9 characters",
            "pg_password_read: not set: use TEESQL_PG_PASSWORD_READ or …_FILE, \
             --pg-password-read-file or the TOML key pg_password_read",
            "flag --login-timeout: login_timeout = \"0s\": expected a time above zero, e.g. \
             500ms, 5s or 2m",
        ]
    );
}

#[test]
fn a_broken_file_is_told_with_its_line_and_without_its_text() {
    let mut start = Start::minimal();
    let file = start.file("sidecar.toml", "pin = true\nread_secret = hunter2\n");
    start.set("CONFIG", &file);
    let mistakes = start.mistakes();
    assert!(mistakes[0].starts_with("sidecar.toml:2: "), "{mistakes:?}");
    assert!(!mistakes.join("\n").contains("hunter2"));
}

#[test]
fn a_secret_may_come_from_a_file_but_not_from_two_places() {
    let mut start = Start::minimal();
    let file = start.file("secret", &format!("{SECRET}\n"));
    start.unset("READ_SECRET").set("READ_SECRET_FILE", &file);
    assert!(bool::from(
        start.config().secrets.read.matches(SECRET.as_bytes())
    ));
    start.set("READ_SECRET", SECRET);
    assert_eq!(
        start.mistakes(),
        ["environment TEESQL_READ_SECRET: TEESQL_READ_SECRET_FILE is set too"]
    );
    start
        .unset("READ_SECRET")
        .set("READ_SECRET_FILE", "/nonexistent/secret");
    assert_eq!(start.mistakes().len(), 1, "{:?}", start.mistakes());
}

#[test]
fn secrets_have_no_flag() {
    let command = command("serve", "");
    let flags: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(|long| long.contains("secret") || long.contains("password"))
        .collect();
    assert!(
        flags.iter().all(|flag| flag.ends_with("-file")),
        "{flags:?}"
    );
    assert_eq!(flags.len(), 5);
}

#[test]
fn a_description_shows_places_and_no_secret() {
    let text = Start::minimal().layers().describe();
    assert!(text.contains("read_secret = [redacted]  # environment TEESQL_READ_SECRET\n"));
    assert!(text.contains("login_timeout = 5s  # default\n"));
    assert!(text.contains("pg_password_superuser = [not set]  # default\n"));
    for secret in [SECRET, OTHER, "reader's", "writer's"] {
        assert!(!text.contains(secret));
    }
}

#[test]
fn unattested_clients_have_to_be_asked_for_twice() {
    let mut start = Start::minimal();
    start.unset("ALLOW_UNATTESTED_CLIENTS");
    assert!(start.mistakes()[0].contains("confirm with"));
    start.set("ALLOW_UNATTESTED_CLIENTS", "true");
    assert_eq!(
        start.config().warnings,
        ["clients are not attested: whoever has a cluster secret gets in"]
    );
}

#[test]
fn a_mistyped_variable_is_warned_about() {
    let mut start = Start::minimal();
    start.set("MAX_CONECTIONS", "5");
    assert!(
        start
            .config()
            .warnings
            .contains(&"environment TEESQL_MAX_CONECTIONS: there is no such setting".to_owned())
    );
}

#[test]
fn a_folder_means_the_socket_in_it() {
    let mut start = Start::minimal();
    let folder = start.folder.path().to_str().unwrap().to_owned();
    start.set("POSTGRES", &folder);
    assert_eq!(
        start.config().postgres.to_string(),
        format!("{folder}/.s.PGSQL.5432")
    );
}

#[test]
fn attestation_is_the_default_and_says_what_it_leaves_open() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS");
    let config = start.config();
    assert!(config.attestation.is_some());
    assert!(
        config
            .warnings
            .iter()
            .any(|warning| warning.contains("any MRTD"))
    );
    start
        .environment
        .insert("EXPECTED_MRTD".to_owned(), "11".repeat(48));
    let policy = start.config().attestation.unwrap().policy;
    assert_eq!(policy.settings().mrtd.len(), 1);
    start.set("ALLOWED_MRTD", "11, zz");
    assert!(start.mistakes()[0].starts_with("environment TEESQL_ALLOWED_MRTD: allowed_mrtd"));
}

#[test]
fn a_dangerous_root_is_named_so() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS");
    let pki = attest::mock::Pki::new(&[7; 32]).unwrap();
    let file = start.file("root.pem", pki.root_pem());
    start.set("DANGEROUS_TDX_ROOT_CA", &file);
    let config = start.config();
    assert!(config.attestation.unwrap().root.is_dangerous());
    assert!(config.warnings[0].contains("another root than Intel's"));
}
