//! Trials of the publisher against a real name server (Debian's knot by default), and of what a forwarder then finds.

mod name_server;

use std::sync::Arc;

use attest::agent::{AgentAddresses, AgentOptions};
use attest::manifest::ManifestPolicy;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::{TsigConfig, TsigSecret};
use crate::io::target::{Target, TargetSpec};
use crate::tasks::discovery::{DnsClient, TargetResolver};
use name_server::{Kind, NameServer, poll};

const DOMAIN: &str = "orders.example";
/// `printf` of 32 times one letter, in base64.
const SECRET: &str = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=";
const OTHER_SECRET: &str = "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=";

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record_name() -> Name {
    name("_teesql-leader.orders.example.")
}

fn key(digits: &str) -> SigningKey {
    SigningKey::from_hex(&digits.repeat(32)).unwrap()
}

fn tsig(key: &str, secret: &str) -> TsigConfig {
    TsigConfig {
        name: name(key),
        algorithm: TsigAlgorithm::HmacSha256,
        secret: secret.parse::<TsigSecret>().unwrap(),
    }
}

fn update(port: u16, tsig: TsigConfig) -> DnsUpdateConfig {
    DnsUpdateConfig {
        server: ("127.0.0.1".to_owned(), port),
        zone: None,
        tsig,
    }
}

/// A member's publisher, and what can be seen of it.
struct Member {
    leads: watch::Sender<Option<u64>>,
    readiness: admin::Readiness,
    metrics: Arc<Metrics>,
}

impl Member {
    /// Starts the publisher of the member that listens on `port`, with another instance id than the others.
    fn start(port: u16, signing_key: SigningKey, destination: ManifestDestination) -> Self {
        let config = ManifestConfig {
            name: record_name(),
            cluster: Some(EthAddress([0xbd; 20])),
            epoch_offset: 40,
            key: Some(signing_key),
            leader_url: format!("https://127.0.0.1:{port}").parse().unwrap(),
            destination,
        };
        let readiness = admin::Readiness::new();
        let latch = readiness.latch("manifest", "not started yet");
        let metrics = Arc::new(Metrics::new().unwrap());
        register(&metrics);
        let nowhere = AgentAddresses::only("unix:/nonexistent".parse().unwrap());
        let agent = Agent::new(nowhere, AgentOptions::default()).unwrap();
        let instance = InstanceSource::Known(format!("{port:040x}").parse().unwrap());
        let made = ManifestPublisher::new(config, &agent, instance, latch, Arc::clone(&metrics));
        let (leads, leading) = watch::channel(None);
        tokio::spawn(made.unwrap().run(leading));
        Self {
            leads,
            readiness,
            metrics,
        }
    }

    fn updating(port: u16, digits: &str, dns: &NameServer) -> Self {
        let update = update(dns.port, tsig("teesql.", SECRET));
        Self::start(
            port,
            key(digits),
            ManifestDestination::Update(Box::new(update)),
        )
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.render();
        let prefix = format!("{series} ");
        let found = text.lines().find_map(|line| line.strip_prefix(&prefix));
        found.unwrap().parse().unwrap()
    }

    async fn await_metric(&self, series: &str, expected: impl Fn(f64) -> bool) {
        poll(async || expected(self.metric(series)).then_some(())).await;
    }

    async fn await_published(&self) {
        let now = unix_now() as f64;
        let until = "teesql_manifest_valid_until_timestamp_seconds";
        self.await_metric(until, |until| (now + 590.0..now + 640.0).contains(&until))
            .await;
    }

    async fn await_failure(&self, code: &str) {
        let series = format!("teesql_manifest_failures_total{{reason=\"{code}\"}}");
        self.await_metric(&series, |count| count >= 1.0).await;
        assert!(self.readiness.is_ready(), "a warning only");
        let reason = self.reason();
        assert!(reason.starts_with(&format!("{code}: ")), "{reason}");
    }

    fn reason(&self) -> String {
        let json = admin_reason(&self.readiness);
        json.unwrap_or_default()
    }
}

/// The reason of the only check.
fn admin_reason(readiness: &admin::Readiness) -> Option<String> {
    readiness.reasons().into_iter().next().flatten()
}

