//! The recorded exchanges of dstack 0.6.0: its answers read by the client, byte for byte, and its
//! questions answered by the mock agent in the same shape.

use attest::agent::{AgentError, TlsKeyRequest};
use attest::mock::AgentOptions;
use attest::mock::recorded::{APP_ID, COMPOSE_HASH, INSTANCE_ID, OS_IMAGE_HASH, read};
use attest::quote::TdQuote;
use attest::values::{AppId, ComposeHash, InstanceId, OsImageHash};
use serde_json::Value;

use crate::replay::Replay;
use crate::{NOW, agent_with, block, raw};

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

/// Every recorded exchange of this name; none, with a printed reason, where there are no fixtures.
fn exchanges(name: &str) -> impl Iterator<Item = (&'static str, Exchange)> {
    FOLDERS
        .into_iter()
        .filter_map(move |folder| Some((folder, exchange(folder, name)?)))
}

/// Whether exactly this was asked, as dstack needs it.
fn check_asked(replay: Replay, method: &str, exchange: &Exchange) {
    let asked = replay.asked();
    assert!(
        asked
            .head
            .starts_with(&format!("POST /{method} HTTP/1.1\r\n")),
        "{}",
        asked.head
    );
    assert!(
        asked
            .head
            .to_lowercase()
            .contains("\r\ncontent-type: application/json\r\n")
    );
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(body, exchange.request());
}

