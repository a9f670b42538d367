//! The table of settings: each is declared here, once.
//!
//! The TOML keys, environment variables, flags, `--help`, `check` and
//! `docs/reference/configuration.md` are made from this table. A setting that no configuration reads
//! fails the test `each_scope_reads_exactly_its_settings`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use attest::TrustedRoot;
use attest::agent::AgentAddress;
use attest::collateral::{Collateral, Source};
use attest::ita::{ApiKey, Base};
use attest::manifest::{EthAddress, SigningKey};
use attest::policy::{Advisory, TcbStatuses};
use attest::values::{AppId, ComposeHash, InstanceId, Mrtd, OsImageHash, Rtmr};
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use wire::cluster_key::ClusterKey;
use wire::link::MemberName;
use wire::scram::Password;
use wire::secret::ClusterSecret;

use super::audit::{self, AuditTarget};
use super::cluster::{self, Member, Service, WritesOnStandby};
use super::connection_uri::DatabaseUrl;
use super::control::{self, ControlSocket};
use super::forward::{Listen, VerifierName};
use super::log_format::LogFormat;
use super::manifest::{self, Publish, TsigSecret};
use super::policy::{self, KmsRootSetting};
use super::postgres::PostgresLocation;
use super::spec::Kind::{Bool, Duration as Time, List, One, Secret};
use super::spec::{Group, Scope, Setting, Spec};
use super::values;
use crate::auth::client_auth::ClientAuth;
use crate::auth::derived_secrets::SecretSource;
use crate::auth::launch_token::{LaunchToken, LaunchTokenDigest};
use crate::io::driver::DriverChoice;
use crate::io::peer_uid::AllowedUids;
use crate::io::target::HostOrder;
use crate::postgres::provision::ConnectionLimit;
use crate::postgres::server::PostgresAuth;
use crate::postgres::session_settings::RoleSettings;
use crate::sched::busy_poll::BusyPollMode;
use crate::tls::record_layer::RecordLayer;

/// Declares a static [`Setting`] for each entry, and lists all of them in [`ALL`].
macro_rules! settings {
    ($($group:ident {
        $($name:ident: $type:ty {
            key: $key:literal, parse: $parse:expr, kind: $kind:expr, scopes: $scopes:expr,
            $($field:ident: $value:expr,)*
        })*
    })*) => {
        $($(pub(super) static $name: Setting<$type> = Setting {
            spec: Spec {
                key: $key,
                group: Group::$group,
                kind: $kind,
                scopes: $scopes,
                $($field: $value,)*
                ..Spec::OMITTED
            },
            parse: $parse,
        };)*)*

        /// Every setting, in the order of `--help`.
        pub(super) static ALL: &[&Spec] = &[$($(&$name.spec,)*)*];
    };
}

pub(super) fn find(key: &str) -> Option<&'static Spec> {
    ALL.iter().copied().find(|spec| spec.key == key)
}

const SERVE: &[Scope] = &[Scope::Serve];
const CONTROL: &[Scope] = &[Scope::Serve, Scope::Control];
const FORWARD: &[Scope] = &[Scope::Forward];
const BOTH: &[Scope] = &[Scope::Serve, Scope::Forward];
const CRITERIA: &[Scope] = &[Scope::Serve, Scope::Criteria, Scope::Forward];
const POSTGRES_ONLY: &[Scope] = &[Scope::Serve, Scope::Postgres];
const CERTIFICATE: &[Scope] = &[Scope::Serve, Scope::Agent];
const CERTIFICATE_OF_BOTH: &[Scope] = &[Scope::Serve, Scope::Agent, Scope::Forward];
const MANIFEST: &[Scope] = &[Scope::Serve, Scope::Manifest];
const AGENT: &[Scope] = &[
    Scope::Serve,
    Scope::Criteria,
    Scope::Postgres,
    Scope::Agent,
    Scope::Secret,
    Scope::Manifest,
    Scope::Forward,
];

