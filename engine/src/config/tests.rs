//! Precedence of the layers, reporting of all mistakes, and that the table and its readers agree.

mod deployment;
mod forwarder;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use super::identity::read_guest_agent;
use super::mode::Mode;
use super::reader::Reader;
use super::settings::{ALL, find};
use super::{
    CertificateConfig, Config, ControlConfig, Criteria, ForwarderConfig, IdentitySource, Layers,
    ManifestDestination, ManifestKeyConfig, PostgresConfig, Scope, with_flags,
};
use crate::auth::client_auth::ClientAuth;
use crate::io::peer_uid::AllowedUids;
use crate::postgres::server::{PostgresAuth, default_uids};

const SECRET: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// Files, environment and flags of one start.
struct Start {
    folder: tempfile::TempDir,
    environment: BTreeMap<String, String>,
    flags: Vec<String>,
}

impl Start {
    /// All required settings, and no others.
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
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
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

    /// The mistakes, without the name of the temporary folder.
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
fn flags_override_the_environment_which_overrides_the_file() {
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
    assert!(config.process.set_limits.sessions && !config.process.set_limits.unattested);
    assert!(!config.process.pin);
}

#[test]
fn reports_all_mistakes_with_their_source() {
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
            "sidecar.toml:3: lissten: unknown setting",
            "sidecar.toml:4: idle_timeout: expected a string, an integer or a boolean",
            "flag --postgres: postgres = \"db.example:5432\": expected IP:PORT or the path of a \
             Unix socket, e.g. 127.0.0.1:5432, or auto",
            "tls_key: not set, but tls_cert is",
            "environment TEESQL_READ_SECRET: read_secret: a cluster secret has 64 hex \
             characters, not 9",
            "sidecar.toml:1: driver = \"kqueue\": expected auto, io_uring or epoll",
            "flag --login-timeout: login_timeout = \"0s\": expected a duration above zero, e.g. \
             500ms, 5s or 2m",
        ]
    );
}

#[test]
fn a_syntax_error_is_reported_with_its_line_and_without_its_text() {
    let mut start = Start::minimal();
    let file = start.file("sidecar.toml", "pin = true\nread_secret = hunter2\n");
    start.set("CONFIG", &file);
    let mistakes = start.mistakes();
    assert!(mistakes[0].starts_with("sidecar.toml:2: "), "{mistakes:?}");
    assert!(!mistakes.join("\n").contains("hunter2"));
}

#[test]
fn a_secret_and_its_file_exclude_each_other() {
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
        ["environment TEESQL_READ_SECRET: TEESQL_READ_SECRET_FILE is also set"]
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
        .filter(|long| !["secret-overlap", "cluster-secrets"].contains(long))
        .collect();
    assert!(
        flags.iter().all(|flag| flag.ends_with("-file")),
        "{flags:?}"
    );
    assert_eq!(flags.len(), 5);
}

