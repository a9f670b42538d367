//! Certificates with quotes of a mock TDX, and the PCCS that vouches for it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use attest::mock::{
    Certificate, CollateralOptions, Evidence, Key, LeafOptions, Pccs, PccsResponses, Pki, Platform,
    PlatformOptions,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result, doing};
use crate::target::Chain;

/// Everything follows from it: the keys are worth nothing outside a load.
const SEED: [u8; 32] = [0x57; 32];

/// A mock Intel, one machine, and a KMS. Its Drop ends the PCCS.
pub struct Tdx {
    pki: Pki,
    platform: Platform,
    pccs: Pccs,
}

impl Tdx {
    /// With collateral that holds now.
    ///
    /// # Errors
    /// It cannot be made, or the PCCS cannot listen.
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

    /// A certificate as dstack's guest agent hands out, another for each name.
    ///
    /// # Errors
    /// It cannot be made.
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

    /// The same as a TLS client presents it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn chain(&self, name: &str) -> Result<Chain> {
        let certificate = self.issue(name)?;
        let key = PrivateKeyDer::try_from(certificate.key().to_pkcs8_der()?);
        let owned = |der: &[u8]| CertificateDer::from(der.to_vec());
        Ok(Chain {
            certificates: certificate.chain_der().map(owned).into(),
            key: key.map_err(|why| Error::Usage(why.to_owned()))?,
        })
    }

    /// The mock Intel's PKI, and the machine.
    #[must_use]
    pub fn parts(&self) -> (&Pki, &Platform) {
        (&self.pki, &self.platform)
    }

    /// Where the PCCS listens.
    #[must_use]
    pub fn pccs(&self) -> String {
        self.pccs.url()
    }

    /// Writes a server's `cert.pem` and `key.pem`, both in `both.pem`, the root
    /// of quotes `root.pem` and the CA of certificates `kms.pem` into `folder`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let server = self.issue("server")?;
        let (chain, key) = (server.chain_pem(), server.key().to_pkcs8_pem()?);
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(doing(path.display().to_string()))
        };
        put("cert.pem", &chain)?;
        put("key.pem", &key)?;
        put("both.pem", &format!("{chain}{key}"))?;
        put("root.pem", self.pki.root_pem())?;
        put("kms.pem", self.pki.kms_pem())
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
