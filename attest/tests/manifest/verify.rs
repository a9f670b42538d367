//! Signature, signer, cluster and validity of a manifest.

use std::time::Duration;

use attest::manifest::{
    DEFAULT_MAX_VALIDITY, LeaderState, LeaderUpdate, Manifest, ManifestError, ManifestPolicy,
    SigningKey,
};

use crate::{GOLDEN_SIGNER, NOW, VALID_UNTIL, address, draft, golden, key, trust, verified};

fn verify(txt: &str, trust: &ManifestPolicy, now: u64) -> Result<Manifest, ManifestError> {
    Manifest::parse(txt).unwrap().verify(trust, now)
}

#[test]
fn golden_manifest_is_accepted() {
    assert_eq!(key().address().to_string(), GOLDEN_SIGNER);
    let manifest = verify(&golden(), &trust(), NOW).unwrap();
    assert_eq!(manifest.cluster(), draft().cluster);
    assert_eq!(manifest.leader_instance(), &draft().leader_instance);
    assert_eq!(manifest.leader_url(), &draft().leader_url);
    assert_eq!(
        (manifest.epoch(), manifest.valid_until()),
        (42, VALID_UNTIL)
    );
    assert_eq!(manifest.signer().to_string(), GOLDEN_SIGNER);
    let host = "ea23198e3419ebbb240571a29d0112d9bcbe69c0-5433.dstack-base-prod9.phala.network";
    assert_eq!(
        (manifest.target().host(), manifest.target().port()),
        (host, 443)
    );
}

#[test]
fn upper_case_hex_is_the_same_manifest() {
    let mut txt = golden();
    for part in [
        "bd32b609057a1a4569558a571d535c8f1212b097;",
        "instance=ea23198e3419ebbb240571a29d0112d9bcbe69c0",
        "7b187a800cf974db9fe80c5b5ec16c09acfc32b7035d5d169b29245c1f46fbd0",
    ] {
        assert!(txt.contains(part));
        let upper = part.to_ascii_uppercase().replace("INSTANCE", "instance");
        txt = txt.replacen(part, &upper, 1);
    }
    let same = verify(&txt, &trust(), NOW).unwrap();
    assert_eq!(same, verify(&golden(), &trust(), NOW).unwrap());
    assert_eq!(
        same.leader_instance().as_str(),
        draft().leader_instance.as_str()
    );
}

#[test]
fn another_signer_is_refused() {
    let refused = verify(&golden(), &ManifestPolicy::for_signer(address(0x19)), NOW).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "manifest signature verification failed"
    );
    let recovered = Some(key().address());
    assert_eq!(refused, ManifestError::Signature { recovered });
    let other = SigningKey::from_hex(&"22".repeat(32)).unwrap();
    let txt = draft().sign(&other).unwrap();
    let recovered = Some(other.address());
    let refused = verify(&txt, &trust(), NOW).unwrap_err();
    assert_eq!(refused, ManifestError::Signature { recovered });
}

#[test]
fn invalid_signatures_are_refused() {
    let golden = golden();
    let (head, signature) = golden.split_once(";sig=0x").unwrap();
    for wrong in [
        "00".repeat(65),
        "ff".repeat(65),
        format!("{}1d", &signature[..128]),
        format!("{}1b", &signature[..128]),
        format!("{}{}", "00".repeat(32), &signature[64..]),
        format!("{}{}1c", &signature[..64], "00".repeat(32)),
    ] {
        let refused = verify(&format!("{head};sig=0x{wrong}"), &trust(), NOW).unwrap_err();
        assert_eq!(refused.code(), "manifest_signature", "{wrong}");
    }
    // The other notation of the recovery id.
    let zero = format!("{head};sig=0x{}01", &signature[..128]);
    assert!(verify(&zero, &trust(), NOW).is_ok());
}