#[test]
fn tls_keys() {
    for name in [
        "GetTlsKey",
        "GetTlsKey_app_info_validity",
        "GetTlsKey_client_only",
        "GetTlsKey_no_ratls",
    ] {
        for (folder, exchange) in exchanges(name) {
            let asked = exchange.request();
            let flag = |name: &str| asked[name] == true;
            let request = TlsKeyRequest {
                subject: asked["subject"].as_str().unwrap().to_owned(),
                alt_names: serde_json::from_value(asked["alt_names"].clone()).unwrap(),
                usage_ra_tls: flag("usage_ra_tls"),
                usage_server_auth: flag("usage_server_auth"),
                usage_client_auth: flag("usage_client_auth"),
                not_before: asked["not_before"].as_u64(),
                not_after: asked["not_after"].as_u64(),
                with_app_info: flag("with_app_info"),
            };
            let replay = Replay::of(200, &exchange.response);
            let key = block(replay.client().tls_key(&request))
                .unwrap_or_else(|error| panic!("{folder}/{name}: {error}"));
            check_asked(replay, "GetTlsKey", &exchange);
            let answer = exchange.response();
            assert_eq!(*key.key_pem(), answer["key"].as_str().unwrap());
            let chain = answer["certificate_chain"].as_array().unwrap();
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
fn derived_keys() {
    for (_, exchange) in exchanges("GetKey_default") {
        let replay = Replay::of(200, &exchange.response);
        let key = block(replay.client().key("pg/superuser", "")).unwrap();
        check_asked(replay, "GetKey", &exchange);
        let answer = exchange.response();
        assert_eq!(*key.to_hex(), answer["key"].as_str().unwrap());
        let signatures = key.signature_chain().each_ref().map(hex::encode);
        assert_eq!(Value::from(signatures.to_vec()), answer["signature_chain"]);
    }
    for (folder, exchange) in exchanges("GetKey_ed25519") {
        let replay = Replay::of(200, &exchange.response);
        let key = block(replay.client().key("pg/superuser", "")).unwrap();
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
fn quotes() {
    for name in ["GetQuote", "GetQuote_short"] {
        for (_, exchange) in exchanges(name) {
            let replay = Replay::of(200, &exchange.response);
            let quote = block(replay.client().quote(&report_data(&exchange))).unwrap();
            check_asked(replay, "GetQuote", &exchange);
            let answer = exchange.response();
            let field = |name: &str| answer[name].as_str().unwrap();
            assert_eq!(hex::encode(quote.quote.as_bytes()), field("quote"));
            assert_eq!(hex::encode(quote.report_data), field("report_data"));
            assert_eq!(quote.event_log, field("event_log"));
            assert_eq!(quote.vm_config, field("vm_config"));
            let attestation = quote.attestation.unwrap();
            assert_eq!(hex::encode(attestation), field("attestation"));

            let replay = Replay::of(200, &exchange.response);
            let error = block(replay.client().quote(b"something else")).unwrap_err();
            assert_eq!(crate::malformed(error).0, "quote");
        }
    }
}

#[test]
fn attestations() {
    for (_, exchange) in exchanges("Attest") {
        let replay = Replay::of(200, &exchange.response);
        let attestation = block(replay.client().attest(&report_data(&exchange))).unwrap();
        check_asked(replay, "Attest", &exchange);
        let answer = exchange.response();
        assert_eq!(
            hex::encode(attestation),
            answer["attestation"].as_str().unwrap()
        );

        let replay = Replay::of(200, &exchange.response);
        let error = block(replay.client().attest(b"something else")).unwrap_err();
        assert_eq!(crate::malformed(error).0, "attestation");
    }
}

#[test]
fn info() {
    for (folder, exchange) in exchanges("Info") {
        let replay = Replay::of(200, &exchange.response);
        let info = block(replay.client().info()).unwrap();
        check_asked(replay, "Info", &exchange);
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
fn version() {
    for (_, exchange) in exchanges("Version") {
        let replay = Replay::of(200, &exchange.response);
        let version = block(replay.client().version()).unwrap();
        check_asked(replay, "Version", &exchange);
        assert_eq!(version.version, "0.6.0");
        assert_eq!(version.rev, "git:312dc605ebaaf9337253");
    }
}

/// Recorded refusals, and to which method they belong.
const REFUSALS: [(&str, &str); 6] = [
    ("GetKey_bad_alg", "GetKey"),
    ("GetTlsKey_bad_validity", "GetTlsKey"),
    ("GetQuote_not_hex", "GetQuote"),
    ("GetQuote_too_long", "GetQuote"),
    ("bad_json", "GetQuote"),
    ("unknown_method", "Nope"),
];

#[test]
fn refusals() {
    for (name, _) in REFUSALS {
        for (_, exchange) in exchanges(name) {
            let replay = Replay::of(400, &exchange.response);
            let error = block(replay.client().quote(b"")).unwrap_err();
            let words = exchange.response()["error"].as_str().unwrap().to_owned();
            match error {
                AgentError::Status {
                    status: 400,
                    message,
                    ..
                } => assert_eq!(message, words),
                other => panic!("{other}"),
            }
        }
    }
}

/// What it is made of: names and types, not values. JSON in a string is looked into.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.clone(), shape(value)));
            Value::Object(fields.collect())
        }
        // Lists may be of any length; what is in them is alike.
        Value::Array(items) => Value::Array(items.last().map(shape).into_iter().collect()),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(json @ (Value::Object(_) | Value::Array(_))) => shape(&json),
            Ok(_) | Err(_) => "text".into(),
        },
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "flag".into(),
        Value::Null => Value::Null,
    }
}

#[test]
fn the_mock_answers_in_the_same_shape() {
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
            let (mut ours, mut theirs) =
                (serde_json::from_slice(&body).unwrap(), exchange.response());
            for answer in [&mut ours, &mut theirs] {
                settle(answer);
            }
            assert_eq!(shape(&ours), shape(&theirs), "{folder}/{name}");
        }
    }
}

/// What depends on the application or the machine, and not on the agent.
fn settle(answer: &mut Value) {
    for field in ["vm_config", "tcb_info"] {
        let json = answer[field].as_str().map(str::to_owned);
        let Some(json) = json else { continue };
        let mut json: Value = serde_json::from_str(&json).unwrap();
        let fields = json.as_object_mut().unwrap();
        fields.remove("memory_size");
        fields.remove("app_compose");
        answer[field] = json;
    }
}

#[test]
fn the_mock_refuses_in_the_same_words() {
    let mock = agent_with(AgentOptions::at(NOW));
    for (name, method) in REFUSALS {
        for (_, exchange) in exchanges(name) {
            let (status, body) = raw::post(&mock.agent.endpoint(), method, &exchange.request);
            assert_eq!(status, 400);
            let words = String::from_utf8(body).unwrap();
            let recorded = String::from_utf8(exchange.response.clone()).unwrap();
            assert_eq!(words.trim_end(), recorded.trim_end(), "{name}");
        }
    }
}
