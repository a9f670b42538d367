//! Start, stop and what is left.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use teesql::ErrorKind;

use crate::harness::{
    SOON, builder, connect, descriptors, no_threads, threads, trial, until, user,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("stop_leaves_nothing", stop_leaves_nothing),
        trial("drop_leaves_nothing", drop_leaves_nothing),
        trial("a_start_that_is_dropped_ends", a_start_that_is_dropped_ends),
        trial("sessions_end_after_the_drain", sessions_end_after_the_drain),
        trial("a_session_may_finish", a_session_may_finish),
        trial("stop_while_a_driver_connects", stop_while_a_driver_connects),
        trial(
            "the_process_is_left_as_it_was",
            the_process_is_left_as_it_was,
        ),
        Trial::test("it_blocks_without_a_runtime", || {
            it_blocks_without_a_runtime();
            Ok(())
        }),
    ]
}

async fn stop_leaves_nothing() {
    assert!(threads().is_empty(), "{:?}", threads());
    let before = descriptors();
    for _ in 0..3 {
        let forwarder = builder().start().await.unwrap();
        let client = connect(&forwarder).await.unwrap();
        assert_eq!(user(&client).await, "teesql_readwrite");
        drop(client);
        let names = threads();
        assert_eq!(names.get("forward"), Some(&1), "{names:?}");
        assert_eq!(names.get("forward-shard"), Some(&1), "{names:?}");
        assert_eq!(names.get("verify"), Some(&1), "{names:?}");
        let (address, port) = forwarder.host_and_port().unwrap();
        // Two at the same time, of which one is given up.
        let first = forwarder.stop().now_or_never();
        assert!(first.is_none() || first == Some(Ok(())));
        let (one, two) = futures_util::future::join(forwarder.stop(), forwarder.stop()).await;
        assert_eq!((one, two), (Ok(()), Ok(())));
        no_threads().await;
        // The driver's task has its socket for a moment longer.
        until("the end of the driver's socket", || descriptors() <= before).await;
        let error = std::net::TcpStream::connect((address.as_str(), port)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let error = forwarder.dsn().unwrap_err();
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Stopped, "stopped")
        );
        assert_eq!(forwarder.stop().await, Ok(()));
        forwarder.terminate();
    }
}

async fn drop_leaves_nothing() {
    let before = descriptors();
    let forwarder = builder().start().await.unwrap();
    let client = connect(&forwarder).await.unwrap();
    let begun = Instant::now();
    drop(forwarder);
    assert!(begun.elapsed() < SOON);
    assert!(client.query_one("select 1", &[]).await.is_err());
    drop(client);
    no_threads().await;
    until("the end of the sockets", || descriptors() <= before).await;
}

async fn a_start_that_is_dropped_ends() {
    let before = descriptors();
    // At different moments of the start.
    for millis in [0, 1, 3, 10, 30] {
        let start = builder().start();
        let started = tokio::time::timeout(Duration::from_millis(millis), start).await;
        drop(started);
    }
    no_threads().await;
    until("the end of the sockets", || descriptors() <= before).await;
}

async fn sessions_end_after_the_drain() {
    let forwarder = builder()
        .drain_timeout(Duration::from_millis(200))
        .start()
        .await
        .unwrap();
    let client = connect(&forwarder).await.unwrap();
    let begun = Instant::now();
    forwarder.stop().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(begun.elapsed() < SOON);
    assert!(client.query_one("select 1", &[]).await.is_err());
    let failure = forwarder.last_failure().unwrap();
    assert_eq!(failure.code, "shutdown");
    assert!(failure.in_session);
    assert_eq!(failure.sqlstate.as_deref(), Some("57P01"));
}

async fn a_session_may_finish() {
    let forwarder = builder().drain_timeout(SOON).start().await.unwrap();
    let client = connect(&forwarder).await.unwrap();
    let work = async {
        let row = client.query_one("select pg_sleep(0.3), 7", &[]).await;
        let seven: i32 = row.unwrap().get(1);
        drop(client);
        seven
    };
    let (stopped, seven) = futures_util::future::join(forwarder.stop(), work).await;
    assert_eq!((stopped, seven), (Ok(()), 7));
}

async fn stop_while_a_driver_connects() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let forwarder = builder()
        .target(silent.local_addr().unwrap().to_string())
        .connect_timeout(SOON)
        .drain_timeout(Duration::from_millis(100))
        .start()
        .await
        .unwrap();
    let forwarder = std::sync::Arc::new(forwarder);
    let connecting = tokio::spawn({
        let forwarder = std::sync::Arc::clone(&forwarder);
        async move { connect(&forwarder).await.map(drop) }
    });
    // The forwarder's connection has reached the server.
    silent.set_nonblocking(true).unwrap();
    until("the connection to the server", || silent.accept().is_ok()).await;
    let begun = Instant::now();
    forwarder.stop().await.unwrap();
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(connecting.await.unwrap().is_err());
    no_threads().await;
}

/// Limits, signals and what the kernel may dump are the program's.
async fn the_process_is_left_as_it_was() {
    let state = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kept = ["SigCgt:", "SigIgn:", "SigBlk:", "NoNewPrivs:", "Seccomp:"];
        let lines = status.lines();
        let lines: Vec<_> = lines
            .filter(|line| kept.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let environment: Vec<_> = std::env::vars_os().collect();
        let dumpable = nix::sys::prctl::get_dumpable().unwrap();
        (lines, limits, environment, dumpable)
    };
    // Servers raise the soft limit.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(1_024).min(soft), hard).unwrap();
    let before = state();
    let forwarder = builder().start().await.unwrap();
    assert_eq!(
        user(&connect(&forwarder).await.unwrap()).await,
        "teesql_readwrite"
    );
    assert_eq!(state(), before);
    forwarder.stop().await.unwrap();
    assert_eq!(state(), before);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
}

fn it_blocks_without_a_runtime() {
    let forwarder = builder().start_blocking().unwrap();
    let dsn = forwarder.dsn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = crate::harness::connect_by(&dsn.parse().unwrap()).await;
        assert_eq!(user(&client.unwrap()).await, "teesql_readwrite");
        // Within a runtime it works, too, although it blocks the runtime.
        let other = builder().start_blocking().unwrap();
        other.stop_blocking().unwrap();
    });
    forwarder.stop_blocking().unwrap();
}
