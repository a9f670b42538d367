//! SCRAM with a client: with another implementation as the client, and with malformed messages.

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::frontend as oracle;
use subtle::Choice;
use wire::error::{FrontendError, ScramError};
use wire::frontend::MAX_PASSWORD_MESSAGE;
use wire::frontend::scram::{ScramFinalStep, ScramFirstStep, ScramProof};
use wire::scram::server::ServerKeys;
use wire::secret::Password;

use crate::harness::{
    PASSWORD, check_scram, check_scram_final, check_scram_first, request_client_scram,
    scram_challenge,
};
use crate::packets::{SSL_REQUEST, authentication, claimed, message};

const PLAIN: &[u8] = b"SCRAM-SHA-256";
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";
const BINDING: &[u8] = b"p=tls-server-end-point,,";

fn keys(password: &str) -> ServerKeys {
    ServerKeys::derive(&Password::new(password), &scram_challenge(false).salt)
}

fn initial_response(mechanism: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let mechanism = std::str::from_utf8(mechanism).unwrap();
    oracle::sasl_initial_response(mechanism, data, &mut bytes).unwrap();
    bytes.to_vec()
}

fn response(data: &[u8]) -> Vec<u8> {
    message(b'p', data)
}

fn unbound() -> sasl::ChannelBinding {
    sasl::ChannelBinding::unsupported()
}

fn bound(byte: u8) -> sasl::ChannelBinding {
    sasl::ChannelBinding::tls_server_end_point(vec![byte; 32])
}

/// What another implementation of the client sends, up to its proof.
fn prove(
    offered: bool,
    mechanism: &[u8],
    password: &str,
    binding: sasl::ChannelBinding,
) -> Result<(ScramProof, ScramSha256), FrontendError> {
    let mut client = ScramSha256::new(password.as_bytes(), binding);
    let first = initial_response(mechanism, client.message());
    let (reply, _, consumed) = check_scram_first(offered, &first).unwrap()?;
    assert_eq!(consumed, first.len());
    assert_eq!(&reply[..9], &authentication(11, &reply[9..])[..9]);
    client.update(&reply[9..]).unwrap();
    let next = || match request_client_scram(offered)
        .1
        .advance(&first, &mut Vec::new())
    {
        ScramFirstStep::Challenged { next, .. } => next,
        other => panic!("{other:?}"),
    };
    let last = response(client.message());
    let (proof, consumed) = check_scram_final(next, &last).unwrap()?;
    assert_eq!(consumed, last.len());
    Ok((proof, client))
}

#[test]
fn offers_plus_only_with_a_channel_binding() {
    let (plain, _) = request_client_scram(false);
    assert_eq!(plain, authentication(10, b"SCRAM-SHA-256\0\0"));
    let (plus, _) = request_client_scram(true);
    let mechanisms = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
    assert_eq!(plus, authentication(10, mechanisms));
}

#[test]
fn another_implementation_logs_in() {
    let unaware = sasl::ChannelBinding::unrequested;
    for (offered, mechanism, binding) in [
        (false, PLAIN, unbound()),
        (true, PLAIN, unbound()),
        (false, PLAIN, unaware()),
        (true, PLUS, bound(0xcb)),
    ] {
        let (proof, mut client) = prove(offered, mechanism, PASSWORD, binding).unwrap();
        let mut out = Vec::new();
        let (wrong, right) = (keys("eraser"), keys(PASSWORD));
        assert!(!proof.verify([(&wrong, Choice::from(1))], &mut out));
        assert!(!proof.verify([(&right, Choice::from(0))], &mut out));
        assert!(out.is_empty());
        assert!(proof.verify(
            [(&right, Choice::from(1)), (&wrong, Choice::from(1))],
            &mut out
        ));
        assert_eq!(out, authentication(12, &out[9..]));
        client.finish(&out[9..]).unwrap();
    }
}

#[test]
fn a_wrong_password_proves_nothing() {
    let (proof, _) = prove(false, PLAIN, "Pencil", unbound()).unwrap();
    let mut out = Vec::new();
    assert!(!proof.verify([(&keys(PASSWORD), Choice::from(1))], &mut out));
    assert!(out.is_empty());
}

#[test]
fn a_man_in_the_middle_cannot_pass_a_bound_proof_on() {
    let error = prove(true, PLUS, PASSWORD, bound(0xcc)).err();
    assert_eq!(error, Some(ScramError::BindingMismatch.into()));
}

#[test]
fn an_offer_that_was_removed_on_the_way_is_noticed() {
    let unaware = sasl::ChannelBinding::unrequested();
    let error = prove(true, PLAIN, PASSWORD, unaware).err();
    assert_eq!(error, Some(ScramError::Downgrade.into()));
}

/// The nonce of the hand-made messages.
const NONCE: &[u8] = b"fyko+d2lbbFgONRv9qkxdawL";

