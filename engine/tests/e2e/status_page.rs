//! The status page of a sidecar and of a forwarder, as its HTML and in a real browser.

use std::net::SocketAddr;

use attest::mock::Evidence;

use crate::attestation_gate::connect;
use crate::harness::browser;
use crate::harness::client::Client;
use crate::harness::fixture::Fixture;
use crate::harness::forwarder::Forwarder;
use crate::harness::http::{self, Response};
use crate::harness::scrape::await_scrape;
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::{Requirement, Suite};
use crate::harness::tdx_fixture::TdxFixture;
use crate::harness::unverified_tls;
use crate::policy::{peer, write_policy};

pub(crate) fn add(suite: &mut Suite) {
    // The admin thread and the control thread make it.
    if !suite.adds_driver_independent() {
        return;
    }
    suite.add("status_page::says_what_happens", says_what_happens);
    suite.add("status_page::of_a_forwarder", of_a_forwarder);
    suite.add("status_page::can_be_closed", closed);
    suite.add_requiring(
        &[Requirement::Browser],
        "status_page::in_a_browser",
        in_a_browser,
    );
}

/// The name of a policy entry that would run a script, if it were not escaped.
const HOSTILE: &str = "<script>document.title='run'</script><b>\\\"'&";

fn page(address: SocketAddr) -> Response {
    let head = "Accept: text/html\r\n";
    http::get_with(address, "/", head)
}

/// A sidecar with a policy file, one session, and one client that was refused.
fn busy_sidecar(fixture: &Fixture, tdx: &TdxFixture) -> (Sidecar, Client) {
    let policy = write_policy(tdx, &[peer(HOSTILE, "a1", "")]);
    let settings = tdx
        .production_settings(fixture)
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_POLICY_FILE", &policy);
    let sidecar = Sidecar::start(&settings);
    let mut session = connect(
        fixture,
        &sidecar,
        &tdx.issue("client", &Evidence::default()),
    );
    session.login_reader();
    unverified_tls::connect(None, &sidecar).expect_fatal();
    await_scrape(sidecar.admin_address(), |scrape| {
        scrape.sum("teesql_logins_total", "outcome=\"refused\"") == 1.0
    });
    (sidecar, session)
}

fn assert_says_what_happens(html: &str) {
    for text in [
        "Sessions by peer",
        "&lt;script&gt;document.title='run'&lt;/script&gt;&lt;b&gt;",
        "<th scope=\"row\">teesql_read</th><td>1</td>",
        "<h3><code>no_certificate</code></h3>",
        "The client sent no certificate",
        "What to do: </b>psql: <code>sslcert</code> and <code>sslkey</code>",
        "Throughput",
        "Own certificate",
        "teesql-sidecar",
    ] {
        assert!(html.contains(text), "{text} is not in {html}");
    }
    assert!(!html.contains("<script>document"), "{html}");
}

fn says_what_happens(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let (sidecar, session) = busy_sidecar(fixture, &tdx);
    let address = sidecar.admin_address();
    let page = page(address);
    assert_eq!(page.status, 200, "{}", page.body);
    assert_says_what_happens(&page.body);
    let scrape = await_scrape(address, |_| true);
    let peers = scrape.sum("teesql_peer_sessions", "");
    assert_eq!(peers, 1.0);
    // The page identifies no client.
    for secret in ["a1".repeat(20), session.local_address().to_string()] {
        assert!(!page.body.contains(&secret), "{secret}");
    }
    session.terminate();
}

fn of_a_forwarder(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let settings = tdx
        .forwarder_settings_to(fixture, "127.0.0.1:1")
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0");
    let forwarder = Forwarder::start(&settings);
    let line = forwarder.await_message("serving HTTP");
    let address = line["address"].as_str().expect("an address");
    let page = page(address.parse().expect("an address"));
    assert_eq!(page.status, 200, "{}", page.body);
    for text in ["teesql-forward", "<h2>Servers</h2>", "identity", ">Ready<"] {
        assert!(page.body.contains(text), "{text} is not in {}", page.body);
    }
    for text in ["Sessions by role", "/attestation"] {
        assert!(!page.body.contains(text), "{text} is in {}", page.body);
    }
    let list = http::get(address.parse().expect("an address"), "/").body;
    assert!(list.contains("/metrics"), "{list}");
    assert!(!list.contains("/attestation"), "{list}");
}

fn closed(fixture: &Fixture) {
    let settings = fixture
        .settings()
        .set("TEESQL_ADMIN_LISTEN", "127.0.0.1:0")
        .set("TEESQL_STATUS_PAGE", "false");
    let sidecar = Sidecar::start(&settings);
    let address = sidecar.admin_address();
    assert_eq!(page(address).status, 404);
    assert_eq!(http::get(address, "/").status, 200);
}

fn in_a_browser(fixture: &Fixture) {
    let tdx = TdxFixture::new();
    let (sidecar, session) = busy_sidecar(fixture, &tdx);
    let url = format!("http://{}/", sidecar.admin_address());
    let profile = fixture.harness.unique_path("browser");
    let rendered = browser::open(&url, &profile, 12_000);
    let console = &rendered.console;
    assert!(console.is_empty(), "{console:#?}");
    let dom = &rendered.dom;
    assert_says_what_happens(dom);
    // The script has run, and has loaded the page again.
    assert!(dom.contains("data-updates="), "{dom}");
    assert!(!dom.contains("class=\"stale\""), "{dom}");
    assert!(dom.contains(">Pause updates</button>"), "{dom}");
    assert!(!dom.contains("hidden=\"\""), "{dom}");
    assert!(
        dom.contains("<title>Ready · teesql-sidecar</title>"),
        "{dom}"
    );
    // Style and script are allowed by their hashes: the console has no complaint, and the style is in force.
    session.terminate();
    drop(sidecar);
}