#[test]
fn the_help_shows_the_effective_defaults() {
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
            let variable = format!("[env: TEESQL_{}", name.to_uppercase());
            let own = help
                .split(&variable)
                .find(|rest| rest.starts_with(']') || rest.starts_with(", "))
                .unwrap_or_default();
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
fn a_description_shows_sources_and_no_secret() {
    let text = Start::minimal().layers().describe();
    assert!(text.contains("read_secret = [redacted]  # environment TEESQL_READ_SECRET\n"));
    assert!(text.contains("login_timeout = 5s  # default\n"));
    assert!(text.contains("pg_password_superuser = [not set]  # default\n"));
    for secret in [SECRET, OTHER, "reader's", "writer's"] {
        assert!(!text.contains(secret));
    }
}

#[test]
fn accepting_unattested_clients_needs_confirmation() {
    let mut start = Start::minimal();
    start.unset("ALLOW_UNATTESTED_CLIENTS");
    assert!(start.mistakes()[0].contains("confirm with"));
    start.set("ALLOW_UNATTESTED_CLIENTS", "true");
    assert_eq!(
        start.config().warnings,
        ["clients are not attested: any client with a cluster secret is accepted"]
    );
}

#[test]
fn warns_about_an_unknown_variable() {
    let mut start = Start::minimal();
    start.set("MAX_CONECTIONS", "5");
    assert!(
        start
            .config()
            .warnings
            .contains(&"environment TEESQL_MAX_CONECTIONS: unknown setting".to_owned())
    );
}

#[test]
fn auto_is_a_port_on_loopback_and_its_socket() {
    let mut start = Start::minimal();
    assert!(!start.config().postgres.look_for_socket);
    for (text, address) in [("auto", "127.0.0.1:5432"), ("auto:5433", "127.0.0.1:5433")] {
        start.set("POSTGRES", text);
        let postgres = start.config().postgres;
        assert!(postgres.look_for_socket);
        assert_eq!(postgres.address.to_string(), address);
        assert_eq!(postgres.to_string(), format!("auto ({address})"));
    }
    for text in ["auto:0", "auto:", "auto:65536"] {
        start.set("POSTGRES", text);
        let expected = format!(
            "environment TEESQL_POSTGRES: postgres = {text:?}: expected auto:PORT, e.g. auto:5433"
        );
        assert_eq!(start.mistakes(), [expected]);
    }
}

#[test]
fn a_directory_means_the_socket_in_it() {
    let mut start = Start::minimal();
    let folder = start.folder.path().to_str().unwrap().to_owned();
    start.set("POSTGRES", &folder);
    assert_eq!(
        start.config().postgres.to_string(),
        format!("{folder}/.s.PGSQL.5432")
    );
}

#[test]
fn attestation_is_the_default_and_warns_about_missing_checks() {
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

/// What a guest says of itself is believed only if its operating system or its KMS is known.
#[test]
fn an_identity_needs_a_known_operating_system() {
    let attested = || {
        let mut start = Start::minimal();
        start
            .unset("REQUIRE_CLIENT_ATTESTATION")
            .unset("ALLOW_UNATTESTED_CLIENTS");
        start
    };
    let value = |bytes: usize| "a1".repeat(bytes);
    for (list, bytes) in [
        ("ALLOWED_APP_ID", 20),
        ("ALLOWED_INSTANCE_ID", 20),
        ("ALLOWED_COMPOSE_HASH", 32),
        ("ALLOWED_OS_IMAGE_HASH", 32),
        ("ALLOWED_RTMR3", 48),
    ] {
        let mut start = attested();
        start.set(list, &value(bytes));
        assert!(start.mistakes()[0].contains("any TD can claim"), "{list}");
        for pin in ["ALLOWED_MRTD", "ALLOWED_RTMR1", "ALLOWED_RTMR2"] {
            start.set(pin, &value(48));
            let complete = pin == "ALLOWED_RTMR2";
            let mistakes = if complete {
                Vec::new()
            } else {
                start.mistakes()
            };
            assert_eq!(mistakes.is_empty(), complete, "{list} {pin}");
        }
        assert!(!start.config().attestation.unwrap().policy.needs_own_root());
    }
    let mut allowed = attested();
    allowed
        .set("ALLOWED_APP_ID", &value(20))
        .set("ALLOW_UNPINNED_OS", "true");
    let warnings = allowed.config().warnings;
    let warned = |text: &str| warnings.iter().any(|warning| warning.contains(text));
    assert!(warned("allow_unpinned_os"));
    // Without attestation the policy is not used.
    let mut unattested = Start::minimal();
    unattested.set("ALLOWED_APP_ID", &value(20)).config();
}

#[test]
fn own_is_the_default_root_if_the_guest_agent_issues_the_certificate() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS")
        .unset("TLS_CERT")
        .unset("TLS_KEY");
    let needs_own = |start: &Start| start.config().attestation.unwrap().policy.needs_own_root();
    assert!(!needs_own(&start), "nothing is compared");
    start.set("ALLOWED_APP_ID", &"a1".repeat(20));
    assert!(needs_own(&start));
    start.set("KMS_ROOT", "any");
    assert!(start.mistakes()[0].contains("any TD can claim"));
    start
        .unset("KMS_ROOT")
        .set("SIMULATOR_ENDPOINT", "/run/sim.sock")
        .set("REQUIRE_CLIENT_ATTESTATION", "true");
    assert!(start.mistakes()[0].contains("any TD can claim"));
    start.set("KMS_ROOT", "own");
    assert!(start.mistakes()[0].contains("simulator's CA is public"));
    start
        .unset("SIMULATOR_ENDPOINT")
        .set("MAX_CERTIFICATE_AGE", "1h");
    assert!(needs_own(&start));
    start.unset("KMS_ROOT").unset("ALLOWED_APP_ID");
    assert!(start.mistakes()[0].contains("max_certificate_age"));
}

/// An empty variable is a mistake: what was meant to be in it is not.
#[test]
fn an_empty_allow_list_is_a_mistake() {
    for list in ["ALLOWED_MRTD", "ALLOWED_RTMR0", "ALLOWED_APP_ID"] {
        for empty in ["", " ", ","] {
            let mut start = Start::minimal();
            start.set(list, empty);
            assert!(
                start.mistakes()[0].contains("write any"),
                "{list} {empty:?}"
            );
        }
        let mut start = Start::minimal();
        start.set(list, "any").config();
    }
    let mut start = Start::minimal();
    start
        .environment
        .insert("EXPECTED_MRTD".to_owned(), String::new());
    let mistakes = start.mistakes();
    assert!(
        mistakes[0].starts_with("environment EXPECTED_MRTD: allowed_mrtd")
            && mistakes[0].contains("write any"),
        "{mistakes:?}"
    );
}

#[test]
fn a_policy_file_replaces_the_flat_settings() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS");
    let peer = format!("[[peer]]\nname = \"p\"\napp_id = \"{}\"\n", "a1".repeat(20));
    let file = start.file("policy.toml", &peer);
    start.set("POLICY_FILE", &file);
    assert!(start.mistakes()[0].contains("peer \"p\": any TD can claim"));
    let pki = attest::mock::Pki::new(&[7; 32]).unwrap();
    start.file("kms.pem", pki.kms_pem());
    start.file("policy.toml", &(peer + "kms_root = \"kms.pem\"\n"));
    let policy = start.config().attestation.unwrap().policy;
    assert_eq!(policy.entries().count(), 1);
    start
        .set("ALLOWED_MRTD", &"11".repeat(48))
        .flag("--kms-root", "own");
    let mistakes = start.mistakes();
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("environment TEESQL_ALLOWED_MRTD: allowed_mrtd is set, and so")
    );
    assert!(mistakes[1].starts_with("flag --kms-root: kms_root is set, and so"));
}

