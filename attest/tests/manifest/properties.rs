//! Property tests: no record from DNS is accepted unless exactly its content was signed.

use std::sync::LazyLock;

use attest::manifest::{Manifest, ManifestPolicy, UnsignedManifest};
use proptest::prelude::*;

use crate::{NOW, golden, key, trust};

static GOLDEN: LazyLock<(String, Manifest)> = LazyLock::new(|| {
    let txt = golden();
    let manifest = Manifest::parse(&txt)
        .unwrap()
        .verify(&trust(), NOW)
        .unwrap();
    (txt, manifest)
});

/// If `txt` is accepted, it is the golden manifest, apart from the case of hex digits.
fn check(txt: &str) -> Result<(), TestCaseError> {
    let Ok(unverified) = Manifest::parse(txt) else {
        return Ok(());
    };
    if let Ok(manifest) = unverified.verify(&trust(), NOW) {
        prop_assert_eq!(&manifest, &GOLDEN.1, "{}", txt);
        prop_assert!(txt.eq_ignore_ascii_case(&GOLDEN.0), "{}", txt);
    }
    Ok(())
}

#[test]
fn changes_at_any_position_are_refused() {
    let (golden, manifest) = &*GOLDEN;
    let mut accepted = 0;
    for at in 0..golden.len() {
        // The other case, the next character, and a few others: each costs a signature verification.
        let own = golden.as_bytes()[at];
        for byte in [own ^ 0x20, own ^ 1, b'0', b'f', b';', b'='] {
            let mut changed = golden.clone().into_bytes();
            changed[at] = byte;
            let Ok(txt) = String::from_utf8(changed) else {
                continue;
            };
            let Ok(unverified) = Manifest::parse(&txt) else {
                continue;
            };
            if let Ok(same) = unverified.verify(&trust(), NOW) {
                assert_eq!(&same, manifest, "{txt}");
                let case = txt.eq_ignore_ascii_case(golden);
                assert!(case, "byte {at} of {txt}");
                accepted += 1;
            }
        }
    }
    assert!(accepted > 0, "upper-case hex is the same manifest");
}

proptest! {
    #[test]
    fn changed_character_is_refused(at in any::<prop::sample::Index>(), to in any::<char>()) {
        let mut chars: Vec<char> = GOLDEN.0.chars().collect();
        let at = at.index(chars.len());
        chars[at] = to;
        check(&chars.into_iter().collect::<String>())?;
    }

    #[test]
    fn changed_hex_digit_is_refused(at in any::<prop::sample::Index>(), to in "[0-9a-fA-F]") {
        let mut txt = GOLDEN.0.clone();
        let at = at.index(txt.len());
        txt.replace_range(at..=at, &to);
        check(&txt)?;
    }

    #[test]
    fn spliced_record_is_refused(at in any::<prop::sample::Index>(), take in 0..40usize, put in "[ -~]{0,40}") {
        let mut txt = GOLDEN.0.clone();
        let at = at.index(txt.len());
        let end = txt.len().min(at + take);
        txt.replace_range(at..end, &put);
        let Ok(unverified) = Manifest::parse(&txt) else { return Ok(()) };
        if let Ok(manifest) = unverified.verify(&trust(), NOW) {
            prop_assert_eq!(&manifest, &GOLDEN.1);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(txt in ".{0,2100}") {
        let _ = Manifest::parse(&txt);
    }

    /// Signing is deterministic.
    #[test]
    fn signed_draft_round_trips(
        cluster in any::<[u8; 20]>(),
        instance in prop::collection::vec(any::<u8>(), 1..64),
        host in "[a-z]{1,20}\\.example",
        port in 1..=u16::MAX,
        (epoch, valid_until) in any::<(u64, u64)>().prop_map(|(e, v)| (e, v.max(1))),
    ) {
        let draft = UnsignedManifest {
            cluster: attest::manifest::EthAddress(cluster),
            leader_instance: hex::encode(instance).parse().unwrap(),
            leader_url: format!("https://{host}:{port}").parse().unwrap(),
            epoch,
            valid_until,
        };
        let txt = draft.sign(&key()).unwrap();
        let unverified = Manifest::parse(&txt).unwrap();
        prop_assert_eq!(unverified.signed_text(), draft.signed_text());
        let any = ManifestPolicy { max_validity: None, ..trust() };
        let manifest = unverified.verify(&any, valid_until - 1).unwrap();
        prop_assert_eq!(manifest.target().to_string(), format!("{host}:{port}"));
        prop_assert_eq!((manifest.epoch(), manifest.valid_until()), (epoch, valid_until));
        prop_assert_eq!(draft.sign(&key()).unwrap(), txt);
    }
}
