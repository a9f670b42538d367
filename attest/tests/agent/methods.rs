//! Every method with the mock agent, over Unix and TCP sockets.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use attest::agent::{AgentAddress, AgentError, Method, TlsKeyRequest};
use attest::evidence::{EvidenceFormat, UnboundEvidence};
use attest::mock::{self, AgentBehaviour, AgentListen, AgentOptions, Envelope, Evidence};
use attest::values::AppId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    Folder, NOW, agent, agent_with, block_on, client, pki, raw, server_request, single_attempt,
};

#[test]
fn every_method_works_over_unix_and_tcp() {
    let unix = agent();
    let tcp = mock::Agent::start(pki(), AgentListen::Tcp, AgentOptions::at(NOW)).unwrap();
    for agent in [&unix.agent, &tcp] {
        let client = client(agent.endpoint(), single_attempt());
        block_on(async {
            let key = client.tls_key(&server_request()).await.unwrap();
            assert_eq!(key.chain_der().len(), 2);
            client.key("pg/superuser", "").await.unwrap();
            client.quote(b"hello").await.unwrap();
            client.attest(b"hello").await.unwrap();
            client.info().await.unwrap();
            let version = client.version().await.unwrap();
            assert_eq!(version.version, "0.6.0");
        });
        let counts = Method::ALL.map(|method| agent.requests(method));
        assert_eq!(counts, [1; 6], "{agent:?}");
    }
    assert!(tcp.endpoint().to_string().starts_with("http://127.0.0.1:"));
    let with_slash = AgentAddress::parse(&format!("{}/", tcp.endpoint())).unwrap();
    block_on(client(with_slash, single_attempt()).version()).unwrap();
}

