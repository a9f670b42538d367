//! The forwarder's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use attest::ita::{ApiKey, Base};
use attest::manifest::{EthAddress, ManifestPolicy};
use url::Url;

use super::attestation::Criteria;
use super::layers::{Layers, Reader};
use super::{Attestation, Errors, Process, values};
use crate::io::target::TargetSpec;
use crate::tls::certificate_source::{CertificateRequest, CertificateUsage};

/// Everything that a forwarder needs.
pub struct Forward {
    /// Where drivers connect.
    pub listen: Listen,
    /// Where the server is.
    pub(crate) place: TargetSpec,
    /// Who is asked where names are; `None` is what this machine uses.
    pub dns_server: Option<SocketAddr>,
    /// The DSN, for the command.
    pub database_url: Option<Url>,
    /// Who says whether a server may see a byte.
    pub verifier: Verifier,
    /// What it is judged by.
    pub attestation: Attestation,
    /// Accept a server without evidence.
    pub allow_simulator: bool,
    /// What is shown to the server; `None`: nothing, which goes with
    /// `allow_simulator` only.
    pub identity: ClientIdentity,
    /// For each dial, and for the TLS handshake.
    pub connect_timeout: Duration,
    /// For the first certificate.
    pub start_timeout: Duration,
    /// Threads, times, limits, the log.
    pub process: Process,
    /// Things that are allowed and weaken the product.
    pub warnings: Vec<String>,
}

/// Where drivers connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address.
    Tcp(SocketAddr),
    /// A Unix socket, named as libpq expects it.
    Unix(PathBuf),
}

/// The `verifier` setting, with what it needs.
pub enum Verifier {
    /// Here, with collateral from the PCCS.
    Dcap,
    /// Intel Trust Authority.
    Ita {
        /// Which.
        base: Base,
        /// Its key.
        key: ApiKey,
    },
    /// Nobody.
    None,
}

/// What the forwarder shows to servers.
#[derive(Clone, Debug)]
pub enum ClientIdentity {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// The leaf's key.
        key: PathBuf,
    },
    /// The guest agent's.
    Agent(CertificateRequest),
}

impl Forward {
    /// Checks every setting of [`Scope::Forward`](super::Scope::Forward).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let mut reader = Reader::new(layers);
        let config = Self::read(&mut reader);
        let warnings = reader.warnings();
        match (reader.errors(), config) {
            (errors, Some(mut config)) if errors.is_empty() => {
                config.warnings = warnings;
                let own = config.own_warnings();
                config.warnings.extend(own);
                Ok(config)
            }
            (errors, _) => Err(Errors(errors)),
        }
    }

    /// Settings by name, as the flags are called, and nothing of the environment:
    /// for a program that has a forwarder inside it.
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_settings<'a>(
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Errors> {
        Self::from_layers(&Layers::of_settings(super::Scope::Forward, settings))
    }

    fn own_warnings(&self) -> Vec<String> {
        let simulator = self.allow_simulator.then(|| {
            "a server without any TDX evidence is accepted: anybody on the way can be it".to_owned()
        });
        let nobody = matches!(self.verifier, Verifier::None)
            .then(|| "no server is verified: anybody on the way can be it".to_owned());
        let policy = match self.verifier {
            Verifier::None => Vec::new(),
            _ => self.attestation.warnings(),
        };
        simulator.into_iter().chain(nobody).chain(policy).collect()
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        // Each is read before any is unwrapped, so that all are checked.
        let listen = reader.get("forward_listen", values::local_listen);
        let database_url = reader.optional("database_url", values::database_url);
        let url = database_url.as_ref().and_then(Option::as_ref);
        let place = read_place(reader, url);
        let dns_server = reader.get("dns_server", values::dns_server);
        let allow_simulator = reader.get("allow_simulator", values::boolean);
        let verifier = read_verifier(reader, allow_simulator);
        let criteria = Criteria::read(reader);
        let folder = reader.get("collateral_dir", values::folder);
        let collateral = reader.get("collateral_files", values::collateral_files);
        let identity = ClientIdentity::read(reader);
        let connect_timeout = reader.get("connect_timeout", values::duration);
        let start_timeout = reader.get("start_timeout", values::duration);
        let process = Process::read(reader);
        let criteria = criteria?;
        Some(Self {
            listen: listen?,
            place: place?,
            dns_server: dns_server?,
            database_url: database_url?,
            verifier: verifier?,
            attestation: Attestation {
                policy: criteria.policy,
                root: criteria.root,
                source: criteria.source,
                folder: folder?,
                collateral: collateral?,
            },
            allow_simulator: allow_simulator?,
            identity: identity?,
            connect_timeout: connect_timeout?,
            start_timeout: start_timeout?,
            process: process?,
            warnings: Vec::new(),
        })
    }
}

