//! The callback's thread against verifiers of every kind.

use std::sync::mpsc::channel;
use std::time::Instant;

use attest::examine;
use attest::mock::{Certificate, Fixture, Key, LeafOptions, Pki, Platform, PlatformOptions};
use attest::policy::Settings;

use super::*;

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);

fn bound() -> BoundEvidence {
    let pki = Pki::new(&[9; 32]).unwrap();
    let platform = Platform::new(&pki, &PlatformOptions::default()).unwrap();
    let key = Key::derive(&[9; 32], "server").unwrap();
    let (evidence, leaf) = (attest::mock::Evidence::default(), LeafOptions::default());
    let certificate = Certificate::issue(&pki, &platform, &key, &evidence, &leaf).unwrap();
    examine(&certificate.chain_der(), Fixture::NOW, &Policy::default()).unwrap()
}

/// Decides by a function that does not block.
struct Immediate<F>(F);

impl<F> Verifier for Immediate<F>
where
    F: Fn(&Evidence) -> Result<Acceptance, Refusal> + Send + Sync + 'static,
{
    fn verify<'a>(&'a self, evidence: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        Box::pin(async move { (self.0)(evidence) })
    }
}

/// Never decides.
struct Never;

impl Verifier for Never {
    fn verify<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        Box::pin(std::future::pending())
    }
}

struct Setup {
    thread: CallbackThread,
    _guard: CallbackThreadGuard,
    runtime: tokio::runtime::Runtime,
}

impl Setup {
    fn new() -> Self {
        let (thread, guard) = CallbackThread::start().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            thread,
            _guard: guard,
            runtime,
        }
    }

    fn verifier(&self, verifier: impl Verifier, timeout: Duration) -> CustomVerifier {
        CustomVerifier::new(Arc::new(verifier), timeout, self.thread.clone())
    }

    fn appraise(&self, verifier: &CustomVerifier, policy: &Policy) -> Result<(), Denial> {
        let evidence = bound();
        let verdict = verifier.appraise(&evidence, policy, Fixture::NOW);
        self.runtime.block_on(verdict).map(drop)
    }

    fn code(&self, verifier: impl Verifier, timeout: Duration) -> &'static str {
        let verifier = self.verifier(verifier, timeout);
        let denial = self.appraise(&verifier, &Policy::default()).unwrap_err();
        denial.code()
    }
}

#[test]
fn an_acceptance_admits_under_the_policy() {
    let setup = Setup::new();
    let accept = || setup.verifier(Immediate(|_: &Evidence| Ok(Acceptance::default())), LONG);
    assert_eq!(setup.appraise(&accept(), &Policy::default()), Ok(()));
    let other = Policy::new(Settings {
        mrtd: vec![attest::values::Mrtd([0x12; 48])],
        ..Settings::default()
    });
    let denial = setup.appraise(&accept(), &other).unwrap_err();
    assert_eq!(denial.code(), "mrtd_not_allowed");
}

#[test]
fn the_reported_tcb_status_is_the_policys_to_accept() {
    let setup = Setup::new();
    let code = |status: &'static str| {
        let report = move |_: &Evidence| Ok(Acceptance::with_tcb_status(status));
        setup.code(Immediate(report), LONG)
    };
    assert_eq!(code("OutOfDate"), "tcb_out_of_date");
    assert_eq!(code("Revoked"), "tcb_revoked");
    assert_eq!(code("Perfect"), "verifier_failed");
}

#[test]
fn the_evidence_is_that_of_the_server() {
    let setup = Setup::new();
    let (sender, seen) = channel();
    let look = move |evidence: &Evidence| {
        sender.send(evidence.clone()).unwrap();
        Ok(Acceptance::default())
    };
    setup
        .appraise(&setup.verifier(Immediate(look), LONG), &Policy::default())
        .unwrap();
    let (seen, bound) = (seen.recv().unwrap(), bound());
    assert_eq!(seen.quote, bound.quote().as_bytes());
    assert_eq!(seen.chain.len(), 2);
    assert_eq!(seen.claims.mrtd, bound.quote().report().mrtd().to_string());
    assert_eq!(seen.claims.tcb_status, None, "nothing has verified it");
    assert_eq!(seen.claims.app_id.unwrap().len(), 40);
}

