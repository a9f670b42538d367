//! Every fault of an agent gives its own error within the deadline.

use std::time::{Duration, Instant};

use attest::agent::{Agent, AgentError, AgentOptions, MAX_AGENT_RESPONSE_LEN, Method};
use attest::mock::{AgentBehaviour, Binding, Evidence, Key, Platform, PlatformOptions};

use crate::{agent, block_on, client, malformed, pki, server_request, single_attempt};

async fn call(client: &Agent, method: Method) -> Result<(), AgentError> {
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
fn every_fault_has_its_error() {
    let mock = agent();
    let client = client(mock.agent.endpoint(), single_attempt());
    let limit = MAX_AGENT_RESPONSE_LEN;
    for method in Method::ALL {
        let refused = |status, message: &str| AgentError::Status {
            method,
            status,
            message: message.to_owned(),
        };
        let not_json = AgentError::NotJson { method };
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
            (status(200, ""), not_json.clone()),
            (status(200, "[]"), not_json.clone()),
            (status(200, "\"text\""), not_json.clone()),
            (AgentBehaviour::Html, not_json.clone()),
            (AgentBehaviour::Garbage, not_json.clone()),
            (
                AgentBehaviour::TruncatedBody,
                AgentError::ConnectionClosed { method },
            ),
            (
                AgentBehaviour::Close,
                AgentError::ConnectionClosed { method },
            ),
            (
                AgentBehaviour::Oversized,
                AgentError::TooLarge { method, limit },
            ),
            (
                AgentBehaviour::OversizedChunked,
                AgentError::TooLarge { method, limit },
            ),
        ] {
            mock.agent.set_behaviour_for(method, behaviour.clone());
            let outcome = block_on(call(&client, method));
            assert_eq!(outcome, Err(error), "{method} {behaviour:?}");
        }
        mock.agent.set_behaviour_for(method, AgentBehaviour::Normal);
        assert_eq!(block_on(call(&client, method)), Ok(()));
    }
}

fn status(status: u16, body: &str) -> AgentBehaviour {
    AgentBehaviour::Status(status, body.to_owned())
}

#[test]
fn deadline_ends_every_call() {
    let mock = agent();
    let after = Duration::from_millis(200);
    let quick = AgentOptions {
        deadline: after,
        quote_deadline: after,
        ..single_attempt()
    };
    let client = client(mock.agent.endpoint(), quick);
    mock.agent
        .set_behaviour(AgentBehaviour::Delay(Duration::from_secs(60)));
    let started = Instant::now();
    for method in Method::ALL {
        let outcome = block_on(call(&client, method));
        assert_eq!(outcome, Err(AgentError::Timeout { method, after }));
    }
    assert!(started.elapsed() >= 6 * after);
    let error = block_on(client.version()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent did not answer Version within 200ms"
    );
}

#[test]
fn quotes_have_a_longer_deadline() {
    let mock = agent();
    let options = AgentOptions {
        deadline: Duration::from_millis(100),
        quote_deadline: Duration::from_secs(15),
        ..single_attempt()
    };
    let client = client(mock.agent.endpoint(), options);
    mock.agent
        .set_behaviour(AgentBehaviour::Delay(Duration::from_millis(300)));
    for method in Method::ALL {
        let quotes = matches!(
            method,
            Method::GetTlsKey | Method::GetQuote | Method::Attest
        );
        assert_eq!(block_on(call(&client, method)).is_ok(), quotes, "{method}");
    }
}

#[test]
fn key_of_another_certificate_is_refused() {
    let mock = agent();
    mock.agent.set_behaviour(AgentBehaviour::WrongKey);
    let error = block_on(mock.client().tls_key(&server_request())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest agent's response to GetTlsKey is unusable: `key` is not the key of the certificate"
    );
    assert_eq!(malformed(error).0, "key");
}

