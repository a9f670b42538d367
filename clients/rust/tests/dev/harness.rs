//! What the tests have in common: the cluster's variables, drivers, and what the process has open.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use teesql::{Builder, Failure, Forwarder};
use tokio_postgres::{Client, Config, NoTls};

/// For what happens within milliseconds, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Whether a test that cannot run is a failure.
pub(crate) fn is_strict() -> bool {
    std::env::var("TEESQL_TEST_STRICT").is_ok_and(|value| value == "1")
}

/// A forwarder with the settings of the cluster.
pub(crate) fn builder() -> Builder {
    Forwarder::from_env()
}

/// A trial on a new runtime. Afterwards no thread of a forwarder may be left.
pub(crate) fn trial<F: Future<Output = ()>>(
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    trial_that_leaks(name, async || {
        assert!(threads().is_empty(), "before: {:?}", threads());
        test().await;
        no_threads().await;
    })
}

/// A trial after which a forwarder still runs.
pub(crate) fn trial_that_leaks<F: Future<Output = ()>>(
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
        Ok(())
    })
}

pub(crate) async fn connect_by(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    drop(tokio::spawn(connection));
    Ok(client)
}

pub(crate) async fn connect(forwarder: &Forwarder) -> Result<Client, tokio_postgres::Error> {
    connect_by(&forwarder.tokio_postgres_config().unwrap()).await
}

pub(crate) async fn user(client: &Client) -> String {
    let row = client.query_one("select current_user::text", &[]).await;
    row.unwrap().get(0)
}

/// Connects, which must fail, and gives the failure, which must be known by then.
pub(crate) async fn refused(forwarder: &Forwarder) -> Failure {
    let before = forwarder.last_failure().map_or(0, |last| last.sequence);
    let connected = connect(forwarder).await.map(drop);
    let error = connected.expect_err("it was accepted");
    let failures = forwarder.failures_after(before);
    assert_eq!(failures.len(), 1, "{failures:?}");
    let failure = failures.into_iter().next().unwrap();
    let code = error.code().map(|code| code.code().to_owned());
    assert_eq!(code, failure.sqlstate, "{error}: {failure:?}");
    failure
}

/// The names of this process's threads that belong to forwarders, with their numbers.
pub(crate) fn threads() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let Ok(name) = fs::read_to_string(task.unwrap().path().join("comm")) else {
            continue;
        };
        let name = name.trim().to_owned();
        if ["forward", "verif", "shard"]
            .iter()
            .any(|start| name.starts_with(start))
        {
            *found.entry(name).or_default() += 1;
        }
    }
    found
}

/// Waits until no thread of a forwarder is left. A thread is listed in `/proc` for a moment after
/// it was joined.
pub(crate) async fn no_threads() {
    until("the end of the threads", || threads().is_empty()).await;
}

/// The number of open descriptors.
pub(crate) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until `is` holds.
pub(crate) async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(
            Instant::now() < deadline,
            "{what} does not happen: {:?}",
            threads()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
