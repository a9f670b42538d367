//! The presented certificate chain, and its verification up to a pinned KMS root.
//!
//! The chain is verified only if KMS roots are pinned. dstack's leaf has no AKI, SKI or BasicConstraints, and
//! its CA is self-signed with path length 1, so issuers are found by name and proved by signature. A P-256
//! verification takes about 50 µs, so it must never run on a shard.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use crate::certificate::{check_dates, check_size, unix_seconds};
use crate::denial::Denial;
use crate::limits::MAX_CERTIFICATE_LEN;
pub use crate::limits::{MAX_CHAIN_LEN, MAX_ISSUERS_LEN};
use crate::values::Fingerprint;

/// Maximum size of a PEM file with KMS roots, in bytes.
pub const MAX_ROOTS_LEN: usize = 256 << 10;

/// A presented chain, leaf first, copied once. Clones share the copy.
#[derive(Clone)]
pub struct Chain(Arc<Inner>);

struct Inner {
    certificates: Vec<Box<[u8]>>,
    fingerprint: Fingerprint,
}

impl Chain {
    /// Copies a presented chain.
    ///
    /// # Errors
    /// As [`Chain::check_caps`].
    pub fn copy(chain: &[impl AsRef<[u8]>]) -> Result<Self, Denial> {
        Self::check_caps(chain)?;
        let certificates: Vec<Box<[u8]>> = chain.iter().map(|der| der.as_ref().into()).collect();
        let fingerprint = fingerprint(certificates.first().ok_or(Denial::NoCertificate)?);
        Ok(Self(Arc::new(Inner {
            certificates,
            fingerprint,
        })))
    }

    /// Checks the number of certificates, the size of the issuers and that of the whole.
    ///
    /// # Errors
    /// [`Denial::NoCertificate`], [`Denial::ChainTooLong`], [`Denial::MalformedCertificate`].
    pub fn check_caps(chain: &[impl AsRef<[u8]>]) -> Result<(), Denial> {
        if chain.is_empty() {
            return Err(Denial::NoCertificate);
        }
        if chain.len() > MAX_CHAIN_LEN {
            return Err(Denial::ChainTooLong);
        }
        let mut lens = chain.iter().map(|der| der.as_ref().len());
        let leaf = lens.next().unwrap_or(0);
        let issuers: usize = lens.sum();
        if issuers > MAX_ISSUERS_LEN {
            return Err(Denial::MalformedCertificate("its issuers are too large"));
        }
        if leaf.saturating_add(issuers) > MAX_CERTIFICATE_LEN {
            return Err(Denial::MalformedCertificate("the chain is too large"));
        }
        Ok(())
    }

    /// The certificates, leaf first.
    #[must_use]
    pub fn certificates(&self) -> &[Box<[u8]>] {
        &self.0.certificates
    }

    /// The leaf's fingerprint, for logs.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Whether it equals the chain `presented`, byte for byte.
    #[must_use]
    pub fn matches(&self, presented: &[impl AsRef<[u8]>]) -> bool {
        self.0.certificates.len() == presented.len()
            && self
                .0
                .certificates
                .iter()
                .zip(presented)
                .all(|(ours, its)| **ours == *its.as_ref())
    }

    /// Verifies the signatures from the leaf up to one of `roots`, with the dates and CA bits of the issuers.
    /// Returns the earliest notAfter of issuers and root. Without roots, nothing is checked.
    ///
    /// # Errors
    /// [`Denial::KmsRootMismatch`] for any failed check; [`Denial::MalformedCertificate`] for an issuer that is
    /// not a certificate.
    pub fn verify_up_to(&self, roots: &[KmsRoot], now: u64) -> Result<u64, Denial> {
        let mut until = u64::MAX;
        if roots.is_empty() {
            return Ok(until);
        }
        let parsed = self.parse_all()?;
        for (below, certificate) in parsed.iter().enumerate() {
            // `below` intermediates are between the leaf and the issuer of this certificate.
            for root in roots {
                let root = root.parse()?;
                if issued(&root, certificate, below, now) {
                    return Ok(until.min(unix_seconds(root.validity().not_after)));
                }
            }
            match parsed.get(below + 1) {
                Some(issuer) if issued(issuer, certificate, below, now) => {
                    until = until.min(unix_seconds(issuer.validity().not_after));
                }
                Some(_) | None => return Err(Denial::KmsRootMismatch),
            }
        }
        Err(Denial::KmsRootMismatch)
    }

