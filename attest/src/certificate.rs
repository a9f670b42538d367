//! The leaf certificate: caps, dates, and the evidence extensions.
//!
//! [`evidence`](crate::evidence) parses the content of the extensions. The issuer's signature is not checked
//! here: without a pinned root it proves nothing (the key of the simulator's CA is public), and with one
//! [`chain`](crate::chain) checks it, off the shard.

use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::X509Extension;
use x509_parser::nom::Parser;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME,
};
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use crate::denial::Denial;
use crate::der;
pub use crate::limits::{MAX_CERTIFICATE_LEN, MAX_EXTENSIONS, MAX_SKELETON_LEN, MAX_UNREAD_LEN};

mod end_point;
mod names;

pub use end_point::server_end_point;
pub use names::CertificateNames;

/// How far notBefore may be in the future, in seconds. Clocks of machines with NTP differ by less, and a clock
/// that is wrong by a day is still detected. notAfter has no tolerance.
pub const CLOCK_SKEW: u64 = 300;

/// dstack's arc, `1.3.6.1.4.1.62397.1`, as DER content. [dstack `ra-tls/src/oids.rs`]
const ARC: [u8; 9] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xe7, 0x3d, 0x01];

/// A parsed leaf certificate within the caps. Borrows from the DER.
#[derive(Debug)]
pub struct Leaf<'a> {
    spki: &'a [u8],
    not_before: u64,
    not_after: u64,
    extensions: Extensions<'a>,
}

/// The contents of dstack's extensions; of all but `.3` the content of the inner OCTET STRING.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extensions<'a> {
    /// `.1`: a raw quote (legacy format).
    pub quote: Option<&'a [u8]>,
    /// `.2`: its event log in JSON (legacy format).
    pub event_log: Option<&'a [u8]>,
    /// `.3`: the app id as the issuer claims it. Proves nothing and is not used.
    pub app_id: Option<&'a [u8]>,
    /// `.4`: the usage of the certificate, such as `app:custom`.
    pub usage: Option<&'a [u8]>,
    /// `.8`: an attestation envelope.
    pub attestation: Option<&'a [u8]>,
    /// `.9`: app info as the issuer claims it. Not used.
    pub app_info: Option<&'a [u8]>,
}

impl<'a> Leaf<'a> {
    /// Parses one DER certificate.
    ///
    /// # Errors
    /// [`Denial::MalformedCertificate`]: beyond a cap, not DER, bytes after it, not version 3, an unknown
    /// critical extension, or an evidence extension that is repeated or is not an OCTET STRING.
    pub fn parse(der: &'a [u8]) -> Result<Self, Denial> {
        check_size(der)?;
        let (rest, certificate) = X509CertificateParser::new()
            .with_deep_parse_extensions(false)
            .parse(der)
            .map_err(|_| Denial::MalformedCertificate("it is no X.509 certificate"))?;
        if !rest.is_empty() {
            return Err(Denial::MalformedCertificate("there are bytes after it"));
        }
        if certificate.version() != X509Version::V3 {
            return Err(Denial::MalformedCertificate("its version is not 3"));
        }
        let validity = certificate.validity();
        Ok(Self {
            spki: certificate.tbs_certificate.subject_pki.raw,
            not_before: unix_seconds(validity.not_before),
            not_after: unix_seconds(validity.not_after),
            extensions: Extensions::read(&certificate)?,
        })
    }

    /// Checks that `now`, in Unix seconds, is between notBefore (less [`CLOCK_SKEW`]) and notAfter.
    /// [`Policy::check_age`](crate::Policy::check_age) checks the age.
    ///
    /// # Errors
    /// [`Denial::NotYetValid`], [`Denial::Expired`].
    pub fn check_dates(&self, now: u64) -> Result<(), Denial> {
        check_dates(self.not_before, self.not_after, now)
    }

    /// The SubjectPublicKeyInfo in DER, to which the quote must be bound.
    #[must_use]
    pub fn spki(&self) -> &'a [u8] {
        self.spki
    }

    /// notBefore in unix seconds; 0 for any time before 1970.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// notAfter in unix seconds: the last second at which the certificate is valid. [RFC 5280, 4.1.2.5]
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// dstack's extensions.
    #[must_use]
    pub fn extensions(&self) -> &Extensions<'a> {
        &self.extensions
    }
}

/// Checks two dates against `now`, with [`CLOCK_SKEW`] on the first.
pub(crate) fn check_dates(not_before: u64, not_after: u64, now: u64) -> Result<(), Denial> {
    if now.saturating_add(CLOCK_SKEW) < not_before {
        Err(Denial::NotYetValid)
    } else if now > not_after {
        Err(Denial::Expired)
    } else {
        Ok(())
    }
}