#[test]
fn quote_with_other_report_data_is_refused() {
    let mock = agent();
    mock.agent.set_behaviour(AgentBehaviour::WrongReportData);
    let why = "is over other report data than requested (a simulator of dstack needs patch_report_data = true)";
    let error = block_on(mock.client().quote(b"data")).unwrap_err();
    assert_eq!(malformed(error), ("quote", why));
    let error = block_on(mock.client().attest(b"data")).unwrap_err();
    assert_eq!(malformed(error), ("attestation", why));
    let error = block_on(mock.client().tls_key(&server_request())).unwrap_err();
    let why = "carries no evidence that is bound to its key (a simulator of dstack needs patch_report_data = true)";
    assert_eq!(malformed(error), ("certificate_chain", why));
}

fn padded(data: &[u8]) -> [u8; 64] {
    let mut padded = [0; 64];
    padded[..data.len()].copy_from_slice(data);
    padded
}

#[test]
fn attestation_with_other_report_data_is_refused() {
    let requested = padded(b"data");
    let other = padded(b"other");
    let pki = pki();
    let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
    let key = Key::derive(&[1; 32], "any").unwrap();
    // Report data in the quote, report data in the envelope, and whether both are as requested.
    for (quoted, stated, accepted) in [
        (requested, requested, true),
        (other, requested, false),
        (requested, other, false),
    ] {
        let evidence = Evidence {
            binding: Binding::Bytes(quoted),
            ..Evidence::default()
        };
        let quote = evidence.quote(&platform, &key).unwrap();
        let v1 = evidence.v1(&quote, stated).unwrap();
        for attestation in [evidence.v0(&quote, stated), v1] {
            let response = serde_json::json!({ "attestation": hex::encode(attestation) });
            let mock = agent();
            mock.agent.set_behaviour(status(200, &response.to_string()));
            let outcome = block_on(mock.client().attest(b"data"));
            assert_eq!(outcome.is_ok(), accepted, "{outcome:?}");
        }
    }
}

/// The error for the correct response after `change`.
fn error_after(
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
    let mut response = serde_json::from_slice(&body).unwrap();
    change(&mut response);
    let body = serde_json::to_string(&response).unwrap();
    mock.agent.set_behaviour(AgentBehaviour::Status(200, body));
    malformed(block_on(call(&mock.client(), method)).unwrap_err())
}

#[test]
fn every_field_is_validated() {
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
        let found = error_after(method, |response| {
            response.insert(field.to_owned(), "garbled!".into());
        });
        assert_eq!(found, (field, why), "{method}");
        let found = error_after(method, |response| {
            response.insert(field.to_owned(), 7.into());
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
        let found = error_after(method, |response| drop(response.remove(field)));
        assert_eq!(found, (field, "is missing"), "{method}");
    }
}

#[test]
fn certificate_chains_are_validated() {
    const CHAIN: &str = "certificate_chain";
    let with = |change: fn(&mut Vec<serde_json::Value>)| {
        let (field, why) = error_after(Method::GetTlsKey, |response| {
            change(response[CHAIN].as_array_mut().unwrap());
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
fn private_keys_are_validated() {
    let with = |change: fn(&str) -> String| {
        let (field, why) = error_after(Method::GetTlsKey, |response| {
            let key = change(response["key"].as_str().unwrap());
            response.insert("key".to_owned(), key.into());
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
        error_after(Method::GetTlsKey, |response| {
            response.insert("key".to_owned(), ed25519.into());
        }),
        ("key", "is not a PKCS#8 private key on P-256")
    );
}

#[test]
fn signature_chains_are_validated() {
    for (chain, why) in [
        (vec!["aa"], "does not hold two signatures"),
        (vec!["aa"; 3], "does not hold two signatures"),
        (vec!["aa", "zz"], "is not hex"),
        (vec!["aa", ""], "holds a signature of an impossible length"),
    ] {
        let found = error_after(Method::GetKey, |response| {
            response.insert("signature_chain".to_owned(), chain.into());
        });
        assert_eq!(found, ("signature_chain", why));
    }
}
