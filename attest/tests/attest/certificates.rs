//! Leaf certificates: which extensions carry evidence, and which certificates are refused.

use attest::certificate::{
    Leaf, MAX_EXTENSIONS, MAX_SKELETON_LEN, MAX_UNREAD_LEN, server_end_point,
};
use attest::evidence::{EvidenceFormat, MAX_ENVELOPE_LEN, UnboundEvidence};
use attest::mock::{Certificate, Evidence, Fixture, Key, LeafOptions, Platform};
use attest::{Denial, examine};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use sha2::{Digest, Sha256, Sha384};

use crate::NOW;
use crate::evidence::quote;

const ARC: [u64; 9] = [1, 3, 6, 1, 4, 1, 62397, 1, 0];

/// A self-signed leaf with extensions under dstack's arc, each wrapped in an OCTET STRING.
pub(crate) fn leaf_with(extensions: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let wrap = |content: &Vec<u8>| {
        let mut der = vec![0x04];
        match content.len() {
            len @ 0..=0x7f => der.push(u8::try_from(len).unwrap()),
            len => {
                der.push(0x84);
                der.extend(u32::try_from(len).unwrap().to_be_bytes());
                let zeros = der[2..].iter().take_while(|byte| **byte == 0).count();
                der.splice(1..2 + zeros, [0x84 - u8::try_from(zeros).unwrap()]);
            }
        }
        der.extend(content);
        der
    };
    raw_leaf_with(
        extensions
            .iter()
            .map(|(number, content)| (*number, wrap(content))),
    )
}

fn raw_leaf_with(extensions: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    for (number, der) in extensions {
        let mut oid = ARC;
        oid[8] = number;
        params
            .custom_extensions
            .push(CustomExtension::from_oid_content(&oid, der));
    }
    params.self_signed(&key).unwrap().der().to_vec()
}

fn read_leaf(der: &[u8]) -> Result<EvidenceFormat, Denial> {
    let leaf = Leaf::parse(der)?;
    UnboundEvidence::from_extensions(leaf.extensions()).map(|evidence| evidence.format())
}

#[test]
fn attestation_extension_has_precedence() {
    let (quote, other) = (quote(), {
        let mut quote = quote();
        quote[600] ^= 1;
        quote
    });
    let log = || Evidence::default().legacy_event_log().unwrap();
    let envelope = || Evidence::default().v1(&quote, [0; 64]).unwrap();
    let form = |extensions: &[(u64, Vec<u8>)]| read_leaf(&leaf_with(extensions));
    assert_eq!(form(&[(8, envelope())]), Ok(EvidenceFormat::V1));
    assert_eq!(
        form(&[(1, quote.clone()), (2, log())]),
        Ok(EvidenceFormat::Legacy)
    );
    assert_eq!(form(&[(1, quote.clone())]), Ok(EvidenceFormat::Legacy));
    assert_eq!(
        form(&[(1, quote.clone()), (2, log()), (8, envelope())]),
        Ok(EvidenceFormat::V1)
    );
    assert_eq!(form(&[(2, log())]), Err(Denial::NoEvidence));
    assert_eq!(form(&[(3, vec![1; 20])]), Err(Denial::NoEvidence));
    let differ = Denial::MalformedEvidence("the quotes in .1 and .8 differ");
    assert_eq!(form(&[(1, other), (8, envelope())]), Err(differ));
    // There is no fallback from a malformed .8 to a valid .1.
    assert!(form(&[(1, quote.clone()), (8, vec![1])]).is_err());
}

#[test]
fn malformed_and_duplicate_extensions_are_refused() {
    let form = |extensions: Vec<(u64, Vec<u8>)>| read_leaf(&raw_leaf_with(extensions));
    for raw in [
        vec![],
        vec![0x04],
        vec![0x04, 0x05, 1],
        vec![0x04, 1, 1, 9],
        vec![0x03, 1, 1],
    ] {
        let not_octets = "an evidence extension is no OCTET STRING";
        assert_eq!(
            form(vec![(8, raw)]),
            Err(Denial::MalformedCertificate(not_octets))
        );
    }
    let twice = "an evidence extension is there twice";
    let duplicate = form(vec![(8, vec![4, 0]), (8, vec![4, 0])]);
    assert_eq!(duplicate, Err(Denial::MalformedCertificate(twice)));
    let many: Vec<_> = (0..MAX_EXTENSIONS as u64)
        .map(|n| (100 + n, vec![4, 0]))
        .collect();
    assert!(matches!(form(many), Err(Denial::MalformedCertificate(_))));
}

