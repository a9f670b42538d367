//! The configuration of the forwarder.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use attest::ita::{ApiKey, Base};
use attest::manifest::ManifestPolicy;

use super::connection_uri::{DatabaseUrl, UriError};
use super::layers::Layers;
use super::policy::{OwnRoot, Purpose};
use super::reader::{Reader, read_all};
use super::{Attestation, ClientIdentity, Errors, ProcessConfig, settings};
use crate::io::target::{HostOrder, TargetSpec};

/// The configuration of the forwarder.
pub struct ForwarderConfig {
    /// Where drivers connect.
    pub listen: Listen,
    /// The servers to connect to: the first that can be used.
    pub(crate) targets: Vec<TargetSpec>,
    /// The order in which servers and addresses are tried.
    pub(crate) host_order: HostOrder,
    /// End sessions with the old leader when a new one answers.
    pub follow: bool,
    /// The DNS server to query. `None` uses the DNS configuration of this machine.
    pub dns_server: Option<SocketAddr>,
    /// The connection URI to pass to the command.
    pub(crate) database_url: Option<DatabaseUrl>,
    /// What verifies the server's quote.
    pub verifier: Verifier,
    /// The policy for the server, and collateral to verify it with.
    pub attestation: Attestation,
    /// Accept a server that presents no evidence.
    pub allow_simulator: bool,
    /// Accept a policy that does not say which application the server must be.
    pub allow_any_server: bool,
    /// The certificate to present to the server.
    pub identity: ClientIdentity,
    /// For each connection attempt, and again for the TLS handshake.
    pub connect_timeout: Duration,
    /// For the first certificate.
    pub start_timeout: Duration,
    /// Threads, timeouts, limits and the log.
    pub process: ProcessConfig,
    /// Settings that weaken security.
    pub warnings: Vec<String>,
}

/// Where drivers connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket. libpq expects its file to be named `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// What verifies the server's quote.
pub enum Verifier {
    /// This process, with collateral from the PCCS.
    Dcap,
    /// Intel Trust Authority.
    Ita {
        /// Its URL.
        base: Base,
        /// The API key.
        key: ApiKey,
    },
    /// Nothing: every server is accepted.
    None,
}

impl Verifier {
    /// Parses and checks the settings that say what verifies quotes, of [`Scope::Forward`](super::Scope::Forward).
    ///
    /// # Errors
    /// All mistakes together. `none` is one: it is for forwarders only.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        read_all(layers, |reader| read_verifier(reader, None)).map(|(verifier, _)| verifier)
    }
}

/// The value of the `verifier` setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VerifierName {
    Dcap,
    Ita,
    None,
}

impl FromStr for VerifierName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "dcap" => Ok(Self::Dcap),
            "ita" => Ok(Self::Ita),
            "none" => Ok(Self::None),
            _ => Err("expected dcap, ita or none"),
        }
    }
}

impl ForwarderConfig {
    /// Parses and checks the settings of [`Scope::Forward`](super::Scope::Forward).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (mut config, mut warnings) = read_all(layers, Self::read)?;
        warnings.extend(config.security_warnings());
        config.warnings = warnings;
        Ok(config)
    }

    /// Parses and checks pairs of key and text, without file, environment and flags: for a program
    /// that embeds a forwarder.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_settings<'a>(
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Errors> {
        Self::from_layers(&Layers::from_settings(super::Scope::Forward, settings))
    }

    fn security_warnings(&self) -> Vec<String> {
        let simulator = self.allow_simulator.then(|| {
            "allow_simulator: a server without TDX evidence is accepted, so that the connection is \
             open to man-in-the-middle attacks"
                .to_owned()
        });
        let unverified = matches!(self.verifier, Verifier::None).then(|| {
            "verifier = none: the server is not verified, so that the connection is open to \
             man-in-the-middle attacks"
                .to_owned()
        });
        let policy = match self.verifier {
            Verifier::None => Vec::new(),
            Verifier::Dcap | Verifier::Ita { .. } => self.attestation.warnings(),
        };
        let any_server = self.allow_any_server.then(|| {
            "allow_any_server: the policy may leave open which application the server is, so that any TD can receive \
             the cluster secret"
                .to_owned()
        });
        simulator
            .into_iter()
            .chain(unverified)
            .chain(any_server)
            .chain(policy)
            .collect()
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let listen = reader.read(&settings::FORWARD_LISTEN);
        let database_url = reader.read_optional(&settings::DATABASE_URL);
        let url = database_url.as_ref().and_then(Option::as_ref);
        let targets = read_targets(reader, url);
        let follow = read_follow(reader, targets.as_ref());
        let dns_server = reader.read(&settings::DNS_SERVER);
        let allow_any_server = reader.read(&settings::ALLOW_ANY_SERVER);
        let allow_simulator = reader.read(&settings::ALLOW_SIMULATOR);
        let verifier = read_verifier(reader, allow_simulator);
        let identity = ClientIdentity::read(reader);
        let attestation = read_attestation(
            reader,
            &identity,
            &verifier,
            (allow_simulator, allow_any_server),
        );
        let connect_timeout = reader.read(&settings::CONNECT_TIMEOUT);
        let start_timeout = reader.read(&settings::START_TIMEOUT);
        let process = ProcessConfig::read(reader);
        Some(Self {
            listen: listen?,
            host_order: targets.as_ref()?.order,
            targets: targets?.specs,
            follow: follow?,
            dns_server: dns_server?,
            database_url: database_url?,
            verifier: verifier?,
            attestation: attestation?,
            allow_simulator: allow_simulator?,
            allow_any_server: allow_any_server?,
            identity: identity?,
            connect_timeout: connect_timeout?,
            start_timeout: start_timeout?,
            process: process?,
            warnings: Vec::new(),
        })
    }
}

