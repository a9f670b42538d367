//! Fetching from a PCCS, with and without faults, and the background refresh.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attest::collateral::{
    Collateral, CollateralError, CollateralKey, DiskCache, Environment, Event, FetchError,
    FetchOptions, Fetcher, Handle, Part, Refresher, Schedule, Source, SourceError, Store,
    Unavailable,
};
use attest::mock::{
    Behaviour, Certificate, CollateralOptions, Envelope, Evidence, Key, LeafOptions, Pccs,
    PccsResponses, Pki, Platform, PlatformOptions, Resource,
};

use super::{DAY, NOW, fresh, pki};

const ALL: [Resource; 4] = [
    Resource::TcbInfo,
    Resource::QeIdentity,
    Resource::PckCrl,
    Resource::RootCrl,
];

fn key() -> CollateralKey {
    pki()
        .parsed_collateral(&CollateralOptions::at(NOW))
        .unwrap()
        .key()
}

fn responses(pki: &Pki, now: u64) -> PccsResponses {
    let collateral = pki.collateral(&CollateralOptions::at(now)).unwrap();
    PccsResponses::empty().with(key(), collateral)
}

fn pccs() -> Pccs {
    Pccs::start(responses(&pki(), NOW)).unwrap()
}

fn fetcher(url: &str) -> Fetcher {
    let options = FetchOptions {
        connect_timeout: Duration::from_millis(300),
        deadline: Duration::from_millis(1_500),
        ..FetchOptions::default()
    };
    Fetcher::new(url.parse().unwrap(), &options).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn fetch(pccs: &Pccs) -> Result<Collateral, FetchError> {
    runtime().block_on(fetcher(&pccs.url()).fetch(key()))
}

#[test]
fn fetched_collateral_equals_the_served() {
    let pccs = pccs();
    let fetched = fetch(&pccs).unwrap();
    assert_eq!(fetched, fresh(NOW));
    assert_eq!(ALL.map(|resource| pccs.requests(resource)), [1; 4]);
}

#[test]
fn every_fault_has_its_error() {
    let pccs = pccs();
    let malformed = |part, why| FetchError::Collateral(CollateralError::Malformed { part, why });
    for (behaviour, error) in [
        (Behaviour::Close, FetchError::Connect),
        (Behaviour::Stall, FetchError::Timeout),
        (Behaviour::Trickle, FetchError::Timeout),
        (Behaviour::TruncatedBody, FetchError::Truncated),
        (
            Behaviour::Oversized,
            FetchError::TooLarge { limit: 2 << 20 },
        ),
        (
            Behaviour::OversizedChunked,
            FetchError::TooLarge { limit: 2 << 20 },
        ),
        (Behaviour::Status(503), FetchError::Status(503)),
        (Behaviour::Redirect, FetchError::Status(302)),
    ] {
        // All requests have the same deadline, so that testing it once is enough.
        let times_out = error == FetchError::Timeout;
        for resource in ALL.into_iter().take(if times_out { 1 } else { 4 }) {
            pccs.set_behaviour(Behaviour::Normal);
            pccs.set_behaviour_for(resource, behaviour);
            let started = Instant::now();
            assert_eq!(
                fetch(&pccs).unwrap_err(),
                error,
                "{behaviour:?} for {resource:?}"
            );
            assert!(
                started.elapsed() < Duration::from_secs(4),
                "{behaviour:?} for {resource:?}"
            );
        }
    }
    pccs.set_behaviour(Behaviour::Normal);
    pccs.set_behaviour_for(Resource::TcbInfo, Behaviour::MissingHeader);
    let error = malformed(Part::TcbInfo, "no issuer chain in the headers");
    assert_eq!(fetch(&pccs).unwrap_err(), error);
    for (resource, part, why) in [
        (
            Resource::TcbInfo,
            Part::TcbInfo,
            "no signed document in JSON",
        ),
        (
            Resource::QeIdentity,
            Part::QeIdentity,
            "no signed document in JSON",
        ),
        (Resource::RootCrl, Part::RootCrl, "no X.509 CRL"),
        (Resource::PckCrl, Part::PckCrl, "no X.509 CRL"),
    ] {
        pccs.set_behaviour(Behaviour::Normal);
        pccs.set_behaviour_for(resource, Behaviour::Html);
        assert_eq!(fetch(&pccs).unwrap_err(), malformed(part, why));
    }
}

#[test]
fn closed_port_and_unknown_platform_are_errors() {
    let closed = pccs().url();
    assert_eq!(
        runtime()
            .block_on(fetcher(&closed).fetch(key()))
            .unwrap_err(),
        FetchError::Connect
    );
    let pccs = Pccs::start(PccsResponses::empty()).unwrap();
    assert_eq!(fetch(&pccs).unwrap_err(), FetchError::Status(404));
}

#[test]
fn collateral_of_another_platform_is_refused() {
    let other = CollateralKey {
        fmspc: attest::collateral::Fmspc([1; 6]),
        ..key()
    };
    let collateral = pki()
        .collateral(&CollateralOptions::at(NOW).for_key(other))
        .unwrap();
    let pccs = Pccs::start(PccsResponses::empty().with(key(), collateral)).unwrap();
    assert_eq!(
        fetch(&pccs).unwrap_err(),
        FetchError::Collateral(CollateralError::WrongKey)
    );
}

#[test]
fn sources_are_parsed() {
    let source = |text: &str| text.parse::<Source>();
    assert_eq!(
        source("intel").unwrap().to_string(),
        "https://api.trustedservices.intel.com"
    );
    assert_eq!(
        source("phala").unwrap().to_string(),
        "https://pccs.phala.network"
    );
    for text in [
        "http://pccs.lan:8081",
        "http://pccs.lan:8081/",
        "http://pccs.lan:8081/sgx/certification/v4/",
    ] {
        assert_eq!(source(text).unwrap().to_string(), "http://pccs.lan:8081");
    }
    assert_eq!(source("pccs.lan").unwrap_err(), SourceError::NotAUrl);
    assert_eq!(
        source("file:///etc/passwd").unwrap_err(),
        SourceError::Scheme
    );
    assert_eq!(
        source("https://a:b@pccs.lan").unwrap_err(),
        SourceError::Credentials
    );
    assert_eq!(
        source("https://pccs.lan/?x").unwrap_err(),
        SourceError::Query
    );
}

/// An HTTPS server with a certificate of `pki`'s KMS CA for 127.0.0.1. It responds 404 to every request.
fn https_server(pki: &Pki) -> String {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let platform = Platform::new(pki, &PlatformOptions::default()).unwrap();
    let key = Key::derive(&[7; 32], "https").unwrap();
    let evidence = Evidence {
        envelope: Envelope::None,
        ..Evidence::default()
    };
    let leaf =
        Certificate::issue(pki, &platform, &key, &evidence, &LeafOptions::default()).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8_der().unwrap()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().to_vec().into()], private)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::StreamOwned::new(tls, stream);
            let mut request = [0; 1_024];
            if tls.read(&mut request).is_ok() {
                let _ = tls.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
            }
        }
    });
    format!("https://{address}")
}

