//! Conformance with recorded exchanges of dstack 0.6.0: the client reads its responses, and the mock agent
//! answers its requests with responses of the same structure.

use attest::agent::{AgentError, TlsKeyRequest};
use attest::mock::AgentOptions;
use attest::mock::recorded::{APP_ID, COMPOSE_HASH, INSTANCE_ID, OS_IMAGE_HASH, read};
use attest::quote::TdQuote;
use attest::values::{AppId, ComposeHash, InstanceId, OsImageHash};
use serde_json::Value;

use crate::replay_server::ReplayServer;
use crate::{NOW, agent_with, block_on, raw};

const FOLDERS: [&str; 3] = ["dstack-plain-v0", "dstack-mock-v0", "dstack-mock-v1"];

struct Exchange {
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Exchange {
    fn request(&self) -> Value {
        serde_json::from_slice(&self.request).unwrap()
    }

    fn response(&self) -> Value {
        serde_json::from_slice(&self.response).unwrap()
    }
}

/// A recorded exchange, or `None` with a printed reason.
fn exchange(folder: &str, name: &str) -> Option<Exchange> {
    Some(Exchange {
        request: read(&format!("{folder}/{name}.request.json"))?,
        response: read(&format!("{folder}/{name}.response.json"))?,
    })
}

/// All recorded exchanges of this name. Prints a reason if there are none.
fn exchanges(name: &str) -> impl Iterator<Item = (&'static str, Exchange)> {
    FOLDERS
        .into_iter()
        .filter_map(move |folder| Some((folder, exchange(folder, name)?)))
}

/// Checks that the client sent the recorded request in the form that dstack requires.
fn check_request(replay: ReplayServer, method: &str, exchange: &Exchange) {
    let received = replay.request();
    assert!(
        received
            .head
            .starts_with(&format!("POST /{method} HTTP/1.1\r\n")),
        "{}",
        received.head
    );
    assert!(
        received
            .head
            .to_lowercase()
            .contains("\r\ncontent-type: application/json\r\n")
    );
    let body: Value = serde_json::from_slice(&received.body).unwrap();
    assert_eq!(body, exchange.request());
}

#[test]
fn client_reads_tls_keys() {
    for name in [
        "GetTlsKey",
        "GetTlsKey_app_info_validity",
        "GetTlsKey_client_only",
        "GetTlsKey_no_ratls",
    ] {
        for (folder, exchange) in exchanges(name) {
            let fields = exchange.request();
            let flag = |name: &str| fields[name] == true;
            let request = TlsKeyRequest {
                subject: fields["subject"].as_str().unwrap().to_owned(),
                alt_names: serde_json::from_value(fields["alt_names"].clone()).unwrap(),
                usage_ra_tls: flag("usage_ra_tls"),
                usage_server_auth: flag("usage_server_auth"),
                usage_client_auth: flag("usage_client_auth"),
                not_before: fields["not_before"].as_u64(),
                not_after: fields["not_after"].as_u64(),
                with_app_info: flag("with_app_info"),
            };
            let replay = ReplayServer::start(200, &exchange.response);
            let key = block_on(replay.client().tls_key(&request))
                .unwrap_or_else(|error| panic!("{folder}/{name}: {error}"));
            check_request(replay, "GetTlsKey", &exchange);
            let response = exchange.response();
            assert_eq!(*key.key_pem(), response["key"].as_str().unwrap());
            let chain = response["certificate_chain"].as_array().unwrap();
            let chain: String = chain.iter().map(|pem| pem.as_str().unwrap()).collect();
            assert_eq!(key.chain_pem(), chain);
            assert_eq!(key.not_before(), request.not_before.unwrap_or(157_766_400));
            if let Some(not_after) = request.not_after {
                assert_eq!(key.not_after(), not_after);
            }
        }
    }
}

#[test]
fn client_reads_derived_keys() {
    for (_, exchange) in exchanges("GetKey_default") {
        let replay = ReplayServer::start(200, &exchange.response);
        let key = block_on(replay.client().key("pg/superuser", "")).unwrap();
        check_request(replay, "GetKey", &exchange);
        let response = exchange.response();
        assert_eq!(*key.to_hex(), response["key"].as_str().unwrap());
        let signatures = key.signature_chain().each_ref().map(hex::encode);
        assert_eq!(
            Value::from(signatures.to_vec()),
            response["signature_chain"]
        );
    }
    for (folder, exchange) in exchanges("GetKey_ed25519") {
        let replay = ReplayServer::start(200, &exchange.response);
        let key = block_on(replay.client().key("pg/superuser", "")).unwrap();
        let Some(default) = self::exchange(folder, "GetKey_default") else {
            return;
        };
        assert_eq!(*key.to_hex(), default.response()["key"].as_str().unwrap());
    }
}

fn report_data(exchange: &Exchange) -> Vec<u8> {
    hex::decode(exchange.request()["report_data"].as_str().unwrap()).unwrap()
}

#[test]
fn client_reads_quotes() {
    for name in ["GetQuote", "GetQuote_short"] {
        for (_, exchange) in exchanges(name) {
            let replay = ReplayServer::start(200, &exchange.response);
            let quote = block_on(replay.client().quote(&report_data(&exchange))).unwrap();
            check_request(replay, "GetQuote", &exchange);
            let response = exchange.response();
            let field = |name: &str| response[name].as_str().unwrap();
            assert_eq!(hex::encode(quote.quote.as_bytes()), field("quote"));
            assert_eq!(hex::encode(quote.report_data), field("report_data"));
            assert_eq!(quote.event_log, field("event_log"));
            assert_eq!(quote.vm_config, field("vm_config"));
            let attestation = quote.attestation.unwrap();
            assert_eq!(hex::encode(attestation), field("attestation"));

            let replay = ReplayServer::start(200, &exchange.response);
            let error = block_on(replay.client().quote(b"something else")).unwrap_err();
            assert_eq!(crate::malformed(error).0, "quote");
        }
    }
}

#[test]
fn client_reads_attestations() {
    for (_, exchange) in exchanges("Attest") {
        let replay = ReplayServer::start(200, &exchange.response);
        let attestation = block_on(replay.client().attest(&report_data(&exchange))).unwrap();
        check_request(replay, "Attest", &exchange);
        let response = exchange.response();
        assert_eq!(
            hex::encode(attestation),
            response["attestation"].as_str().unwrap()
        );

        let replay = ReplayServer::start(200, &exchange.response);
        let error = block_on(replay.client().attest(b"something else")).unwrap_err();
        assert_eq!(crate::malformed(error).0, "attestation");
    }
}

#[test]
fn client_reads_info() {
    for (folder, exchange) in exchanges("Info") {
        let replay = ReplayServer::start(200, &exchange.response);
        let info = block_on(replay.client().info()).unwrap();
        check_request(replay, "Info", &exchange);
        assert_eq!(info.app_id, APP_ID.parse::<AppId>().unwrap());
        assert_eq!(
            info.compose_hash,
            COMPOSE_HASH.parse::<ComposeHash>().unwrap()
        );
        let instance: InstanceId = INSTANCE_ID.parse().unwrap();
        assert_eq!(info.instance_id, Some(instance));
        let image: OsImageHash = OS_IMAGE_HASH.parse().unwrap();
        assert_eq!(info.os_image_hash, Some(image));
        assert_eq!(info.app_name, "guest-agent");
        assert_eq!(info.app_cert.len(), 2);
        let tcb = info.tcb_info.unwrap();
        assert_eq!(tcb.compose_hash, Some(info.compose_hash));
        let Some(quote) = self::exchange(folder, "GetQuote") else {
            return;
        };
        let quote = hex::decode(quote.response()["quote"].as_str().unwrap()).unwrap();
        let quote = TdQuote::parse(&quote).unwrap();
        assert_eq!(tcb.mrtd, quote.report().mrtd());
        assert_eq!(tcb.rtmrs, quote.report().rtmrs());
        let log: Vec<Value> = serde_json::from_str(&tcb.event_log).unwrap();
        assert_eq!(log.len(), 33);
    }
}

#[test]
fn client_reads_version() {
    for (_, exchange) in exchanges("Version") {
        let replay = ReplayServer::start(200, &exchange.response);
        let version = block_on(replay.client().version()).unwrap();
        check_request(replay, "Version", &exchange);
        assert_eq!(version.version, "0.6.0");
        assert_eq!(version.rev, "git:312dc605ebaaf9337253");
    }
}

/// Recorded refusals and their methods.
const REFUSALS: [(&str, &str); 6] = [
    ("GetKey_bad_alg", "GetKey"),
    ("GetTlsKey_bad_validity", "GetTlsKey"),
    ("GetQuote_not_hex", "GetQuote"),
    ("GetQuote_too_long", "GetQuote"),
    ("bad_json", "GetQuote"),
    ("unknown_method", "Nope"),
];

#[test]
fn client_reads_refusals() {
    for (name, _) in REFUSALS {
        for (_, exchange) in exchanges(name) {
            let replay = ReplayServer::start(400, &exchange.response);
            let error = block_on(replay.client().quote(b"")).unwrap_err();
            let text = exchange.response()["error"].as_str().unwrap().to_owned();
            match error {
                AgentError::Status {
                    status: 400,
                    message,
                    ..
                } => assert_eq!(message, text),
                other => panic!("{other}"),
            }
        }
    }
}

/// The structure of a value: names and types, but not values. Includes JSON within strings.
fn structure(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), structure(value)));
            Value::Object(fields.collect())
        }
        // Lists may have any length, and their items have the same structure.
        Value::Array(items) => Value::Array(items.last().map(structure).into_iter().collect()),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(json @ (Value::Object(_) | Value::Array(_))) => structure(&json),
            Ok(_) | Err(_) => "text".into(),
        },
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "flag".into(),
        Value::Null => Value::Null,
    }
}