    fn parse_all(&self) -> Result<Vec<X509Certificate<'_>>, Denial> {
        self.0.certificates.iter().map(|der| parse(der)).collect()
    }
}

/// Whether `issuer` issued `subject`: names and signature match.
fn issued(
    issuer: &X509Certificate<'_>,
    subject: &X509Certificate<'_>,
    below: usize,
    now: u64,
) -> bool {
    let validity = issuer.validity();
    let (from, until) = (
        unix_seconds(validity.not_before),
        unix_seconds(validity.not_after),
    );
    issuer.subject().as_raw() == subject.issuer().as_raw()
        && may_issue(issuer, below)
        && check_dates(from, until, now).is_ok()
        && subject.verify_signature(Some(issuer.public_key())).is_ok()
}

/// Whether it is a CA, may sign certificates, and allows `below` intermediates below it.
fn may_issue(certificate: &X509Certificate<'_>, below: usize) -> bool {
    let Ok(Some(constraints)) = certificate.basic_constraints() else {
        return false;
    };
    let within = |len: u32| usize::try_from(len).is_ok_and(|len| below <= len);
    let may_sign = match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    may_sign && constraints.value.ca && constraints.value.path_len_constraint.is_none_or(within)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Denial> {
    check_size(der)?;
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(Denial::MalformedCertificate(
            "an issuer is no X.509 certificate",
        )),
    }
}

pub(crate) fn fingerprint(der: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(der).into())
}

impl PartialEq for Chain {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.matches(&other.0.certificates)
    }
}

impl Eq for Chain {}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Chain({}, {} certificates)",
            self.0.fingerprint,
            self.0.certificates.len()
        )
    }
}

/// A pinned KMS root: a parsed CA certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct KmsRoot {
    der: Arc<[u8]>,
    fingerprint: Fingerprint,
}

/// Why a KMS root cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KmsRootError {
    /// Not PEM, or PEM of something other than a certificate.
    #[error("no PEM certificate in it")]
    NoPem,
    /// More than [`MAX_ROOTS_LEN`].
    #[error("the file is too large")]
    TooLarge,
    /// It is not an X.509 certificate.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// It is not a CA certificate.
    #[error("it is no CA certificate")]
    NotCa,
}

impl KmsRoot {
    /// A root from DER. Its dates are checked when it is used.
    ///
    /// # Errors
    /// [`KmsRootError`].
    pub fn from_der(der: &[u8]) -> Result<Self, KmsRootError> {
        let certificate = parse(der).map_err(|_| KmsRootError::Malformed)?;
        if !may_issue(&certificate, 0) {
            return Err(KmsRootError::NotCa);
        }
        Ok(Self {
            der: der.into(),
            fingerprint: fingerprint(der),
        })
    }

    /// All roots of a PEM file.
    ///
    /// # Errors
    /// [`KmsRootError`], also if one of several cannot be pinned.
    pub fn from_pem(pem: &[u8]) -> Result<Vec<Self>, KmsRootError> {
        if pem.len() > MAX_ROOTS_LEN {
            return Err(KmsRootError::TooLarge);
        }
        let mut roots = Vec::new();
        for block in Pem::iter_from_buffer(pem) {
            let block = block.map_err(|_| KmsRootError::NoPem)?;
            if block.label != "CERTIFICATE" {
                return Err(KmsRootError::NoPem);
            }
            roots.push(Self::from_der(&block.contents)?);
        }
        if roots.is_empty() {
            Err(KmsRootError::NoPem)
        } else {
            Ok(roots)
        }
    }

    /// The certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn parse(&self) -> Result<X509Certificate<'_>, Denial> {
        parse(&self.der)
    }
}

impl fmt::Debug for KmsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsRoot({})", self.fingerprint)
    }
}