#[test]
fn warns_about_a_dangerous_root() {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS");
    let pki = attest::mock::Pki::new(&[7; 32]).unwrap();
    let file = start.file("root.pem", pki.root_pem());
    start.set("DANGEROUS_TDX_ROOT_CA", &file);
    let config = start.config();
    assert!(config.attestation.unwrap().root.is_dangerous());
    assert!(config.warnings[0].contains("a root other than Intel's"));
}

#[test]
fn scram_is_the_default_on_both_sides() {
    let mut start = Start::minimal();
    let config = start.config();
    assert_eq!(config.client_auth, ClientAuth::Scram);
    assert!(config.scram_channel_binding);
    assert_eq!(config.postgres.auth, PostgresAuth::Scram);
    let quiet = config.warnings.len();
    start
        .set("CLIENT_AUTH", "password")
        .set("SCRAM_CHANNEL_BINDING", "off")
        .set("POSTGRES_AUTH", "any");
    let config = start.config();
    assert_eq!(config.client_auth, ClientAuth::Password);
    assert!(!config.scram_channel_binding);
    assert_eq!(config.postgres.auth, PostgresAuth::Any);
    let named = |name: &str| config.warnings.iter().any(|text| text.starts_with(name));
    assert!(named("client_auth = password: ") && named("postgres_auth = any: "));
    assert_eq!(config.warnings.len(), quiet + 2);
    start
        .set("CLIENT_AUTH", "md5")
        .set("SCRAM_CHANNEL_BINDING", "on")
        .set("POSTGRES_AUTH", "trust");
    assert_eq!(
        start.mistakes(),
        [
            "environment TEESQL_POSTGRES_AUTH: postgres_auth = \"trust\": expected scram or any",
            "environment TEESQL_CLIENT_AUTH: client_auth = \"md5\": expected scram or password",
            "environment TEESQL_SCRAM_CHANNEL_BINDING: scram_channel_binding = \"on\": expected auto \
             or off",
        ]
    );
}