#[test]
fn https_servers_are_verified() {
    let pki = pki();
    let url = https_server(&pki);
    let with = |roots: Option<&str>| {
        let options = FetchOptions {
            extra_roots_pem: roots.map(|pem| pem.as_bytes().to_vec()),
            ..FetchOptions::default()
        };
        let fetcher = Fetcher::new(url.parse().unwrap(), &options)?;
        runtime().block_on(fetcher.fetch(key()))
    };
    assert_eq!(with(None).unwrap_err(), FetchError::Connect);
    let other = Pki::new(&[8; 32]).unwrap();
    assert_eq!(
        with(Some(other.kms_pem())).unwrap_err(),
        FetchError::Connect
    );
    // The TLS handshake succeeded: the status is the server's.
    assert_eq!(
        with(Some(pki.kms_pem())).unwrap_err(),
        FetchError::Status(404)
    );
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(matches!(
        with(Some(broken)).unwrap_err(),
        FetchError::Client(_)
    ));
}

/// A refresher on its own thread, with a clock that the test sets.
struct Harness {
    handle: Handle,
    clock: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<Event>>>,
}

fn start(fetcher: Option<Fetcher>, disk: Option<DiskCache>) -> Harness {
    let schedule = Schedule {
        initial_backoff: 1,
        max_backoff_missing: 1,
        ..Schedule::default()
    };
    let store = Store::new(pki().root_der().to_vec(), schedule);
    let clock = Arc::new(AtomicU64::new(NOW));
    let events = Arc::new(Mutex::new(Vec::new()));
    let (clock_read, event_log) = (Arc::clone(&clock), Arc::clone(&events));
    let around = Environment {
        now: Box::new(move || clock_read.load(Ordering::Relaxed)),
        random: Box::new(|| 0),
        events: Box::new(move |event| event_log.lock().unwrap().push(event)),
    };
    let (mut keeper, handle) = Refresher::new(store, fetcher, disk, around);
    keeper.load();
    std::thread::spawn(move || runtime().block_on(keeper.run()));
    Harness {
        handle,
        clock,
        events,
    }
}

