//! The channel binding `tls-server-end-point`: the hash of a server's certificate.
//! [RFC 5929, section 4]
//!
//! It exists so that a client can bind its login to the certificate that it sees, and an attacker
//! with another certificate cannot pass the login on. It must not be guessed: a certificate whose
//! signature algorithm names no single hash function has no such binding.

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::X509CertificateParser;
use x509_parser::nom::Parser;
use x509_parser::oid_registry::asn1_rs::oid;

use super::check_size;

/// Hashes a certificate in DER with the hash function of its signature algorithm, or with SHA-256
/// in place of MD5 and SHA-1.
///
/// Returns `None` for anything that is not a certificate, and where the algorithm alone does not
/// name one of these hash functions, as with Ed25519 and RSASSA-PSS. libpq before 16 ends a login
/// with such a certificate if a channel binding is offered. [PostgreSQL 15 `fe-secure-openssl.c`,
/// pgtls_get_peer_certificate_hash]
#[must_use]
pub fn server_end_point(der: &[u8]) -> Option<Vec<u8>> {
    check_size(der).ok()?;
    let (rest, certificate) = X509CertificateParser::new()
        .with_deep_parse_extensions(false)
        .parse(der)
        .ok()?;
    if !rest.is_empty() {
        return None;
    }
    Some(
        match hash_function(&certificate.signature_algorithm.algorithm)? {
            HashFunction::Sha256 => Sha256::digest(der).to_vec(),
            HashFunction::Sha384 => Sha384::digest(der).to_vec(),
            HashFunction::Sha512 => Sha512::digest(der).to_vec(),
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HashFunction {
    Sha256,
    Sha384,
    Sha512,
}

/// The hash function for a signature algorithm. [RFC 3279, RFC 4055, RFC 5758]
fn hash_function(algorithm: &Oid<'_>) -> Option<HashFunction> {
    let algorithms = [
        // md5WithRSAEncryption, sha1WithRSAEncryption, ecdsa-with-SHA1
        (oid!(1.2.840.113549.1.1.4), HashFunction::Sha256),
        (oid!(1.2.840.113549.1.1.5), HashFunction::Sha256),
        (oid!(1.2.840.10045.4.1), HashFunction::Sha256),
        // sha256WithRSAEncryption, ecdsa-with-SHA256
        (oid!(1.2.840.113549.1.1.11), HashFunction::Sha256),
        (oid!(1.2.840.10045.4.3.2), HashFunction::Sha256),
        // sha384WithRSAEncryption, ecdsa-with-SHA384
        (oid!(1.2.840.113549.1.1.12), HashFunction::Sha384),
        (oid!(1.2.840.10045.4.3.3), HashFunction::Sha384),
        // sha512WithRSAEncryption, ecdsa-with-SHA512
        (oid!(1.2.840.113549.1.1.13), HashFunction::Sha512),
        (oid!(1.2.840.10045.4.3.4), HashFunction::Sha512),
    ];
    let found = algorithms.iter().find(|(oid, _)| oid == algorithm);
    found.map(|(_, function)| *function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_algorithm_names_its_hash() {
        let known = |oid: Oid<'_>| hash_function(&oid);
        assert_eq!(known(oid!(1.2.840.10045.4.3.2)), Some(HashFunction::Sha256));
        assert_eq!(known(oid!(1.2.840.10045.4.3.3)), Some(HashFunction::Sha384));
        assert_eq!(
            known(oid!(1.2.840.113549.1.1.13)),
            Some(HashFunction::Sha512)
        );
        assert_eq!(
            known(oid!(1.2.840.113549.1.1.5)),
            Some(HashFunction::Sha256)
        );
        // RSASSA-PSS, Ed25519.
        assert_eq!(known(oid!(1.2.840.113549.1.1.10)), None);
        assert_eq!(known(oid!(1.3.101.112)), None);
    }

    #[test]
    fn other_bytes_have_no_binding() {
        assert_eq!(server_end_point(b""), None);
        assert_eq!(server_end_point(&[0x30, 0x00]), None);
    }
}