#[test]
fn tls_key_has_the_requested_names_dates_and_usages() {
    let mock = agent();
    let request = TlsKeyRequest {
        not_before: Some(NOW),
        not_after: Some(NOW + 3_600),
        usage_client_auth: false,
        ..server_request()
    };
    let key = block_on(mock.client().tls_key(&request)).unwrap();
    assert_eq!((key.not_before(), key.not_after()), (NOW, NOW + 3_600));
    let (_, leaf) = X509Certificate::from_der(&key.chain_der()[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=pg.sim.test");
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let IpAddr::V4(v4) = localhost else { panic!() };
    assert_eq!(
        names.value.general_names,
        [
            GeneralName::DNSName("localhost"),
            GeneralName::IPAddress(&v4.octets())
        ]
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);

    let other = block_on(mock.client().tls_key(&request)).unwrap();
    assert_ne!(key.key_der(), other.key_der(), "each call makes a new key");
    let serial = |der: &[u8]| {
        X509Certificate::from_der(der)
            .unwrap()
            .1
            .raw_serial_as_string()
    };
    assert_ne!(serial(&key.chain_der()[0]), serial(&other.chain_der()[0]));
}

#[test]
fn default_validity_is_dstacks() {
    let key = block_on(agent().client().tls_key(&server_request())).unwrap();
    assert_eq!(key.not_before(), 157_766_400, "1975-01-01");
    assert_eq!(key.not_after(), NOW + 3_650 * 86_400);
}

#[test]
fn pem_and_der_agree() {
    let key = block_on(agent().client().tls_key(&server_request())).unwrap();
    let chain = key.chain_pem();
    let blocks = x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes());
    let der: Vec<_> = blocks.map(|block| block.unwrap().contents).collect();
    assert_eq!(der, key.chain_der());
    assert!(chain.lines().all(|line| line.len() <= 64));
    let same = mock::Key::from_pkcs8_pem(&key.key_pem()).unwrap();
    assert_eq!(same.to_pkcs8_der().unwrap(), key.key_der());
    assert_eq!(*key.key_pem(), same.to_pkcs8_pem().unwrap());
}

#[test]
fn certificate_without_ra_tls_has_no_evidence() {
    let request = TlsKeyRequest {
        usage_ra_tls: false,
        with_app_info: true,
        ..server_request()
    };
    let key = block_on(agent().client().tls_key(&request)).unwrap();
    let leaf = attest::certificate::Leaf::parse(&key.chain_der()[0]).unwrap();
    let extensions = leaf.extensions();
    assert!(extensions.attestation.is_none() && extensions.quote.is_none());
    assert_eq!(extensions.usage, Some(&b"app:custom"[..]));
    // A msgpack array of nine, with the app id first.
    let info = extensions.app_info.unwrap();
    assert_eq!(info[..23], [&[0x99, 0xc4, 20], &[0xa1; 20][..]].concat());
}

#[test]
fn missing_evidence_is_an_error() {
    let mock = agent_with(AgentOptions {
        evidence: Evidence {
            envelope: Envelope::None,
            ..Evidence::default()
        },
        ..AgentOptions::at(NOW)
    });
    let error = block_on(mock.client().tls_key(&server_request())).unwrap_err();
    let why = "carries no evidence that is bound to its key (a simulator of dstack needs patch_report_data = true)";
    assert_eq!(crate::malformed(error), ("certificate_chain", why));
}

#[test]
fn derived_key_depends_on_path_and_application() {
    let mock = agent();
    let key = |mock: &crate::MockAgent, path: &str, purpose: &str| {
        let key = block_on(mock.client().key(path, purpose)).unwrap();
        assert_eq!(*key.to_hex(), hex::encode(key.as_bytes()));
        assert_eq!(key.signature_chain().each_ref().map(Vec::len), [65, 65]);
        (*key.as_bytes(), key.signature_chain().clone())
    };
    let (first, signatures) = key(&mock, "pg/superuser", "");
    assert_eq!(key(&mock, "pg/superuser", "").0, first);
    let (same, other_signatures) = key(&mock, "pg/superuser", "another");
    assert_eq!(same, first, "the purpose affects only the signature");
    assert_ne!(signatures, other_signatures);
    assert_ne!(key(&mock, "pg/read", "").0, first);
    let other = agent_with(AgentOptions {
        seed: [1; 32],
        ..AgentOptions::at(NOW)
    });
    assert_ne!(key(&other, "pg/superuser", "").0, first);
}

#[test]
fn quote_has_the_padded_report_data() {
    let mock = agent();
    for report_data in [&[][..], b"hello", &[9; 64]] {
        let quote = block_on(mock.client().quote(report_data)).unwrap();
        let mut padded = [0; 64];
        padded[..report_data.len()].copy_from_slice(report_data);
        assert_eq!(quote.report_data, padded);
        assert_eq!(quote.quote.report().report_data(), &padded);
        let log: serde_json::Value = serde_json::from_str(&quote.event_log).unwrap();
        assert_eq!(log.as_array().unwrap().len(), 9);
        assert!(quote.vm_config.contains("os_image_hash"));
        let evidence = quote.attestation.unwrap();
        let evidence = UnboundEvidence::from_envelope(&evidence).unwrap();
        assert_eq!(evidence.quote(), &quote.quote);
    }
    let error = block_on(mock.client().quote(&[0; 65])).unwrap_err();
    assert_eq!(error, AgentError::ReportDataTooLong { bytes: 65 });
    let error = block_on(mock.client().attest(&[0; 65])).unwrap_err();
    assert_eq!(error, AgentError::ReportDataTooLong { bytes: 65 });
}

#[test]
fn attestation_has_the_agents_envelope() {
    for (envelope, form) in [
        (Envelope::V0, EvidenceFormat::V0),
        (Envelope::V1, EvidenceFormat::V1),
    ] {
        let mock = agent_with(AgentOptions {
            evidence: Evidence {
                envelope,
                ..Evidence::default()
            },
            ..AgentOptions::at(NOW)
        });
        let attestation = block_on(mock.client().attest(&[3; 64])).unwrap();
        let evidence = UnboundEvidence::from_envelope(&attestation).unwrap();
        assert_eq!(evidence.format(), form);
        assert_eq!(evidence.quote().report().report_data(), &[3; 64]);
    }
}

#[test]
fn info_agrees_with_quote_and_event_log() {
    let mock = agent();
    let info = block_on(mock.client().info()).unwrap();
    let quote = block_on(mock.client().quote(b"")).unwrap();
    let tcb = info.tcb_info.unwrap();
    assert_eq!(tcb.mrtd, quote.quote.report().mrtd());
    assert_eq!(tcb.rtmrs, quote.quote.report().rtmrs());
    let attestation = quote.attestation.unwrap();
    let evidence = UnboundEvidence::from_envelope(&attestation).unwrap();
    let identity = evidence.events().prove(tcb.rtmrs[3]).unwrap();
    assert_eq!(info.app_id, AppId([0xa1; 20]));
    assert_eq!(identity.app_id(), Some(info.app_id));
    assert_eq!(identity.instance_id(), info.instance_id);
    assert_eq!(identity.compose_hash(), Some(info.compose_hash));
    assert_eq!(identity.os_image_hash(), info.os_image_hash);
    assert_eq!(identity.key_provider(), Some(&*info.key_provider_info));
    assert_eq!(tcb.compose_hash, Some(info.compose_hash));
    let json = |log: &str| serde_json::from_str::<serde_json::Value>(log).unwrap();
    assert_eq!(json(&tcb.event_log), json(&quote.event_log));
    assert_eq!(info.app_cert.len(), 2);
}

#[test]
fn quotes_are_serialized() {
    const EACH: Duration = Duration::from_millis(40);
    let mock = agent_with(AgentOptions {
        quote_time: EACH,
        ..AgentOptions::at(NOW)
    });
    let client = mock.client();
    let started = Instant::now();
    block_on(async {
        let (quote, attestation) = tokio::join!(client.quote(b"1"), client.attest(b"2"));
        let request = server_request();
        let (key, other) = tokio::join!(client.tls_key(&request), client.quote(b"3"));
        assert!(quote.is_ok() && attestation.is_ok() && key.is_ok() && other.is_ok());
    });
    assert!(started.elapsed() >= 4 * EACH);
}

#[test]
fn mock_accepts_requests_like_dstack() {
    let mock = agent();
    let endpoint = mock.agent.endpoint();
    let status =
        |line: &str, headers: &str, body: &[u8]| raw::send(&endpoint, line, headers, body).0;
    let charset = "content-type: application/json; charset=utf-8\r\n";
    assert_eq!(status("POST /Version", charset, b"{}"), 200);
    // As dstack's Rust SDK sends it.
    assert_eq!(
        status("POST http://localhost/Version", raw::JSON, b"{}"),
        200
    );
    assert_eq!(
        raw::send_chunked(&endpoint, "POST /GetQuote", br#"{"report_data":"00"}"#).0,
        200
    );
    for query in ["json", "json=1", "json=true"] {
        assert_eq!(
            status(&format!("POST /Version?{query}"), "", b"{}"),
            200,
            "{query}"
        );
    }
    assert_eq!(status("POST /Version?json=false", "", b"{}"), 400);
    assert_eq!(status("GET /Version", "", b""), 200);
    let (_, response) = raw::send(&endpoint, "GET /GetQuote?report_data=6869", "", b"");
    let response: serde_json::Value = serde_json::from_slice(&response).unwrap();
    assert_eq!(response["report_data"], format!("6869{}", "0".repeat(124)));
    let fields = "subject=a&alt_names[]=b.test&usage_ra_tls=true&not_before=7&not_after=1800000000";
    let (_, response) = raw::send(&endpoint, &format!("GET /GetTlsKey?{fields}"), "", b"");
    let response: serde_json::Value = serde_json::from_slice(&response).unwrap();
    let pem = response["certificate_chain"][0].as_str().unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).next();
    let pem = pem.unwrap().unwrap();
    let leaf = pem.parse_x509().unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=a");
    assert_eq!(leaf.validity().not_before.timestamp(), 7);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::DNSName("b.test")]);
}