#[test]
fn the_user_of_postgres_is_an_id_or_a_name() {
    let mut start = Start::minimal();
    let uids = |start: &Start| start.config().postgres.uids;
    assert_eq!(uids(&start), default_uids());
    start.set("POSTGRES_UID", "auto");
    assert_eq!(uids(&start), default_uids());
    start.set("POSTGRES_UID", "70");
    assert_eq!(uids(&start), AllowedUids::only(70));
    start.set("POSTGRES_UID", "root");
    assert_eq!(uids(&start), AllowedUids::only(0));
    for wrong in ["no such user", "-1", "4294967295", "4294967296", ""] {
        start.set("POSTGRES_UID", wrong);
        let mistakes = start.mistakes();
        assert!(
            mistakes[0].contains("expected auto, a user id"),
            "{mistakes:?}"
        );
    }
}

#[test]
fn postgres_scope_ignores_other_settings() {
    let mut start = Start::minimal();
    start
        .unset("TLS_CERT")
        .unset("READ_SECRET")
        .set("READWRITE_SECRET_FILE", "/nonexistent/secret")
        .set("SHARDS", "none")
        .set("POSTGRES", "[::1]:6543")
        .set("PG_DATABASE", "ledger");
    let layers = start.layers_of(Scope::Postgres);
    let postgres = PostgresConfig::from_layers(&layers).map_err(|errors| errors.0);
    let postgres = postgres.unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(postgres.server.to_string(), "[::1]:6543");
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
    let errors = PostgresConfig::from_layers(&start.layers_of(Scope::Postgres)).map(drop);
    assert_eq!(
        errors.unwrap_err().0,
        [
            "environment TEESQL_PG_PASSWORD_READWRITE: TEESQL_PG_PASSWORD_READWRITE_FILE is also \
             set",
            "environment TEESQL_PG_DATABASE: pg_database = \"\": expected a database name of 1 to 63 bytes",
        ]
    );
}

#[test]
fn postgres_scope_has_its_flags_only() {
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
            "postgres-auth",
            "postgres-uid",
            "pg-database",
            "pg-connections-read",
            "pg-connections-readwrite",
            "allow-other-databases",
            "guest-agent",
            "simulator-endpoint",
            "pg-password-read-file",
            "pg-password-readwrite-file",
            "pg-password-superuser-file",
            "cluster-key-file",
            "cluster-name",
        ]
    );
    let arguments = ["provision", "--pg-database", "ledger"];
    let matches = command.try_get_matches_from(arguments).unwrap();
    let layers = Layers::gather(Scope::Postgres, &matches, |_| None, std::iter::empty());
    assert!(layers.describe().contains("pg_database = ledger"));
}

