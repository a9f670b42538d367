//! Servers that are refused: the failure is known when the driver's error is, with its code.

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libtest_mimic::Trial;
use teesql::{
    Acceptance, BoxFuture, Builder, ErrorKind, Evidence, Policy, Refusal, Verifier, verifier_fn,
};

use crate::harness::{builder, connect, env, refused, trial, user};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_server_that_the_policy_refuses",
            a_server_that_the_policy_refuses,
        ),
        trial(
            "a_server_that_does_not_answer",
            a_server_that_does_not_answer,
        ),
        trial(
            "a_verifier_sees_what_was_verified",
            a_verifier_sees_what_was_verified,
        ),
        trial("a_verifier_can_only_refuse", a_verifier_can_only_refuse),
        trial("a_verifier_instead_of_dcap", a_verifier_instead_of_dcap),
        trial(
            "mistakes_are_reported_together",
            mistakes_are_reported_together,
        ),
    ]
}

async fn code_and_kind(builder: Builder) -> (&'static str, ErrorKind) {
    let forwarder = builder.start().await.unwrap();
    let failure = refused(&forwarder).await;
    assert!(!failure.in_session);
    assert!(failure.client.is_some());
    forwarder.stop().await.unwrap();
    (failure.code, failure.to_error().kind())
}

async fn a_server_that_the_policy_refuses() {
    let other = Policy::new().mrtd("12".repeat(48));
    let refused = code_and_kind(builder().policy(other)).await;
    assert_eq!(refused, ("mrtd_not_allowed", ErrorKind::Refused));
    let other = builder().setting("allowed_app_id", "12".repeat(20));
    let refused = code_and_kind(other).await;
    assert_eq!(refused, ("app_not_allowed", ErrorKind::Refused));
    // Intel's root, under which nothing in this cluster verifies.
    let intel = builder().setting("dangerous_tdx_root_ca", "");
    let refused = code_and_kind(intel).await;
    assert_eq!(refused, ("bad_signature", ErrorKind::Refused));
    let without_collateral = builder().setting("pccs", "off");
    let refused = code_and_kind(without_collateral).await;
    assert_eq!(refused, ("collateral_unavailable", ErrorKind::Unavailable));
}

async fn a_server_that_does_not_answer() {
    // It accepts, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = silent.local_addr().unwrap().to_string();
    let short = builder()
        .target(target)
        .connect_timeout(Duration::from_millis(200));
    let refused = code_and_kind(short).await;
    assert_eq!(refused, ("handshake_timeout", ErrorKind::Timeout));
}

async fn a_verifier_sees_what_was_verified() {
    let (sender, seen) = channel();
    let sender = Mutex::new(sender);
    let look = verifier_fn(move |evidence| {
        sender.lock().unwrap().send(evidence.clone()).unwrap();
        Ok(Acceptance::default())
    });
    let forwarder = builder().verifier(look).start().await.unwrap();
    for _ in 0..2 {
        assert_eq!(
            user(&connect(&forwarder).await.unwrap()).await,
            "teesql_readwrite"
        );
    }
    let all: Vec<Evidence> = seen.try_iter().collect();
    assert_eq!(all.len(), 2, "it is asked for each connection");
    let claims = &all[0].claims;
    assert_eq!(claims.app_id, Some(env("TEESQL_ALLOWED_APP_ID")));
    assert_eq!(claims.tcb_status.as_deref(), Some("UpToDate"));
    let quote = teesql::extract_tdx_quote(&all[0].chain[0]);
    assert_eq!(quote.as_ref(), Some(&all[0].quote));
    forwarder.stop().await.unwrap();
}

/// Never answers.
struct Never;

impl Verifier for Never {
    fn verify<'a>(&'a self, _: &'a Evidence) -> BoxFuture<'a, Result<Acceptance, Refusal>> {
        Box::pin(std::future::pending())
    }
}

async fn a_verifier_can_only_refuse() {
    let refuse = verifier_fn(|_| Err(Refusal::Refused("not today".to_owned())));
    let refused = code_and_kind(builder().verifier(refuse)).await;
    assert_eq!(refused, ("verifier_refused", ErrorKind::Refused));
    let raise = verifier_fn(|_| panic!("a bug of the application"));
    let refused = code_and_kind(builder().verifier(raise)).await;
    assert_eq!(refused, ("verifier_failed", ErrorKind::Unavailable));
    let short = Duration::from_millis(200);
    let never = builder().verifier(Never).verifier_timeout(short);
    let refused = code_and_kind(never).await;
    assert_eq!(refused, ("verifier_timeout", ErrorKind::Timeout));
    let (release, held) = channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let stuck = verifier_fn(move |_| {
        let _ = held.lock().unwrap().recv();
        Ok(Acceptance::default())
    });
    let stuck = builder().verifier(stuck).verifier_timeout(short);
    let refused = code_and_kind(stuck).await;
    assert_eq!(refused, ("verifier_timeout", ErrorKind::Timeout));
    drop(release);
    // The policy has refused already: the verifier is not asked.
    let accept = verifier_fn(|_| panic!("it is asked"));
    let other = builder().setting("allowed_app_id", "12".repeat(20));
    let refused = code_and_kind(other.verifier(accept)).await;
    assert_eq!(refused.0, "app_not_allowed");
}

async fn a_verifier_instead_of_dcap() {
    let accept = || verifier_fn(|_| Ok(Acceptance::default()));
    // Without collateral only the verifier can accept the quote.
    let instead = || {
        builder()
            .setting("pccs", "off")
            .dangerous_verifier_instead_of_dcap(accept())
    };
    let forwarder = instead().start().await.unwrap();
    assert_eq!(
        user(&connect(&forwarder).await.unwrap()).await,
        "teesql_readwrite"
    );
    forwarder.stop().await.unwrap();
    // The policy is applied all the same.
    let other = instead().setting("allowed_app_id", "12".repeat(20));
    let refused = code_and_kind(other).await;
    assert_eq!(refused, ("app_not_allowed", ErrorKind::Refused));
    let outdated = verifier_fn(|_| Ok(Acceptance::with_tcb_status("OutOfDate")));
    let outdated = builder().dangerous_verifier_instead_of_dcap(outdated);
    let refused = code_and_kind(outdated).await;
    assert_eq!(refused, ("tcb_out_of_date", ErrorKind::Refused));
    let never = builder().dangerous_verifier_instead_of_dcap(Never);
    let never = never.verifier_timeout(Duration::from_millis(200));
    let refused = code_and_kind(never).await;
    assert_eq!(refused, ("verifier_timeout", ErrorKind::Timeout));
}

async fn mistakes_are_reported_together() {
    let wrong = teesql::Forwarder::builder()
        .url("mysql://a@b/c")
        .setting("nonsense", "1")
        .setting("allowed_mrtd", "xyz")
        .setting("client_attestation", "perhaps");
    let error = wrong.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.messages().len() >= 4, "{error}");
    let secret = "s3cr3t";
    let url = format!("postgres://u:{secret}@[::1/c");
    let error = teesql::Forwarder::builder().url(url).start().await;
    let error = error.unwrap_err();
    assert!(!format!("{error:?}").contains(secret), "{error:?}");
}
