//! A Trust Authority that is down, slow, too talkative, or does not know this client.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use attest::denial::Fault;
use attest::ita::{ApiKey, Base, Client, ItaError, Options};
use attest::mock::{Behaviour, TrustAuthority};

use crate::{NOW, client, world};

const SHORT: Duration = Duration::from_millis(700);

#[test]
fn every_misbehaviour_has_its_error() {
    let world = world();
    for (manner, error) in [
        (Behaviour::Down, ItaError::Unreachable),
        (Behaviour::Status(401), ItaError::Unauthorized),
        (Behaviour::Status(400), ItaError::QuoteRefused),
        (Behaviour::Status(403), ItaError::Status(403)),
        (Behaviour::Status(429), ItaError::Status(429)),
        (Behaviour::Status(500), ItaError::Status(500)),
        (Behaviour::Status(204), ItaError::Status(204)),
        (Behaviour::Redirect, ItaError::Status(302)),
        (Behaviour::Html, ItaError::MalformedAnswer),
        (Behaviour::HalfBody, ItaError::Truncated),
        (Behaviour::Huge, ItaError::TooLarge { limit: 64 << 10 }),
        (
            Behaviour::HugeChunked,
            ItaError::TooLarge { limit: 64 << 10 },
        ),
    ] {
        world.authority.behave(manner);
        assert_eq!(world.appraise().unwrap_err(), error, "{manner:?}");
    }
    world.authority.behave(Behaviour::Honest);
    assert!(world.appraise().is_ok());
}

#[test]
fn every_wait_ends() {
    let mut world = world();
    world.client = client(&world.authority.url(), TrustAuthority::API_KEY, SHORT);
    for manner in [Behaviour::Silent, Behaviour::Trickle] {
        for keys in [false, true] {
            let (attest, certs) = match keys {
                true => (Behaviour::Honest, manner),
                false => (manner, Behaviour::Honest),
            };
            world.authority.behave(attest);
            world.authority.behave_for_keys(certs);
            let began = Instant::now();
            assert_eq!(
                world.appraise().unwrap_err(),
                ItaError::Timeout,
                "{manner:?}"
            );
            assert!(began.elapsed() < Duration::from_secs(10));
        }
    }
}

#[test]
fn nobody_there() {
    let mut world = world();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    world.client = client(&format!("http://{port}"), TrustAuthority::API_KEY, SHORT);
    let error = world.appraise().unwrap_err();
    assert_eq!(error, ItaError::Unreachable);
    assert_eq!(error.fault(), Fault::Ours);
}

#[test]
fn a_wrong_key_is_refused_and_shown_nowhere() {
    let mut world = world();
    let secret = "d3Jvbmcta2V5";
    world.client = client(&world.authority.url(), secret, Duration::from_secs(20));
    let error = world.appraise().unwrap_err();
    assert_eq!(error, ItaError::Unauthorized);
    let shown = format!("{error} {error:?} {:?}", world.client);
    assert!(!shown.contains(secret), "{shown}");
}

#[test]
fn a_base_that_is_refused() {
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

/// Many who come at once share the fetch of the keys.
#[test]
fn one_flight_for_keys() {
    let world = world();
    let bound = world.bound();
    let all = futures_util::future::join_all((0..16).map(|_| world.client.appraise(&bound, NOW)));
    for appraised in world.runtime.block_on(all) {
        appraised.unwrap();
    }
    assert_eq!(world.authority.appraisals(), 16);
    assert_eq!(world.authority.key_fetches(), 1);
}