/// The signature was made with eth-account.
#[test]
fn unknown_fields_are_signed_and_accepted() {
    let golden_txt = golden();
    let (fields, _) = golden_txt.rsplit_once(";sig=").unwrap();
    let signature = "c75bec3d5e7c4adca5bd325ae1a113d43d13aab4e0aed6e7ae659cf6802b586e\
        31fa38edc3c386525fd262d940867af855a7fb5fd33a58d03b5763039caff6ca1c";
    let txt = format!("note=Hello = World;{fields};sig=0x{signature}");
    let manifest = verify(&txt, &trust(), NOW).unwrap();
    assert_eq!(manifest, verify(&golden(), &trust(), NOW).unwrap());
    let lower = txt.replace("Hello", "hello");
    assert_eq!(
        verify(&lower, &trust(), NOW).unwrap_err().code(),
        "manifest_signature"
    );
}

#[test]
fn unknown_fields_cannot_be_added() {
    let added = format!("{};note=hello", golden());
    let refused = verify(&added, &trust(), NOW).unwrap_err();
    assert_eq!(refused.code(), "manifest_signature");
    let text = Manifest::parse(&added).unwrap().signed_text().to_owned();
    assert!(text.contains(";note=hello;v=1;"), "{text}");
}

#[test]
fn manifest_is_expired_from_its_valid_until() {
    for now in [VALID_UNTIL, VALID_UNTIL + 1, u64::MAX] {
        let refused = verify(&golden(), &trust(), now).unwrap_err();
        assert_eq!(refused, ManifestError::Expired);
        assert_eq!(refused.to_string(), "manifest expired");
    }
    // The signer is checked before the date.
    let refused = verify(
        &golden(),
        &ManifestPolicy::for_signer(address(1)),
        VALID_UNTIL,
    )
    .unwrap_err();
    assert_eq!(refused.code(), "manifest_signature");
}

#[test]
fn validity_beyond_the_maximum_is_refused() {
    let limit = DEFAULT_MAX_VALIDITY.as_secs();
    let at = VALID_UNTIL - limit;
    assert!(verify(&golden(), &trust(), at).is_ok());
    let refused = ManifestError::FarFuture { limit };
    assert_eq!(verify(&golden(), &trust(), at - 1), Err(refused));
    let hour = ManifestPolicy {
        max_validity: Some(Duration::from_secs(3600)),
        ..trust()
    };
    assert!(verify(&golden(), &hour, VALID_UNTIL - 3600).is_ok());
    assert!(verify(&golden(), &hour, VALID_UNTIL - 3601).is_err());
    let any = ManifestPolicy {
        max_validity: None,
        ..trust()
    };
    assert!(verify(&golden(), &any, 0).is_ok());
}

#[test]
fn pinned_cluster_is_enforced() {
    let pinned = |cluster| ManifestPolicy {
        cluster: Some(cluster),
        ..trust()
    };
    assert!(verify(&golden(), &pinned(draft().cluster), NOW).is_ok());
    let refused = verify(&golden(), &pinned(address(1)), NOW);
    assert_eq!(refused, Err(ManifestError::OtherCluster));
}

#[test]
fn every_error_has_its_own_code() {
    let name = "v";
    let all = [
        ManifestError::TooLong,
        ManifestError::TooManyFields,
        ManifestError::Malformed("why"),
        ManifestError::Missing(name),
        ManifestError::Repeated(name),
        ManifestError::Value {
            name,
            expected: "a value",
        },
        ManifestError::LeaderUrl("why"),
        ManifestError::Version,
        ManifestError::Signature { recovered: None },
        ManifestError::OtherCluster,
        ManifestError::Expired,
        ManifestError::FarFuture { limit: 1 },
        ManifestError::OldEpoch { found: 1, held: 2 },
        ManifestError::Equivocation { epoch: 1 },
    ];
    assert_eq!(all.map(|error| error.code()), ManifestError::CODES);
}

#[test]
fn verified_manifest_gives_its_target() {
    let mut state = LeaderState::default();
    assert_eq!(state.accept(verified(|_| ())), Ok(LeaderUpdate::New));
    let leader = state.leader(NOW).unwrap().unwrap();
    assert_eq!(leader.target().port(), 443);
}
