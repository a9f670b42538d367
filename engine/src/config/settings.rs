//! The table of settings: from it come the TOML keys, the environment names,
//! the flags and the help.

/// One setting. Its key in the TOML file is `name`, its environment variable
/// `TEESQL_` and the name in capitals, its flag `--` and the name with dashes.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) value: &'static str,
    pub(super) default: Option<&'static str>,
    /// Has no flag (`ps` shows those), but a `…_file` twin that has one.
    pub(super) secret: bool,
    /// Another environment variable that says the same.
    pub(super) alias: Option<&'static str>,
    /// Decides who is let in: `verify` has it too.
    pub(super) criterion: bool,
    pub(super) help: &'static str,
}

impl Setting {
    /// Whether it takes several values, separated by commas.
    pub(super) fn is_list(&self) -> bool {
        self.value.ends_with(",…")
    }
}

const fn plain(
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        value,
        default,
        secret: false,
        alias: None,
        criterion: false,
        help,
    }
}

const fn criterion(
    name: &'static str,
    value: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Setting {
    Setting {
        criterion: true,
        ..plain(name, value, default, help)
    }
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        value: "SECRET",
        default: None,
        secret: true,
        alias: None,
        criterion: false,
        help,
    }
}

const fn also(alias: &'static str, setting: Setting) -> Setting {
    Setting {
        alias: Some(alias),
        ..setting
    }
}

/// Which settings a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the sidecar's.
    Serve,
    /// Those that say who is let in.
    Criteria,
    /// Those that say how to reach Postgres, and with what passwords.
    Postgres,
    /// Those that say how to reach the guest agent, and what to ask it for.
    Agent,
    /// All of the forwarder's.
    Forward,
}

impl Scope {
    pub(super) fn has(self, setting: &Setting) -> bool {
        match self {
            Self::Serve => SETTINGS.iter().any(|known| known.name == setting.name),
            Self::Forward => {
                setting.criterion
                    || SHARED.contains(&setting.name)
                    || FORWARD.iter().any(|known| known.name == setting.name)
            }
            Self::Criteria => setting.criterion,
            Self::Postgres => POSTGRES.contains(&setting.name),
            Self::Agent => AGENT.contains(&setting.name),
        }
    }

    pub(super) fn settings(self) -> impl Iterator<Item = &'static Setting> {
        all().filter(move |setting| self.has(setting))
    }

    /// What a setting is where nobody says anything.
    pub(super) fn default(self, setting: &Setting) -> Option<&'static str> {
        let forwards = FORWARD_DEFAULTS
            .iter()
            .find(|(name, _)| self == Self::Forward && *name == setting.name);
        forwards.map_or(setting.default, |(_, default)| Some(default))
    }
}

const POSTGRES: &[&str] = &[
    "postgres",
    "pg_database",
    "pg_password_read",
    "pg_password_readwrite",
    "pg_password_superuser",
    "guest_agent",
    SIMULATOR,
];

const AGENT: &[&str] = &[
    "tls_cert",
    "tls_key",
    "guest_agent",
    SIMULATOR,
    "certificate_subject",
    "certificate_alt_names",
    "certificate_validity",
];

/// What the forwarder has in common with the sidecar, beside the criteria.
const SHARED: &[&str] = &[
    "shards",
    "pin",
    "driver",
    "busy_poll",
    "tls_record_layer",
    "guest_agent",
    SIMULATOR,
    "certificate_subject",
    "certificate_validity",
    "collateral_dir",
    "collateral_files",
    "revocation_grace",
    "admin_listen",
    "login_timeout",
    "idle_timeout",
    "max_connections",
    "drain_timeout",
    "log_format",
    "log",
];

/// What is otherwise in a forwarder: it is one of many processes on a machine
/// that is somebody else's.
const FORWARD_DEFAULTS: &[(&str, &str)] = &[
    ("shards", "1"),
    ("pin", "false"),
    ("busy_poll", "off"),
    ("admin_listen", "off"),
    ("certificate_subject", "teesql-forward"),
    ("max_connections", "1000"),
    ("login_timeout", "30s"),
    ("log", "warn"),
];

/// Other names of flags, for people who know the public clients.
pub(super) const FLAG_ALIASES: &[(&str, &str)] = &[
    ("forward_listen", "listen"),
    ("allowed_mrtd", "mrtd"),
    ("allow_debug_td", "allow-debug-mode"),
];

/// Set, it means simulator mode.
pub(super) const SIMULATOR: &str = "simulator_endpoint";