impl Harness {
    /// Waits for an event that `matches`.
    fn await_event(&self, matches: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Some(event) = self
                .events
                .lock()
                .unwrap()
                .iter()
                .find(|event| matches(event))
            {
                return event.clone();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no such event, but {:?}", self.events.lock().unwrap());
    }

    /// Sets the clock, and wakes the refresher by a request.
    fn set_time(&self, now: u64) {
        self.clock.store(now, Ordering::Relaxed);
        self.events.lock().unwrap().clear();
        let _ = want(&self.handle);
    }
}

/// Requests the collateral and waits for it.
fn want(handle: &Handle) -> Result<Arc<Collateral>, Unavailable> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(handle.request(key()))
}

#[test]
fn concurrent_requests_share_one_fetch() {
    let pccs = pccs();
    let harness = start(Some(fetcher(&pccs.url())), None);
    assert!(harness.handle.snapshot().get(key(), NOW).is_none());
    let waiters: Vec<_> = (0..200)
        .map(|_| {
            let handle = harness.handle.clone();
            std::thread::spawn(move || want(&handle).unwrap().key())
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), key());
    }
    assert_eq!(ALL.map(|resource| pccs.requests(resource)), [1; 4]);
    assert_eq!(harness.handle.epoch(), 1);
    assert!(harness.handle.snapshot().get(key(), NOW).is_some());
}

#[test]
fn faulty_pccs_does_not_replace_cached_collateral() {
    let pccs = pccs();
    let harness = start(Some(fetcher(&pccs.url())), None);
    want(&harness.handle).unwrap();
    let snapshot = harness.handle.snapshot();
    let _session = snapshot.usage(key()).unwrap().begin(NOW);
    let mut now = NOW;
    for behaviour in [
        Behaviour::Close,
        Behaviour::Stall,
        Behaviour::TruncatedBody,
        Behaviour::OversizedChunked,
        Behaviour::Html,
        Behaviour::Status(500),
    ] {
        pccs.set_behaviour(behaviour);
        now += 2 * DAY;
        harness.set_time(now);
        // A fetch is running, and requests do not wait for it.
        let started = Instant::now();
        assert!(want(&harness.handle).is_ok());
        assert!(
            started.elapsed() < Duration::from_millis(500),
            "{behaviour:?}"
        );
        let event = harness.await_event(|event| matches!(event, Event::Failed { .. }));
        assert!(
            matches!(
                event,
                Event::Failed {
                    cached_until: Some(_),
                    ..
                }
            ),
            "{behaviour:?}: {event:?}"
        );
        assert_eq!(harness.handle.epoch(), 1, "{behaviour:?}");
    }
    // A PCCS with wrong collateral: first wrongly signed, then expired.
    pccs.set_behaviour(Behaviour::Normal);
    for (wrong, code) in [
        (
            responses(&Pki::new(&[8; 32]).unwrap(), now),
            "bad_signature",
        ),
        (responses(&pki(), NOW - 60 * DAY), "expired"),
    ] {
        pccs.set_responses(wrong);
        now += 2 * DAY;
        harness.set_time(now);
        let event = harness.await_event(|event| matches!(event, Event::Failed { .. }));
        let Event::Failed { error, .. } = event else {
            panic!()
        };
        assert_eq!(error.code(), code);
        assert_eq!(harness.handle.epoch(), 1);
    }
    // Once its collateral is correct again, it is stored.
    pccs.set_responses(responses(&pki(), now + DAY));
    harness.set_time(now + 2 * DAY);
    harness.await_event(|event| matches!(event, Event::Refreshed { changed: true, .. }));
    assert_eq!(harness.handle.epoch(), 2);
}

