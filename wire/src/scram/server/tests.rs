//! The exchange of RFC 7677, and the comparison with several keys.

use super::*;

/// The exchange in RFC 7677, section 3.
const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
const SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

fn rfc_salt() -> [u8; SALT_LEN] {
    let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    salt.try_into().unwrap()
}

fn rfc_proof() -> ClientProof {
    let mut out = Vec::new();
    let exchange = AwaitFirst::new(Challenge {
        nonce: [0; RAW_NONCE_LEN],
        salt: rfc_salt(),
        binding: None,
    });
    let next = exchange
        .client_first_with(MECHANISM, CLIENT_FIRST.as_bytes(), SERVER_NONCE, &mut out)
        .unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), SERVER_FIRST);
    next.client_final(CLIENT_FINAL.as_bytes()).unwrap()
}

fn keys(password: &str) -> ServerKeys {
    ServerKeys::derive(&Password::new(password), &rfc_salt())
}

fn verify(candidates: &[(&ServerKeys, u8)]) -> Option<String> {
    let candidates = candidates.iter().map(|(k, c)| (*k, Choice::from(*c)));
    rfc_proof().server_final(candidates)
}

#[test]
fn reproduces_the_exchange_of_rfc_7677() {
    assert_eq!(
        verify(&[(&keys("pencil"), 1)]).as_deref(),
        Some(SERVER_FINAL)
    );
}

#[test]
fn any_candidate_that_opens_the_role_is_accepted_at_any_place() {
    let (right, wrong, other) = (keys("pencil"), keys("Pencil"), keys("eraser"));
    let expected = Some(SERVER_FINAL.to_owned());
    assert_eq!(verify(&[(&right, 1), (&wrong, 1), (&other, 1)]), expected);
    assert_eq!(verify(&[(&wrong, 1), (&right, 1), (&other, 0)]), expected);
    assert_eq!(verify(&[(&wrong, 0), (&other, 0), (&right, 1)]), expected);
    // The same password twice: as two roles' secrets may be.
    assert_eq!(verify(&[(&right, 0), (&right, 1)]), expected);
    assert_eq!(verify(&[(&right, 1), (&right, 0)]), expected);
}

#[test]
fn a_candidate_that_does_not_open_the_role_is_refused() {
    let (right, wrong) = (keys("pencil"), keys("Pencil"));
    assert_eq!(verify(&[]), None);
    assert_eq!(verify(&[(&right, 0)]), None);
    assert_eq!(verify(&[(&wrong, 1)]), None);
    assert_eq!(verify(&[(&right, 0), (&wrong, 1)]), None);
}

#[test]
fn each_key_matters() {
    let mut stored = keys("pencil");
    stored.stored_key[31] ^= 1;
    assert_eq!(verify(&[(&stored, 1)]), None);
    let mut server = keys("pencil");
    server.server_key[0] ^= 1;
    let signature = verify(&[(&server, 1)]).unwrap();
    assert_ne!(signature, SERVER_FINAL);
}

#[test]
fn a_proof_made_without_the_password_is_refused() {
    // With the stored key alone, as it is in a stolen verifier, the client key is unknown.
    let right = keys("pencil");
    let mut proof = rfc_proof();
    proof.proof = hmac(&right.stored_key, &proof.auth_message);
    assert_eq!(proof.server_final([(&right, Choice::from(1))]), None);
    proof.proof = [0; KEY_LEN];
    assert_eq!(proof.server_final([(&right, Choice::from(1))]), None);
}

#[test]
fn the_certificate_hash_has_1_to_64_bytes() {
    assert_eq!(ChannelBinding::new(&[]), None);
    assert_eq!(ChannelBinding::new(&[1; 65]), None);
    for length in [1, 32, 48, 64] {
        let binding = ChannelBinding::new(&vec![7; length]).unwrap();
        assert_eq!(binding.as_bytes(), vec![7; length]);
    }
}

#[test]
fn debug_shows_nothing() {
    assert_eq!(format!("{:?}", keys("pencil")), "ServerKeys(redacted)");
    assert_eq!(format!("{:?}", rfc_proof()), "ClientProof(redacted)");
}