/// The policy for servers. It protects nothing with `allow_simulator`, where a server without evidence is accepted.
fn read_attestation(
    reader: &mut Reader<'_>,
    identity: &Option<ClientIdentity>,
    verifier: &Option<Verifier>,
    (allow_simulator, allow_any_server): (Option<bool>, Option<bool>),
) -> Option<Attestation> {
    let from_agent = identity.as_ref().is_some_and(ClientIdentity::is_from_agent);
    let own_root = OwnRoot::new(reader, from_agent);
    let production = allow_simulator == Some(false) && !matches!(verifier, Some(Verifier::None));
    let purpose = Purpose::Servers {
        production,
        allow_any: allow_any_server != Some(false),
    };
    let attestation = Attestation::read(reader, purpose, own_root)?;
    let minimum = attestation.policy.settings().min_tcb_evaluation;
    if minimum.is_some() && matches!(verifier, Some(Verifier::Ita { .. })) {
        return reader.error(
            "min_tcb_evaluation_data_number: Intel Trust Authority chooses its own collateral: set it with \
             verifier = dcap only",
        );
    }
    Some(attestation)
}

/// The servers and their order.
struct Targets {
    specs: Vec<TargetSpec>,
    order: HostOrder,
}

/// The leader of `cluster`, those of `target`, or those of `database_url`.
fn read_targets(reader: &mut Reader<'_>, url: Option<&DatabaseUrl>) -> Option<Targets> {
    let target = reader.read_optional(&settings::TARGET);
    let order = reader.read_optional(&settings::LOAD_BALANCE_HOSTS);
    let domain = reader.read_optional(&settings::CLUSTER);
    let signer = reader.read_optional(&settings::MANIFEST_SIGNER);
    let cluster = reader.read_optional(&settings::MANIFEST_CLUSTER);
    let max_validity = reader.read(&settings::MANIFEST_MAX_VALIDITY);
    let specs = match (target?, domain?, signer?) {
        (Some(_), Some(_), _) => reader.error("target and cluster are both set"),
        (None, Some(domain), Some(signer)) => Some(vec![TargetSpec::Cluster {
            domain,
            policy: ManifestPolicy {
                signer,
                cluster: cluster?,
                max_validity: max_validity?,
            },
        }]),
        (None, Some(_), None) => {
            reader.missing_counterpart(&settings::CLUSTER, &settings::MANIFEST_SIGNER)
        }
        (Some(servers), None, _) => Some(fixed(servers)),
        (None, None, _) => {
            let (specs, order_of_url) = read_url_targets(reader, url)?;
            let order = order?.or(order_of_url).unwrap_or_default();
            return Some(Targets { specs, order });
        }
    };
    Some(Targets {
        specs: specs?,
        order: order?.unwrap_or_default(),
    })
}

fn fixed(servers: Vec<(String, u16)>) -> Vec<TargetSpec> {
    let fixed = |(host, port)| TargetSpec::Fixed { host, port };
    servers.into_iter().map(fixed).collect()
}

/// The servers of `database_url`, and their order if it says one.
fn read_url_targets(
    reader: &mut Reader<'_>,
    url: Option<&DatabaseUrl>,
) -> Option<(Vec<TargetSpec>, Option<HostOrder>)> {
    let error = match url {
        Some(DatabaseUrl::Postgres(uri)) => match (uri.servers(), uri.host_order()) {
            (Ok(servers), Ok(order)) => return Some((fixed(servers), order)),
            (Err(error), _) | (_, Err(error)) => error,
        },
        Some(DatabaseUrl::OtherDatabase) => UriError::NotUri,
        Some(DatabaseUrl::Unusable(error)) => error.clone(),
        None => return reader.error("no server: use --target, DATABASE_URL or --cluster"),
    };
    let source = reader
        .source(&settings::DATABASE_URL.spec)
        .unwrap_or_default();
    reader.error(format!("{source}: database_url: {error}"))
}

/// Only a manifest says who leads.
fn read_follow(reader: &mut Reader<'_>, targets: Option<&Targets>) -> Option<bool> {
    let follow = reader.read(&settings::FOLLOW)?;
    let is_fixed = |spec: &TargetSpec| matches!(spec, TargetSpec::Fixed { .. });
    if follow && targets.is_some_and(|targets| targets.specs.iter().any(is_fixed)) {
        return reader.error(
            "follow: of the servers in target or DATABASE_URL nothing says which one leads: use it with cluster",
        );
    }
    Some(follow)
}

fn read_verifier(reader: &mut Reader<'_>, allow_simulator: Option<bool>) -> Option<Verifier> {
    let name = reader.read(&settings::VERIFIER);
    let base = reader.read(&settings::TRUST_AUTHORITY);
    let key = reader.read_optional(&settings::TRUST_AUTHORITY_KEY);
    match (name?, key?) {
        (VerifierName::Ita, Some(key)) => Some(Verifier::Ita { base: base?, key }),
        (VerifierName::Ita, None) => reader.error(ApiKey::missing().to_string()),
        (VerifierName::None, _) if allow_simulator != Some(true) => reader.error(
            "verifier = none accepts any server, which can then read and change all data: confirm \
             with --allow-simulator",
        ),
        (VerifierName::None, _) => Some(Verifier::None),
        (VerifierName::Dcap, _) => Some(Verifier::Dcap),
    }
}
