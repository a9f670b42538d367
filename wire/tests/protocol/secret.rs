//! Tests of secrets and their constant-time comparison.

use wire::secret::{ClusterSecret, ClusterSecretError, Password};

const TEXT: &str = "00112233445566778899aabbccddeeff0123456789abcdefFEDCBA9876543210";

fn matches(presented: impl AsRef<[u8]>) -> bool {
    let secret: ClusterSecret = TEXT.parse().unwrap();
    secret.matches(presented.as_ref()).into()
}

#[test]
fn a_cluster_secret_matches_itself_in_either_case() {
    assert!(matches(TEXT));
    assert!(matches(TEXT.to_lowercase()));
    assert!(matches(TEXT.to_uppercase()));
}

#[test]
fn a_cluster_secret_matches_nothing_else() {
    assert!(!matches(""));
    assert!(!matches(&TEXT[1..]));
    assert!(!matches(format!("{TEXT}0")));
    assert!(!matches(format!("{TEXT}{TEXT}")));
    // Every other byte at every position, including the bytes adjacent to digits and letters.
    let right = TEXT.as_bytes();
    for position in 0..right.len() {
        for byte in 0..=255_u8 {
            let mut wrong = right.to_vec();
            wrong[position] = byte;
            assert_eq!(matches(&wrong), byte.eq_ignore_ascii_case(&right[position]));
        }
    }
}

#[test]
fn a_wrong_length_never_matches_zeros() {
    let zeros: ClusterSecret = "0".repeat(64).parse().unwrap();
    for length in (0..=200).filter(|length| *length != 64) {
        assert!(!bool::from(zeros.matches("0".repeat(length).as_bytes())));
    }
    assert!(!bool::from(zeros.matches(&[0; 32])));
    assert!(!bool::from(zeros.matches(&[0; 64])));
}

#[test]
fn parse_errors_of_a_cluster_secret_never_quote_the_text() {
    let error = |text: &str| text.parse::<ClusterSecret>().unwrap_err();
    assert_eq!(error(""), ClusterSecretError::Length { characters: 0 });
    assert_eq!(
        error(&TEXT[1..]),
        ClusterSecretError::Length { characters: 63 }
    );
    let wrong = TEXT.replace("FEDC", "FEDX");
    assert_eq!(error(&wrong), ClusterSecretError::NotHex { position: 52 });
    // 64 bytes, but not 64 characters.
    assert_eq!(
        error(&"é".repeat(32)),
        ClusterSecretError::Length { characters: 32 }
    );
    assert_eq!(
        error(&wrong).to_string(),
        "a cluster secret has 64 hex characters, but character 52 is not a hex digit"
    );
}

#[test]
fn a_password_matches_only_itself() {
    let password = Password::new("correct horse");
    assert!(bool::from(password.matches(b"correct horse")));
    for wrong in [
        "",
        "correct",
        "correct horse ",
        "Correct horse",
        "correct horsf",
    ] {
        assert!(!bool::from(password.matches(wrong.as_bytes())), "{wrong}");
    }
}

#[test]
fn debug_output_holds_no_secret() {
    let secret: ClusterSecret = TEXT.parse().unwrap();
    assert_eq!(format!("{secret:?}"), "ClusterSecret(redacted)");
    assert_eq!(
        format!("{:?}", Password::new("hidden")),
        "Password(redacted)"
    );
}
