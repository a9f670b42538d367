//! The part of the sidecar's configuration that concerns the publication of the leader manifest.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use attest::agent::AgentAddresses;
use attest::manifest::{EthAddress, LeaderUrl, ManifestError, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use zeroize::Zeroizing;

use super::cluster::Member;
use super::identity::read_guest_agent;
use super::layers::Layers;
use super::reader::{Reader, read_all};
use super::values::{self, Parsed};
use super::{ClusterConfig, Errors, settings};

/// Lengths of a TSIG secret in bytes. Below the first it could be guessed. [RFC 8945, section 8]
const TSIG_SECRET: std::ops::RangeInclusive<usize> = 16..=512;

/// The label in front of the cluster's domain.
const LABEL: &str = "_teesql-leader";

/// The leader manifest, and where it is published.
pub struct ManifestConfig {
    /// The name of the record.
    pub name: Name,
    /// The cluster's address. `None` is that of the signer.
    pub cluster: Option<EthAddress>,
    /// Added to the timeline.
    pub epoch_offset: u64,
    /// Signs it. `None`: the guest agent derives the key.
    pub key: Option<SigningKey>,
    /// This member's address.
    pub leader_url: LeaderUrl,
    /// Where to.
    pub destination: ManifestDestination,
}

/// Where the manifest is published.
pub enum ManifestDestination {
    /// By dynamic update of a name server.
    Update(Box<DnsUpdateConfig>),
    /// By this program.
    Command(PathBuf),
}

/// A name server that accepts updates.
pub struct DnsUpdateConfig {
    /// A host name or an IP address, and the port.
    pub server: (String, u16),
    /// The zone; `None` asks the server.
    pub zone: Option<Name>,
    /// What signs updates.
    pub tsig: TsigConfig,
}

/// A TSIG key.
pub struct TsigConfig {
    /// Its name.
    pub name: Name,
    /// Its algorithm, one that is supported.
    pub algorithm: TsigAlgorithm,
    /// Its secret.
    pub secret: TsigSecret,
}

/// The value of `manifest_publish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    Off,
    Update,
    Command,
}

impl FromStr for Publish {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "rfc2136" => Ok(Self::Update),
            "command" => Ok(Self::Command),
            _ => Err("expected off, rfc2136 or command"),
        }
    }
}

/// The secret of a TSIG key. Wiped when dropped.
pub struct TsigSecret(Zeroizing<Vec<u8>>);

impl TsigSecret {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Redacts it.
impl fmt::Debug for TsigSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TsigSecret(redacted)")
    }
}

impl FromStr for TsigSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (least, most) = TSIG_SECRET.into_inner();
        let wrong = || format!("expected {least} to {most} bytes in base64");
        // Decoded in place of full size: growing would leave copies in freed memory.
        let mut bytes = Zeroizing::new(vec![0; text.len()]);
        let length = STANDARD
            .decode_slice(text, &mut bytes)
            .map_err(|_| wrong())?;
        bytes.truncate(length);
        if (least..=most).contains(&length) {
            Ok(Self(bytes))
        } else {
            Err(wrong())
        }
    }
}

impl ManifestConfig {
    /// `Some(None)` if nothing is published. `with_cluster_key` is whether the members have different app ids.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        cluster: Option<&ClusterConfig>,
        with_cluster_key: bool,
    ) -> Option<Option<Self>> {
        let publish = reader.read(&settings::MANIFEST_PUBLISH);
        let domain = reader.read_optional(&settings::MANIFEST_DOMAIN);
        let address = reader.read_optional(&settings::MANIFEST_CLUSTER);
        let epoch_offset = reader.read(&settings::MANIFEST_EPOCH_OFFSET);
        let key = reader.read_optional(&settings::MANIFEST_KEY);
        let update = DnsUpdateConfig::read(reader, publish == Some(Publish::Update));
        let command = reader.read_optional(&settings::MANIFEST_COMMAND);
        let destination = match publish? {
            Publish::Off => return Some(None),
            Publish::Update => ManifestDestination::Update(Box::new(update??)),
            Publish::Command => match command? {
                Some(program) => ManifestDestination::Command(program),
                None => return missing(reader, "manifest_command"),
            },
        };
        let Some(domain) = domain? else {
            return missing(reader, "manifest_domain");
        };
        let Some(cluster) = cluster else {
            return missing(reader, "cluster_name");
        };
        let key = key?;
        if key.is_none() && with_cluster_key {
            return reader.error(
                "manifest_key: not set, but cluster_key is: the guest agents of members with app ids of their own \
                 derive different keys",
            );
        }
        let name = match name(&format!("{LABEL}.{domain}")) {
            Ok(name) => name,
            Err(error) => return reader.error(format!("manifest_domain = {domain:?}: {error}")),
        };
        if let ManifestDestination::Update(update) = &destination
            && let Some(zone) = &update.zone
            && !zone.zone_of(&name)
        {
            return reader.error(format!(
                "manifest_zone = {zone}: {name} is not in this zone: see manifest_domain"
            ));
        }
        let leader_url = match url_of(cluster.own_member()) {
            Ok(url) => url,
            Err(error) => return reader.error(format!("cluster_members: {error}")),
        };
        Some(Some(Self {
            name,
            cluster: address?,
            epoch_offset: epoch_offset?,
            key,
            leader_url,
            destination,
        }))
    }
}

