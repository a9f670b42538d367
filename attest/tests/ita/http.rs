//! A Trust Authority that is down, slow, sends too much, or does not know this client.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use attest::denial::Fault;
use attest::ita::{ApiKey, Base, Client, ItaError, Options};
use attest::mock::{Behaviour, TrustAuthority};

use crate::{ItaFixture, NOW, client};

const SHORT: Duration = Duration::from_millis(700);

#[test]
fn every_fault_has_its_error() {
    let fixture = ItaFixture::default();
    for (behaviour, error) in [
        (Behaviour::Close, ItaError::Unreachable),
        (Behaviour::Status(401), ItaError::Unauthorized),
        (Behaviour::Status(400), ItaError::QuoteRefused),
        (Behaviour::Status(403), ItaError::Status(403)),
        (Behaviour::Status(429), ItaError::Status(429)),
        (Behaviour::Status(500), ItaError::Status(500)),
        (Behaviour::Status(204), ItaError::Status(204)),
        (Behaviour::Redirect, ItaError::Status(302)),
        (Behaviour::Html, ItaError::MalformedAnswer),
        (Behaviour::TruncatedBody, ItaError::Truncated),
        (Behaviour::Oversized, ItaError::TooLarge { limit: 64 << 10 }),
        (
            Behaviour::OversizedChunked,
            ItaError::TooLarge { limit: 64 << 10 },
        ),
    ] {
        fixture.authority.set_behaviour(behaviour);
        assert_eq!(fixture.appraise().unwrap_err(), error, "{behaviour:?}");
    }
    fixture.authority.set_behaviour(Behaviour::Normal);
    assert!(fixture.appraise().is_ok());
}

#[test]
fn deadline_ends_every_request() {
    let mut fixture = ItaFixture::default();
    fixture.client = client(&fixture.authority.url(), TrustAuthority::API_KEY, SHORT);
    for behaviour in [Behaviour::Stall, Behaviour::Trickle] {
        for keys in [false, true] {
            let (attest, certs) = match keys {
                true => (Behaviour::Normal, behaviour),
                false => (behaviour, Behaviour::Normal),
            };
            fixture.authority.set_behaviour(attest);
            fixture.authority.set_key_behaviour(certs);
            let started = Instant::now();
            assert_eq!(
                fixture.appraise().unwrap_err(),
                ItaError::Timeout,
                "{behaviour:?}"
            );
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    }
}

#[test]
fn closed_port_is_unreachable() {
    let mut fixture = ItaFixture::default();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    fixture.client = client(&format!("http://{port}"), TrustAuthority::API_KEY, SHORT);
    let error = fixture.appraise().unwrap_err();
    assert_eq!(error, ItaError::Unreachable);
    assert_eq!(error.fault(), Fault::Ours);
}

#[test]
fn wrong_api_key_is_refused_and_never_printed() {
    let mut fixture = ItaFixture::default();
    let secret = "d3Jvbmcta2V5";
    fixture.client = client(&fixture.authority.url(), secret, Duration::from_secs(20));
    let error = fixture.appraise().unwrap_err();
    assert_eq!(error, ItaError::Unauthorized);
    let shown = format!("{error} {error:?} {:?}", fixture.client);
    assert!(!shown.contains(secret), "{shown}");
}

#[test]
fn invalid_base_urls_are_refused() {
    let key = ApiKey::new(TrustAuthority::API_KEY).unwrap();
    for url in [
        "http://ita.example",
        "ita.example",
        "https://u:p@ita.example",
    ] {
        let refused = Client::new(&Base::Url(url.into()), key.clone(), Options::default());
        assert_eq!(refused.unwrap_err().code(), "ita_base");
    }
    for base in [Base::Us, Base::Eu] {
        assert!(Client::new(&base, key.clone(), Options::default()).is_ok());
    }
}

/// Single flight: concurrent appraisals share one fetch of the key set.
#[test]
fn concurrent_appraisals_share_one_key_fetch() {
    let fixture = ItaFixture::default();
    let bound = fixture.bound();
    let all = futures_util::future::join_all((0..16).map(|_| fixture.client.appraise(&bound, NOW)));
    for appraised in fixture.runtime.block_on(all) {
        appraised.unwrap();
    }
    assert_eq!(fixture.authority.appraisals(), 16);
    assert_eq!(fixture.authority.key_fetches(), 1);
}
