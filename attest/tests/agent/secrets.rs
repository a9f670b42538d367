//! Keys never appear in Debug output or errors.

use attest::agent::{AgentError, Method};
use attest::mock::AgentBehaviour;

use crate::{agent, block_on, raw, server_request};

/// Whether `text` contains any eight consecutive characters of `secret`, ignoring case.
fn leaks(text: &str, secret: &str) -> bool {
    let (text, secret) = (text.to_lowercase(), secret.to_lowercase());
    let windows = secret.as_bytes().windows(8);
    windows
        .filter_map(|part| std::str::from_utf8(part).ok())
        .any(|part| text.contains(part))
}

/// The base64 text between the PEM labels.
fn base64(pem: &str) -> String {
    pem.lines().filter(|line| !line.contains("---")).collect()
}

#[test]
fn leaks_are_detected() {
    assert!(leaks("… DEADBEEF …", "0deadbeef0"));
    assert!(!leaks("DerivedKey(…)", "0deadbeef0"));
}

#[test]
fn debug_output_has_no_keys() {
    let mock = agent();
    let client = mock.client();
    let key = block_on(client.tls_key(&server_request())).unwrap();
    let derived = block_on(client.key("pg/superuser", "")).unwrap();
    let shown = format!(
        "{key:?} {key:#?} {derived:?} {derived:#?} {client:?} {:?}",
        mock.agent
    );
    for secret in [
        hex::encode(key.key_der()),
        format!("{:?}", key.key_der()),
        base64(&key.key_pem()),
        derived.to_hex().to_string(),
        format!("{:?}", derived.as_bytes()),
    ] {
        assert!(!leaks(&shown, &secret), "{shown}");
    }
    assert!(shown.contains(&key.fingerprint().to_string()));
}

#[test]
fn errors_have_no_keys() {
    let mock = agent();
    let endpoint = mock.agent.endpoint();
    let request = serde_json::to_vec(&server_request()).unwrap();
    let (_, tls) = raw::post(&endpoint, "GetTlsKey", &request);
    let (_, derived) = raw::post(&endpoint, "GetKey", b"{}");
    let tls = String::from_utf8(tls).unwrap();
    let derived = String::from_utf8(derived).unwrap();
    let key = serde_json::from_str::<serde_json::Value>(&derived).unwrap()["key"].to_string();
    let pem = serde_json::from_str::<serde_json::Value>(&tls).unwrap()["key"].clone();
    let pem = base64(pem.as_str().unwrap());
    let mut errors: Vec<AgentError> = Vec::new();
    for (status, body) in [
        // Keys in unexpected fields, of a wrong type, and truncated.
        (500, tls.clone()),
        (400, derived.clone()),
        (200, tls.replace("\"key\":", "\"yek\":")),
        (200, tls.replace("PRIVATE", "SECRET")),
        (200, derived.replace("\"signature_chain\":", "\"chain\":")),
        (
            200,
            derived
                .replace("\"key\":", "\"key\":[")
                .replace("\",\"sig", "\"],\"sig"),
        ),
        (200, derived.replace("\"key\":\"", "\"key\":\"0")),
        (200, tls[..tls.len() / 2].to_owned()),
        (200, derived[..derived.len() / 2].to_owned()),
    ] {
        mock.agent
            .set_behaviour(AgentBehaviour::Status(status, body));
        errors.extend(block_on(mock.client().tls_key(&server_request())).err());
        errors.extend(block_on(mock.client().key("", "")).err());
    }
    mock.agent
        .set_behaviour_for(Method::GetTlsKey, AgentBehaviour::WrongKey);
    errors.extend(block_on(mock.client().tls_key(&server_request())).err());
    assert!(errors.len() >= 17, "{}", errors.len());
    for error in errors {
        let shown = format!("{error} {error:?}");
        assert!(!leaks(&shown, &pem) && !leaks(&shown, &key), "{shown}");
    }
}