#[test]
fn requests_fail_if_nothing_is_cached() {
    let pccs = pccs();
    pccs.set_behaviour(Behaviour::Status(500));
    let harness = start(Some(fetcher(&pccs.url())), None);
    let failed = Unavailable::Failed {
        key: key(),
        error: FetchError::Status(500),
    };
    assert_eq!(want(&harness.handle).unwrap_err(), failed);
    // No request is sent during the back-off.
    assert_eq!(want(&harness.handle).unwrap_err(), failed);
    assert_eq!(pccs.requests(Resource::PckCrl), 1);
    pccs.set_behaviour(Behaviour::Normal);
    harness.clock.store(NOW + 1, Ordering::Relaxed);
    want(&harness.handle).unwrap();
    let offline = start(None, None);
    let none = Unavailable::Failed {
        key: key(),
        error: FetchError::NoSource,
    };
    assert_eq!(want(&offline.handle).unwrap_err(), none);
}

#[test]
fn expiry_is_announced_and_enforced() {
    let pccs = pccs();
    let harness = start(Some(fetcher(&pccs.url())), None);
    let expires_at = want(&harness.handle).unwrap().expires_at();
    let snapshot = harness.handle.snapshot();
    let _session = snapshot.usage(key()).unwrap().begin(NOW);
    drop(pccs);
    harness.set_time(expires_at - 3 * DAY);
    harness.await_event(|event| matches!(event, Event::AboutToExpire { .. }));
    assert!(want(&harness.handle).is_ok());
    harness.set_time(expires_at);
    harness.await_event(|event| matches!(event, Event::Expired { .. }));
    assert!(want(&harness.handle).is_err());
    assert!(harness.handle.snapshot().get(key(), expires_at).is_none());
}

#[test]
fn collateral_is_loaded_from_disk_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path().join("collateral"));
    let pccs = pccs();
    let harness = start(Some(fetcher(&pccs.url())), Some(disk.clone()));
    want(&harness.handle).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !disk.path(key()).exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let restarted = start(None, Some(disk.clone()));
    assert!(restarted.handle.snapshot().get(key(), NOW).is_some());
    want(&restarted.handle).unwrap();
    assert_eq!(restarted.events.lock().unwrap().len(), 1);
    // A damaged file is reported, and the collateral is fetched again.
    std::fs::write(disk.path(key()), b"{\"half\":").unwrap();
    let repaired = start(Some(fetcher(&pccs.url())), Some(disk.clone()));
    repaired.await_event(|event| matches!(event, Event::NotLoaded { .. }));
    want(&repaired.handle).unwrap();
}

#[test]
fn failed_write_is_reported_and_collateral_is_still_used() {
    let folder = tempfile::tempdir().unwrap();
    let not_a_folder = folder.path().join("collateral");
    std::fs::write(&not_a_folder, b"a file").unwrap();
    let pccs = pccs();
    let harness = start(
        Some(fetcher(&pccs.url())),
        Some(DiskCache::new(&not_a_folder)),
    );
    want(&harness.handle).unwrap();
    harness.await_event(|event| matches!(event, Event::NotStored { .. }));
    assert!(harness.handle.snapshot().get(key(), NOW).is_some());
}

#[test]
fn offered_collateral_is_verified() {
    let harness = start(None, None);
    let options = CollateralOptions::at(NOW);
    let forged = Pki::new(&[8; 32])
        .unwrap()
        .parsed_collateral(&options)
        .unwrap();
    harness.handle.import(forged).unwrap();
    harness.await_event(|event| matches!(event, Event::NotLoaded { .. }));
    harness
        .handle
        .import(pki().parsed_collateral(&options).unwrap())
        .unwrap();
    harness.await_event(|event| matches!(event, Event::Refreshed { changed: true, .. }));
    assert!(want(&harness.handle).is_ok());
}

#[test]
fn refresher_ends_with_its_last_handle() {
    let store = Store::new(pki().root_der().to_vec(), Schedule::default());
    let around = Environment {
        now: Box::new(|| NOW),
        random: Box::new(|| 0),
        events: Box::new(|_| ()),
    };
    let (keeper, handle) = Refresher::new(store, None, None, around);
    drop(handle);
    runtime().block_on(keeper.run());
}
