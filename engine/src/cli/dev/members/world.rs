//! What the members of `dev --members` share: the mock TDX machine and PCCS, the secrets, and a guest agent for each
//! member and for the clients.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attest::mock::{
    Agent, AgentListen, AgentOptions, CollateralOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};
use rustls::crypto::aws_lc_rs::default_provider;
use zeroize::Zeroizing;

use super::super::cluster::{CA, TDX_ROOT, envelope, random_hex, request_keys, write};
use super::super::error::DevError;
use super::Plan;
use super::address::{BRIDGE, FOLLOWING_HTTP, HTTP_PORT, SIDECAR_PORT, ip, members, name};
use super::files::Folder;
use super::name_server::Publication;
use crate::io::clock::unix_now;

/// The name of the cluster.
pub(super) const CLUSTER: &str = "dev";

/// The mocks and the secrets.
pub(super) struct World {
    pccs: Pccs,
    /// Those of the members, and that of the clients.
    agents: Vec<Agent>,
    pub(super) folder: Folder,
    /// With `--dns`.
    pub(super) publication: Option<Publication>,
    pub(super) members: usize,
    pub(super) superuser_password: Zeroizing<String>,
    pub(super) read_secret: Zeroizing<String>,
    pub(super) readwrite_secret: Zeroizing<String>,
}