#[test]
fn mock_signs_like_dstack() {
    let mock = agent();
    let endpoint = mock.agent.endpoint();
    let sign = |algorithm: &str, data: &str| {
        let request = format!(r#"{{"algorithm":"{algorithm}","data":"{data}"}}"#);
        let (status, body) = raw::post(&endpoint, "Sign", request.as_bytes());
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body)
    };
    let digest = "11".repeat(32);
    for (algorithm, data, length) in [
        ("ed25519", "6869", 32),
        ("secp256k1", "6869", 33),
        ("secp256k1_prehashed", digest.as_str(), 33),
    ] {
        let (status, body) = sign(algorithm, data);
        assert_eq!(status, 200, "{algorithm}: {body}");
        let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
        let (signature, key) = (bytes(&body["signature"]), bytes(&body["public_key"]));
        assert_eq!((signature.len(), key.len()), (64, length), "{algorithm}");
        assert_eq!(body["signature_chain"].as_array().unwrap().len(), 3);
        assert_eq!(body["signature_chain"][0], body["signature"]);
        if algorithm == "ed25519" {
            use ring::signature::{ED25519, UnparsedPublicKey};
            let key = UnparsedPublicKey::new(&ED25519, key);
            key.verify(b"hi", &signature).unwrap();
        }
    }
    assert_eq!(sign("secp256k1_prehashed", "00").0, 400);
    assert_eq!(sign("rsa", "00").0, 400);
}

