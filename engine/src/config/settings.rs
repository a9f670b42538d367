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
    pub(super) help: &'static str,
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
        help,
    }
}

const fn secret(name: &'static str, help: &'static str) -> Setting {
    Setting {
        name,
        value: "SECRET",
        default: None,
        secret: true,
        help,
    }
}

#[rustfmt::skip]
pub(super) const SETTINGS: &[Setting] = &[
    plain("listen", "HOST:PORT", Some("0.0.0.0:5433"), "Where clients connect; an IP address, port 0 picks a free one"),
    plain("postgres", "ADDRESS", Some("127.0.0.1:5432"), "Where Postgres listens: IP:PORT, or the path of its Unix socket (a folder means .s.PGSQL.5432 in it)"),
    plain("shards", "N", Some("auto"), "Threads that serve connections; auto is one per core"),
    plain("pin", "BOOL", Some("true"), "Tie each shard to a core of its own"),
    plain("driver", "DRIVER", Some("auto"), "auto, io_uring or epoll"),
    plain("tls_cert", "FILE", None, "Certificate chain, PEM, leaf first"),
    plain("tls_key", "FILE", None, "Private key of the leaf, PEM"),
    plain("require_alpn", "BOOL", Some("false"), "Refuse clients that do not offer ALPN postgresql"),
    secret("read_secret", "Cluster secret that opens teesql_read: 64 hex characters"),
    secret("readwrite_secret", "Cluster secret that opens teesql_readwrite and teesql_read: 64 hex characters"),
    secret("pg_password_read", "Postgres' password of teesql_read"),
    secret("pg_password_readwrite", "Postgres' password of teesql_readwrite"),
    secret("pg_password_superuser", "Postgres' password of postgres, which operators present themselves; the role is closed without"),
    plain("require_client_attestation", "BOOL", Some("true"), "Refuse clients whose certificate carries no accepted TDX quote"),
    plain("allow_unattested_clients", "BOOL", Some("false"), "Confirms require_client_attestation=false"),
    plain("allowed_mrtd", "HEX,…", Some(""), "MRTDs that clients may have; empty is any [env too: EXPECTED_MRTD]"),
    plain("allowed_rtmr0", "HEX,…", Some(""), "Values of RTMR0 that clients may have; empty is any"),
    plain("allowed_rtmr1", "HEX,…", Some(""), "Values of RTMR1"),
    plain("allowed_rtmr2", "HEX,…", Some(""), "Values of RTMR2"),
    plain("allowed_rtmr3", "HEX,…", Some(""), "Values of RTMR3"),
    plain("allowed_app_id", "HEX,…", Some(""), "dstack app ids that may enter; empty is any"),
    plain("allowed_compose_hash", "HEX,…", Some(""), "Compose hashes that may enter; empty is any"),
    plain("allowed_os_image_hash", "HEX,…", Some(""), "OS image hashes that may enter; empty is any"),
    plain("accepted_tcb_status", "STATUS,…", Some("OK,SWHardeningNeeded,ConfigurationNeeded,ConfigurationAndSWHardeningNeeded"), "TCB statuses of clients' platforms that are accepted; OK is Intel's UpToDate"),
    plain("refused_advisories", "ID,…", Some(""), "INTEL-SA-… that are refused even with an accepted TCB status"),
    plain("allow_debug_td", "BOOL", Some("false"), "Accept TDs in debug mode, which keep no secret from their host"),
    plain("max_certificate_age", "TIME", Some("off"), "Oldest client certificate, from its notBefore; off is any"),
    plain("kms_root", "FILE", Some(""), "KMS root certificates, PEM: one must have signed the client's chain"),
    plain("dangerous_tdx_root_ca", "FILE", Some(""), "Another root than Intel's for TDX quotes, for tests: its owner can make any quote"),
    plain("pccs", "PCCS", Some("intel"), "Where collateral comes from: intel, phala, a URL, or off"),
    plain("collateral_dir", "DIR", Some(""), "Keeps collateral over restarts"),
    plain("collateral_files", "FILE,…", Some(""), "Collateral to start with, JSON, for machines without a PCCS"),
    plain("revocation_grace", "TIME", Some("10s"), "From a change of policy or collateral to the end of the sessions that it refuses"),
    plain("plaintext_cancel", "BOOL", Some("false"), "Forward a CancelRequest that comes without TLS, as libpq before 17 sends it"),
    plain("proxy_protocol_from", "CIDR,…", Some(""), "Peers whose PROXY protocol header (v1, v2) is believed"),
    plain("login_timeout", "TIME", Some("5s"), "For everything from accept to ReadyForQuery"),
    plain("idle_timeout", "TIME", Some("off"), "Ends a session without a byte either way; off is never"),
    plain("max_connections", "N", Some("10000"), "Sessions at a time; one more is told 53300"),
    plain("drain_timeout", "TIME", Some("30s"), "How long sessions may go on after SIGTERM before they are told 57P01"),
    plain("log_format", "FORMAT", Some("text"), "text or json"),
    plain("log", "FILTER", Some("info"), "error, warn, info, debug or trace, by module too: info,engine=debug"),
];

pub(super) fn env_name(name: &str) -> String {
    format!("TEESQL_{}", name.to_ascii_uppercase())
}

pub(super) fn flag_name(name: &str) -> String {
    name.replace('_', "-")
}
