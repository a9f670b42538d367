//! A mock TDX platform that issues certificates with quotes, and the PCCS that serves its
//! collateral.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::endpoint::Identity;
use crate::error::{Error, Result, io_context};

/// Seed of all keys. The keys must not be trusted anywhere outside a load.
const SEED: [u8; 32] = [0x57; 32];

/// A mock Intel PKI, one mock TDX machine, and a KMS. Dropping it stops the PCCS.
pub struct MockTdx {
    pki: Pki,
    platform: Platform,
    pccs: Pccs,
}

impl MockTdx {
    /// Creates the platform, with collateral that is valid now.
    ///
    /// # Errors
    /// The platform cannot be created, or the PCCS cannot listen.
    pub fn new() -> Result<Self> {
        let pki = Pki::new(&SEED)?;
        let platform = Platform::new(&pki, &PlatformOptions::default())?;
        let collateral = pki.collateral(&CollateralOptions::at(unix_now()))?;
        let pccs = Pccs::start(PccsResponses::empty().with(platform.collateral_key(), collateral))?;
        Ok(Self {
            pki,
            platform,
            pccs,
        })
    }

    /// Issues a certificate as dstack's guest agent does. Each name gets its own.
    ///
    /// # Errors
    /// The certificate cannot be issued.
    pub fn issue(&self, name: &str) -> Result<Certificate> {
        let key = Key::derive(&SEED, name)?;
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        Ok(Certificate::issue(
            &self.pki,
            &self.platform,
            &key,
            &evidence,
            &leaf,
        )?)
    }

    /// Issues a certificate as a TLS client presents it.
    ///
    /// # Errors
    /// The certificate cannot be issued.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        let certificate = self.issue(name)?;
        let key = PrivateKeyDer::try_from(certificate.key().to_pkcs8_der()?);
        let owned = |der: &[u8]| CertificateDer::from(der.to_vec());
        Ok(Identity {
            certificates: certificate.chain_der().map(owned).into(),
            key: key.map_err(|why| Error::Usage(why.to_owned()))?,
        })
    }

    /// The mock Intel PKI and the mock machine.
    #[must_use]
    pub fn parts(&self) -> (&Pki, &Platform) {
        (&self.pki, &self.platform)
    }

    /// URL of the PCCS.
    #[must_use]
    pub fn pccs_url(&self) -> String {
        self.pccs.url()
    }

    /// Writes PEM files into `folder`: `cert.pem` and `key.pem` for a server, `sidecar.key` with the same key for its owner only, `both.pem` with both
    /// of them, `root.pem` with the root of quotes, and `kms.pem` with the CA of the certificates.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let server = self.issue("server")?;
        let (chain, key) = (server.chain_pem(), server.key().to_pkcs8_pem()?);
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(io_context(path.display().to_string()))
        };
        put("cert.pem", &chain)?;
        put("key.pem", &key)?;
        // The sidecar refuses a key that others can read, and the other proxies may run as another user.
        put("sidecar.key", &key)?;
        let path = folder.join("sidecar.key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(io_context(path.display().to_string()))?;
        put("both.pem", &format!("{chain}{key}"))?;
        put("root.pem", self.pki.root_pem())?;
        put("kms.pem", self.pki.kms_pem())
    }
}

/// The current UNIX time, in seconds.
#[must_use]
pub fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