/// What is otherwise than usual in simulator mode: everything stays on this
/// machine, and nobody has to prove anything.
pub(super) const SIMULATOR_DEFAULTS: &[(&str, &str)] = &[
    ("listen", "127.0.0.1:5433"),
    ("admin_listen", "127.0.0.1:8080"),
    ("require_client_attestation", "false"),
    ("plaintext_cancel", "true"),
];

pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain(FORWARD)
}

pub(super) fn find(name: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.name == name)
}

#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    plain("listen", "HOST:PORT", Some("0.0.0.0:5433"), "Where clients connect; an IP address, port 0 picks a free one"),
    plain("postgres", "ADDRESS", Some("127.0.0.1:5432"), "Where Postgres listens: IP:PORT, or the path of its Unix socket (a folder means .s.PGSQL.5432 in it)"),
    plain("pg_database", "NAME", Some("postgres"), "The database that provision gives the roles their privileges in"),
    plain("shards", "N", Some("auto"), "Threads that serve connections; auto is one per core"),
    plain("pin", "BOOL", Some("true"), "Tie each shard to a core of its own"),
    plain("driver", "DRIVER", Some("auto"), "auto, io_uring or epoll"),
    plain("busy_poll", "TIME", Some("auto"), "How long a shard looks for more bytes before it sleeps: less latency for few clients, more CPU; auto is where more comes soon; off, or e.g. 50us"),
    plain("tls_record_layer", "LAYER", Some("own"), "What seals and opens TLS 1.3 records after the handshake: own or rustls"),
    plain("tls_cert", "FILE", None, "Certificate chain, PEM, leaf first; without it the guest agent gives certificate and key"),
    plain("tls_key", "FILE", None, "Private key of the leaf, PEM"),
    plain("guest_agent", "PATH", Some("auto"), "The guest agent's socket or http URL; auto is dstack's usual places"),
    also("DSTACK_SIMULATOR_ENDPOINT", plain(SIMULATOR, "PATH", None, "A simulator's guest agent, by socket or URL: means simulator mode, without client attestation [env too: DSTACK_SIMULATOR_ENDPOINT]")),
    plain("certificate_subject", "NAME", Some("teesql-sidecar"), "Common name of the certificate that the guest agent gives"),
    plain("certificate_alt_names", "NAME,…", Some("localhost"), "DNS names and IP addresses in it, for clients with sslmode=verify-full"),
    plain("certificate_validity", "TIME", Some("1day"), "How long it is asked to be valid; renewed after two thirds"),
    plain("require_alpn", "BOOL", Some("false"), "Refuse clients that do not offer ALPN postgresql"),
    secret("read_secret", "Cluster secret that opens teesql_read: 64 hex characters"),
    secret("readwrite_secret", "Cluster secret that opens teesql_readwrite and teesql_read: 64 hex characters"),
    plain("secret_overlap", "TIME", Some("5m"), "How long the cluster secrets before a change (SIGHUP) stay good"),
    secret("pg_password_read", "Postgres' password of teesql_read; without it, derived by the guest agent"),
    secret("pg_password_readwrite", "Postgres' password of teesql_readwrite; without it, derived by the guest agent"),
    secret("pg_password_superuser", "Postgres' password of postgres, which operators present themselves; without it, derived by the guest agent where that is asked anyway, else the role is closed"),
    plain("require_client_attestation", "BOOL", Some("true"), "Refuse clients whose certificate carries no accepted TDX quote"),
    plain("allow_unattested_clients", "BOOL", Some("false"), "Confirms require_client_attestation=false"),
    also("EXPECTED_MRTD", criterion("allowed_mrtd", "HEX,…", Some(""), "MRTDs that clients may have; empty is any [env too: EXPECTED_MRTD]")),
    criterion("allowed_rtmr0", "HEX,…", Some(""), "Values of RTMR0 that clients may have; empty is any"),
    criterion("allowed_rtmr1", "HEX,…", Some(""), "Values of RTMR1"),
    criterion("allowed_rtmr2", "HEX,…", Some(""), "Values of RTMR2"),
    criterion("allowed_rtmr3", "HEX,…", Some(""), "Values of RTMR3"),
    criterion("allowed_app_id", "HEX,…", Some(""), "dstack app ids that may enter; empty is any"),
    criterion("allowed_compose_hash", "HEX,…", Some(""), "Compose hashes that may enter; empty is any"),
    criterion("allowed_os_image_hash", "HEX,…", Some(""), "OS image hashes that may enter; empty is any"),
    criterion("accepted_tcb_status", "STATUS,…", Some("OK,SWHardeningNeeded,ConfigurationNeeded,ConfigurationAndSWHardeningNeeded"), "TCB statuses of clients' platforms that are accepted; OK is Intel's UpToDate"),
    criterion("refused_advisories", "ID,…", Some(""), "INTEL-SA-… that are refused even with an accepted TCB status"),
    criterion("allow_debug_td", "BOOL", Some("false"), "Accept TDs in debug mode, which keep no secret from their host"),
    criterion("max_certificate_age", "TIME", Some("off"), "Oldest client certificate, from its notBefore; off is any"),
    criterion("kms_root", "FILE", Some(""), "KMS root certificates, PEM: one must have signed the client's chain"),
    criterion("dangerous_tdx_root_ca", "FILE", Some(""), "Another root than Intel's for TDX quotes, for tests: its owner can make any quote"),
    criterion("pccs", "PCCS", Some("intel"), "Where collateral comes from: intel, phala, a URL, or off"),
    plain("collateral_dir", "DIR", Some(""), "Keeps collateral over restarts"),
    plain("collateral_files", "FILE,…", Some(""), "Collateral to start with, JSON, for machines without a PCCS"),
    plain("revocation_grace", "TIME", Some("10s"), "From a change of policy or collateral to the end of the sessions that it refuses"),
    plain("plaintext_cancel", "BOOL", Some("false"), "Forward a CancelRequest that comes without TLS, as libpq before 17 sends it"),
    plain("admin_listen", "HOST:PORT", Some("0.0.0.0:8080"), "Where /health, /ready, /attestation and /metrics are; off for nowhere"),
    plain("attestation_interval", "TIME", Some("1s"), "Least time between two quotes for /attestation"),
    plain("provision", "BOOL", Some("false"), "Set the two roles up in Postgres at start"),
    plain("proxy_protocol_from", "CIDR,…", Some(""), "Peers whose PROXY protocol header (v1, v2) is believed"),
    plain("login_timeout", "TIME", Some("5s"), "For everything from accept to ReadyForQuery"),
    plain("idle_timeout", "TIME", Some("off"), "Ends a session without a byte either way; off is never"),
    plain("max_connections", "N", Some("10000"), "Sessions at a time; one more is told 53300"),
    plain("drain_timeout", "TIME", Some("30s"), "How long sessions may go on after SIGTERM before they are told 57P01"),
    plain("log_format", "FORMAT", Some("text"), "text or json"),
    plain("log", "FILTER", Some("info"), "error, warn, info, debug or trace, by module too: info,engine=debug"),
];

