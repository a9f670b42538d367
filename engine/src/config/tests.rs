//! Layers, their order, and mistakes that are all told at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;

use super::settings::SETTINGS;
use crate::config::mode::Mode;
use crate::tls::record_layer::RecordLayer;

use super::{Config, Criteria, IdentitySource, Layers, Postgres, Scope, with_flags};

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
        self.layers_of(Scope::Serve)
    }

    fn layers_of(&self, scope: Scope) -> Layers {
        let arguments = std::iter::once("serve".to_owned()).chain(self.flags.clone());
        let matches = with_flags(clap::Command::new("serve"), scope)
            .try_get_matches_from(arguments)
            .unwrap();
        Layers::gather(
            scope,
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
    assert_eq!(config.process.shards, 2);
    assert_eq!(config.process.max_connections, 1);
    assert!(!config.process.pin);
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
        .unset("TLS_KEY")
        .flag("--login-timeout", "0s")
        .flag("--postgres", "db.example:5432");
    assert_eq!(
        start.mistakes(),
        [
            "sidecar.toml:3: lissten: there is no such setting",
            "sidecar.toml:4: idle_timeout: expected a text, a whole number or true/false",
            "flag --postgres: postgres = \"db.example:5432\": expected IP:PORT or the path of a \
             Unix socket, e.g. 127.0.0.1:5432",
            "tls_key: not set, although tls_cert is",
            "environment TEESQL_READ_SECRET: read_secret: a cluster secret has 64 hex \
             characters, not 9",
            "sidecar.toml:1: driver = \"kqueue\": expected auto, io_uring or epoll",
            "flag --login-timeout: login_timeout = \"0s\": expected a time above zero, e.g. \
             500ms, 5s or 2m",
        ]
    );
}

#[test]
fn the_record_layer_is_ours_unless_rustls_is_chosen() {
    let mut start = Start::minimal();
    assert_eq!(start.config().process.tls_record_layer, RecordLayer::Own);
    start.set("TLS_RECORD_LAYER", "rustls");
    let config = start.config();
    assert_eq!(config.process.tls_record_layer, RecordLayer::Rustls);
    start.flag("--tls-record-layer", "openssl");
    let mistakes = start.mistakes();
    assert!(
        mistakes[0].ends_with("expected own or rustls"),
        "{mistakes:?}"
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
        start
            .config()
            .secrets
            .read
            .unwrap()
            .matches(SECRET.as_bytes())
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
    let command = with_flags(clap::Command::new("serve"), Scope::Serve);
    let flags: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .filter(|long| long.contains("secret") || long.contains("password"))
        .filter(|long| *long != "secret-overlap")
        .collect();
    assert!(
        flags.iter().all(|flag| flag.ends_with("-file")),
        "{flags:?}"
    );
    assert_eq!(flags.len(), 5);
}

#[test]
fn the_help_has_the_defaults_that_hold() {
    let help = |scope| {
        let mut command = with_flags(clap::Command::new("any"), scope);
        let flags = command.clone().get_matches_from(["any"]);
        let layers = Layers::gather(scope, &flags, |_| None, std::iter::empty());
        (command.render_long_help().to_string(), layers.describe())
    };
    for (scope, subject) in [
        (Scope::Serve, "teesql-sidecar"),
        (Scope::Forward, "teesql-forward"),
    ] {
        let (help, description) = help(scope);
        assert!(help.contains(&format!("[default: {subject}]")), "{help}");
        let defaults = description
            .lines()
            .filter_map(|line| line.strip_suffix("  # default")?.split_once(" = "))
            .filter(|(_, text)| !text.is_empty() && !text.starts_with('['));
        let mut count = 0;
        for (name, text) in defaults {
            let variable = format!("[env: TEESQL_{}]", name.to_uppercase());
            let own = help.split(&variable).nth(1).unwrap_or_default();
            let own = own.split("[env: ").next().unwrap_or_default();
            assert!(
                own.contains(&format!("[default: {text}]")),
                "{name} = {text}"
            );
            count += 1;
        }
        assert!(count > 20, "{description}");
    }
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

#[test]
fn postgres_alone_minds_its_own_settings_only() {
    let mut start = Start::minimal();
    start
        .unset("TLS_CERT")
        .unset("READ_SECRET")
        .set("READWRITE_SECRET_FILE", "/nonexistent/secret")
        .set("SHARDS", "none")
        .set("POSTGRES", "[::1]:6543")
        .set("PG_DATABASE", "ledger");
    let layers = start.layers_of(Scope::Postgres);
    let postgres = Postgres::from_layers(&layers).map_err(|errors| errors.0);
    let postgres = postgres.unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(postgres.endpoint.to_string(), "[::1]:6543");
    assert_eq!(postgres.database, "ledger");
    let passwords = postgres.passwords;
    assert!(passwords.superuser.is_none() && !passwords.need_agent());
    assert!(bool::from(passwords.read.unwrap().matches(b"reader's")));
    assert!(bool::from(
        passwords.readwrite.unwrap().matches(b"writer's")
    ));

    start
        .unset("PG_PASSWORD_READ")
        .set("PG_PASSWORD_READWRITE_FILE", "/nonexistent/password")
        .set("PG_DATABASE", "");
    let errors = Postgres::from_layers(&start.layers_of(Scope::Postgres)).map(drop);
    assert_eq!(
        errors.unwrap_err().0,
        [
            "environment TEESQL_PG_PASSWORD_READWRITE: TEESQL_PG_PASSWORD_READWRITE_FILE is set \
             too",
            "environment TEESQL_PG_DATABASE: pg_database = \"\": expected the name of a database, of 1 to 63 bytes",
        ]
    );
}

#[test]
fn a_command_of_postgres_has_its_flags_only() {
    let command = with_flags(clap::Command::new("provision"), Scope::Postgres);
    let flags: Vec<_> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
        .collect();
    assert_eq!(
        flags,
        [
            "config",
            "postgres",
            "pg-database",
            "guest-agent",
            "simulator-endpoint",
            "pg-password-read-file",
            "pg-password-readwrite-file",
            "pg-password-superuser-file",
        ]
    );
    let arguments = ["provision", "--pg-database", "ledger"];
    let matches = command.try_get_matches_from(arguments).unwrap();
    let layers = Layers::gather(Scope::Postgres, &matches, |_| None, std::iter::empty());
    assert!(layers.describe().contains("pg_database = ledger"));
}

/// `verify` judges by every setting that the gate judges by: a new one has to be
/// marked as a criterion.
#[test]
fn verify_has_every_criterion() {
    let environment =
        |name: &str| (name != "TEESQL_CONFIG" && !name.ends_with("_FILE")).then(|| "?".into());
    let refused = |layers: &Layers| -> Vec<String> {
        let errors = Criteria::from_layers(layers).err().unwrap().0;
        let refused = errors
            .iter()
            .filter_map(|error| error.split_once(" = \"?\""));
        refused.map(|(place, _)| place.to_owned()).collect()
    };
    let gather = |scope| {
        let flags = with_flags(clap::Command::new("any"), scope).get_matches_from(["any"]);
        Layers::gather(scope, &flags, environment, std::iter::empty())
    };
    let (all, some) = (gather(Scope::Serve), gather(Scope::Criteria));
    assert_eq!(refused(&some), refused(&all));
    let marked = SETTINGS.iter().filter(|setting| setting.criterion).count();
    assert_eq!(refused(&some).len(), marked);
}

#[test]
fn without_files_the_guest_agent_is_asked() {
    let mut start = Start::minimal();
    assert!(!start.config().derives_passwords());
    start.unset("PG_PASSWORD_READ");
    assert!(start.config().derives_passwords());
    start
        .set("PG_PASSWORD_READ", "reader's")
        .unset("TLS_CERT")
        .unset("TLS_KEY")
        .set("CERTIFICATE_ALT_NAMES", "db.example, 10.0.0.7")
        .set("GUEST_AGENT", "/run/elsewhere.sock");
    let config = start.config();
    assert!(config.derives_passwords(), "the superuser's");
    let IdentitySource::Agent(subject) = config.identity else {
        panic!("no files are named");
    };
    assert_eq!(subject.alt_names, ["db.example", "10.0.0.7"]);
    let places: Vec<_> = config.process.guest_agent.candidates().collect();
    assert_eq!(places.len(), 1);
    start.set("CERTIFICATE_ALT_NAMES", "not a name");
    assert!(start.mistakes()[0].contains("\"not a name\" is neither"));
}

#[test]
fn a_simulator_endpoint_means_simulator_mode() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS")
        .unset("READ_SECRET")
        .unset("READWRITE_SECRET");
    assert_eq!(start.mistakes().len(), 2, "{:?}", start.mistakes());
    let endpoint = "http://127.0.0.1:8090".to_owned();
    start
        .environment
        .insert("DSTACK_SIMULATOR_ENDPOINT".to_owned(), endpoint);
    let config = start.config();
    assert_eq!(config.mode, Mode::Simulator);
    assert!(config.attestation.is_none() && config.plaintext_cancel);
    assert!(config.listen.ip().is_loopback());
    assert!(config.process.admin_listen.unwrap().ip().is_loopback());
    assert!(config.secrets.read.is_none());
    assert!(config.warnings[0].starts_with("simulator mode"));
    let described = start.layers().describe();
    assert!(described.contains("listen = 127.0.0.1:5433  # default in simulator mode\n"));
    start.set("LISTEN", "0.0.0.0:5433");
    assert!(!start.config().listen.ip().is_loopback(), "told otherwise");
}

#[test]
fn a_switch_needs_no_value() {
    let mut start = Start::minimal();
    assert!(!start.config().provision);
    start.flags.push("--provision".to_owned());
    assert!(start.config().provision);
    start.flags.push("false".to_owned());
    assert!(!start.config().provision);
}