#[test]
fn oversized_and_malformed_certificates_are_refused() {
    let large = |names: usize| {
        let names = (0..names)
            .map(|n| format!("{n:060}.invalid"))
            .collect::<Vec<_>>();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(names)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        Leaf::parse(leaf.der())
            .map(|_| ())
            .map_err(|denial| denial.to_string())
    };
    assert_eq!(large(MAX_SKELETON_LEN / 80), Ok(()));
    assert!(
        large(MAX_SKELETON_LEN / 60)
            .unwrap_err()
            .contains("without its evidence")
    );
    let huge = leaf_with(&[
        (8, vec![0; MAX_ENVELOPE_LEN]),
        (1, vec![0; MAX_ENVELOPE_LEN / 4]),
    ]);
    assert!(
        Leaf::parse(&huge)
            .unwrap_err()
            .to_string()
            .contains("too large")
    );
    let fixture = Fixture::default();
    let der = fixture.certificate().der().to_vec();
    let longer = [&der[..], &[0]].concat();
    let malformed = |der: &[u8]| Leaf::parse(der).unwrap_err().code() == "malformed_certificate";
    assert!(malformed(&longer));
    let version_3 = [0xa0, 3, 2, 1, 2];
    let at = der
        .windows(5)
        .position(|window| window == version_3)
        .unwrap();
    let mut version_2 = der;
    version_2[at + 4] = 1;
    assert!(malformed(&version_2));
}

/// Of padding that no check reads 1 KiB is allowed, in whatever extensions it is. Large evidence is not padding.
#[test]
fn padding_in_extensions_is_refused() {
    let parse = |extensions: &[(u64, Vec<u8>)]| {
        let der = leaf_with(extensions);
        Leaf::parse(&der).map(|_| ()).map_err(|denial| {
            assert_eq!(denial.code(), "malformed_certificate");
            denial.to_string()
        })
    };
    // Each value is in an OCTET STRING, which is in another one: 4 bytes each.
    let fits = MAX_UNREAD_LEN - 16;
    for number in [3, 4, 5, 9, 77] {
        assert_eq!(parse(&[(number, vec![0; fits])]), Ok(()), "{number}");
        let refused = parse(&[(number, vec![0; MAX_UNREAD_LEN])]).unwrap_err();
        assert!(refused.contains("not read"), "{number}: {refused}");
    }
    let spread: Vec<_> = (0..5).map(|n| (50 + n, vec![0; 250])).collect();
    assert!(parse(&spread).is_err());
    assert_eq!(parse(&[(8, vec![0; 300 << 10])]), Ok(()));
    assert_eq!(
        parse(&[(1, vec![0; 5_000]), (2, vec![0; 100 << 10])]),
        Ok(())
    );
}

#[test]
fn evidence_copied_into_another_certificate_is_unbound() {
    let fixture = Fixture::default();
    let victim = fixture.certificate();
    let attacker = Key::derive(&[9; 32], "attacker").unwrap();
    let platform = Platform::new(&fixture.pki, &fixture.platform).unwrap();
    let envelope = fixture
        .evidence
        .v1(victim.quote().unwrap(), victim.key().report_data())
        .unwrap();
    let leaf = LeafOptions {
        attestation: Some(envelope),
        ..fixture.leaf.clone()
    };
    let replayed = Certificate::issue(&fixture.pki, &platform, &attacker, &fixture.evidence, &leaf);
    let denial = examine(&replayed.unwrap().chain_der(), NOW, &fixture.policy).unwrap_err();
    assert_eq!(denial, Denial::UnboundKey);
}

#[test]
fn unknown_critical_extension_is_refused() {
    let leaf = |critical| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let mut extension =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0]);
        extension.set_criticality(critical);
        params.custom_extensions.push(extension);
        params.self_signed(&key).unwrap().der().to_vec()
    };
    assert!(Leaf::parse(&leaf(false)).is_ok());
    assert_eq!(
        Leaf::parse(&leaf(true)).unwrap_err(),
        Denial::MalformedCertificate("it has an unknown critical extension")
    );
}

#[test]
fn tls_server_end_point_follows_the_signature_algorithm() {
    let leaf = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let with_sha256 = leaf(&rcgen::PKCS_ECDSA_P256_SHA256);
    let hash = Some(Sha256::digest(&with_sha256).to_vec());
    assert_eq!(server_end_point(&with_sha256), hash);
    let with_sha384 = leaf(&rcgen::PKCS_ECDSA_P384_SHA384);
    let hash = Some(Sha384::digest(&with_sha384).to_vec());
    assert_eq!(server_end_point(&with_sha384), hash);
    assert_eq!(server_end_point(&leaf(&rcgen::PKCS_ED25519)), None);

    let mut trailing = with_sha256.clone();
    trailing.push(0);
    assert_eq!(server_end_point(&trailing), None);
    for end in 0..with_sha256.len() {
        assert_eq!(server_end_point(&with_sha256[..end]), None);
    }
}