#[test]
fn mock_responses_have_the_same_structure() {
    let mock = agent_with(AgentOptions::at(NOW));
    let endpoint = mock.agent.endpoint();
    for name in [
        "GetTlsKey",
        "GetTlsKey_app_info_validity",
        "GetTlsKey_client_only",
        "GetTlsKey_no_ratls",
        "GetKey_default",
        "GetKey_ed25519",
        "GetQuote",
        "GetQuote_short",
        "Attest",
        "Info",
        "Version",
    ] {
        let method = name.split('_').next().unwrap();
        for (folder, exchange) in exchanges(name) {
            let (status, body) = raw::post(&endpoint, method, &exchange.request);
            assert_eq!(status, 200, "{name}");
            let (mut actual, mut recorded) =
                (serde_json::from_slice(&body).unwrap(), exchange.response());
            for response in [&mut actual, &mut recorded] {
                remove_variable_fields(response);
            }
            assert_eq!(structure(&actual), structure(&recorded), "{folder}/{name}");
        }
    }
}

/// Removes fields that depend on the application or the platform, and not on the agent.
fn remove_variable_fields(response: &mut Value) {
    for field in ["vm_config", "tcb_info"] {
        let json = response[field].as_str().map(str::to_owned);
        let Some(json) = json else { continue };
        let mut json: Value = serde_json::from_str(&json).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.remove("memory_size");
        fields.remove("app_compose");
        response[field] = json;
    }
}

#[test]
fn mock_refusals_have_the_same_text() {
    let mock = agent_with(AgentOptions::at(NOW));
    for (name, method) in REFUSALS {
        for (_, exchange) in exchanges(name) {
            let (status, body) = raw::post(&mock.agent.endpoint(), method, &exchange.request);
            assert_eq!(status, 400);
            let text = String::from_utf8(body).unwrap();
            let recorded = String::from_utf8(exchange.response.clone()).unwrap();
            assert_eq!(text.trim_end(), recorded.trim_end(), "{name}");
        }
    }
}
