//! The names in a certificate, for display only. No check uses them.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::check_size;
use crate::denial::Denial;

/// Names and serial number of a certificate. The texts come from the peer and may contain control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject, as `CN=…, O=…`.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The serial number, big endian.
    pub serial: Vec<u8>,
    /// The subject's alternative names, each as `DNS:…`, `IP:…` or the like.
    pub alt_names: Vec<String>,
}

impl CertificateNames {
    /// Parses one DER certificate.
    ///
    /// # Errors
    /// [`Denial::MalformedCertificate`]: beyond a cap, or not a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, Denial> {
        check_size(der)?;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| Denial::MalformedCertificate("it is no X.509 certificate"))?;
        let alt_names = certificate.subject_alternative_name().ok().flatten();
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            serial: certificate.raw_serial().to_vec(),
            alt_names: alt_names.map_or_else(Vec::new, |names| {
                names.value.general_names.iter().map(general_name).collect()
            }),
        })
    }
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::RFC822Name(name) => format!("email:{name}"),
        GeneralName::URI(name) => format!("URI:{name}"),
        GeneralName::IPAddress(bytes) => format!("IP:{}", address(bytes)),
        GeneralName::DirectoryName(name) => format!("directory:{name}"),
        other => other.to_string(),
    }
}

fn address(bytes: &[u8]) -> String {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        std::net::Ipv4Addr::from(four).to_string()
    } else if let Ok(sixteen) = <[u8; 16]>::try_from(bytes) {
        std::net::Ipv6Addr::from(sixteen).to_string()
    } else {
        hex::encode(bytes)
    }
}
