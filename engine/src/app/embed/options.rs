//! What a program sets for a forwarder: settings by their names, and what no setting can hold.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use attest::agent::{Agent, AgentAddress, AgentAddresses, AgentOptions};
use zeroize::Zeroizing;

use super::error::{Error, configuration};
use super::runtime::SharedRuntime;
use crate::app::error::StartError;
use crate::attestation::custom::{CustomVerifier, DEFAULT_TIMEOUT, Verifier};
use crate::config::{
    CertificateRequest, CertificateUsage, Criteria, ForwarderConfig, Layers, PemIdentity,
    ProgramEnvironment, Scope, Verifier as Verifies,
};
use crate::io::clock::unix_now;

/// The validity of a certificate that a program requests itself.
const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// How long sessions may continue when a program stops its forwarder, unless it sets it: its pools are closed by then.
const DRAIN_TIMEOUT: (&str, &str) = ("drain_timeout", "2s");

/// What a program sets.
#[derive(Clone, Default)]
pub struct Options {
    /// Read the environment and the configuration file that it names, before the settings.
    pub from_environment: bool,
    /// Settings by their names in the configuration file.
    pub settings: Vec<(String, Zeroizing<String>)>,
    /// Settings that are not taken from the environment, because they would contradict those above.
    pub hidden: Vec<&'static str>,
    /// A client certificate in memory.
    pub pem_identity: Option<Arc<PemIdentity>>,
    /// The application's own decision about servers.
    pub verifier: Option<ApplicationVerifier>,
}

/// The application's own decision about servers.
#[derive(Clone)]
pub struct ApplicationVerifier {
    /// Decides.
    pub verifier: Arc<dyn Verifier>,
    /// Whether it stands for DCAP, instead of following it.
    pub instead_of_dcap: bool,
    /// The limit for one decision.
    pub timeout: Duration,
}

impl ApplicationVerifier {
    /// With the default limit.
    #[must_use]
    pub fn new(verifier: Arc<dyn Verifier>, instead_of_dcap: bool) -> Self {
        Self {
            verifier,
            instead_of_dcap,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// The same on its thread.
    pub(super) fn start(&self, runtime: &SharedRuntime) -> Result<CustomVerifier, StartError> {
        let thread = runtime.callback_thread()?;
        let verifier = Arc::clone(&self.verifier);
        Ok(CustomVerifier::new(verifier, self.timeout, thread))
    }
}

impl fmt::Debug for Options {
    /// Without the values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.settings.iter().map(|(name, _)| name).collect();
        f.debug_struct("Options")
            .field("from_environment", &self.from_environment)
            .field("settings", &names)
            .field("pem_identity", &self.pem_identity)
            .field("has_verifier", &self.verifier.is_some())
            .finish()
    }
}

impl Options {
    /// Sets a setting.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.settings
            .push((name.into(), Zeroizing::new(value.into())));
    }

    /// Leaves settings out of what is taken from the environment.
    pub fn hide(&mut self, names: &[&'static str]) {
        self.hidden.extend(names);
    }

    /// Undoes settings, those of the environment included.
    pub fn unset(&mut self, names: &[&'static str]) {
        self.settings
            .retain(|(set, _)| !names.contains(&set.as_str()));
        self.hide(names);
    }

    fn layers(&self, scope: Scope, defaults: &[(&str, &str)]) -> Layers {
        let given = self.settings.iter();
        let given = given.map(|(name, value)| (name.as_str(), value.as_str()));
        let environment = self.from_environment.then(|| {
            let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
            ProgramEnvironment {
                variable: &|name| std::env::var_os(name),
                names: names.collect(),
                hidden: &self.hidden,
            }
        });
        Layers::of_program(scope, environment, defaults, given)
            .with_pem_identity(self.pem_identity.clone())
    }

    /// The configuration of a forwarder. It serves no HTTP, and logs where its program does.
    pub(super) fn forwarder_config(&self) -> Result<ForwarderConfig, Error> {
        let layers = self.layers(Scope::Forward, &[DRAIN_TIMEOUT]);
        let mut config = ForwarderConfig::from_layers(&layers).map_err(configuration)?;
        config.process.admin_listen = None;
        if !config.process.sets_shards {
            config.process.shards = 1;
        }
        Ok(config)
    }

    /// The policy to verify a quote or a server with, and what verifies quotes.
    pub(super) fn criteria(&self) -> Result<(Criteria, Verifies), Error> {
        let layers = self.layers(Scope::Criteria, &[]);
        let criteria = Criteria::from_layers(&layers).map_err(configuration)?;
        let layers = self.layers(Scope::Forward, &[]);
        let verifier = Verifies::from_layers(&layers).map_err(configuration)?;
        Ok((criteria, verifier))
    }
}

/// A client certificate of this machine, with its key.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The chain, leaf first, in PEM.
    pub chain_pem: String,
    /// The private key in PEM. A secret.
    pub key_pem: Zeroizing<String>,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate([redacted])")
    }
}

/// Requests a client certificate from the guest agent at `address`, a path or `http://host:port`, or at dstack's standard
/// addresses.
///
/// # Errors
/// [`ErrorKind::Configuration`](super::ErrorKind::Configuration) if `address` is neither, and
/// [`ErrorKind::Identity`](super::ErrorKind::Identity) if there is no agent, or it refuses or does not answer.
pub async fn request_client_certificate(
    address: Option<&str>,
    timeout: Duration,
) -> Result<ClientCertificate, Error> {
    let addresses = match address {
        None => AgentAddresses::standard(),
        Some(text) => {
            let parsed = text.parse::<AgentAddress>();
            let parsed =
                parsed.map_err(|error| Error::configuration(format!("{text}: {error}")))?;
            AgentAddresses::only(parsed)
        }
    };
    let options = AgentOptions {
        deadline: timeout,
        quote_deadline: timeout,
        ..AgentOptions::default()
    };
    let runtime = SharedRuntime::acquire()?;
    let request = runtime.control().spawn(async move {
        let agent = Agent::new(addresses, options).map_err(StartError::ClientCertificate)?;
        let request = CertificateRequest {
            name: "teesql-client".to_owned(),
            alt_names: Vec::new(),
            validity: CERTIFICATE_VALIDITY,
            usage: CertificateUsage::Client,
        };
        let answer = tokio::time::timeout(timeout, async {
            agent.tls_key(&request.tls_key_request(unix_now())).await
        });
        match answer.await {
            Ok(Ok(key)) => Ok(ClientCertificate {
                chain_pem: key.chain_pem(),
                key_pem: key.key_pem(),
            }),
            Ok(Err(error)) => Err(StartError::ClientCertificate(error)),
            Err(_) => Err(StartError::AgentTimeout(timeout)),
        }
    });
    let answer = request.await;
    runtime.release().await;
    Ok(answer.map_err(Error::internal)??)
}