/// A cluster's leader, the target, or the DSN's server: one of them.
fn read_place(reader: &mut Reader<'_>, url: Option<&Url>) -> Option<TargetSpec> {
    let target = reader.optional("target", values::target);
    let cluster = reader.optional("cluster", values::domain);
    let signer = reader.optional("manifest_signer", values::from_str::<EthAddress>);
    let of = reader.optional("manifest_cluster", values::from_str::<EthAddress>);
    let max_validity = reader.get("manifest_max_validity", values::duration_or_off);
    match (target?, cluster?, signer?) {
        (Some(_), Some(_), _) => reader.mistake("target and cluster are both set"),
        (None, Some(domain), Some(signer)) => Some(TargetSpec::Cluster {
            domain,
            trust: ManifestPolicy {
                signer,
                cluster: of?,
                max_validity: max_validity?,
            },
        }),
        (None, Some(_), None) => reader.missing_twin("cluster", "manifest_signer"),
        (Some((host, port)), None, _) => Some(TargetSpec::Fixed { host, port }),
        (None, None, _) => match url.map(values::place_of) {
            Some(Ok((host, port))) => Some(TargetSpec::Fixed { host, port }),
            Some(Err(error)) => reader.mistake(&error),
            None => reader.mistake("no server: use --target, DATABASE_URL or --cluster"),
        },
    }
}

fn read_verifier(reader: &mut Reader<'_>, allow_simulator: Option<bool>) -> Option<Verifier> {
    let name = reader.get("verifier", |text| match text {
        "dcap" | "ita" | "none" => Ok(text.to_owned()),
        _ => Err("expected dcap, ita or none".to_owned()),
    });
    let base = reader.get("trust_authority", values::from_str::<Base>);
    let key = reader.optional("trust_authority_key", values::from_display(ApiKey::new));
    match (name?.as_str(), key?) {
        ("ita", Some(key)) => Some(Verifier::Ita { base: base?, key }),
        ("ita", None) => reader.mistake(&ApiKey::missing().to_string()),
        ("none", _) if allow_simulator != Some(true) => reader.mistake(
            "verifier = none lets any server read everything: confirm with --allow-simulator",
        ),
        ("none", _) => Some(Verifier::None),
        _ => Some(Verifier::Dcap),
    }
}

impl ClientIdentity {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let cert = reader.optional("client_cert", values::path);
        let key = reader.optional("client_key", values::path);
        let name = reader.get("certificate_subject", values::subject);
        let validity = reader.get("certificate_validity", values::duration);
        match (cert?, key?) {
            (Some(cert), Some(key)) => Some(Self::Files { cert, key }),
            (None, None) => Some(Self::Agent(CertificateRequest {
                name: name?,
                alt_names: Vec::new(),
                validity: validity?,
                usage: CertificateUsage::Client,
            })),
            (Some(_), None) => reader.missing_twin("client_cert", "client_key"),
            (None, Some(_)) => reader.missing_twin("client_key", "client_cert"),
        }
    }
}
