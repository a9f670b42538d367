//! From test functions to named trials, one for each driver, with visible skips.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::harness::client::{Client, TlsNegotiation};
use crate::harness::cluster::{Cluster, Server};
use crate::harness::sidecar::{IoDriver, Settings, Sidecar};
use crate::harness::{Harness, PasswordEncryption};

/// What a trial gets: the harness, and the driver it is to be played with.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) harness: Arc<Harness>,
    pub(crate) driver: IoDriver,
}

impl Fixture {
    /// The shared cluster of the installed version.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.harness
            .cluster(&self.harness.installed, PasswordEncryption::Scram)
    }

    /// The shared sidecar in front of it.
    pub(crate) fn sidecar(&self) -> Arc<Sidecar> {
        self.sidecar_for(&self.harness.installed, PasswordEncryption::Scram)
    }

    pub(crate) fn sidecar_for(
        &self,
        server: &Server,
        encryption: PasswordEncryption,
    ) -> Arc<Sidecar> {
        self.harness.sidecar(self.driver, server, encryption)
    }

    /// Settings for a sidecar of the trial's own in front of the shared cluster.
    pub(crate) fn settings(&self) -> Settings {
        self.settings_for(&self.cluster().address().to_string())
    }

    pub(crate) fn settings_for(&self, upstream: &str) -> Settings {
        Settings::new(self.driver, upstream, &self.harness.certificates)
    }

    /// A client inside TLS, by SSLRequest.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        Client::open(&self.harness, address, TlsNegotiation::SslRequest)
    }
}

/// What a trial cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Requirement {
    IoUring,
    Pg18,
    Psycopg,
    Knot,
}

/// The list of trials, and of what this machine cannot play.
pub(crate) struct Suite {
    fixture: Fixture,
    missing: BTreeMap<Requirement, String>,
    strict: bool,
    pub(crate) trials: Vec<Trial>,
    skipped: BTreeMap<String, usize>,
}

impl Suite {
    pub(crate) fn new(harness: Arc<Harness>) -> Self {
        let mut missing = BTreeMap::new();
        if let Err(why) = io_uring::IoUring::new(8) {
            missing.insert(Requirement::IoUring, format!("io_uring_setup: {why}"));
        }
        if let Err(why) = &harness.postgres18 {
            missing.insert(Requirement::Pg18, why.clone());
        }
        if env::var_os("TEESQL_TEST_PYTHON").is_none() {
            let why = "TEESQL_TEST_PYTHON does not name a python with psycopg 3";
            missing.insert(Requirement::Psycopg, why.to_owned());
        }
        let knot = std::process::Command::new("/usr/sbin/knotd")
            .arg("--version")
            .output();
        if !knot.is_ok_and(|output| output.status.success()) {
            missing.insert(Requirement::Knot, "no knotd (Debian's knot)".to_owned());
        }
        Self {
            fixture: Fixture {
                harness,
                driver: IoDriver::IoUring,
            },
            missing,
            strict: env::var_os("TEESQL_TEST_STRICT").is_some(),
            trials: Vec::new(),
            skipped: BTreeMap::new(),
        }
    }

    /// Whether it is time for the trials in which no driver plays: they are added once, with the
    /// driver that every machine has.
    pub(crate) fn is_last_driver(&self) -> bool {
        self.fixture.driver == IoDriver::Epoll
    }

    pub(crate) fn set_driver(&mut self, driver: IoDriver) {
        self.fixture.driver = driver;
    }

    pub(crate) fn harness(&self) -> Arc<Harness> {
        self.fixture.harness.clone()
    }

    /// Adds a trial that needs nothing but Debian's Postgres.
    pub(crate) fn add(&mut self, name: &str, play: impl FnOnce(&Fixture) + Send + 'static) {
        self.add_requiring(&[], name, play);
    }

    /// Adds a trial with needs of its own. What is missing is an error when
    /// `TEESQL_TEST_STRICT` is set, and a visible skip when it is not.
    pub(crate) fn add_requiring(
        &mut self,
        needs: &[Requirement],
        name: &str,
        play: impl FnOnce(&Fixture) + Send + 'static,
    ) {
        let fixture = self.fixture.clone();
        let driver = (fixture.driver == IoDriver::IoUring).then_some(&Requirement::IoUring);
        let missing = driver
            .into_iter()
            .chain(needs)
            .find_map(|need| self.missing.get(need));
        let missing = missing.cloned();
        let skip = missing.is_some() && !self.strict;
        if let (true, Some(why)) = (skip, &missing) {
            *self.skipped.entry(why.clone()).or_default() += 1;
        }
        let name = format!("{}::{name}", fixture.driver);
        let trial = Trial::test(name, move || match missing {
            Some(why) => Err(Failed::from(format!(
                "this machine lacks what it needs: {why}"
            ))),
            None => {
                play(&fixture);
                Ok(())
            }
        });
        self.trials.push(trial.with_ignored_flag(skip));
    }

    /// One line for each reason why trials are skipped.
    pub(crate) fn print_skipped(&self) {
        for (why, count) in &self.skipped {
            eprintln!("skipped: {count} trials: {why}");
        }
    }
}