fn first_of(parts: &[&[u8]]) -> Vec<u8> {
    initial_response(PLAIN, &parts.concat())
}

fn bare(before: &[u8], after: &[u8]) -> Vec<u8> {
    first_of(&[b"n,,", before, b"n=,r=", NONCE, after])
}

fn plus(header: &[u8]) -> Vec<u8> {
    initial_response(PLUS, &[header, b"n=,r=", NONCE].concat())
}

fn initial_responses() -> Vec<(&'static str, Vec<u8>)> {
    let gs2 = |header: &[u8]| first_of(&[header, b"n=,r=", NONCE]);
    let longest = MAX_PASSWORD_MESSAGE - bare(b"", b"").len() + 1;
    let good = bare(b"", b"");
    let initial = |body: &[u8]| message(b'p', &[b"SCRAM-SHA-256\0", body].concat());
    vec![
        ("nothing", vec![]),
        ("good", good.clone()),
        ("trailing bytes", [&good[..], b"Q"].concat()),
        ("user name", first_of(&[b"n,,n=me,r=", NONCE])),
        ("extensions", bare(b"", b",x=1,Y=")),
        (
            "longest",
            bare(b"", &[b",x=", &vec![b'x'; longest - 3][..]].concat()),
        ),
        (
            "1 byte longer",
            bare(b"", &[b",x=", &vec![b'x'; longest - 2][..]].concat()),
        ),
        ("unaware of PLUS", gs2(b"y,,")),
        ("PLUS", plus(BINDING)),
        ("PLUS, type tls-unique", plus(b"p=tls-unique,,")),
        ("PLUS, no type", plus(b"p=,,")),
        ("PLUS without binding", plus(b"n,,")),
        ("PLUS, unaware of PLUS", plus(b"y,,")),
        ("plain with binding", gs2(BINDING)),
        ("flag q", gs2(b"q,,")),
        ("flag nn", gs2(b"nn,,")),
        ("no flag", gs2(b",,")),
        ("identity", gs2(b"n,a=me,")),
        ("identity without a=", gs2(b"n,me,")),
        ("no comma", initial_response(PLAIN, b"n")),
        ("one comma", initial_response(PLAIN, b"n,")),
        ("empty message", initial_response(PLAIN, b"")),
        ("mandatory extension", bare(b"m=x,", b"")),
        ("no user name", first_of(&[b"n,,r=", NONCE])),
        ("no nonce", first_of(&[b"n,,n="])),
        ("empty nonce", first_of(&[b"n,,n=,r="])),
        ("space in nonce", first_of(&[b"n,,n=,r=a b"])),
        ("nonce not ASCII", first_of(&[b"n,,n=,r=\xff"])),
        ("empty attribute", bare(b"", b",")),
        ("attribute without =", bare(b"", b",x")),
        ("attribute 1=", bare(b"", b",1=x")),
        ("NUL", bare(b"", b",x=\0")),
        (
            "SCRAM-SHA-1",
            initial_response(b"SCRAM-SHA-1", b"n,,n=,r=x"),
        ),
        (
            "scram-sha-256",
            initial_response(b"scram-sha-256", b"n,,n=,r=x"),
        ),
        ("no mechanism", initial_response(b"", b"n,,n=,r=x")),
        ("no initial response", initial(b"\xff\xff\xff\xff")),
        ("length too short", initial(b"\0\0\0\x01n,")),
        ("length too long", initial(b"\0\0\0\x03n,")),
        ("three bytes of length", initial(b"\0\0\0")),
        ("no terminator", message(b'p', b"SCRAM-SHA-256")),
        ("no body", message(b'p', b"")),
        ("password", message(b'p', b"5ead0000\0")),
        ("empty password", message(b'p', b"\0")),
        ("length 3", claimed(b'p', 3, b"x\0")),
        ("length 1 GB", claimed(b'p', 1 << 30, b"n,,")),
        ("length 2^32-1", claimed(b'p', u32::MAX, b"n,,")),
        ("Query", message(b'Q', b"SELECT 1\0")),
        ("Terminate", message(b'X', b"")),
        ("SSLRequest", SSL_REQUEST.to_vec()),
    ]
}

fn refusal(error: FrontendError) -> String {
    let response = error.response().unwrap();
    format!("{} {} ({error})", response.sqlstate, error.code())
}

#[test]
fn initial_response_table() {
    let describe = |offered, bytes: &[u8]| match check_scram_first(offered, bytes) {
        None => "Read".to_owned(),
        Some(Ok((reply, _, consumed))) => {
            format!("Challenged, {consumed} bytes, reply of {}", reply.len())
        }
        Some(Err(error)) => refusal(error),
    };
    let mut table = String::new();
    for (input, bytes) in initial_responses() {
        let (plain, offered) = (describe(false, &bytes), describe(true, &bytes));
        table += &format!("{input:<21} | {plain}\n");
        if offered != plain {
            table += &format!("{:<21} | {offered}\n", "  PLUS offered");
        }
    }
    insta::assert_snapshot!(table);
}