/// Where a forwarder would connect.
async fn followed(dns: &NameServer, signer: &SigningKey) -> Option<Arc<Target>> {
    let policy = ManifestPolicy::for_signer(signer.address());
    let spec = TargetSpec::Cluster {
        domain: DOMAIN.to_owned(),
        policy,
    };
    let server = ([127, 0, 0, 1], dns.port).into();
    let dns = Arc::new(DnsClient::new(Some(server)).unwrap());
    let control = tokio::runtime::Handle::current();
    TargetResolver::new(spec, dns, control)
        .resolve(None)
        .await
        .ok()
}

async fn followed_port(dns: &NameServer, digits: &str) -> Option<u16> {
    followed(dns, &key(digits)).await.map(|target| target.port)
}

#[tokio::test]
async fn forwarders_follow_the_member_that_leads() {
    let Some(dns) = NameServer::start().await else {
        return;
    };
    let (a, b) = (
        Member::updating(6001, "11", &dns),
        Member::updating(6002, "11", &dns),
    );
    assert_eq!(followed_port(&dns, "11").await, None);
    a.leads.send_replace(Some(1));
    a.await_published().await;
    assert_eq!(followed_port(&dns, "11").await, Some(6001));
    assert_eq!(a.metric("teesql_manifest_leading"), 1.0);

    // A switchover: the old record is replaced, in the same update.
    a.leads.send_replace(None);
    b.leads.send_replace(Some(2));
    b.await_published().await;
    let target = followed(&dns, &key("11")).await.unwrap();
    assert_eq!(target.port, 6002);
    assert_eq!(
        target.leader.as_ref().unwrap().as_str(),
        format!("{:040x}", 6002)
    );
    assert_eq!(dns.records().await.len(), 1);
    a.await_metric("teesql_manifest_leading", |leading| leading == 0.0)
        .await;
    assert_eq!(
        a.metric("teesql_manifest_valid_until_timestamp_seconds"),
        0.0
    );

    // A member that was restored from an old disk, or has not noticed that it lost the lead.
    a.leads.send_replace(Some(1));
    a.await_failure("manifest_higher_epoch").await;
    assert!(
        a.reason()
            .contains("epoch 42 stands there, and this one would have epoch 41")
    );
    // Two leaders of one timeline: not even the newer one hides the other.
    a.leads.send_replace(Some(2));
    a.await_failure("manifest_epoch_taken").await;
    assert_eq!(followed_port(&dns, "11").await, Some(6002));
    a.leads.send_replace(Some(3));
    a.await_published().await;
    assert_eq!(followed_port(&dns, "11").await, Some(6001));
    assert_eq!(a.reason(), "");
}

#[tokio::test]
async fn another_signer_of_the_cluster_is_a_warning_and_keeps_its_record() {
    let Some(dns) = NameServer::start().await else {
        return;
    };
    let a = Member::updating(6001, "11", &dns);
    a.leads.send_replace(Some(1));
    a.await_published().await;
    let b = Member::updating(6002, "22", &dns);
    b.leads.send_replace(Some(2));
    b.await_published().await;
    assert_eq!(b.metric("teesql_manifest_foreign_signer"), 1.0);
    let address = key("11").address();
    let warning = format!("manifest_foreign_signer: {address} also signs");
    assert!(b.reason().starts_with(&warning), "{}", b.reason());
    assert_eq!(dns.records().await.len(), 2);
    assert_eq!(followed_port(&dns, "11").await, Some(6001));
    assert_eq!(followed_port(&dns, "22").await, Some(6002));
}

