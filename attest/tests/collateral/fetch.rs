//! Fetching from a PCCS that behaves, and from one that does not.

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
    Behaviour, Certificate, CollateralOptions, Envelope, Evidence, Key, LeafOptions, Machine,
    MachineOptions, Pccs, PccsAnswers, Pki, Resource,
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

fn answers(pki: &Pki, now: u64) -> PccsAnswers {
    let collateral = pki.collateral(&CollateralOptions::at(now)).unwrap();
    PccsAnswers::none().with(key(), collateral)
}

fn honest() -> Pccs {
    Pccs::start(answers(&pki(), NOW)).unwrap()
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
fn what_is_fetched_is_what_was_served() {
    let pccs = honest();
    let fetched = fetch(&pccs).unwrap();
    assert_eq!(fetched, fresh(NOW));
    assert_eq!(ALL.map(|resource| pccs.requests(resource)), [1; 4]);
}

#[test]
fn every_misbehaviour_has_its_error() {
    let pccs = honest();
    let malformed = |part, why| FetchError::Collateral(CollateralError::Malformed { part, why });
    for (behaviour, error) in [
        (Behaviour::Down, FetchError::Connect),
        (Behaviour::Silent, FetchError::Timeout),
        (Behaviour::Trickle, FetchError::Timeout),
        (Behaviour::HalfBody, FetchError::Truncated),
        (Behaviour::Huge, FetchError::TooLarge { limit: 2 << 20 }),
        (
            Behaviour::HugeChunked,
            FetchError::TooLarge { limit: 2 << 20 },
        ),
        (Behaviour::Status(503), FetchError::Status(503)),
        (Behaviour::Redirect, FetchError::Status(302)),
    ] {
        // Every question is asked in the same way; only waiting for one is enough.
        let waits = error == FetchError::Timeout;
        for resource in ALL.into_iter().take(if waits { 1 } else { 4 }) {
            pccs.behave(Behaviour::Honest);
            pccs.behave_for(resource, behaviour);
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
    pccs.behave(Behaviour::Honest);
    pccs.behave_for(Resource::TcbInfo, Behaviour::NoHeader);
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
        pccs.behave(Behaviour::Honest);
        pccs.behave_for(resource, Behaviour::Html);
        assert_eq!(fetch(&pccs).unwrap_err(), malformed(part, why));
    }
}

#[test]
fn nobody_listening_and_nothing_known() {
    let gone = honest().url();
    assert_eq!(
        runtime().block_on(fetcher(&gone).fetch(key())).unwrap_err(),
        FetchError::Connect
    );
    let pccs = Pccs::start(PccsAnswers::none()).unwrap();
    assert_eq!(fetch(&pccs).unwrap_err(), FetchError::Status(404));
}

#[test]
fn collateral_of_another_family_is_not_taken_for_what_was_asked() {
    let other = CollateralKey {
        fmspc: attest::collateral::Fmspc([1; 6]),
        ..key()
    };
    let collateral = pki()
        .collateral(&CollateralOptions::at(NOW).for_key(other))
        .unwrap();
    let pccs = Pccs::start(PccsAnswers::none().with(key(), collateral)).unwrap();
    assert_eq!(
        fetch(&pccs).unwrap_err(),
        FetchError::Collateral(CollateralError::WrongKey)
    );
}

#[test]
fn sources_are_known_by_name() {
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

/// An https server with a certificate of `pki`'s KMS CA for 127.0.0.1, that answers 404 to everything.
fn https_server(pki: &Pki) -> String {
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    let machine = Machine::new(pki, &MachineOptions::default()).unwrap();
    let key = Key::derive(&[7; 32], "https").unwrap();
    let evidence = Evidence {
        envelope: Envelope::None,
        ..Evidence::default()
    };
    let leaf = Certificate::issue(pki, &machine, &key, &evidence, &LeafOptions::default()).unwrap();
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
fn https_is_verified() {
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
    // TLS is done, and the answer is the server's.
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

/// A keeper on a thread of its own, with a clock that the test sets.
struct Kept {
    handle: Handle,
    clock: Arc<AtomicU64>,
    events: Arc<Mutex<Vec<Event>>>,
}

fn keep(fetcher: Option<Fetcher>, disk: Option<DiskCache>) -> Kept {
    let schedule = Schedule {
        initial_backoff: 1,
        max_backoff_missing: 1,
        ..Schedule::default()
    };
    let store = Store::new(pki().root_der().to_vec(), schedule);
    let clock = Arc::new(AtomicU64::new(NOW));
    let events = Arc::new(Mutex::new(Vec::new()));
    let (read, tell) = (Arc::clone(&clock), Arc::clone(&events));
    let around = Environment {
        now: Box::new(move || read.load(Ordering::Relaxed)),
        random: Box::new(|| 0),
        events: Box::new(move |event| tell.lock().unwrap().push(event)),
    };
    let (mut keeper, handle) = Refresher::new(store, fetcher, disk, around);
    keeper.load();
    std::thread::spawn(move || runtime().block_on(keeper.run()));
    Kept {
        handle,
        clock,
        events,
    }
}

impl Kept {
    /// Waits until an event is told that `wanted` is true for.
    fn told(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Some(event) = self
                .events
                .lock()
                .unwrap()
                .iter()
                .find(|event| wanted(event))
            {
                return event.clone();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("not told, but {:?}", self.events.lock().unwrap());
    }

    /// Moves the clock, and wakes the keeper by asking for something.
    fn at(&self, now: u64) {
        self.clock.store(now, Ordering::Relaxed);
        self.events.lock().unwrap().clear();
        let _ = want(&self.handle);
    }
}

/// What is wanted, on a thread of a test's, which may wait.
fn want(handle: &Handle) -> Result<Arc<Collateral>, Unavailable> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(handle.request(key()))
}

#[test]
fn many_who_wait_share_one_flight() {
    let pccs = honest();
    let kept = keep(Some(fetcher(&pccs.url())), None);
    assert!(kept.handle.snapshot().get(key(), NOW).is_none());
    let waiters: Vec<_> = (0..200)
        .map(|_| {
            let handle = kept.handle.clone();
            std::thread::spawn(move || want(&handle).unwrap().key())
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), key());
    }
    assert_eq!(ALL.map(|resource| pccs.requests(resource)), [1; 4]);
    assert_eq!(kept.handle.epoch(), 1);
    assert!(kept.handle.snapshot().get(key(), NOW).is_some());
}

#[test]
fn a_pccs_that_misbehaves_does_not_disturb_what_is_held() {
    let pccs = honest();
    let kept = keep(Some(fetcher(&pccs.url())), None);
    want(&kept.handle).unwrap();
    let mut now = NOW;
    for behaviour in [
        Behaviour::Down,
        Behaviour::Silent,
        Behaviour::HalfBody,
        Behaviour::HugeChunked,
        Behaviour::Html,
        Behaviour::Status(500),
    ] {
        pccs.behave(behaviour);
        now += 2 * DAY;
        kept.at(now);
        // The flight is under way, and nobody waits for it.
        let started = Instant::now();
        assert!(want(&kept.handle).is_ok());
        assert!(
            started.elapsed() < Duration::from_millis(500),
            "{behaviour:?}"
        );
        let event = kept.told(|event| matches!(event, Event::Failed { .. }));
        assert!(
            matches!(
                event,
                Event::Failed {
                    held_until: Some(_),
                    ..
                }
            ),
            "{behaviour:?}: {event:?}"
        );
        assert_eq!(kept.handle.epoch(), 1, "{behaviour:?}");
    }
    // One that lies: signed by somebody else, then expired.
    pccs.behave(Behaviour::Honest);
    for (liar, code) in [
        (answers(&Pki::new(&[8; 32]).unwrap(), now), "bad_signature"),
        (answers(&pki(), NOW - 60 * DAY), "expired"),
    ] {
        pccs.replace(liar);
        now += 2 * DAY;
        kept.at(now);
        let event = kept.told(|event| matches!(event, Event::Failed { .. }));
        let Event::Failed { error, .. } = event else {
            panic!()
        };
        assert_eq!(error.code(), code);
        assert_eq!(kept.handle.epoch(), 1);
    }
    // And when it is honest again, all is well.
    pccs.replace(answers(&pki(), now + DAY));
    kept.at(now + 2 * DAY);
    kept.told(|event| matches!(event, Event::Refreshed { changed: true, .. }));
    assert_eq!(kept.handle.epoch(), 2);
}

#[test]
fn without_anything_held_the_error_is_told_to_who_waits() {
    let pccs = honest();
    pccs.behave(Behaviour::Status(500));
    let kept = keep(Some(fetcher(&pccs.url())), None);
    let failed = Unavailable::Failed {
        key: key(),
        error: FetchError::Status(500),
    };
    assert_eq!(want(&kept.handle).unwrap_err(), failed);
    // Within the back-off nothing is asked again.
    assert_eq!(want(&kept.handle).unwrap_err(), failed);
    assert_eq!(pccs.requests(Resource::PckCrl), 1);
    pccs.behave(Behaviour::Honest);
    kept.clock.store(NOW + 1, Ordering::Relaxed);
    want(&kept.handle).unwrap();
    let offline = keep(None, None);
    let none = Unavailable::Failed {
        key: key(),
        error: FetchError::NoSource,
    };
    assert_eq!(want(&offline.handle).unwrap_err(), none);
}

#[test]
fn it_expires_in_the_end_and_says_so() {
    let pccs = honest();
    let kept = keep(Some(fetcher(&pccs.url())), None);
    let expires_at = want(&kept.handle).unwrap().expires_at();
    drop(pccs);
    kept.at(expires_at - 3 * DAY);
    kept.told(|event| matches!(event, Event::AboutToExpire { .. }));
    assert!(want(&kept.handle).is_ok());
    kept.at(expires_at);
    kept.told(|event| matches!(event, Event::Expired { .. }));
    assert!(want(&kept.handle).is_err());
    assert!(kept.handle.snapshot().get(key(), expires_at).is_none());
}

#[test]
fn a_restart_finds_it_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskCache::new(folder.path().join("collateral"));
    let pccs = honest();
    let kept = keep(Some(fetcher(&pccs.url())), Some(disk.clone()));
    want(&kept.handle).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !disk.path(key()).exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let restarted = keep(None, Some(disk.clone()));
    assert!(restarted.handle.snapshot().get(key(), NOW).is_some());
    want(&restarted.handle).unwrap();
    assert_eq!(restarted.events.lock().unwrap().len(), 1);
    // What is broken is told, and fetched anew.
    std::fs::write(disk.path(key()), b"{\"half\":").unwrap();
    let mended = keep(Some(fetcher(&pccs.url())), Some(disk.clone()));
    mended.told(|event| matches!(event, Event::NotLoaded { .. }));
    want(&mended.handle).unwrap();
}

#[test]
fn a_disk_that_cannot_be_written_is_told_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("collateral");
    std::fs::write(&in_the_way, b"a file").unwrap();
    let pccs = honest();
    let kept = keep(
        Some(fetcher(&pccs.url())),
        Some(DiskCache::new(&in_the_way)),
    );
    want(&kept.handle).unwrap();
    kept.told(|event| matches!(event, Event::NotStored { .. }));
    assert!(kept.handle.snapshot().get(key(), NOW).is_some());
}

#[test]
fn handed_in_collateral_is_verified() {
    let kept = keep(None, None);
    let options = CollateralOptions::at(NOW);
    let forged = Pki::new(&[8; 32])
        .unwrap()
        .parsed_collateral(&options)
        .unwrap();
    kept.handle.import(forged).unwrap();
    kept.told(|event| matches!(event, Event::NotLoaded { .. }));
    kept.handle
        .import(pki().parsed_collateral(&options).unwrap())
        .unwrap();
    kept.told(|event| matches!(event, Event::Refreshed { changed: true, .. }));
    assert!(want(&kept.handle).is_ok());
}

#[test]
fn the_keeper_ends_with_its_last_handle() {
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
