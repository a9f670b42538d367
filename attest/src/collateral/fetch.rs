//! The PCCS client: four HTTP requests, each with a cap on its size, all under one deadline.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;

use super::error::CollateralError;
use super::key::CollateralKey;
use super::pccs::{PccsResponse, PccsResponses, Resource, Source};
use super::set::Collateral;
use crate::limits::MAX_PCCS_RESPONSE_LEN;

/// Timeouts, trust and proxy of a [`Fetcher`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// Timeout of a TCP and TLS handshake. Intel's service takes less than 200 ms from Europe.
    pub connect_timeout: Duration,
    /// Deadline of all four requests together.
    pub deadline: Duration,
    /// Certificates (PEM) to trust for https in addition to the system's, for a PCCS with a private CA.
    pub extra_roots_pem: Option<Vec<u8>>,
    /// A proxy, as a URL. `HTTP_PROXY` and similar environment variables are ignored.
    pub proxy: Option<String>,
}

impl Default for FetchOptions {
    /// 5 s to connect, 30 s in total, the system's roots, no proxy.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            extra_roots_pem: None,
            proxy: None,
        }
    }
}

/// Why collateral could not be fetched. The PCCS or the network is at fault, except for
/// [`FetchError::Client`] and [`FetchError::NoSource`], which are configuration errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The connection failed: refused, no route, unknown name, or a TLS error.
    #[error("no connection to the PCCS")]
    Connect,
    /// The deadline expired.
    #[error("the PCCS did not answer in time")]
    Timeout,
    /// A status other than 200. Redirects are not followed.
    #[error("the PCCS answered with HTTP status {0}")]
    Status(u16),
    /// A response is larger than its cap.
    #[error("the PCCS's response has more than {limit} bytes")]
    TooLarge {
        /// The cap.
        limit: usize,
    },
    /// The connection was closed before the end of a response.
    #[error("the PCCS closed the connection before the end of its response")]
    Truncated,
    /// The responses are not the requested collateral, or not genuine.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    /// There is no PCCS to fetch from.
    #[error("no PCCS is configured")]
    NoSource,
    /// The HTTP client cannot be created: the roots or the proxy are wrong.
    #[error("the HTTP client for the PCCS cannot be created: {0}")]
    Client(String),
}

impl FetchError {
    /// The error's name from a closed list, for a metric label and the log.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status(_) => "status",
            Self::TooLarge { .. } => "too_large",
            Self::Truncated => "broken_off",
            Self::Collateral(error) => error.code(),
            Self::NoSource => "no_source",
            Self::Client(_) => "client",
        }
    }
}

/// The client with the default options, once there is one: the system's roots take some 20 ms to read and 200 KB of memory. It
/// pools no connection, so that it belongs to no runtime.
static SHARED_CLIENT: OnceLock<Client> = OnceLock::new();

/// Fetches collateral from one [`Source`].
///
/// Runs on any tokio runtime with time and I/O, `current_thread` included; name resolution uses the
/// runtime's blocking threads. Never on a shard.
#[derive(Clone, Debug)]
pub struct Fetcher {
    source: Source,
    client: Client,
    deadline: Duration,
}

impl Fetcher {
    /// Creates a fetcher. https is always verified.
    ///
    /// # Errors
    /// [`FetchError::Client`] for roots that are not PEM, a proxy that is not a URL, or a system without
    /// any trusted root.
    pub fn new(source: Source, options: &FetchOptions) -> Result<Self, FetchError> {
        let client = match SHARED_CLIENT.get() {
            Some(shared) if *options == FetchOptions::default() => shared.clone(),
            _ => Self::client(options)?,
        };
        if *options == FetchOptions::default() {
            // Another thread may have been faster.
            let _ = SHARED_CLIENT.set(client.clone());
        }
        Ok(Self {
            source,
            client,
            deadline: options.deadline,
        })
    }

    fn client(options: &FetchOptions) -> Result<Client, FetchError> {
        let wrong = |error: reqwest::Error| FetchError::Client(error.without_url().to_string());
        let mut client = Client::builder()
            .connect_timeout(options.connect_timeout)
            .timeout(options.deadline)
            // One fetch a day: a pooled connection would be idle.
            .pool_max_idle_per_host(0)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("teesql/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &options.extra_roots_pem {
            let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(wrong)?;
            client = client.tls_certs_merge(roots);
        }
        if let Some(proxy) = &options.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy).map_err(wrong)?);
        }
        client.build().map_err(wrong)
    }

    /// The PCCS that it fetches from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Fetches the collateral for `key`. It is parsed and for the requested platforms, but not verified.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, key: CollateralKey) -> Result<Collateral, FetchError> {
        let all = async {
            Ok(PccsResponses {
                pck_crl: self.get(Resource::PckCrl, key).await?,
                root_crl: self.get(Resource::RootCrl, key).await?,
                tcb_info: self.get(Resource::TcbInfo, key).await?,
                qe_identity: self.get(Resource::QeIdentity, key).await?,
            })
        };
        let responses: Result<PccsResponses, FetchError> = tokio::time::timeout(self.deadline, all)
            .await
            .map_err(|_| FetchError::Timeout)?;
        Ok(responses?.into_collateral(key)?)
    }

    async fn get(
        &self,
        resource: Resource,
        key: CollateralKey,
    ) -> Result<PccsResponse, FetchError> {
        let sent = self.client.get(self.source.url(resource, key)).send().await;
        let mut response = sent.map_err(|error| classify(&error, FetchError::Connect))?;
        if response.status() != 200 {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let too_large = FetchError::TooLarge {
            limit: MAX_PCCS_RESPONSE_LEN,
        };
        let limit = u64::try_from(MAX_PCCS_RESPONSE_LEN).unwrap_or(u64::MAX);
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large);
        }
        let header = |name: &&str| response.headers().get(*name).and_then(|v| v.to_str().ok());
        let chain = resource
            .chain_headers()
            .iter()
            .find_map(header)
            .map(str::to_owned);
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| classify(&error, FetchError::Truncated))?
        {
            if body.len() + chunk.len() > MAX_PCCS_RESPONSE_LEN {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(PccsResponse { body, chain })
    }
}

/// Maps time-outs of any layer to [`FetchError::Timeout`], and every other error to `otherwise`.
fn classify(error: &reqwest::Error, otherwise: FetchError) -> FetchError {
    match error.is_timeout() {
        true => FetchError::Timeout,
        false => otherwise,
    }
}