#[tokio::test]
async fn each_refusal_of_the_name_server_has_its_code() {
    let Some(dns) = NameServer::start().await else {
        return;
    };
    let replace = async |tsig, zone: Option<&str>, name: &Name, now| {
        let update = DnsUpdateConfig {
            zone: zone.map(self::name),
            ..update(dns.port, tsig)
        };
        let server = update_server(update).unwrap();
        let result = server.replace(name, [], "a text", TTL, now).await;
        result.err().map(|error| error.code())
    };
    let (good, now) = (|| tsig("teesql.", SECRET), unix_now());
    let record = record_name();
    let elsewhere = name("a.elsewhere.test.");
    let attempts = [
        (tsig("teesql.", OTHER_SECRET), None, &record, now),
        (tsig("unknown.", SECRET), None, &record, now),
        (good(), None, &record, now - 3600),
        (good(), None, &elsewhere, now),
        (good(), Some("elsewhere.test."), &record, now),
    ];
    let mut found = Vec::new();
    for (tsig, zone, name, now) in attempts {
        found.push(replace(tsig, zone, name, now).await.unwrap());
    }
    let expected = match dns.kind {
        Kind::Knot | Kind::Bind => [
            "manifest_bad_signature",
            "manifest_bad_key",
            "manifest_bad_time",
            "manifest_no_zone",
            "manifest_not_auth",
        ],
        // It does not say what is wrong with a signature.
        Kind::PowerDns => [
            "manifest_refused",
            "manifest_refused",
            "manifest_refused",
            "manifest_no_zone",
            "manifest_not_auth",
        ],
    };
    assert_eq!(found, expected);
    // A key that may change other zones only, and names that this one may not change. Each server has its own words.
    for (tsig, zone, name) in [
        (tsig("other.", OTHER_SECRET), None, record.clone()),
        (good(), None, name("www.orders.example.")),
        (good(), Some("orders.example."), name("a.elsewhere.test.")),
    ] {
        let found = replace(tsig, zone, &name, now).await.unwrap();
        let refused = [
            "manifest_refused",
            "manifest_not_auth",
            "manifest_not_zone",
            "manifest_bad_key",
            "manifest_not_applied",
        ];
        assert!(refused.contains(&found), "{found}");
    }
    assert_eq!(replace(good(), None, &record, now).await, None);
    assert_eq!(dns.records().await, ["a text"]);
}

/// Something in front of the name server says yes.
#[tokio::test]
async fn an_answer_without_a_signature_is_no_success() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut request = vec![0; length.into()];
            stream.read_exact(&mut request).await.unwrap();
            let request = Message::from_vec(&request).unwrap();
            let answer = Message::response(request.metadata.id, request.metadata.op_code);
            let answer = answer.to_vec().unwrap();
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            let answer = [&length[..], &answer].concat();
            stream.write_all(&answer).await.unwrap();
        }
    });
    let member = |tsig| {
        let update = DnsUpdateConfig {
            zone: Some(name("orders.example.")),
            ..update(port, tsig)
        };
        Member::start(
            6001,
            key("11"),
            ManifestDestination::Update(Box::new(update)),
        )
    };
    let deceived = member(tsig("teesql.", SECRET));
    deceived.leads.send_replace(Some(1));
    deceived.await_failure("manifest_unverified").await;
    assert_eq!(
        deceived.metric("teesql_manifest_valid_until_timestamp_seconds"),
        0.0
    );
}

#[tokio::test]
async fn a_server_that_is_down_and_a_command_that_fails_are_retried() {
    // Nothing listens there while the socket is bound.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    closed.bind(&any.into()).unwrap();
    let port = closed.local_addr().unwrap().as_socket().unwrap().port();
    let update = update(port, tsig("teesql.", SECRET));
    let update = ManifestDestination::Update(Box::new(update));
    let down = Member::start(6001, key("11"), update);
    let failing = ManifestDestination::Command("/bin/false".into());
    let failing = Member::start(6002, key("11"), failing);
    let working = ManifestDestination::Command("/bin/true".into());
    let working = Member::start(6003, key("11"), working);
    for member in [&down, &failing, &working] {
        member.leads.send_replace(Some(7));
    }
    working.await_published().await;
    down.await_failure("manifest_no_answer").await;
    failing.await_failure("manifest_command_failed").await;
    assert!(
        failing.reason().contains("exit code 1"),
        "{}",
        failing.reason()
    );
    let failures = "teesql_manifest_failures_total{reason=\"manifest_command_failed\"}";
    failing.await_metric(failures, |count| count >= 2.0).await;
    // What is not its business any more is no warning either.
    failing.leads.send_replace(None);
    poll(async || failing.reason().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_watcher_that_repeats_itself_does_not_end_an_attempt() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("slow");
    std::fs::write(&program, "#!/bin/sh\nsleep 0.5\n").unwrap();
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&program, mode).unwrap();
    let member = Member::start(6001, key("11"), ManifestDestination::Command(program));
    let published = "teesql_manifest_published_timestamp_seconds";
    poll(async || {
        member.leads.send_replace(Some(7));
        (member.metric(published) > 0.0).then_some(())
    })
    .await;
}
