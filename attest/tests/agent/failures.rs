//! Each way to misbehave has its error, within the deadline.

use std::time::{Duration, Instant};

use attest::agent::{Agent, AgentError, AgentOptions, MAX_AGENT_RESPONSE_LEN, Method};
use attest::mock::{AgentBehaviour, Binding, Evidence, Key, Machine, MachineOptions};

use crate::{agent, block, client, malformed, patient, pki, server_request};

async fn ask(client: &Agent, method: Method) -> Result<(), AgentError> {
    match method {
        Method::GetTlsKey => client.tls_key(&server_request()).await.map(drop),
        Method::GetKey => client.key("path", "").await.map(drop),
        Method::GetQuote => client.quote(b"data").await.map(drop),
        Method::Attest => client.attest(b"data").await.map(drop),
        Method::Info => client.info().await.map(drop),
        Method::Version => client.version().await.map(drop),
    }
}

#[test]
fn every_misbehaviour_has_its_error() {
    let mock = agent();
    let client = client(mock.agent.endpoint(), patient());
    let limit = MAX_AGENT_RESPONSE_LEN;
    for method in Method::ALL {
        let refused = |status, message: &str| AgentError::Status {
            method,
            status,
            message: message.to_owned(),
        };
        let no_json = AgentError::NotJson { method };
        for (behaviour, error) in [
            (status(400, r#"{"error":"no"}"#), refused(400, "no")),
            (status(404, "<h1>"), refused(404, "")),
            (status(503, ""), refused(503, "")),
            (AgentBehaviour::Redirect, refused(302, "")),
            (
                status(500, r#"{"error":"\u001b[1m\r\nno"}"#),
                refused(500, "[1mno"),
            ),
            (status(204, ""), refused(204, "")),
            (status(200, ""), no_json.clone()),
            (status(200, "[]"), no_json.clone()),
            (status(200, "\"text\""), no_json.clone()),
            (AgentBehaviour::Html, no_json.clone()),
            (AgentBehaviour::Garbage, no_json.clone()),
            (
                AgentBehaviour::HalfBody,
                AgentError::ConnectionClosed { method },
            ),
            (
                AgentBehaviour::Close,
                AgentError::ConnectionClosed { method },
            ),
            (AgentBehaviour::Huge, AgentError::TooLarge { method, limit }),
            (
                AgentBehaviour::HugeChunked,
                AgentError::TooLarge { method, limit },
            ),
        ] {
            mock.agent.behave_for(method, behaviour.clone());
            let outcome = block(ask(&client, method));
            assert_eq!(outcome, Err(error), "{method} {behaviour:?}");
        }
        mock.agent.behave_for(method, AgentBehaviour::Normal);
        assert_eq!(block(ask(&client, method)), Ok(()));
    }
}

fn status(status: u16, body: &str) -> AgentBehaviour {
    AgentBehaviour::Status(status, body.to_owned())
}

#[test]
fn an_answer_that_does_not_come() {
    let mock = agent();
    let after = Duration::from_millis(200);
    let quick = AgentOptions {
        deadline: after,
        quote_deadline: after,
        ..patient()
    };
    let client = client(mock.agent.endpoint(), quick);
    mock.agent
        .behave(AgentBehaviour::Hang(Duration::from_secs(60)));
    let begun = Instant::now();
    for method in Method::ALL {
        let outcome = block(ask(&client, method));
        assert_eq!(outcome, Err(AgentError::Timeout { method, after }));
    }
    assert!(begun.elapsed() >= 6 * after);
    let error = block(client.version()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent did not answer Version within 200ms"
    );
}

#[test]
fn a_quote_has_more_time_than_the_rest() {
    let mock = agent();
    let options = AgentOptions {
        deadline: Duration::from_millis(100),
        quote_deadline: Duration::from_secs(15),
        ..patient()
    };
    let client = client(mock.agent.endpoint(), options);
    mock.agent
        .behave(AgentBehaviour::Hang(Duration::from_millis(300)));
    for method in Method::ALL {
        let quotes = matches!(
            method,
            Method::GetTlsKey | Method::GetQuote | Method::Attest
        );
        assert_eq!(block(ask(&client, method)).is_ok(), quotes, "{method}");
    }
}

#[test]
fn a_key_that_is_not_the_certificates() {
    let mock = agent();
    mock.agent.behave(AgentBehaviour::WrongKey);
    let error = block(mock.client().tls_key(&server_request())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent's response to GetTlsKey is unusable: `key` is not the key of the certificate"
    );
    assert_eq!(malformed(error).0, "key");
}

#[test]
fn a_quote_over_something_else() {
    let mock = agent();
    mock.agent.behave(AgentBehaviour::WrongReportData);
    let why = "is over other report data than requested";
    let error = block(mock.client().quote(b"data")).unwrap_err();
    assert_eq!(malformed(error), ("quote", why));
    let error = block(mock.client().attest(b"data")).unwrap_err();
    assert_eq!(malformed(error), ("attestation", why));
    let error = block(mock.client().tls_key(&server_request())).unwrap_err();
    let why = "carries no evidence that is bound to its key";
    assert_eq!(malformed(error), ("certificate_chain", why));
}

fn padded(data: &[u8]) -> [u8; 64] {
    let mut padded = [0; 64];
    padded[..data.len()].copy_from_slice(data);
    padded
}

#[test]
fn an_envelope_around_a_quote_over_something_else() {
    let asked = padded(b"data");
    let other = padded(b"other");
    let pki = pki();
    let machine = Machine::new(&pki, &MachineOptions::default()).unwrap();
    let key = Key::derive(&[1; 32], "any").unwrap();
    // What the quote is over, and what stands beside it.
    for (quoted, stated, fine) in [
        (asked, asked, true),
        (other, asked, false),
        (asked, other, false),
    ] {
        let evidence = Evidence {
            binding: Binding::Bytes(quoted),
            ..Evidence::default()
        };
        let quote = evidence.quote(&machine, &key).unwrap();
        let v1 = evidence.v1(&quote, stated).unwrap();
        for attestation in [evidence.v0(&quote, stated), v1] {
            let answer = serde_json::json!({ "attestation": hex::encode(attestation) });
            let mock = agent();
            mock.agent.behave(status(200, &answer.to_string()));
            let outcome = block(mock.client().attest(b"data"));
            assert_eq!(outcome.is_ok(), fine, "{outcome:?}");
        }
    }
}

/// The right answer with one field changed by `change`.
fn changed(
    method: Method,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> (&'static str, &'static str) {
    let mock = agent();
    let request = match method {
        Method::GetTlsKey => serde_json::to_vec(&server_request()).unwrap(),
        Method::GetQuote | Method::Attest => br#"{"report_data":"64617461"}"#.to_vec(),
        Method::GetKey | Method::Info | Method::Version => b"{}".to_vec(),
    };
    let (_, body) = crate::raw::post(&mock.agent.endpoint(), method.as_str(), &request);
    let mut answer = serde_json::from_slice(&body).unwrap();
    change(&mut answer);
    let body = serde_json::to_string(&answer).unwrap();
    mock.agent.behave(AgentBehaviour::Status(200, body));
    malformed(block(ask(&mock.client(), method)).unwrap_err())
}

#[test]
fn every_field_is_checked() {
    let garbled = [
        (
            Method::GetTlsKey,
            "key",
            "is not a PKCS#8 private key in PEM",
        ),
        (
            Method::GetTlsKey,
            "certificate_chain",
            "is not a list of strings",
        ),
        (Method::GetKey, "key", "is not hex of 32 bytes"),
        (
            Method::GetKey,
            "signature_chain",
            "is not a list of strings",
        ),
        (Method::GetQuote, "quote", "is not hex"),
        (Method::GetQuote, "report_data", "is not hex"),
        (Method::GetQuote, "event_log", "is not JSON"),
        (Method::GetQuote, "attestation", "is not hex"),
        (Method::Attest, "attestation", "is not hex"),
        (Method::Info, "app_id", "is not hex of the right length"),
        (
            Method::Info,
            "compose_hash",
            "is not hex of the right length",
        ),
        (
            Method::Info,
            "instance_id",
            "is not hex of the right length",
        ),
        (
            Method::Info,
            "os_image_hash",
            "is not hex of the right length",
        ),
        (Method::Info, "tcb_info", "is not a JSON object"),
    ];
    for (method, field, why) in garbled {
        let found = changed(method, |answer| {
            answer.insert(field.to_owned(), "garbled!".into());
        });
        assert_eq!(found, (field, why), "{method}");
        let found = changed(method, |answer| {
            answer.insert(field.to_owned(), 7.into());
        });
        assert_eq!(found.0, field, "{method}");
    }
    for (method, field) in [
        (Method::GetTlsKey, "key"),
        (Method::GetTlsKey, "certificate_chain"),
        (Method::GetKey, "key"),
        (Method::GetKey, "signature_chain"),
        (Method::GetQuote, "quote"),
        (Method::GetQuote, "event_log"),
        (Method::Attest, "attestation"),
        (Method::Info, "app_id"),
        (Method::Info, "compose_hash"),
        (Method::Version, "version"),
    ] {
        let found = changed(method, |answer| drop(answer.remove(field)));
        assert_eq!(found, (field, "is missing"), "{method}");
    }
}

#[test]
fn chains_are_checked() {
    const CHAIN: &str = "certificate_chain";
    let with = |change: fn(&mut Vec<serde_json::Value>)| {
        let (field, why) = changed(Method::GetTlsKey, |answer| {
            change(answer[CHAIN].as_array_mut().unwrap());
        });
        assert_eq!(field, CHAIN);
        why
    };
    let caps = "holds no certificate, or too many or too large ones";
    assert_eq!(with(Vec::clear), caps);
    assert_eq!(with(|chain| chain.extend(vec![chain[1].clone(); 5])), caps);
    let label = "holds something other than certificates";
    const OTHER: &str = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert_eq!(with(|chain| chain.push(OTHER.into())), label);
    const EMPTY: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(
        with(|chain| chain[1] = EMPTY.into()),
        "holds an invalid certificate"
    );
    const CUT: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n";
    assert_eq!(with(|chain| chain[1] = CUT.into()), "is not PEM");
}

#[test]
fn keys_are_checked() {
    let with = |change: fn(&str) -> String| {
        let (field, why) = changed(Method::GetTlsKey, |answer| {
            let key = change(answer["key"].as_str().unwrap());
            answer.insert("key".to_owned(), key.into());
        });
        assert_eq!(field, "key");
        why
    };
    let pem = "is not a PKCS#8 private key in PEM";
    assert_eq!(with(|key| key.replace("PRIVATE", "EC PRIVATE")), pem);
    assert_eq!(with(|key| key.replace("-----END", "")), pem);
    assert_eq!(with(|key| format!("{key}{key}")), pem);
    assert_eq!(
        with(|key| format!("{key}{}", " ".repeat(5_000))),
        "is too long"
    );
    let ed25519 = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
        -----END PRIVATE KEY-----\n";
    // The public test key of RFC 8032, 7.1.
    assert_eq!(
        changed(Method::GetTlsKey, |answer| {
            answer.insert("key".to_owned(), ed25519.into());
        }),
        ("key", "is not a PKCS#8 private key on P-256")
    );
}

#[test]
fn signature_chains_are_checked() {
    for (chain, why) in [
        (vec!["aa"], "does not hold two signatures"),
        (vec!["aa"; 3], "does not hold two signatures"),
        (vec!["aa", "zz"], "is not hex"),
        (vec!["aa", ""], "holds a signature of an impossible length"),
    ] {
        let found = changed(Method::GetKey, |answer| {
            answer.insert("signature_chain".to_owned(), chain.into());
        });
        assert_eq!(found, ("signature_chain", why));
    }
}
