//! What one forwarder costs a process, and a thousand.

use std::process::Command;
use std::time::Instant;

use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use teesql::{ErrorKind, Forwarder};

use crate::harness::{
    builder, connect, descriptors, is_strict, no_threads, threads, trial, until, user,
};

const MANY: usize = 1_000;
/// What an idle forwarder may cost, in KiB.
const MAX_IDLE: usize = 6 * 1_024;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_idle_forwarder", an_idle_forwarder),
        trial("a_thousand_forwarders", a_thousand_forwarders),
        trial(
            "too_few_descriptors_are_an_error",
            too_few_descriptors_are_an_error,
        ),
    ]
}

/// Resident memory in KiB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// In another process, `examples/idle.rs`. The pages of the program's file do not count: this build is not the one that is
/// shipped.
async fn an_idle_forwarder() {
    let output = Command::new(crate::built("examples/idle")).output();
    // `--test dev` alone builds no examples.
    let output = output.expect("run `cargo build -p teesql --example idle` first");
    let output = String::from_utf8(output.stdout).unwrap();
    let own_memory = |what: &str| {
        let mut lines = output.lines();
        let line = lines.find_map(|line| line.strip_prefix(what)).unwrap();
        let (_, own) = line.split_once('(').unwrap();
        own.split(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let used = own_memory("one forwarder: ") - own_memory("before: ");
    println!("{used} KiB");
    assert!(used < MAX_IDLE, "{output}");
}

async fn a_thousand_forwarders() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = 4 * MANY as u64;
    if hard < wanted {
        let why = format!("the hard limit of descriptors is {hard}, and {wanted} are needed");
        assert!(!is_strict(), "{why}");
        println!("NOT TESTED: {why}");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard).unwrap();
    let (before, memory_before) = (descriptors(), memory());
    let begun = Instant::now();
    let mut all: Vec<Forwarder> = Vec::new();
    // In memory, so that the guest agent is not what is measured.
    let agent = crate::harness::env("TEESQL_GUEST_AGENT");
    let issued = teesql::request_client_certificate(Some(&agent), crate::harness::SOON).await;
    let issued = issued.unwrap();
    let identity = teesql::Identity::pem(issued.chain_pem, issued.key_pem.as_bytes());
    for _ in 0..MANY {
        let started = builder().identity(identity.clone()).start().await;
        all.push(started.unwrap());
    }
    let names = threads();
    let (used, memory_used) = (descriptors() - before, memory() - memory_before);
    println!(
        "{MANY} forwarders: {:?}, {memory_used} KiB, {used} descriptors, {names:?}",
        begun.elapsed()
    );
    assert_eq!(names.values().sum::<usize>(), 3, "{names:?}");
    assert!(used < MANY + 64, "{used} descriptors");
    assert!(memory_used < MANY * 200, "{memory_used} KiB");
    for forwarder in [&all[0], &all[MANY / 2], &all[MANY - 1]] {
        assert_eq!(
            user(&connect(forwarder).await.unwrap()).await,
            "teesql_readwrite"
        );
    }
    let begun = Instant::now();
    futures_util::future::join_all(all.iter().map(Forwarder::stop)).await;
    println!("stopped in {:?}", begun.elapsed());
    no_threads().await;
    drop(all);
    until("the end of the sockets", || descriptors() <= before).await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

async fn too_few_descriptors_are_an_error() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let few = descriptors() as u64 + 3;
    setrlimit(Resource::RLIMIT_NOFILE, few, hard).unwrap();
    let started = builder().start().await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(started.unwrap_err().kind(), ErrorKind::System);
    no_threads().await;
    let forwarder = builder().start().await.unwrap();
    assert_eq!(
        user(&connect(&forwarder).await.unwrap()).await,
        "teesql_readwrite"
    );
    forwarder.stop().await.unwrap();
}