impl DnsUpdateConfig {
    /// `Some(None)` unless it is `required`.
    fn read(reader: &mut Reader<'_>, required: bool) -> Option<Option<Self>> {
        let server = reader.read_optional(&settings::MANIFEST_SERVER);
        let zone = reader.read_optional(&settings::MANIFEST_ZONE);
        let name = reader.read_optional(&settings::MANIFEST_TSIG_NAME);
        let algorithm = reader.read(&settings::MANIFEST_TSIG_ALGORITHM);
        let secret = reader.read_optional(&settings::MANIFEST_TSIG_KEY);
        if !required {
            return Some(None);
        }
        let (server, zone, algorithm) = (server?, zone?, algorithm?);
        let (name, secret) = (name?, secret?);
        let Some(server) = server else {
            return missing(reader, "manifest_server");
        };
        let Some(name) = name else {
            return missing(reader, "manifest_tsig_name");
        };
        let Some(secret) = secret else {
            return missing(reader, "manifest_tsig_key");
        };
        Some(Some(Self {
            server,
            zone,
            tsig: TsigConfig {
                name,
                algorithm,
                secret,
            },
        }))
    }
}

fn missing<T>(reader: &mut Reader<'_>, key: &str) -> Option<T> {
    reader.error(format!("{key}: not set, but manifest_publish needs it"))
}

/// What clients connect to.
fn url_of(member: &Member) -> Result<LeaderUrl, String> {
    let Member { host, port, .. } = member;
    let url = if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    };
    url.parse()
        .map_err(|error: ManifestError| error.to_string())
}

/// A domain name, which need not be that of a host. It is absolute in any case.
pub(super) fn name(text: &str) -> Parsed<Name> {
    let name = Name::from_ascii(text).map_err(|_| "expected a domain name".to_owned())?;
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

/// `HOST` or `HOST:PORT`, with IPv6 addresses in brackets if there is a port.
pub(super) fn server(text: &str) -> Parsed<(String, u16)> {
    const PORT: u16 = 53;
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok((address.to_string(), PORT));
    }
    match text.contains(':') {
        true => values::target(text),
        false => values::target(&format!("{text}:{PORT}")),
    }
}

pub(super) fn algorithm(text: &str) -> Parsed<TsigAlgorithm> {
    match text {
        "hmac-sha256" => Ok(TsigAlgorithm::HmacSha256),
        "hmac-sha384" => Ok(TsigAlgorithm::HmacSha384),
        "hmac-sha512" => Ok(TsigAlgorithm::HmacSha512),
        _ => Err("expected hmac-sha256, hmac-sha384 or hmac-sha512".to_owned()),
    }
}

pub(super) fn key(text: &str) -> Parsed<SigningKey> {
    SigningKey::from_hex(text).map_err(|error| error.to_string())
}

/// The absolute path of a program that this user may run, as far as its permissions say.
pub(super) fn program(text: &str) -> Parsed<PathBuf> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("expected an absolute path".to_owned());
    }
    let metadata = path.metadata().map_err(|error| error.to_string())?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(path)
    } else {
        Err("it is not an executable file".to_owned())
    }
}

/// The key of the manifest, for `manifest-address`.
pub struct ManifestKeyConfig {
    /// `None`: the guest agent derives it.
    pub key: Option<SigningKey>,
    /// The addresses of the guest agent.
    pub guest_agent: AgentAddresses,
    /// Unknown settings in the environment.
    pub warnings: Vec<String>,
}

impl ManifestKeyConfig {
    /// Parses and checks the settings of [`Scope::Manifest`](super::Scope::Manifest).
    ///
    /// # Errors
    /// All mistakes together.
    pub fn from_layers(layers: &Layers) -> Result<Self, Errors> {
        let (config, warnings) = read_all(layers, Self::read)?;
        Ok(Self { warnings, ..config })
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let key = reader.read_optional(&settings::MANIFEST_KEY);
        let guest_agent = read_guest_agent(reader);
        Some(Self {
            key: key?,
            guest_agent: guest_agent?,
            warnings: Vec::new(),
        })
    }
}