#[test]
fn who_refuses_fails_or_panics_admits_nobody() {
    let setup = Setup::new();
    let refuse = |_: &Evidence| Err(Refusal::Refused("no\u{1b}[31m ".repeat(100)));
    let verifier = setup.verifier(Immediate(refuse), LONG);
    let denial = setup.appraise(&verifier, &Policy::default()).unwrap_err();
    assert_eq!(denial.code(), "verifier_refused");
    assert_eq!(denial.fault(), Fault::Peer);
    let text = denial.to_string();
    assert!(text.chars().all(|char| !char.is_control()), "{text}");
    assert!(text.chars().count() < 2_000, "{text}");
    let fail = |_: &Evidence| Err(Refusal::Failed("down".to_owned()));
    assert_eq!(setup.code(Immediate(fail), LONG), "verifier_failed");
    let panics = |_: &Evidence| panic!("a bug of the application");
    assert_eq!(setup.code(Immediate(panics), LONG), "verifier_failed");
    assert_eq!(setup.code(verifier_fn(panics), LONG), "verifier_failed");
    // And the thread goes on.
    let accept = setup.verifier(Immediate(|_: &Evidence| Ok(Acceptance::default())), LONG);
    assert_eq!(setup.appraise(&accept, &Policy::default()), Ok(()));
}

#[test]
fn a_verifier_that_never_returns_is_a_timeout() {
    let setup = Setup::new();
    assert_eq!(setup.code(Never, SHORT), "verifier_timeout");
    let (release, held) = channel::<()>();
    let held = std::sync::Mutex::new(held);
    // A future that blocks its thread: the deadline is kept all the same.
    let block = move |_: &Evidence| {
        let _ = held.lock().unwrap().recv();
        Ok(Acceptance::default())
    };
    assert_eq!(setup.code(Immediate(block), SHORT), "verifier_timeout");
    drop(release);
}

#[test]
fn functions_that_never_return_do_not_keep_others_waiting() {
    let setup = Setup::new();
    let (release, held) = channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let block = verifier_fn(move |_| {
        let _ = held.lock().unwrap().recv();
        Ok(Acceptance::default())
    });
    let stuck = setup.verifier(block, SHORT);
    let refused = (0..2 * blocking::MAX_CALLS).all(|_| {
        let denial = setup.appraise(&stuck, &Policy::default()).unwrap_err();
        denial.code() == "verifier_timeout"
    });
    assert!(refused);
    // Another verifier has other threads.
    let free = setup.verifier(verifier_fn(|_| Ok(Acceptance::default())), LONG);
    assert_eq!(setup.appraise(&free, &Policy::default()), Ok(()));
    // The end does not wait for the stuck ones.
    let begun = Instant::now();
    drop(setup);
    assert!(begun.elapsed() < LONG);
    drop(release);
}

#[test]
fn decisions_are_bounded() {
    let setup = Setup::new();
    let never = setup.verifier(Never, LONG);
    let (sender, decided) = channel();
    let evidence = Evidence::of_bound(&bound());
    for _ in 0..=thread::MAX_DECISIONS {
        let (sender, evidence) = (sender.clone(), evidence.clone());
        never.ask(
            || Ok(evidence),
            move |decision| sender.send(decision).unwrap(),
        );
    }
    let refused = decided.recv().unwrap().unwrap_err();
    assert_eq!(refused.code(), "overloaded");
    assert!(decided.try_recv().is_err());
}

#[test]
fn a_verified_peer_is_confirmed_or_refused() {
    let setup = Setup::new();
    let until = Fixture::NOW + 600;
    let peer = dangerous_admit(&bound(), TcbStatus::UpToDate, until, &Policy::default());
    let peer = Arc::new(peer.unwrap());
    let confirm = |verifier: &CustomVerifier| setup.runtime.block_on(verifier.confirm(&peer));
    let only_up_to_date = Immediate(|evidence: &Evidence| match &evidence.claims.tcb_status {
        Some(status) if status == "UpToDate" => Ok(Acceptance::default()),
        other => Err(Refusal::Refused(format!("{other:?}"))),
    });
    assert_eq!(confirm(&setup.verifier(only_up_to_date, LONG)), Ok(()));
    let denial = confirm(&setup.verifier(Never, SHORT)).unwrap_err();
    assert_eq!(denial.code(), "verifier_timeout");
}
