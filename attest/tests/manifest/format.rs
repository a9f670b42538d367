//! Parsing of records. Malformed ones are refused before the signature is verified.

use attest::manifest::{
    MAX_MANIFEST_FIELDS, MAX_MANIFEST_LEN, Manifest, ManifestError, join_chunks,
};

use crate::{GOLDEN_SIGNATURE, GOLDEN_TEXT, golden};

fn error(txt: &str) -> ManifestError {
    Manifest::parse(txt).unwrap_err()
}

fn with(from: &str, to: &str) -> String {
    let golden = golden();
    assert!(golden.contains(from), "{from}");
    golden.replacen(from, to, 1)
}

#[test]
fn golden_record_has_the_exact_signed_text() {
    let manifest = Manifest::parse(&golden()).unwrap();
    assert_eq!(manifest.signed_text(), GOLDEN_TEXT);
    assert_eq!(
        golden(),
        format!("{GOLDEN_TEXT};sig={GOLDEN_SIGNATURE}"),
        "TypeScript clients hash what precedes the last `;sig=`"
    );
}

#[test]
fn order_of_fields_does_not_matter() {
    let golden = golden();
    let mut pairs: Vec<_> = golden.split(';').collect();
    for _ in 0..pairs.len() {
        pairs.rotate_left(1);
        let manifest = Manifest::parse(&pairs.join(";")).unwrap();
        assert_eq!(manifest.signed_text(), GOLDEN_TEXT);
    }
}

#[test]
fn every_field_is_required_exactly_once() {
    let golden = golden();
    let pairs: Vec<_> = golden.split(';').collect();
    for (at, pair) in pairs.iter().enumerate() {
        let name = pair.split('=').next().unwrap();
        let mut without = pairs.clone();
        without.remove(at);
        let ManifestError::Missing(missing) = error(&without.join(";")) else {
            panic!("without {name}");
        };
        assert_eq!(missing, name);
        let ManifestError::Repeated(repeated) = error(&format!("{golden};{pair}")) else {
            panic!("{name} twice");
        };
        assert_eq!(repeated, name);
    }
    let unknown = error(&format!("{golden};x=1;x=2"));
    assert_eq!(unknown, ManifestError::Repeated("an unknown field"));
}

#[test]
fn malformed_records_are_refused() {
    let golden = golden();
    for txt in [
        "",
        ";",
        "v",
        "=1",
        &format!("{golden};"),
        &format!(";{golden}"),
        &with(";epoch", ";;epoch"),
        &format!("{golden};novalue"),
        &format!("{golden};Key=1"),
        &format!("{golden};a key=1"),
        &format!("{golden};{}=1", "k".repeat(33)),
        &format!("{golden};x=\n"),
        &format!("{golden};x=\0"),
        &format!("{golden};x=é"),
        &format!("{golden}\n"),
        &format!(" {golden}"),
        &format!("\"{golden}\""),
    ] {
        assert_eq!(error(txt).code(), "manifest_malformed", "{txt:?}");
    }
}

#[test]
fn length_and_number_of_fields_are_capped() {
    let golden = golden();
    let filler = |len: usize| format!("{golden};x={}", "y".repeat(len - golden.len() - 3));
    assert!(Manifest::parse(&filler(MAX_MANIFEST_LEN)).is_ok());
    assert_eq!(error(&filler(MAX_MANIFEST_LEN + 1)), ManifestError::TooLong);
    let more = |fields: usize| {
        let unknown = (7..fields).map(|at| format!(";x{at}="));
        golden.clone() + &unknown.collect::<String>()
    };
    assert!(Manifest::parse(&more(MAX_MANIFEST_FIELDS)).is_ok());
    assert_eq!(
        error(&more(MAX_MANIFEST_FIELDS + 1)),
        ManifestError::TooManyFields
    );
}

#[test]
fn malformed_values_are_refused() {
    let cluster = "0xbd32b609057a1a4569558a571d535c8f1212b097";
    let instance = "=ea23198e3419ebbb240571a29d0112d9bcbe69c0;";
    for (name, from, to) in [
        ("v", "v=1;", "v=;"),
        ("v", "v=1;", "v=01;"),
        ("v", "v=1;", "v=1.0;"),
        ("cluster", cluster, &cluster[2..]),
        ("cluster", cluster, &cluster[..41]),
        ("cluster", "0xbd", "0Xbd"),
        ("cluster", "0xbd", "0xgg"),
        ("leader_instance", instance, "=;"),
        ("leader_instance", instance, "=abc;"),
        ("leader_instance", instance, "=0xabcd;"),
        (
            "leader_instance",
            instance,
            &format!("={};", "ab".repeat(65)),
        ),
        ("epoch", "=42", "=-42"),
        ("epoch", "=42", "=+42"),
        ("epoch", "=42", "=042"),
        ("epoch", "=42", "= 42"),
        ("epoch", "=42", "=0x42"),
        ("epoch", "=42", "=18446744073709551616"),
        ("valid_until", "=1713312000", "="),
        ("valid_until", "=1713312000", "=1713312000.5"),
        ("sig", GOLDEN_SIGNATURE, &GOLDEN_SIGNATURE[2..]),
        ("sig", GOLDEN_SIGNATURE, &GOLDEN_SIGNATURE[..130]),
        ("sig", "861c", "861cff"),
    ] {
        let ManifestError::Value { name: found, .. } = error(&with(from, to)) else {
            panic!("{name}: {from} to {to}");
        };
        assert_eq!(found, name, "{from} to {to}");
    }
    let largest = with("=42", &format!("={}", u64::MAX));
    assert!(Manifest::parse(&largest).is_ok());
}

/// The version is checked after the fields.
#[test]
fn other_versions_are_refused() {
    for version in ["v=0", "v=2", "v=18446744073709551615"] {
        assert_eq!(error(&with("v=1", version)), ManifestError::Version);
    }
    let both = with("v=1", "v=2").replace("epoch=42", "epoch=x");
    assert_eq!(error(&both).code(), "manifest_field_value");
}

#[test]
fn txt_chunks_are_joined() {
    let golden = golden();
    let chunks: Vec<&[u8]> = golden.as_bytes().chunks(255).collect();
    assert!(chunks.len() > 1);
    assert_eq!(join_chunks(&chunks).unwrap(), golden);
    assert_eq!(join_chunks(&[]).unwrap(), "");
    assert_eq!(
        join_chunks(&[&[0xff]]).unwrap_err().code(),
        "manifest_malformed"
    );
    let full = [b'x'; 255];
    assert!(join_chunks(&[&full[..]; 8]).is_ok());
    assert_eq!(join_chunks(&[&full[..]; 9]), Err(ManifestError::TooLong));
}