impl World {
    /// Starts the mocks. The folders of the members exist.
    pub(super) async fn create(folder: &Folder, plan: &Plan) -> Result<Self, DevError> {
        let mut seed = [0_u8; 32];
        let random = default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| DevError::Random)?;
        let pki = Arc::new(Pki::new(&seed)?);
        let platform = Platform::new(&pki, &PlatformOptions::default())?;
        let collateral = pki.collateral(&CollateralOptions::at(unix_now()))?;
        let responses = PccsResponses::empty().with(platform.collateral_key(), collateral);
        let pccs = Pccs::start_on(BRIDGE, responses)?;
        write(&folder.0.join(TDX_ROOT), pki.root_pem(), 0o644)?;
        write(&folder.0.join(CA), pki.kms_pem(), 0o644)?;
        let agent = |instance: usize| {
            let mut options = AgentOptions {
                seed,
                app_name: CLUSTER.to_owned(),
                ..AgentOptions::new(unix_now)
            };
            options.evidence.envelope = envelope()?;
            // Each member is another instance of the same application.
            options.evidence.instance_id = vec![u8::try_from(instance).unwrap_or(0); 20];
            let socket = agent_socket(folder, instance);
            Ok::<_, DevError>(Agent::start(
                Arc::clone(&pki),
                AgentListen::Unix(socket),
                options,
            )?)
        };
        let agents: Vec<_> = (0..=plan.members).map(agent).collect::<Result<_, _>>()?;
        let client = agents.last().ok_or(DevError::Random)?;
        let superuser_password = request_keys(client, &folder.0).await?;
        let publication = match plan.dns {
            true => Some(Publication::create(folder, client).await?),
            false => None,
        };
        Ok(Self {
            pccs,
            agents,
            folder: folder.clone(),
            publication,
            members: plan.members,
            superuser_password,
            read_secret: random_hex()?,
            readwrite_secret: random_hex()?,
        })
    }

    fn agent(&self, instance: usize) -> OsString {
        let agent = self.agents.get(instance);
        agent.map_or_else(OsString::new, |agent| agent.endpoint().to_string().into())
    }

    /// The guest agent of the clients.
    pub(super) fn client_agent(&self) -> OsString {
        self.agent(self.members)
    }

    /// The addresses of all sidecars, as `target` names them.
    pub(super) fn sidecars(&self) -> String {
        let address = |member| format!("{}:{SIDECAR_PORT}", ip(member));
        let addresses = (0..self.members).map(address);
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Settings that sidecars, forwarder and `verify` have in common.
    pub(super) fn attestation(&self) -> BTreeMap<&'static str, OsString> {
        BTreeMap::from([
            (
                "TEESQL_DANGEROUS_TDX_ROOT_CA",
                self.file(TDX_ROOT).into_os_string(),
            ),
            ("TEESQL_PCCS", self.pccs.url().into()),
        ])
    }

    /// Settings with which clients accept the members.
    pub(super) fn client(&self) -> BTreeMap<&'static str, OsString> {
        let app_id = hex::encode(&attest::mock::Evidence::default().app_id);
        let mut settings = self.attestation();
        settings.extend([
            ("TEESQL_ALLOWED_APP_ID", app_id.into()),
            ("TEESQL_KMS_ROOT", self.file(CA).into_os_string()),
        ]);
        settings
    }

    /// The settings of the forwarder.
    pub(super) fn forwarder(&self) -> BTreeMap<&'static str, OsString> {
        let mut settings = self.any_forwarder(&self.folder.forwarder());
        settings.extend([
            ("TEESQL_TARGET", self.sidecars().into()),
            (
                "TEESQL_ADMIN_LISTEN",
                format!("{BRIDGE}:{HTTP_PORT}").into(),
            ),
        ]);
        settings
    }

    /// The settings of the forwarder that follows the leader, if there is one.
    pub(super) fn following_forwarder(&self) -> Option<BTreeMap<&'static str, OsString>> {
        let publication = self.publication.as_ref()?;
        let mut settings = self.any_forwarder(&self.folder.following());
        settings.extend(publication.forwarder());
        settings.insert("TEESQL_ADMIN_LISTEN", FOLLOWING_HTTP.to_string().into());
        // Its log shows how it follows.
        settings.insert("TEESQL_LOG", "info".into());
        Some(settings)
    }

    fn any_forwarder(&self, socket: &Path) -> BTreeMap<&'static str, OsString> {
        let mut settings = self.client();
        settings.extend([
            ("TEESQL_GUEST_AGENT", self.client_agent()),
            ("TEESQL_FORWARD_LISTEN", socket.as_os_str().to_owned()),
            ("TEESQL_DRAIN_TIMEOUT", "1s".into()),
        ]);
        settings
    }

    /// The settings of a member's sidecar.
    pub(super) fn sidecar(&self, member: usize) -> BTreeMap<&'static str, OsString> {
        let text = |text: &str| OsString::from(text);
        let mut settings = self.attestation();
        settings.extend([
            ("TEESQL_LISTEN", format!("0.0.0.0:{SIDECAR_PORT}").into()),
            ("TEESQL_ADMIN_LISTEN", format!("0.0.0.0:{HTTP_PORT}").into()),
            (
                "TEESQL_CONTROL_SOCKET",
                self.file(&format!("control-{}.sock", name(member)))
                    .into_os_string(),
            ),
            ("TEESQL_GUEST_AGENT", self.agent(member)),
            ("TEESQL_POSTGRES", text("127.0.0.1:5432")),
            ("TEESQL_READ_SECRET", text(&self.read_secret)),
            ("TEESQL_READWRITE_SECRET", text(&self.readwrite_secret)),
            ("TEESQL_PROVISION", text("true")),
            (
                "TEESQL_CERTIFICATE_ALT_NAMES",
                format!("localhost,127.0.0.1,::1,{}", ip(member)).into(),
            ),
            ("TEESQL_DRAIN_TIMEOUT", text("1s")),
            // All members share this machine's cores.
            ("TEESQL_SHARDS", text("1")),
            ("TEESQL_CLUSTER_NAME", text(CLUSTER)),
            ("TEESQL_CLUSTER_MEMBER", name(member).into()),
            ("TEESQL_CLUSTER_MEMBERS", members(self.members).into()),
        ]);
        let publication = self.publication.as_ref();
        settings.extend(publication.into_iter().flat_map(Publication::sidecar));
        settings
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }
}

fn agent_socket(folder: &Folder, instance: usize) -> PathBuf {
    folder.0.join(format!("agent-{}.sock", name(instance)))
}

/// The program of the forwarder, which is installed beside this one.
pub(super) fn forwarder_program(this: &Path) -> PathBuf {
    this.with_file_name("teesql-forward")
}
