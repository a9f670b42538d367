//! A mock TDX platform that issues certificates with quotes, and the PCCS that serves its
//! collateral.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::collateral::Fmspc;
use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::endpoint::Identity;
use crate::error::{Error, Result, io_context};

/// Seed of all keys. The keys must not be trusted anywhere outside a load.
const SEED: [u8; 32] = [0x57; 32];

/// Maximum number of platforms.
pub const MAX_PLATFORMS: u8 = 64;

/// A mock Intel PKI, mock TDX machines, and a KMS. Dropping it stops the PCCS.
pub struct MockTdx {
    pki: Pki,
    platform: Platform,
    /// Further machines, each of another platform family.
    others: Vec<Platform>,
    pccs: Pccs,
}

impl MockTdx {
    /// Creates one platform, with collateral that is valid now.
    ///
    /// # Errors
    /// As [`MockTdx::with_platforms`].
    pub fn new() -> Result<Self> {
        Self::with_platforms(1)
    }

    /// Creates platforms of different families (FMSPC), with collateral for each that is valid now: at least
    /// one, at most [`MAX_PLATFORMS`].
    ///
    /// # Errors
    /// A platform cannot be created, or the PCCS cannot listen.
    pub fn with_platforms(count: u8) -> Result<Self> {
        let pki = Pki::new(&SEED)?;
        let platform = Platform::new(&pki, &PlatformOptions::default())?;
        let others = (1..count.min(MAX_PLATFORMS)).map(|number| other_platform(&pki, number));
        let others = others.collect::<Result<Vec<_>>>()?;
        let mut responses = PccsResponses::empty();
        for platform in std::iter::once(&platform).chain(&others) {
            let key = platform.collateral_key();
            let options = CollateralOptions::at(unix_now()).for_key(key);
            responses = responses.with(key, pki.collateral(&options)?);
        }
        Ok(Self {
            pccs: Pccs::start(responses)?,
            pki,
            platform,
            others,
        })
    }

    /// Issues a certificate as dstack's guest agent does. Each name gets its own.
    ///
    /// # Errors
    /// The certificate cannot be issued.
    pub fn issue(&self, name: &str) -> Result<Certificate> {
        self.issue_on(&self.platform, name)
    }

    fn issue_on(&self, platform: &Platform, name: &str) -> Result<Certificate> {
        let key = Key::derive(&SEED, name)?;
        let (evidence, leaf) = (Evidence::default(), LeafOptions::default());
        Ok(Certificate::issue(
            &self.pki, platform, &key, &evidence, &leaf,
        )?)
    }

    /// Issues a certificate as a TLS client presents it.
    ///
    /// # Errors
    /// The certificate cannot be issued.
    pub fn identity(&self, name: &str) -> Result<Identity> {
        identity_of(&self.issue(name)?)
    }

    /// As [`MockTdx::identity`], on the platform with this number. The numbers of more platforms than there are
    /// begin again with the first one.
    ///
    /// # Errors
    /// As [`MockTdx::identity`].
    pub fn identity_on(&self, number: usize, name: &str) -> Result<Identity> {
        let mut platforms = std::iter::once(&self.platform).chain(&self.others);
        let number = number % (1 + self.others.len());
        let platform = platforms.nth(number).unwrap_or(&self.platform);
        identity_of(&self.issue_on(platform, name)?)
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

/// A platform of another family than the default one.
fn other_platform(pki: &Pki, number: u8) -> Result<Platform> {
    let default = PlatformOptions::default();
    let mut family = default.fmspc.0;
    if let Some(last) = family.last_mut() {
        *last = number;
    }
    let options = PlatformOptions {
        // At most MAX_PLATFORMS names.
        name: format!("machine {}", number + 1).leak(),
        fmspc: Fmspc(family),
        ..default
    };
    Ok(Platform::new(pki, &options)?)
}

fn identity_of(certificate: &Certificate) -> Result<Identity> {
    let key = PrivateKeyDer::try_from(certificate.key().to_pkcs8_der()?);
    let owned = |der: &[u8]| CertificateDer::from(der.to_vec());
    Ok(Identity {
        certificates: certificate.chain_der().map(owned).into(),
        key: key.map_err(|why| Error::Usage(why.to_owned()))?,
    })
}

/// The current UNIX time, in seconds.
#[must_use]
pub fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
