//! Mock certificates have the structure of dstack's, and evidence according to the options.

use attest::mock::{
    Binding, Certificate, CollateralOptions, DigestVersion, Envelope, Event, Evidence, Key,
    LeafOptions, PayloadForm, Pki, Platform, PlatformOptions, Rtmr3, SYSTEM_READY, Validity,
};
use dcap_qvl::verify::QuoteVerifier;
use sha2::{Digest, Sha384, Sha512};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{NOW, SEED};

fn issue(evidence: &Evidence, leaf: &LeafOptions) -> Certificate {
    let pki = Pki::new(&SEED).unwrap();
    let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
    let key = Key::derive(&SEED, "client 1").unwrap();
    Certificate::issue(&pki, &platform, &key, evidence, leaf).unwrap()
}

/// Numbers of dstack's extensions, and the contents of their inner OCTET STRING.
fn extensions(der: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let dstack = certificate.extensions().iter().filter_map(|extension| {
        let arc = extension
            .oid
            .to_id_string()
            .strip_prefix("1.3.6.1.4.1.62397.1.")?
            .parse()
            .unwrap();
        let (tag, rest) = extension.value.split_first().unwrap();
        assert_eq!(*tag, 4, "an inner OCTET STRING");
        let inner = match rest {
            [0x82, high, low, inner @ ..] => {
                assert_eq!(usize::from(u16::from_be_bytes([*high, *low])), inner.len());
                inner
            }
            [0x81, length, inner @ ..] | [length, inner @ ..] => {
                assert_eq!(usize::from(*length), inner.len());
                inner
            }
            [] => panic!("no length"),
        };
        Some((arc, inner.to_vec()))
    });
    dstack.collect()
}