/// The forwarder's own.
#[rustfmt::skip]
pub(super) const FORWARD: &[Setting] = &[
    plain("forward_listen", "ADDRESS", Some("127.0.0.1:0"), "Where drivers connect without TLS: a loopback IP and port (0 picks a free one), or the path of a Unix socket (a folder means .s.PGSQL.5432 in it)"),
    plain("target", "HOST:PORT", None, "The sidecar to connect to; without it, host and port of DATABASE_URL"),
    Setting { alias: Some("DATABASE_URL"), ..secret("database_url", "A DSN (postgresql://…), of which host and port are used; the rest is for the command") },
    plain("cluster", "DOMAIN", None, "Connect to the leader that the manifest at _teesql-leader.DOMAIN names"),
    plain("manifest_signer", "ADDRESS", None, "Who signs the manifest: 0x and 40 hex characters"),
    plain("manifest_cluster", "ADDRESS", None, "Which cluster the manifest must be of, where the signer has several"),
    plain("manifest_max_validity", "TIME", Some("7days"), "How far in the future a manifest may end; off is any"),
    plain("dns_server", "IP:PORT", Some("system"), "The name server to ask; system is what this machine uses"),
    plain("verifier", "NAME", Some("dcap"), "Who verifies the server's quote: dcap (here), ita (Intel Trust Authority), none (nobody: only with allow_simulator)"),
    plain("allow_simulator", "BOOL", Some("false"), "Accept a server without any TDX evidence, for development"),
    plain("trust_authority", "BASE", Some("us"), "Intel Trust Authority: us, eu or a URL"),
    Setting { alias: Some("INTEL_TRUST_AUTHORITY_API_KEY"), ..secret("trust_authority_key", "Its API key") },
    plain("client_cert", "FILE", None, "Certificate chain to show, PEM, leaf first; without it the guest agent gives certificate and key"),
    plain("client_key", "FILE", None, "Private key of the leaf, PEM"),
    plain("connect_timeout", "TIME", Some("5s"), "For each dial, and for the TLS handshake"),
    plain("start_timeout", "TIME", Some("15s"), "For the first certificate from the guest agent"),
];

pub(super) fn env_name(name: &str) -> String {
    format!("TEESQL_{}", name.to_ascii_uppercase())
}

pub(super) fn flag_name(name: &str) -> String {
    name.replace('_', "-")
}