pub(crate) fn unix_seconds(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

impl<'a> Extensions<'a> {
    fn read(certificate: &X509Certificate<'a>) -> Result<Self, Denial> {
        let arc = oid!(1.3.6.1.4.1.62397.1);
        let mut found = Self::default();
        for extension in certificate.extensions() {
            let Some(number) = number_below(&arc, &extension.oid) else {
                check_critical(extension)?;
                continue;
            };
            let value = extension.value;
            let (slot, value) = match number {
                1 => (&mut found.quote, inner(value)?),
                2 => (&mut found.event_log, inner(value)?),
                3 => (&mut found.app_id, value),
                4 => (&mut found.usage, inner(value)?),
                8 => (&mut found.attestation, inner(value)?),
                9 => (&mut found.app_info, inner(value)?),
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(Denial::MalformedCertificate(
                    "an evidence extension is there twice",
                ));
            }
        }
        Ok(found)
    }
}

/// Unknown critical extensions must be refused. [RFC 5280, 4.2] The known ones are checked elsewhere or do not
/// matter: an extended key usage does not, since the holder of the key is the TD that the quote describes, as a
/// client or as a server.
fn check_critical(extension: &X509Extension<'_>) -> Result<(), Denial> {
    const KNOWN: [Oid<'_>; 4] = [
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_SUBJECT_ALT_NAME,
    ];
    if extension.critical && !KNOWN.contains(&extension.oid) {
        return Err(Denial::MalformedCertificate(
            "it has an unknown critical extension",
        ));
    }
    Ok(())
}

/// The last arc of `oid`, if it is directly below `arc` and one byte long.
fn number_below(arc: &Oid<'_>, oid: &Oid<'_>) -> Option<u8> {
    match oid.as_bytes().strip_prefix(arc.as_bytes()) {
        Some(&[number]) => Some(number),
        Some(_) | None => None,
    }
}

fn inner(value: &[u8]) -> Result<&[u8], Denial> {
    der::read_single(value, der::OCTET_STRING).ok_or(Denial::MalformedCertificate(
        "an evidence extension is no OCTET STRING",
    ))
}

/// Checks the caps without allocation, before x509-parser parses anything.
pub(crate) fn check_size(der: &[u8]) -> Result<(), Denial> {
    if der.len() > MAX_CERTIFICATE_LEN {
        return Err(Denial::MalformedCertificate("it is too large"));
    }
    let sizes = extension_sizes(der)?;
    if sizes.unread > MAX_UNREAD_LEN {
        return Err(Denial::MalformedCertificate(
            "its extensions that are not read are too large",
        ));
    }
    if der.len().saturating_sub(sizes.evidence) > MAX_SKELETON_LEN {
        return Err(Denial::MalformedCertificate(
            "it is too large without its evidence",
        ));
    }
    Ok(())
}

/// Sizes of the values of a certificate's extensions, in bytes.
#[derive(Default)]
struct ExtensionSizes {
    /// Of `.1`, `.2` and `.8` below [`ARC`].
    evidence: usize,
    /// Of those that no check reads.
    unread: usize,
}

impl ExtensionSizes {
    fn add(&mut self, oid: &[u8], len: usize) {
        /// Basic constraints, key usage, extended key usage and alternative names, as DER content. [RFC 5280,
        /// 4.2.1]
        const READ: [[u8; 3]; 4] = [
            [0x55, 0x1d, 19],
            [0x55, 0x1d, 15],
            [0x55, 0x1d, 37],
            [0x55, 0x1d, 17],
        ];
        let sum = match oid.strip_prefix(&ARC) {
            Some([1 | 2 | 8]) => &mut self.evidence,
            _ if READ.iter().any(|read| read == oid) => return,
            _ => &mut self.unread,
        };
        *sum = sum.saturating_add(len);
    }
}

fn extension_sizes(der: &[u8]) -> Result<ExtensionSizes, Denial> {
    const WRONG: Denial = Denial::MalformedCertificate("it is no X.509 certificate");
    let certificate = der::read_single(der, der::SEQUENCE).ok_or(WRONG)?;
    let tbs = der::read_element(certificate)
        .filter(|tbs| tbs.tag == der::SEQUENCE)
        .ok_or(WRONG)?;
    let mut fields = tbs.content;
    while let Some(field) = der::read_element(fields) {
        fields = field.rest;
        if field.tag == der::CONTEXT_3 {
            let extensions = der::read_single(field.content, der::SEQUENCE).ok_or(WRONG)?;
            return sum_of_sizes(extensions);
        }
    }
    Ok(ExtensionSizes::default())
}

fn sum_of_sizes(mut extensions: &[u8]) -> Result<ExtensionSizes, Denial> {
    let mut sizes = ExtensionSizes::default();
    for _ in 0..MAX_EXTENSIONS {
        if extensions.is_empty() {
            return Ok(sizes);
        }
        let extension = der::read_element(extensions)
            .ok_or(Denial::MalformedCertificate("its extensions are not DER"))?;
        extensions = extension.rest;
        let oid = der::read_element(extension.content)
            .filter(|oid| oid.tag == der::OBJECT_IDENTIFIER)
            .ok_or(Denial::MalformedCertificate("its extensions are not DER"))?;
        sizes.add(oid.content, oid.rest.len());
    }
    if extensions.is_empty() {
        return Ok(sizes);
    }
    Err(Denial::MalformedCertificate("it has too many extensions"))
}
