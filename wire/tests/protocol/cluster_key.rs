//! Tests of the passwords that are derived from a cluster key.

use std::collections::BTreeSet;

use wire::cluster_key::{ClusterKey, ClusterKeyError, PasswordLabel};

const TEXT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// Computed with Python's `hmac` and `hashlib`, and the first also with `openssl kdf`, from the
/// key [`TEXT`] and from a key of 32 bytes 0xff.
const VECTORS: [(&str, &str, &str); 6] = [
    (
        "pg/superuser",
        "102b2d5a9da4a0208ee9a885faf7d4313d6d168835229f7e677621c8ef7779ad",
        "bd93acd266bb3bd48b4fc1dc2ab2dfd65a53681c380f4d8bb3292e14d16851db",
    ),
    (
        "pg/teesql_read",
        "0e3cd40efb4a03a91bb9a4361efebe2dec1606437f5034761f7dbe6eda4878ac",
        "bc6e35a36e6ce8a7bb0550a749ee83c07f2450643b092643e7ad89fcbeaa43fb",
    ),
    (
        "pg/teesql_readwrite",
        "613a3f9e5ec7247422dec22f53483bc1b2ceedd659dc31f27ff451710aa3ae36",
        "78fe56664612685c6be52e926095e1ae754aa4cf43d16e2af8e6ad98142599fd",
    ),
    (
        "pg/replicator",
        "8ad60d897157ceba30e9679158482619d939c1405ca6593c8f29f96a56f50778",
        "8946f84b190db27a431251984b6ace631720b5d8be4ab2a4f2a5ab148f0e647d",
    ),
    (
        "pg/rewind",
        "b9cacf27f432b15834a872cb8caf44acb3d775fa502b3c0a48801a189f56d6ff",
        "1bc2f7f38642b516bbd61b5ab41aefe898fdc70285f8b73ad5c60a790a3e931b",
    ),
    (
        "backup/encryption",
        "5128ba4a7b485a700da47ec1a7fa6a867cad418e52af802d64629bdc91608544",
        "569f5500d425527a40e9a1efb13e8a53f9517315f8345904f2a6fb03b978a0d9",
    ),
];

fn password(key: &ClusterKey, label: PasswordLabel) -> String {
    String::from_utf8(key.password(label).as_bytes().to_vec()).unwrap()
}

#[test]
fn passwords_match_an_independent_computation() {
    let counting: ClusterKey = TEXT.parse().unwrap();
    let ones = ClusterKey::from_bytes([0xff; 32]);
    let derived = PasswordLabel::ALL.map(|label| {
        (
            label.as_str(),
            password(&counting, label),
            password(&ones, label),
        )
    });
    let expected = VECTORS.map(|(label, a, b)| (label, a.to_owned(), b.to_owned()));
    assert_eq!(derived, expected);
}

#[test]
fn each_bit_of_the_key_changes_each_password() {
    let mut passwords = BTreeSet::new();
    for bit in 0..256 {
        let mut bytes = [0; 32];
        bytes[bit / 8] = 1 << (bit % 8);
        let key = ClusterKey::from_bytes(bytes);
        for label in PasswordLabel::ALL {
            assert!(passwords.insert(password(&key, label)));
        }
    }
    assert_eq!(passwords.len(), 256 * 6);
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    assert!(
        passwords
            .iter()
            .all(|text| text.len() == 64 && text.bytes().all(is_hex))
    );
}

#[test]
fn a_key_may_be_written_in_either_case() {
    let upper: ClusterKey = TEXT.to_uppercase().parse().unwrap();
    let (label, expected, _) = VECTORS[3];
    assert_eq!(PasswordLabel::Replicator.as_str(), label);
    assert_eq!(password(&upper, PasswordLabel::Replicator), expected);
}

#[test]
fn parse_errors_of_a_cluster_key_never_quote_the_text() {
    let error = |text: &str| text.parse::<ClusterKey>().unwrap_err();
    assert_eq!(error(""), ClusterKeyError::Length { characters: 0 });
    assert_eq!(
        error(&TEXT[1..]),
        ClusterKeyError::Length { characters: 63 }
    );
    assert_eq!(
        error(&format!("{TEXT}\n")),
        ClusterKeyError::Length { characters: 65 }
    );
    let wrong = error(&TEXT.replace("1f", "1g"));
    assert_eq!(wrong, ClusterKeyError::NotHex { position: 64 });
    assert_eq!(
        wrong.to_string(),
        "a cluster key has 64 hex characters, but character 64 is not a hex digit"
    );
    assert_eq!(
        error(&TEXT[1..]).to_string(),
        "a cluster key has 64 hex characters, not 63"
    );
}

#[test]
fn debug_output_holds_no_key() {
    let key: ClusterKey = TEXT.parse().unwrap();
    assert_eq!(format!("{key:?}"), "ClusterKey(redacted)");
    assert_eq!(
        format!("{:?}", key.password(PasswordLabel::Read)),
        "Password(redacted)"
    );
}