settings! {
    Listening {
        LISTEN: SocketAddr {
            key: "listen", parse: values::listen, kind: One("HOST:PORT"), scopes: SERVE,
            default: Some("0.0.0.0:5433"), simulator_default: Some("127.0.0.1:5433"),
            help: "IP address and port to accept client connections on. Port 0 picks a free port.",
        }
        FORWARD_LISTEN: Listen {
            key: "forward_listen", parse: values::local_listen, kind: One("ADDRESS"), scopes: FORWARD,
            default: Some("127.0.0.1:0"), flag_alias: Some("listen"),
            help: "Where drivers connect, without TLS: a loopback IP address and port (port 0 picks a free port), or the path of a Unix socket (a directory means .s.PGSQL.5432 in it).",
        }
        REQUIRE_ALPN: bool {
            key: "require_alpn", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"),
            help: "Refuse TLS clients that do not offer the ALPN protocol postgresql.",
        }
        PLAINTEXT_CANCEL: bool {
            key: "plaintext_cancel", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"), simulator_default: Some("true"),
            help: "Forward CancelRequest messages that arrive without TLS, as libpq before version 17 sends them.",
        }
        PROXY_PROTOCOL_FROM: Vec<IpNet> {
            key: "proxy_protocol_from", parse: values::networks, kind: List("CIDR"), scopes: SERVE,
            default: Some(""),
            help: "Networks whose PROXY protocol headers (v1 and v2) are trusted, such as those of a load balancer. Empty trusts none.",
        }
    }
    Postgres {
        POSTGRES: PostgresLocation {
            key: "postgres", parse: values::postgres_location, kind: One("ADDRESS"), scopes: POSTGRES_ONLY,
            default: Some("127.0.0.1:5432"),
            help: "Address of Postgres: IP:PORT, or the path of its Unix socket (a directory means .s.PGSQL.5432 in it). auto or auto:PORT is that port (5432) of 127.0.0.1, and for clients' sessions its socket .s.PGSQL.PORT in /run/postgresql, /var/run/postgresql or /tmp, if one of them belongs to the same Postgres and lets the roles in.",
        }
        POSTGRES_AUTH: PostgresAuth {
            key: "postgres_auth", parse: values::from_str, kind: One("METHOD"), scopes: POSTGRES_ONLY,
            default: Some("scram"),
            help: "How Postgres may authenticate the sidecar: scram (SCRAM-SHA-256, by which Postgres proves that it knows the password; on a Unix socket also peer and trust), or any (also md5 and passwords in cleartext, which any process on Postgres' address could ask for).",
        }
        POSTGRES_UID: Option<AllowedUids> {
            key: "postgres_uid", parse: values::user, kind: One("USER"), scopes: POSTGRES_ONLY,
            default: Some("auto"),
            help: "User name or id that Postgres runs as. Only checked on a Unix socket: a listener of another user is refused. auto accepts the user postgres, root and the sidecar's own user.",
        }
        PG_DATABASE: String {
            key: "pg_database", parse: values::database, kind: One("NAME"), scopes: POSTGRES_ONLY,
            default: Some("postgres"),
            help: "Database in which provisioning grants the roles their privileges.",
        }
        PROVISION: bool {
            key: "provision", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"),
            help: "Set up the roles teesql_read and teesql_readwrite in Postgres at start, and keep them so.",
        }
        PROVISION_INTERVAL: Option<Duration> {
            key: "provision_interval", parse: values::duration_or_off, kind: Time, scopes: SERVE,
            default: Some("5s"),
            help: "With provision: how often the roles in Postgres are compared with what provisioning set up, and repaired. A login that Postgres refuses causes a comparison within a second. off compares at start only.",
        }
        PROVISION_BLOCKER_TIMEOUT: Duration {
            key: "provision_blocker_timeout", parse: values::duration, kind: Time, scopes: SERVE,
            default: Some("10s"),
            help: "With provision: how long another session may hold a lock that provisioning needs, before it is ended. Sessions of superusers are never ended.",
        }
        PG_CONNECTIONS_READ: ConnectionLimit {
            key: "pg_connections_read", parse: values::from_str, kind: One("N"), scopes: POSTGRES_ONLY,
            default: Some("auto"),
            help: "Maximum number of sessions of teesql_read in Postgres, or unlimited; auto is three quarters of those that Postgres does not reserve for superusers.",
        }
        PG_CONNECTIONS_READWRITE: ConnectionLimit {
            key: "pg_connections_readwrite", parse: values::from_str, kind: One("N"), scopes: POSTGRES_ONLY,
            default: Some("auto"),
            help: "Maximum number of sessions of teesql_readwrite in Postgres, or unlimited; auto is all that Postgres does not reserve for superusers, less a tenth (at most 5) for operators.",
        }
        ALLOW_OTHER_DATABASES: bool {
            key: "allow_other_databases", parse: values::boolean, kind: Bool, scopes: POSTGRES_ONLY,
            default: Some("false"),
            help: "Let provisioning leave CONNECT and TEMPORARY on databases that are not provisioned with PUBLIC, so that clients can enter them.",
        }
        ALLOW_STORED_ROLE_SETTINGS: bool {
            key: "allow_stored_role_settings", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"),
            help: "Let settings that are stored in Postgres for a role (ALTER ROLE … SET) decide in new sessions. Any client of a role can store them for all.",
        }
        ROLE_SETTINGS_READ: RoleSettings {
            key: "role_settings_read", parse: values::from_str, kind: One("OPTIONS"), scopes: SERVE,
            default: Some(""),
            help: "Settings of Postgres for new sessions of teesql_read, written as in PGOPTIONS, e.g. -c statement_timeout=30s -c search_path=app,public. A client that sets one itself gets its own. In TOML also the table settings in [roles.teesql_read].",
        }
        ROLE_SETTINGS_READWRITE: RoleSettings {
            key: "role_settings_readwrite", parse: values::from_str, kind: One("OPTIONS"), scopes: SERVE,
            default: Some(""),
            help: "The same for teesql_readwrite.",
        }
        OPERATOR_SEARCH_PATH: Option<String> {
            key: "operator_search_path", parse: values::search_path, kind: One("SCHEMAS"), scopes: SERVE,
            default: Some("pg_catalog"), simulator_default: Some("off"),
            help: "The search_path of sessions as postgres, unless the client sets it. Clients can create functions and operators in public, which would run as superuser. off leaves Postgres' own.",
        }
        CLIENT_CHECK_INTERVAL: Option<Duration> {
            key: "client_check_interval", parse: values::duration_or_off, kind: Time, scopes: SERVE,
            default: Some("2s"),
            help: "How often Postgres checks while it runs a statement whether the client is still there (client_connection_check_interval), so that it cancels the statements of clients that are gone; off leaves Postgres' own.",
        }
    }
    Server {
        TARGET: Vec<(String, u16)> {
            key: "target", parse: values::targets, kind: List("HOST:PORT"), scopes: FORWARD,
            help: "The sidecar to connect to, or up to 8 of them: the first that can be used, in the order of load_balance_hosts; one that has failed a moment ago comes last. If not set, the hosts and ports of DATABASE_URL are used.",
        }
        LOAD_BALANCE_HOSTS: HostOrder {
            key: "load_balance_hosts", parse: values::from_str, kind: One("ORDER"), scopes: FORWARD,
            help: "The order in which several servers, and several addresses of one name, are tried, as in libpq: disable (as given) or random (another order for each connection). If not set, load_balance_hosts of DATABASE_URL if its hosts are used, or else disable.",
        }
        DATABASE_URL: DatabaseUrl {
            key: "database_url", parse: values::database_url, kind: Secret, scopes: FORWARD,
            env_alias: Some("DATABASE_URL"),
            help: "Connection URI (postgresql://…) whose host and port are the default target. COMMAND gets the URI with the forwarder's address in it. Without COMMAND it is ignored if target or cluster is set; a URI for another kind of database (mysql://…) is ignored then in any case.",
        }
        CLUSTER: String {
            key: "cluster", parse: values::domain, kind: One("DOMAIN"), scopes: FORWARD,
            help: "Connect to the leader that the manifest in the TXT record _teesql-leader.DOMAIN names. Requires manifest_signer.",
        }
        FOLLOW: bool {
            key: "follow", parse: values::boolean, kind: Bool, scopes: FORWARD,
            default: Some("false"),
            help: "End the sessions with the old leader with SQLSTATE 57P01 (admin_shutdown) when the manifest names a new one and that one answers. Without it they continue until the old leader ends them. Requires cluster.",
        }
        MANIFEST_SIGNER: EthAddress {
            key: "manifest_signer", parse: values::from_str, kind: One("ADDRESS"), scopes: FORWARD,
            help: "Ethereum address of the manifest's signer: 0x and 40 hex characters.",
        }
        MANIFEST_MAX_VALIDITY: Option<Duration> {
            key: "manifest_max_validity", parse: values::duration_or_off, kind: Time, scopes: FORWARD,
            default: Some("7days"),
            help: "Refuse a manifest that expires later than this from now; off disables the limit.",
        }
        DNS_SERVER: Option<SocketAddr> {
            key: "dns_server", parse: values::dns_server, kind: One("IP:PORT"), scopes: FORWARD,
            default: Some("system"),
            help: "DNS server to query (port 53 if omitted); system uses the DNS configuration of this machine.",
        }
    }
    Identity {
        TLS_CERT: PathBuf {
            key: "tls_cert", parse: values::readable_file, kind: One("FILE"), scopes: CERTIFICATE,
            help: "File with the sidecar's certificate chain (PEM, leaf first), reloaded when it changes. If not set, the guest agent issues the certificate and its key.",
        }
        TLS_KEY: PathBuf {
            key: "tls_key", parse: values::readable_file, kind: One("FILE"), scopes: CERTIFICATE,
            help: "File with the private key of tls_cert (PEM), reloaded when it changes.",
        }
        CLIENT_CERT: PathBuf {
            key: "client_cert", parse: values::readable_file, kind: One("FILE"), scopes: FORWARD,
            help: "File with the certificate chain to present to the server (PEM, leaf first), reloaded when it changes. If not set, the guest agent issues the certificate and its key.",
        }
        CLIENT_KEY: PathBuf {
            key: "client_key", parse: values::readable_file, kind: One("FILE"), scopes: FORWARD,
            help: "File with the private key of client_cert (PEM), reloaded when it changes.",
        }
        CLIENT_ATTESTATION: bool {
            key: "client_attestation", parse: values::boolean, kind: Bool, scopes: FORWARD,
            default: Some("true"),
            help: "Present a client certificate with this machine's TDX quote to the server. Set it to false outside a confidential VM, towards sidecars that accept clients without attestation: the server is verified all the same.",
        }
        GUEST_AGENT: Option<AgentAddress> {
            key: "guest_agent", parse: values::agent_address, kind: One("PATH"), scopes: AGENT,
            default: Some("auto"),
            help: "Unix socket path or HTTP URL of the dstack guest agent; auto tries dstack's standard socket paths.",
        }
        SIMULATOR_ENDPOINT: AgentAddress {
            key: "simulator_endpoint", parse: values::from_str, kind: One("PATH"), scopes: AGENT,
            env_alias: Some("DSTACK_SIMULATOR_ENDPOINT"),
            help: "Unix socket path or HTTP URL of a dstack simulator, used instead of guest_agent. In the sidecar it enables simulator mode, in which clients are not attested: for development only.",
        }
        CERTIFICATE_SUBJECT: String {
            key: "certificate_subject", parse: values::common_name, kind: One("NAME"), scopes: CERTIFICATE_OF_BOTH,
            default: Some("teesql-sidecar"), forwarder_default: Some("teesql-forward"),
            help: "Common name of the certificate requested from the guest agent (1 to 64 characters).",
        }
        CERTIFICATE_ALT_NAMES: Vec<String> {
            key: "certificate_alt_names", parse: values::host_names, kind: List("NAME"), scopes: CERTIFICATE,
            default: Some("localhost"),
            help: "DNS names and IP addresses of the requested certificate. Include the name that clients with sslmode=verify-full connect to.",
        }
        CERTIFICATE_VALIDITY: Duration {
            key: "certificate_validity", parse: values::duration, kind: Time, scopes: CERTIFICATE_OF_BOTH,
            default: Some("1day"),
            help: "Validity period of the requested certificate. It is renewed after two thirds of this time.",
        }
    }
    Secrets {
        CLIENT_AUTH: ClientAuth {
            key: "client_auth", parse: values::from_str, kind: One("METHOD"), scopes: SERVE,
            default: Some("scram"),
            help: "How clients prove that they know a secret: scram (SCRAM-SHA-256, by which the secret never crosses the wire), or password (the secret in cleartext, inside TLS).",
        }
        SCRAM_CHANNEL_BINDING: bool {
            key: "scram_channel_binding", parse: values::auto_or_off, kind: One("WHEN"), scopes: SERVE,
            default: Some("auto"),
            help: "When to offer SCRAM-SHA-256-PLUS, which binds a login to the sidecar's certificate: auto (to clients that open TLS with an SSLRequest or with the ALPN protocol postgresql) or off (for a gateway that ends the clients' TLS and opens its own in that way).",
        }
        LAUNCH_TOKEN_SHA256: LaunchTokenDigest {
            key: "launch_token_sha256", parse: values::from_str, kind: One("HEX"), scopes: SERVE,
            help: "SHA-256 of launch_token (64 hex characters). The sidecar then starts only with that token. Write it into the text of the deployment, which is measured: settings in variables, which a host can forge, are accepted only together with the token.",
        }
        LAUNCH_TOKEN: LaunchToken {
            key: "launch_token", parse: values::from_str, kind: Secret, scopes: SERVE,
            help: "The launch token: at least 32 characters, among the encrypted variables of the deployment.",
        }
        CLUSTER_SECRETS: SecretSource {
            key: "cluster_secrets", parse: values::from_str, kind: One("SOURCE"), scopes: SERVE,
            default: Some("configured"), reloadable: true,
            help: "Where the cluster secrets come from: configured (read_secret and readwrite_secret), or derived (the guest agent derives them, always the same ones for the same application; teesql-sidecar secret --derived prints them).",
        }
        READ_SECRET: ClusterSecret {
            key: "read_secret", parse: values::cluster_secret, kind: Secret, scopes: SERVE,
            reloadable: true,
            help: "Cluster secret for the role teesql_read: 64 hex characters.",
        }
        READWRITE_SECRET: ClusterSecret {
            key: "readwrite_secret", parse: values::cluster_secret, kind: Secret, scopes: SERVE,
            reloadable: true,
            help: "Cluster secret for the roles teesql_readwrite and teesql_read: 64 hex characters.",
        }
        SECRET_OVERLAP: Option<Duration> {
            key: "secret_overlap", parse: values::duration_or_off, kind: Time, scopes: SERVE,
            default: Some("5m"), reloadable: true,
            help: "How long the previous cluster secrets stay valid after new ones are loaded on SIGHUP; off ends them immediately.",
        }
        PG_PASSWORD_READ: Password {
            key: "pg_password_read", parse: values::password, kind: Secret, scopes: POSTGRES_ONLY,
            reloadable: true,
            help: "Postgres password of the role teesql_read. If not set, it is derived from cluster_key, or else by the guest agent.",
        }
        PG_PASSWORD_READWRITE: Password {
            key: "pg_password_readwrite", parse: values::password, kind: Secret, scopes: POSTGRES_ONLY,
            reloadable: true,
            help: "Postgres password of the role teesql_readwrite. If not set, it is derived from cluster_key, or else by the guest agent.",
        }
        PG_PASSWORD_SUPERUSER: Password {
            key: "pg_password_superuser", parse: values::password, kind: Secret, scopes: POSTGRES_ONLY,
            reloadable: true,
            help: "Postgres password of the role postgres, which operators present themselves. If not set, it is derived from cluster_key, or else by the guest agent, provided that it also issues the certificate or derives another password; otherwise logins as postgres are refused.",
        }
        CLUSTER_KEY: ClusterKey {
            key: "cluster_key", parse: values::from_str, kind: Secret, scopes: POSTGRES_ONLY,
            help: "Key of which all passwords for Postgres that are not configured are derived, in place of the guest agent: 64 hex characters, the same for all members. For clusters whose members have app ids of their own, where the guest agents derive different passwords.",
        }
    }
    Attestation {
        REQUIRE_CLIENT_ATTESTATION: bool {
            key: "require_client_attestation", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("true"), simulator_default: Some("false"),
            help: "Refuse clients whose certificate has no acceptable TDX quote. Setting it to false requires allow_unattested_clients = true.",
        }
        ALLOW_UNATTESTED_CLIENTS: bool {
            key: "allow_unattested_clients", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"),
            help: "Confirm require_client_attestation = false: any client with a cluster secret is accepted.",
        }
        SUPERUSER_LOGINS: bool {
            key: "superuser_logins", parse: values::superuser_logins, kind: One("WHO"), scopes: SERVE,
            default: Some("granted"),
            help: "Who can log in as the role postgres: granted (with its password, the peers whose entry in the policy file grants the role; without a policy file every accepted client), or off.",
        }
        VERIFIER: VerifierName {
            key: "verifier", parse: values::from_str, kind: One("NAME"), scopes: FORWARD,
            default: Some("dcap"),
            help: "What verifies the server's quote: dcap (this process, with Intel's collateral), ita (Intel Trust Authority), or none (no verification, which requires allow_simulator).",
        }
        ALLOW_SIMULATOR: bool {
            key: "allow_simulator", parse: values::boolean, kind: Bool, scopes: FORWARD,
            default: Some("false"),
            help: "Accept a server that presents no TDX evidence: for development only. Evidence that it does present is still verified.",
        }
        TRUST_AUTHORITY: Base {
            key: "trust_authority", parse: values::from_str, kind: One("BASE"), scopes: FORWARD,
            default: Some("us"),
            help: "Intel Trust Authority to use with verifier = ita: us, eu or a URL.",
        }
        TRUST_AUTHORITY_KEY: ApiKey {
            key: "trust_authority_key", parse: values::api_key, kind: Secret, scopes: FORWARD,
            env_alias: Some("INTEL_TRUST_AUTHORITY_API_KEY"),
            help: "API key for Intel Trust Authority, required with verifier = ita.",
        }
        POLICY_FILE: PathBuf {
            key: "policy_file", parse: policy::parse_path, kind: One("FILE"), scopes: CRITERIA,
            reloadable: true,
            help: "Policy file (TOML) with the operating systems and peers that are accepted, and what each peer may do. It replaces the settings allowed_… and kms_root.",
        }
        ALLOWED_MRTD: Vec<Mrtd> {
            key: "allowed_mrtd", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), env_alias: Some("EXPECTED_MRTD"), flag_alias: Some("mrtd"), reloadable: true,
            help: "MRTD values that the peer's TD may have (96 hex characters each). any allows every value.",
        }
        ALLOWED_RTMR0: Vec<Rtmr> {
            key: "allowed_rtmr0", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "RTMR0 values that the peer's TD may have (96 hex characters each). any allows every value.",
        }
        ALLOWED_RTMR1: Vec<Rtmr> {
            key: "allowed_rtmr1", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "RTMR1 values that the peer's TD may have (96 hex characters each). any allows every value.",
        }
        ALLOWED_RTMR2: Vec<Rtmr> {
            key: "allowed_rtmr2", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "RTMR2 values that the peer's TD may have (96 hex characters each). any allows every value.",
        }
        ALLOWED_RTMR3: Vec<Rtmr> {
            key: "allowed_rtmr3", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "RTMR3 values that the peer's TD may have (96 hex characters each). any allows every value.",
        }
        ALLOWED_APP_ID: Vec<AppId> {
            key: "allowed_app_id", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "dstack app ids that the peer may have (40 hex characters each). any allows every value.",
        }
        ALLOWED_COMPOSE_HASH: Vec<ComposeHash> {
            key: "allowed_compose_hash", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "dstack compose hashes that the peer may have (64 hex characters each). any allows every value.",
        }
        ALLOWED_INSTANCE_ID: Vec<InstanceId> {
            key: "allowed_instance_id", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "dstack instance ids that the peer may have (40 hex characters each). any allows every value.",
        }
        ALLOWED_OS_IMAGE_HASH: Vec<OsImageHash> {
            key: "allowed_os_image_hash", parse: values::allow_list, kind: List("HEX"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "dstack OS image hashes that the peer may have (64 hex characters each). any allows every value.",
        }
        ACCEPTED_TCB_STATUS: TcbStatuses {
            key: "accepted_tcb_status", parse: values::tcb_statuses, kind: List("STATUS"), scopes: CRITERIA,
            default: Some("OK,SWHardeningNeeded,ConfigurationNeeded,ConfigurationAndSWHardeningNeeded"), reloadable: true,
            help: "TCB statuses that the peer's platform may have. OK stands for Intel's UpToDate.",
        }
        REFUSED_ADVISORIES: Vec<Advisory> {
            key: "refused_advisories", parse: values::value_list, kind: List("ID"), scopes: CRITERIA,
            default: Some(""), reloadable: true,
            help: "Intel security advisories (INTEL-SA-…) that make a platform unacceptable even if its TCB status is accepted.",
        }
        MIN_TCB_EVALUATION_DATA_NUMBER: Option<u32> {
            key: "min_tcb_evaluation_data_number", parse: values::tcb_evaluation, kind: One("N"), scopes: CRITERIA,
            default: Some("any"), reloadable: true,
            help: "Smallest tcbEvaluationDataNumber of the collateral that peers are verified with: older collateral does not list newer advisories. any accepts every number.",
        }
        ALLOW_UNPINNED_OS: bool {
            key: "allow_unpinned_os", parse: values::boolean, kind: Bool, scopes: CRITERIA,
            default: Some("false"), reloadable: true,
            help: "Accept an app id, compose hash, instance id, OS image hash or RTMR3 from an operating system that neither kms_root nor MRTD, RTMR1 and RTMR2 pin. Any TD can then claim these identities.",
        }
        ALLOW_ANY_SERVER: bool {
            key: "allow_any_server", parse: values::boolean, kind: Bool, scopes: FORWARD,
            default: Some("false"),
            help: "Accept a policy that does not say which application the server must be. Any TD can then receive the cluster secret.",
        }
        ALLOW_DEBUG_TD: bool {
            key: "allow_debug_td", parse: values::boolean, kind: Bool, scopes: CRITERIA,
            default: Some("false"), flag_alias: Some("allow-debug-mode"), reloadable: true,
            help: "Accept TDs in debug mode, whose memory their host can read. Do not set it in production.",
        }
        MAX_CERTIFICATE_AGE: Option<Duration> {
            key: "max_certificate_age", parse: values::duration_or_off, kind: Time, scopes: CRITERIA,
            default: Some("off"), reloadable: true,
            help: "Refuse peer certificates whose notBefore is longer ago than this; off disables the limit. Requires kms_root, since the dates are otherwise the peer's own word.",
        }
        KMS_ROOT: KmsRootSetting {
            key: "kms_root", parse: policy::parse_kms_root, kind: One("ROOT"), scopes: CRITERIA,
            default: Some("auto"), reloadable: true,
            help: "The KMS root that must have signed the peer's certificate chain: own (the root of the chain that this machine's guest agent issues), a file with root certificates (PEM), any, or auto: own if the guest agent issues the certificate, an identity is compared and the operating system is not pinned otherwise; else any.",
        }
        DANGEROUS_TDX_ROOT_CA: TrustedRoot {
            key: "dangerous_tdx_root_ca", parse: values::tdx_root, kind: One("FILE"), scopes: CRITERIA,
            default: Some(""),
            help: "File with a root certificate that replaces Intel's for TDX quotes: for tests only, since the owner of its key can forge any quote.",
        }
        PCCS: Option<Source> {
            key: "pccs", parse: values::pccs, kind: One("PCCS"), scopes: CRITERIA,
            default: Some("intel"),
            help: "Where to fetch Intel's collateral: intel, phala, the URL of a PCCS, or off.",
        }
        COLLATERAL_DIR: Option<PathBuf> {
            key: "collateral_dir", parse: values::optional_directory, kind: One("DIR"), scopes: BOTH,
            default: Some(""),
            help: "Directory in which fetched collateral is kept across restarts. Empty keeps none.",
        }
        COLLATERAL_FILES: Vec<Collateral> {
            key: "collateral_files", parse: values::collateral_files, kind: List("FILE"), scopes: BOTH,
            default: Some(""),
            help: "JSON files with collateral to load at start, for machines that cannot reach a PCCS.",
        }
        REVOCATION_GRACE: Option<Duration> {
            key: "revocation_grace", parse: values::duration_or_off, kind: Time, scopes: BOTH,
            default: Some("10s"),
            help: "How long a session may continue after a change of policy or collateral has made its peer unacceptable; off ends it immediately.",
        }
        COLLATERAL_GRACE: Option<Duration> {
            key: "collateral_grace", parse: values::duration_or_off, kind: Time, scopes: BOTH,
            default: Some("1day"),
            help: "How long a session may continue after the collateral of its peer's platform has expired and could not be renewed; off sets no limit. New sessions are refused as soon as it has expired.",
        }
    }
    Cluster {
        CLUSTER_NAME: String {
            key: "cluster_name", parse: cluster::name, kind: One("NAME"), scopes: POSTGRES_ONLY,
            help: "The name of the cluster that this sidecar is a member of, Patroni's scope. In TOML also name in [cluster]. If not set, the sidecar belongs to no cluster. Provisioning sets up the roles replicator and rewind only in a cluster.",
        }
        CLUSTER_MEMBER: MemberName {
            key: "cluster_member", parse: cluster::member_name, kind: One("NAME"), scopes: SERVE,
            help: "The name of this member, as in cluster_members. In TOML also member in [cluster].",
        }
        CLUSTER_MEMBERS: Vec<Member> {
            key: "cluster_members", parse: cluster::members, kind: List("NAME=HOST:PORT"), scopes: SERVE,
            default: Some(""),
            help: "All members, this one included, and where each sidecar accepts connections. The order gives the port numbers of services and must be the same on all members. In TOML also name and address in each [[cluster.members]].",
        }
        CLUSTER_SERVICES: Vec<Service> {
            key: "cluster_services", parse: cluster::services, kind: List("NAME=PORT:FIRST_PORT"), scopes: SERVE,
            default: Some("postgres=5432:15432,patroni=8008:18008,etcd-client=2379:12379,etcd-peer=2380:13380"),
            help: "The services on 127.0.0.1 that members reach of each other: the service's port, and the port on 127.0.0.1 of every member where the first member's is reached; the second member's is at the next port, and so on. In TOML also name, port and first_port in each [[cluster.services]].",
        }
        CLUSTER_LINKS: usize {
            key: "cluster_links", parse: values::count, kind: One("N"), scopes: SERVE,
            default: Some("256"),
            help: "Maximum number of concurrent links that other members have opened to this one, and of those that are opened here. They do not count for max_connections.",
        }
        CLUSTER_PATRONI: Option<SocketAddr> {
            key: "cluster_patroni", parse: cluster::patroni, kind: One("URL"), scopes: SERVE,
            default: Some("http://127.0.0.1:8008"),
            help: "REST API of this member's Patroni, which says who leads: http:// and an IP address with a port. With off there is no Patroni: a Postgres that is not in recovery leads, and there is no fencing.",
        }
        CLUSTER_WRITES_ON_STANDBY: WritesOnStandby {
            key: "cluster_writes_on_standby", parse: values::from_str, kind: One("HOW"), scopes: SERVE,
            default: Some("leader"),
            help: "What a standby does with logins as teesql_readwrite and postgres: leader (it carries them to the leader's Postgres, which the service postgres reaches), local (its own Postgres, for drivers with a host list of their own), or refuse (SQLSTATE 57P03 with the leader's name).",
        }
        CLUSTER_LEADER_WAIT: Option<Duration> {
            key: "cluster_leader_wait", parse: values::duration_or_off, kind: Time, scopes: SERVE,
            default: Some("30s"),
            help: "How long a login as teesql_readwrite or postgres waits for a leader after its secret was right, beyond login_timeout. It is refused with 57P03 then; off does not wait.",
        }
        CLUSTER_FENCE_AFTER: Duration {
            key: "cluster_fence_after", parse: cluster::fence_after, kind: Time, scopes: SERVE,
            default: Some("5s"),
            help: "How long Patroni may be silent while this member's Postgres takes writes. Then its read-write sessions end and new ones are refused. Must be less than Patroni's ttl; at least 2s.",
        }
        CLUSTER_MOVE_ETCD_LEADER: bool {
            key: "cluster_move_etcd_leader", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("true"),
            help: "Whether the member that leads the database hands the leadership of etcd to another member, through the service etcd-client. If both are lost at once, etcd extends the leader's lock by up to 5 s.",
        }
    }
    Manifest {
        MANIFEST_PUBLISH: Publish {
            key: "manifest_publish", parse: values::from_str, kind: One("HOW"), scopes: SERVE,
            default: Some("off"),
            help: "How this member publishes the leader manifest while it leads the cluster: rfc2136 (dynamic update of a name server, with TSIG), command (a program), or off.",
        }
        MANIFEST_DOMAIN: String {
            key: "manifest_domain", parse: values::domain, kind: One("DOMAIN"), scopes: SERVE,
            help: "The cluster's domain: the record is _teesql-leader.DOMAIN. Required to publish.",
        }
        MANIFEST_CLUSTER: EthAddress {
            key: "manifest_cluster", parse: values::from_str, kind: One("ADDRESS"), scopes: BOTH,
            help: "Ethereum address of the cluster that the manifest must name. Set it if the signer signs for several clusters. A sidecar publishes it, or else the signer's address.",
        }
        MANIFEST_EPOCH_OFFSET: u64 {
            key: "manifest_epoch_offset", parse: values::from_str, kind: One("N"), scopes: SERVE,
            default: Some("0"),
            help: "Added to Postgres' timeline to give the epoch of the manifest, the same on all members. Raise it when a cluster begins again with a lower timeline, so that clients follow.",
        }
        MANIFEST_KEY: SigningKey {
            key: "manifest_key", parse: manifest::key, kind: Secret, scopes: MANIFEST,
            help: "Key that signs the manifest, the same on all members: 64 hex characters. If not set, the guest agent derives it. Required with cluster_key, where the guest agents would derive different ones.",
        }
        MANIFEST_SERVER: (String, u16) {
            key: "manifest_server", parse: manifest::server, kind: One("HOST"), scopes: SERVE,
            help: "With manifest_publish = rfc2136: the primary name server of the zone, with or without a port. Updates use TCP.",
        }
        MANIFEST_ZONE: Name {
            key: "manifest_zone", parse: manifest::name, kind: One("DOMAIN"), scopes: SERVE,
            help: "The zone to update. If not set, the name server is asked for its SOA.",
        }
        MANIFEST_TSIG_NAME: Name {
            key: "manifest_tsig_name", parse: manifest::name, kind: One("NAME"), scopes: SERVE,
            help: "Name of the TSIG key that signs updates.",
        }
        MANIFEST_TSIG_ALGORITHM: TsigAlgorithm {
            key: "manifest_tsig_algorithm", parse: manifest::algorithm, kind: One("ALGORITHM"), scopes: SERVE,
            default: Some("hmac-sha256"),
            help: "Algorithm of the TSIG key: hmac-sha256, hmac-sha384 or hmac-sha512.",
        }
        MANIFEST_TSIG_KEY: TsigSecret {
            key: "manifest_tsig_key", parse: values::from_str, kind: Secret, scopes: SERVE,
            help: "Secret of the TSIG key: 16 to 512 bytes in base64, as keymgr and tsig-keygen print it.",
        }
        MANIFEST_COMMAND: PathBuf {
            key: "manifest_command", parse: manifest::program, kind: One("PATH"), scopes: SERVE,
            help: "With manifest_publish = command: the absolute path of a program that publishes the record. It gets TEESQL_MANIFEST_NAME, TEESQL_MANIFEST_RECORD, TEESQL_MANIFEST_TTL, TEESQL_MANIFEST_EPOCH and TEESQL_MANIFEST_VALID_UNTIL in its environment, and has 30 s.",
        }
    }
    Limits {
        LOGIN_TIMEOUT: Duration {
            key: "login_timeout", parse: values::duration, kind: Time, scopes: BOTH,
            default: Some("5s"), forwarder_default: Some("30s"),
            help: "Time limit for setting up a session, from accepting the connection until it is ready for queries.",
        }
        IDLE_TIMEOUT: Option<Duration> {
            key: "idle_timeout", parse: values::duration_or_off, kind: Time, scopes: BOTH,
            default: Some("off"),
            help: "Close a session that has transferred no data in either direction for this long; off disables the limit.",
        }
        MAX_CONNECTIONS: usize {
            key: "max_connections", parse: values::count, kind: One("N"), scopes: BOTH,
            default: Some("10000"), forwarder_default: Some("1000"),
            help: "Maximum number of concurrent sessions. Further connections are refused with SQLSTATE 53300 (too_many_connections).",
        }
        MAX_UNATTESTED_CONNECTIONS: usize {
            key: "max_unattested_connections", parse: values::count, kind: One("N"), scopes: SERVE,
            default: Some("2000"),
            help: "Maximum number of concurrent connections of clients that are not attested yet (without attestation: not logged in yet). If it is reached, the oldest one that waits for its client is closed, of the address that has the most. As many attested clients again may be logging in.",
        }
        MAX_UNATTESTED_PER_ADDRESS: Option<usize> {
            key: "max_unattested_per_address", parse: values::count_or_auto, kind: One("N"), scopes: SERVE,
            default: Some("auto"),
            help: "The same for one IP address (of IPv6, one network of 64 bits), taken from the PROXY header if there is one; auto is five eighths of max_unattested_connections.",
        }
        DRAIN_TIMEOUT: Duration {
            key: "drain_timeout", parse: values::duration, kind: Time, scopes: BOTH,
            default: Some("30s"),
            help: "How long open sessions may continue after SIGTERM. The remaining ones are then ended with SQLSTATE 57P01 (admin_shutdown).",
        }
        CONNECT_TIMEOUT: Duration {
            key: "connect_timeout", parse: values::duration, kind: Time, scopes: FORWARD,
            default: Some("5s"),
            help: "Time limit for each attempt to connect to the server, and again for the TLS handshake with it.",
        }
        START_TIMEOUT: Duration {
            key: "start_timeout", parse: values::duration, kind: Time, scopes: FORWARD,
            default: Some("15s"),
            help: "How long to wait at start for the first certificate from the guest agent.",
        }
    }
    Http {
        ADMIN_LISTEN: Option<SocketAddr> {
            key: "admin_listen", parse: values::listen_or_off, kind: One("HOST:PORT"), scopes: BOTH,
            default: Some("0.0.0.0:8080"), forwarder_default: Some("off"), simulator_default: Some("127.0.0.1:8080"),
            help: "IP address and port of the HTTP server for /health, /ready, /metrics and, in the sidecar, /attestation; off disables it.",
        }
        ATTESTATION_INTERVAL: Duration {
            key: "attestation_interval", parse: values::duration, kind: Time, scopes: SERVE,
            default: Some("1s"),
            help: "Minimum time between two quotes that are generated for /attestation.",
        }
        STATUS_PAGE: bool {
            key: "status_page", parse: values::boolean, kind: Bool, scopes: BOTH,
            default: Some("true"),
            help: "Whether / on admin_listen is the status page, with readiness, sessions, refusals and their remedies. It tells nothing that /ready and /metrics do not tell.",
        }
    }
    Control {
        CONTROL_SOCKET: ControlSocket {
            key: "control_socket", parse: control::socket, kind: One("PATH"), scopes: CONTROL,
            default: Some("auto"),
            help: "Unix socket for the commands sessions and kill of operators on this machine, which only root and the sidecar's own user can use: an absolute path, off, or auto (/run/teesql/control.sock, if that directory exists).",
        }
    }
    Log {
        LOG_FORMAT: LogFormat {
            key: "log_format", parse: values::from_str, kind: One("FORMAT"), scopes: BOTH,
            default: Some("text"),
            help: "Log format: text, or json (one JSON object per line).",
        }
        LOG: EnvFilter {
            key: "log", parse: values::log_filter, kind: One("FILTER"), scopes: BOTH,
            default: Some("info"), forwarder_default: Some("warn"),
            help: "Log level: error, warn, info, debug or trace. Modules can have their own, e.g. info,engine=debug.",
        }
        AUDIT_LOG: Option<AuditTarget> {
            key: "audit_log", parse: audit::target, kind: One("PATH"), scopes: SERVE,
            default: Some("off"),
            help: "Audit log: the absolute path of a file, which SIGHUP reopens; fd:N for an open descriptor; or off. It has one JSON line for each admission, refusal, role grant, revocation and end of a session.",
        }
        AUDIT_REQUIRED: bool {
            key: "audit_required", parse: values::boolean, kind: Bool, scopes: SERVE,
            default: Some("false"),
            help: "Refuse new sessions with SQLSTATE 57P03 (cannot_connect_now) while the audit log cannot be written. Requires audit_log.",
        }
    }
    Performance {
        SHARDS: usize {
            key: "shards", parse: values::shards, kind: One("N"), scopes: BOTH,
            default: Some("auto"), forwarder_default: Some("1"),
            help: "Number of threads that serve connections; auto is one per CPU core.",
        }
        PIN: bool {
            key: "pin", parse: values::boolean, kind: Bool, scopes: BOTH,
            default: Some("true"), forwarder_default: Some("false"),
            help: "Pin each of these threads to its own CPU core.",
        }
        DRIVER: DriverChoice {
            key: "driver", parse: values::from_str, kind: One("DRIVER"), scopes: BOTH,
            default: Some("auto"),
            help: "I/O interface: io_uring, epoll, or auto (io_uring if the kernel allows it, otherwise epoll).",
        }
        TLS_RECORD_LAYER: RecordLayer {
            key: "tls_record_layer", parse: values::from_str, kind: One("LAYER"), scopes: BOTH,
            default: Some("own"),
            help: "Implementation that encrypts TLS 1.3 records after the handshake: own (faster, less memory per session) or rustls.",
        }
        BUSY_POLL: BusyPollMode {
            key: "busy_poll", parse: values::busy_poll, kind: One("TIME"), scopes: BOTH,
            default: Some("auto"), forwarder_default: Some("off"),
            help: "How long a thread polls for more data before it sleeps (at most 1ms, e.g. 50us). Polling lowers latency with few clients and uses more CPU; auto polls only while measurement shows that it saves enough; off disables it.",
        }
    }
}