/// A setting that is declared for a command and not read by it, or the reverse, fails here. Since the
/// gate and `verify` read the policy with one function, `verify` has every criterion.
#[test]
fn each_scope_reads_exactly_its_settings() {
    type Read = fn(&mut Reader<'_>);
    let readers: [(Scope, Read); 8] = [
        (Scope::Serve, |reader| drop(Config::read(reader))),
        (Scope::Criteria, |reader| drop(Criteria::read(reader))),
        (Scope::Postgres, |reader| drop(PostgresConfig::read(reader))),
        (Scope::Agent, |reader| drop(CertificateConfig::read(reader))),
        (Scope::Secret, |reader| drop(read_guest_agent(reader))),
        (Scope::Control, |reader| drop(ControlConfig::read(reader))),
        (Scope::Manifest, |reader| {
            drop(ManifestKeyConfig::read(reader));
        }),
        (Scope::Forward, |reader| drop(ForwarderConfig::read(reader))),
    ];
    for (scope, read) in readers {
        let layers = Layers::from_settings(scope, []);
        let mut reader = Reader::new(&layers);
        read(&mut reader);
        let mut keys = reader.keys;
        keys.sort_unstable();
        let mut declared: Vec<_> = scope.settings().map(|spec| spec.key).collect();
        declared.sort_unstable();
        assert_eq!(keys, declared, "{scope:?}");
    }
}

#[test]
fn declarations_are_complete() {
    for spec in ALL {
        assert!(std::ptr::eq(find(spec.key).unwrap(), *spec), "{}", spec.key);
        assert!(!spec.scopes.is_empty(), "{}", spec.key);
        assert!(spec.help.ends_with('.'), "{}", spec.key);
        assert!(spec.default.is_none() || !spec.is_secret(), "{}", spec.key);
    }
}

#[test]
fn the_guest_agent_is_used_without_pem_files() {
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
    assert!(config.derives_passwords(), "for the superuser");
    let IdentitySource::Agent(request) = config.identity else {
        panic!("no files are named");
    };
    assert_eq!(request.alt_names, ["db.example", "10.0.0.7"]);
    let candidates: Vec<_> = config.process.guest_agent.candidates().collect();
    assert_eq!(candidates.len(), 1);
    start.set("CERTIFICATE_ALT_NAMES", "not a name");
    assert!(start.mistakes()[0].contains("\"not a name\" is neither"));
}

#[test]
fn a_cluster_key_takes_the_place_of_the_guest_agent() {
    let key = "5a".repeat(32);
    let mut start = Start::minimal();
    start
        .unset("PG_PASSWORD_READ")
        .unset("TLS_CERT")
        .unset("TLS_KEY");
    assert!(start.config().derives_passwords());
    start.set("CLUSTER_KEY", &key);
    let config = start.config();
    assert!(!config.derives_passwords() && !config.provisions_replication());
    assert!(config.passwords.cluster_key.is_some());
    let described = start.layers().describe();
    assert!(
        described.contains("cluster_key = [redacted]"),
        "{described}"
    );

    start
        .set("CLUSTER_NAME", "orders")
        .set("CLUSTER_MEMBER", "a")
        .set("CLUSTER_MEMBERS", "a=a.example:5433")
        .set("PROVISION", "true");
    assert!(start.config().provisions_replication());
    start
        .unset("READ_SECRET")
        .unset("READWRITE_SECRET")
        .set("CLUSTER_SECRETS", "derived");
    let mistakes = start.mistakes();
    assert!(
        mistakes[0].starts_with("cluster_secrets = derived, although cluster_key is set"),
        "{mistakes:?}"
    );
    start.set("CLUSTER_KEY", &key[1..]);
    assert_eq!(
        start.mistakes(),
        [
            "environment TEESQL_CLUSTER_KEY: cluster_key: a cluster key has 64 hex characters, not 63"
        ]
    );
}

fn publishing() -> Start {
    let mut start = Start::minimal();
    start
        .unset("REQUIRE_CLIENT_ATTESTATION")
        .unset("ALLOW_UNATTESTED_CLIENTS")
        .set("CLUSTER_NAME", "orders")
        .set("CLUSTER_MEMBER", "a")
        .set("CLUSTER_MEMBERS", "a=a.example:5433,b=[2001:db8::1]:5433")
        .set("MANIFEST_PUBLISH", "rfc2136")
        .set("MANIFEST_DOMAIN", "Orders.example")
        .set("MANIFEST_SERVER", "ns.example")
        .set("MANIFEST_TSIG_NAME", "teesql")
        .set("MANIFEST_TSIG_KEY", "c2VjcmV0IG9mIDE2IGJ5dA==");
    start
}

#[test]
fn a_member_publishes_its_own_address() {
    let mut start = publishing();
    let manifest = start.config().manifest.unwrap();
    assert_eq!(manifest.name.to_ascii(), "_teesql-leader.orders.example.");
    assert_eq!(manifest.leader_url.as_str(), "https://a.example:5433");
    assert!(manifest.key.is_none() && manifest.cluster.is_none());
    let ManifestDestination::Update(update) = manifest.destination else {
        panic!("not an update");
    };
    assert_eq!(update.server, ("ns.example".to_owned(), 53));
    assert_eq!(update.tsig.name.to_ascii(), "teesql.");
    assert_eq!(update.tsig.secret.as_bytes(), b"secret of 16 byt");
    assert!(update.zone.is_none());
    start
        .set("CLUSTER_MEMBER", "b")
        .set("MANIFEST_SERVER", "[2001:db8::53]:5353");
    let manifest = start.config().manifest.unwrap();
    assert_eq!(manifest.leader_url.as_str(), "https://[2001:db8::1]:5433");
    start
        .set("MANIFEST_PUBLISH", "command")
        .set("MANIFEST_COMMAND", "/bin/sh");
    let manifest = start.config().manifest.unwrap();
    let command = ManifestDestination::Command("/bin/sh".into());
    assert!(matches!(
        (manifest.destination, command),
        (ManifestDestination::Command(one), ManifestDestination::Command(other)) if one == other
    ));
    start.set("MANIFEST_PUBLISH", "off");
    assert!(start.config().manifest.is_none());
}

#[test]
fn what_a_publisher_lacks_is_named() {
    let mistakes = |change: fn(&mut Start)| {
        let mut start = publishing();
        change(&mut start);
        start.mistakes()
    };
    let missing = |key: &str| [format!("{key}: not set, but manifest_publish needs it")];
    let lacks = |key, change: fn(&mut Start)| assert_eq!(mistakes(change), missing(key));
    lacks("manifest_server", |start| {
        start.unset("MANIFEST_SERVER");
    });
    lacks("manifest_tsig_name", |start| {
        start.unset("MANIFEST_TSIG_NAME");
    });
    lacks("manifest_tsig_key", |start| {
        start.unset("MANIFEST_TSIG_KEY");
    });
    lacks("manifest_domain", |start| {
        start.unset("MANIFEST_DOMAIN");
    });
    lacks("manifest_command", |start| {
        start.set("MANIFEST_PUBLISH", "command");
    });
    lacks("cluster_name", |start| {
        start
            .unset("CLUSTER_NAME")
            .unset("CLUSTER_MEMBER")
            .unset("CLUSTER_MEMBERS");
    });
    let with_key = mistakes(|start| {
        start.set("CLUSTER_KEY", &"5a".repeat(32));
    });
    assert!(
        with_key[0].starts_with("manifest_key: not set, but cluster_key is"),
        "{with_key:?}"
    );
    let short = mistakes(|start| {
        start.set("MANIFEST_TSIG_KEY", "c2hvcnQ=");
    });
    let expected = "environment TEESQL_MANIFEST_TSIG_KEY: manifest_tsig_key: expected 16 to 512 bytes in base64";
    assert_eq!(short, [expected]);
    let zone = mistakes(|start| {
        start.set("MANIFEST_ZONE", "other.example");
    });
    let expected = "manifest_zone = other.example.: _teesql-leader.orders.example. is not in this zone: see manifest_domain";
    assert_eq!(zone, [expected]);
    let signing = mistakes(|start| {
        start.set("MANIFEST_KEY", "5a");
    });
    assert!(signing[0].contains("manifest_key: a signing key is 64 hex digits"));
}

#[test]
fn a_simulator_endpoint_enables_simulator_mode() {
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
    start
        .set("LISTEN", "0.0.0.0:5433")
        .set("ALLOW_UNATTESTED_CLIENTS", "true");
    assert!(!start.config().listen.ip().is_loopback(), "set explicitly");
}

#[test]
fn role_settings_may_be_a_table() {
    let mut start = Start::minimal();
    let file = start.file(
        "sidecar.toml",
        "[roles.teesql_readwrite]\nsettings = { search_path = 'app, \"a b\"', work_mem = \"64MB\" }\n",
    );
    start.set("CONFIG", &file);
    let expected = r#"-c search_path=app,\ "a\ b" -c work_mem=64MB"#.parse().unwrap();
    assert_eq!(start.config().roles.sessions.readwrite, expected);
    let wrong = start.file(
        "wrong.toml",
        "[roles.postgres]\nsettings = {}\n[roles.teesql_read]\nsetting = { a = 1 }\n",
    );
    start.set("CONFIG", &wrong);
    let expected = [
        "wrong.toml:1: roles.postgres: expected teesql_read or teesql_readwrite",
        "wrong.toml:1: roles.teesql_read: expected settings = { name = \"value\", … }",
    ];
    assert_eq!(start.mistakes(), expected);
    start
        .unset("CONFIG")
        .set("ROLE_SETTINGS_READ", "-c session_authorization=postgres");
    let expected = [
        "environment TEESQL_ROLE_SETTINGS_READ: role_settings_read = \
         \"-c session_authorization=postgres\": session_authorization is not a setting of a session",
    ];
    assert_eq!(start.mistakes(), expected);
}

#[test]
fn a_boolean_flag_needs_no_value() {
    let mut start = Start::minimal();
    assert!(!start.config().roles.provision);
    start.flags.push("--provision".to_owned());
    assert!(start.config().roles.provision);
    start.flags.push("false".to_owned());
    assert!(!start.config().roles.provision);
}