#[test]
fn mock_rejects_requests_like_dstack() {
    let mock = agent();
    let endpoint = mock.agent.endpoint();
    let (status, body) = raw::send(&endpoint, "POST /Version", "", b"{}");
    assert_eq!(status, 400, "without a content type it is protobuf");
    assert!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["error"].is_string());
    let text = "content-type: text/plain\r\n";
    assert_eq!(raw::send(&endpoint, "POST /Version", text, b"{}").0, 400);
    assert_eq!(
        raw::send(&endpoint, "GET /GetQuote?report_data=x", "", b"").0,
        400
    );
    for request in [&br#"{"alt_names":"localhost"}"#[..], b"[", b""] {
        assert_eq!(raw::post(&endpoint, "GetTlsKey", request).0, 400);
    }
    let invalid_name = "{\"alt_names\":[\"no d\u{fc}rer\"]}".as_bytes();
    assert_eq!(raw::post(&endpoint, "GetTlsKey", invalid_name).0, 400);
}

#[test]
fn dropping_the_mock_closes_its_connections() {
    let folder = Folder::new();
    for listen in [
        AgentListen::Tcp,
        AgentListen::Unix(folder.path("dstack.sock")),
    ] {
        let agent = mock::Agent::start(pki(), listen, AgentOptions::at(NOW)).unwrap();
        agent.set_behaviour(AgentBehaviour::Delay(Duration::from_secs(60)));
        let mut idle = raw::connect(&agent.endpoint());
        let mut waiting = raw::connect(&agent.endpoint());
        let request = format!(
            "POST /Version HTTP/1.1\r\n{}content-length: 2\r\n\r\n{{}}",
            raw::JSON
        );
        waiting.write_all(request.as_bytes()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while agent.requests(Method::Version) == 0 {
            assert!(Instant::now() < deadline, "the request did not arrive");
            std::thread::sleep(Duration::from_millis(5));
        }
        let started = Instant::now();
        drop(agent);
        for stream in [&mut idle, &mut waiting] {
            let mut rest = Vec::new();
            // The kernel may report the closed connection as a reset.
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.is_empty());
        }
        assert!(started.elapsed() < Duration::from_secs(3));
    }
}