#[test]
fn leaf_has_the_structure_of_dstacks() {
    let certificate = issue(&Evidence::default(), &LeafOptions::default());
    let (rest, leaf) = X509Certificate::from_der(certificate.der()).unwrap();
    assert!(rest.is_empty());
    assert_eq!(leaf.issuer().to_string(), "O=Dstack, CN=Dstack KMS CA");
    let standard: Vec<String> = leaf
        .extensions()
        .iter()
        .map(|e| e.oid.to_id_string())
        .filter(|o| o.starts_with("2.5."))
        .collect();
    // Subject alternative names, key usage, extended key usage; no AKI, SKI or basic constraints.
    assert_eq!(standard, ["2.5.29.17", "2.5.29.15", "2.5.29.37"]);
    assert_eq!(leaf.public_key().raw, certificate.key().spki_der());
    assert_eq!(leaf.public_key().raw.len(), 91);
    let [_, ca] = certificate.chain_der();
    let (_, ca) = X509Certificate::from_der(ca).unwrap();
    ca.verify_signature(None).unwrap();
    leaf.verify_signature(Some(ca.public_key())).unwrap();
    let constraints = ca.basic_constraints().unwrap().unwrap().value;
    assert_eq!(
        (constraints.ca, constraints.path_len_constraint),
        (true, Some(1))
    );
    assert_eq!(ca.subject().to_string(), "O=Dstack, CN=Dstack KMS CA");
    assert!(certificate.chain_pem().matches("BEGIN CERTIFICATE").count() == 2);
    assert!(
        certificate
            .key()
            .to_pkcs8_pem()
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
}

#[test]
fn each_envelope_has_its_extensions() {
    for (envelope, arcs) in [
        (Envelope::V0, &[4, 8][..]),
        (Envelope::V1, &[4, 8]),
        (Envelope::Legacy, &[4, 1, 2]),
        (Envelope::Both, &[4, 1, 2, 8]),
        (Envelope::None, &[4]),
    ] {
        let certificate = issue(
            &Evidence {
                envelope,
                ..Evidence::default()
            },
            &LeafOptions::default(),
        );
        let found = extensions(certificate.der());
        assert_eq!(
            found.iter().map(|(arc, _)| *arc).collect::<Vec<_>>(),
            arcs,
            "{envelope:?}"
        );
        assert_eq!(certificate.quote().is_some(), envelope != Envelope::None);
        for (arc, content) in found {
            match arc {
                1 => assert_eq!(content, certificate.quote().unwrap()),
                8 if envelope == Envelope::V0 => assert_eq!(content[..2], [0, 0]),
                8 => assert_eq!(content[0], 0x83, "a msgpack map of three"),
                _ => {}
            }
        }
    }
    let leaf = LeafOptions {
        app_id: Some(vec![1]),
        app_info: Some(vec![2]),
        usage: None,
        attestation: Some(b"not evidence".to_vec()),
        ..LeafOptions::default()
    };
    let none = Evidence {
        envelope: Envelope::None,
        ..Evidence::default()
    };
    let expected = [(3, vec![1]), (9, vec![2]), (8, b"not evidence".to_vec())];
    assert_eq!(extensions(issue(&none, &leaf).der()), expected);
}

#[test]
fn quote_is_bound_and_verifies() {
    let certificate = issue(&Evidence::default(), &LeafOptions::default());
    let pki = Pki::new(&SEED).unwrap();
    let collateral = pki.collateral(&CollateralOptions::at(NOW)).unwrap();
    let verified = QuoteVerifier::new(pki.root_der().to_vec())
        .verify(certificate.quote().unwrap(), &collateral, NOW)
        .unwrap();
    let td = *verified.report.as_td10().unwrap();
    let (_, leaf) = X509Certificate::from_der(certificate.der()).unwrap();
    let bound = Sha512::new()
        .chain_update(b"ratls-cert:")
        .chain_update(leaf.public_key().raw);
    assert_eq!(td.report_data[..], bound.finalize()[..]);

    let other = Evidence {
        binding: Binding::Bytes([9; 64]),
        ..Evidence::default()
    };
    let quote = issue(&other, &LeafOptions::default())
        .quote()
        .unwrap()
        .to_vec();
    let parsed = dcap_qvl::quote::Quote::parse(&quote).unwrap();
    assert_eq!(parsed.report.as_td10().unwrap().report_data, [9; 64]);
}

fn rtmr3(evidence: &Evidence) -> [u8; 48] {
    let certificate = issue(evidence, &LeafOptions::default());
    let parsed = dcap_qvl::quote::Quote::parse(certificate.quote().unwrap()).unwrap();
    parsed.report.as_td10().unwrap().rt_mr3
}

/// A second implementation of the replay, from dstack's `cc-eventlog`.
fn replayed(events: &[Event], version: DigestVersion) -> [u8; 48] {
    events.iter().fold([0; 48], |rtmr, event| {
        let name = &event.name;
        let digest = match version {
            DigestVersion::V1 => {
                let text = [&[1, 0, 0, 8, b':'], name.as_bytes(), b":", &event.payload].concat();
                Sha384::digest(text)
            }
            DigestVersion::V2 => {
                let payload = hex::encode(&event.payload);
                Sha384::digest(format!(
                    r#"{{"name":"{name}","payload":"{payload}","type":134217729}}"#
                ))
            }
        };
        Sha384::digest([&rtmr[..], &digest].concat()).into()
    })
}

#[test]
fn rtmr3_is_the_replay_unless_overridden() {
    for digests in [DigestVersion::V1, DigestVersion::V2] {
        let evidence = Evidence {
            digests,
            before_ready: vec![Event::new("extra", b"1")],
            after_ready: vec![Event::new("app-id", b"mine")],
            ..Evidence::default()
        };
        assert_eq!(rtmr3(&evidence), replayed(&evidence.events(), digests));
    }
    let evidence = Evidence {
        rtmr3: Rtmr3::Bytes([3; 48]),
        ..Evidence::default()
    };
    assert_eq!(rtmr3(&evidence), [3; 48]);
}

#[test]
fn events_are_in_dstacks_order() {
    let evidence = Evidence {
        before_ready: vec![Event::new("b", b"")],
        after_ready: vec![Event::new("a", b"")],
        ..Evidence::default()
    };
    let names: Vec<String> = evidence
        .events()
        .into_iter()
        .map(|event| event.name)
        .collect();
    let expected = [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "b",
        SYSTEM_READY,
        "a",
    ];
    assert_eq!(names, expected);
    let never = Evidence {
        ready: false,
        ..evidence
    };
    assert!(
        never
            .events()
            .iter()
            .all(|event| event.name != SYSTEM_READY)
    );
}

#[test]
fn payloads_are_bin_or_base64() {
    let attestation = |payloads, digests| {
        let evidence = Evidence {
            payloads,
            digests,
            ..Evidence::default()
        };
        let found = extensions(issue(&evidence, &LeafOptions::default()).der());
        found.into_iter().find(|(arc, _)| *arc == 8).unwrap().1
    };
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let app_id = [&b"\xa5event\xa6app-id\xa7payload\xc4\x14"[..], &[0xa1; 20]].concat();
    let bin = attestation(PayloadForm::Bin, DigestVersion::V1);
    assert!(has(&bin, &app_id));
    assert!(!has(&bin, b"\xa7payload\xc4\x00\xa7version"));
    let text = attestation(PayloadForm::Base64, DigestVersion::V2);
    assert!(has(
        &text,
        b"\xa6app-id\xa7payload\xbcoaGhoaGhoaGhoaGhoaGhoaGhoaE=\xa7version\x02"
    ));
}

#[test]
fn leaf_has_the_requested_validity() {
    let validity = Validity {
        from: NOW,
        until: NOW + 60,
    };
    let certificate = issue(
        &Evidence::default(),
        &LeafOptions {
            validity,
            ..LeafOptions::default()
        },
    );
    let (_, leaf) = X509Certificate::from_der(certificate.der()).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), 1_800_000_000);
    assert_eq!(leaf.validity().not_after.timestamp(), 1_800_000_060);
    let never = LeafOptions {
        validity: Validity {
            from: 0,
            until: u64::MAX,
        },
        ..LeafOptions::default()
    };
    let pki = Pki::new(&SEED).unwrap();
    let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
    let key = Key::derive(&SEED, "client 1").unwrap();
    let error =
        Certificate::issue(&pki, &platform, &key, &Evidence::default(), &never).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("unix time {} is after the year 9999", u64::MAX)
    );
}

#[test]
fn same_seed_gives_the_same_certificate() {
    let make = || issue(&Evidence::default(), &LeafOptions::default());
    assert_eq!(make().der(), make().der());
    assert_eq!(
        hex::encode(sha2::Sha256::digest(make().der())),
        "de51ccc5b0818e3c6e076ff39e35b2b66c5c85c188d76d5075eebb1bea23263d",
        "certificates are no longer derived in the same way from a seed"
    );
}

#[test]
fn keys_are_read_from_pem() {
    let key = Key::derive(&SEED, "own").unwrap();
    let again = Key::from_pkcs8_pem(&key.to_pkcs8_pem().unwrap()).unwrap();
    assert_eq!(again.spki_der(), key.spki_der());
    assert!(Key::from_pkcs8_pem("nonsense").is_err());
}