fn final_after(first: &[u8], data: &[u8]) -> Option<Result<ScramProof, FrontendError>> {
    check_scram(true, &[first, &response(data)].concat())
}

fn finals() -> Vec<(&'static str, Vec<u8>)> {
    let nonce = [NONCE, b"ZWlnaHRlZW4gYnl0ZSBub25j"].concat();
    let proof = b",p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let made = |parts: &[&[u8]]| parts.concat();
    vec![
        ("good", made(&[b"c=biws,r=", &nonce, proof])),
        ("extension", made(&[b"c=biws,r=", &nonce, b",x=1", proof])),
        ("empty", vec![]),
        ("binding of y", made(&[b"c=eSws,r=", &nonce, proof])),
        ("binding not Base64", made(&[b"c=???,r=", &nonce, proof])),
        ("no binding", made(&[b"r=", &nonce, proof])),
        ("no nonce", made(&[b"c=biws", proof])),
        (
            "the client's nonce only",
            made(&[b"c=biws,r=", NONCE, proof]),
        ),
        ("longer nonce", made(&[b"c=biws,r=", &nonce, b"x", proof])),
        ("no proof", made(&[b"c=biws,r=", &nonce])),
        ("proof first", made(&[&proof[1..], b",c=biws,r=", &nonce])),
        (
            "extension last",
            made(&[b"c=biws,r=", &nonce, proof, b",x=1"]),
        ),
        (
            "attribute without =",
            made(&[b"c=biws,r=", &nonce, b",x", proof]),
        ),
        (
            "proof of 31 bytes",
            made(&[b"c=biws,r=", &nonce, &proof[..43], b"AA=="]),
        ),
        ("empty proof", made(&[b"c=biws,r=", &nonce, b",p="])),
        (
            "proof not Base64",
            made(&[b"c=biws,r=", &nonce, b",p=????"]),
        ),
        ("NUL", made(&[b"c=biws,r=", &nonce, b",x=\0", proof])),
        ("password", b"5ead0000\0".to_vec()),
    ]
}

#[test]
fn response_table() {
    let mut table = String::new();
    for (input, data) in finals() {
        let outcome = match final_after(&bare(b"", b""), &data) {
            None => "Read".to_owned(),
            Some(Ok(_)) => "Proof".to_owned(),
            Some(Err(error)) => refusal(error),
        };
        table += &format!("{input:<24} | {outcome}\n");
    }
    for (input, binding) in [
        ("PLUS, no hash", "cD10bHMtc2VydmVyLWVuZC1wb2ludCws"),
        ("PLUS, binding of n", "biws"),
    ] {
        let data = format!("c={binding},r=x,p=AAAA");
        let outcome = final_after(&plus(BINDING), data.as_bytes()).unwrap();
        table += &format!("{input:<24} | {}\n", refusal(outcome.unwrap_err()));
    }
    insta::assert_snapshot!(table);
}

#[test]
fn oversized_messages_are_refused_after_five_bytes() {
    let error = FrontendError::PasswordTooLong { length: 1 << 30 };
    let first = check_scram_first(true, b"p\x40\0\0\0").unwrap();
    assert_eq!(first.unwrap_err(), error);
    let ScramFirstStep::Challenged { next, .. } = request_client_scram(false)
        .1
        .advance(&bare(b"", b""), &mut Vec::new())
    else {
        panic!("not challenged");
    };
    assert_eq!(next.advance(b"p\x40\0\0\0"), ScramFinalStep::Refuse(error));
}

#[test]
fn fuzzing_seeds_do_what_their_names_say() {
    let run = |name: &str| {
        let path = format!("{}/fuzz/seeds/scram/{name}", env!("CARGO_MANIFEST_DIR"));
        let seed = std::fs::read(path).unwrap();
        check_scram(seed[0] & 1 != 0, &seed[1..]).unwrap()
    };
    let right = keys(PASSWORD);
    for name in [
        "plain",
        "plain-offered",
        "unaware",
        "plus",
        "user",
        "extensions",
    ] {
        let proof = run(name).unwrap();
        assert!(
            proof.verify([(&right, Choice::from(1))], &mut Vec::new()),
            "{name}"
        );
    }
    let wrong = run("wrong-proof").unwrap();
    assert!(!wrong.verify([(&right, Choice::from(1))], &mut Vec::new()));
    for (name, code) in [
        ("downgrade", "scram_downgrade"),
        ("plus-not-offered", "scram_mechanism"),
        ("unique", "scram_binding_type"),
        ("identity", "scram_malformed"),
        ("password", "password_instead_of_scram"),
        ("no-response", "scram_malformed"),
    ] {
        assert_eq!(run(name).unwrap_err().code(), code, "{name}");
    }
}
