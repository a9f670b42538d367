//! From test functions to named trials, one for each driver, with visible skips.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::harness::client::{Client, Opening};
use crate::harness::cluster::{Cluster, Server};
use crate::harness::sidecar::{Driver, Settings, Sidecar};
use crate::harness::{Stage, Verifier};

/// What a trial gets: the stage, and the driver it is to be played with.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) stage: Arc<Stage>,
    pub(crate) driver: Driver,
}

impl World {
    /// The shared cluster of the installed version.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.stage.cluster(&self.stage.installed, Verifier::Scram)
    }

    /// The shared sidecar in front of it.
    pub(crate) fn sidecar(&self) -> Arc<Sidecar> {
        self.sidecar_for(&self.stage.installed, Verifier::Scram)
    }

    pub(crate) fn sidecar_for(&self, server: &Server, verifier: Verifier) -> Arc<Sidecar> {
        self.stage.sidecar(self.driver, server, verifier)
    }

    /// Settings for a sidecar of the trial's own in front of the shared cluster.
    pub(crate) fn settings(&self) -> Settings {
        self.settings_for(&self.cluster().address().to_string())
    }

    pub(crate) fn settings_for(&self, upstream: &str) -> Settings {
        Settings::new(self.driver, upstream, &self.stage.certificates)
    }

    /// A client inside TLS, by SSLRequest.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        Client::open(&self.stage, address, Opening::SslRequest)
    }
}

/// What a trial cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    IoUring,
    Pg18,
    Psycopg,
    Knot,
}

/// The list of trials, and of what this machine cannot play.
pub(crate) struct Suite {
    world: World,
    missing: BTreeMap<Need, String>,
    strict: bool,
    pub(crate) trials: Vec<Trial>,
    skipped: BTreeMap<String, usize>,
}

impl Suite {
    pub(crate) fn new(stage: Arc<Stage>) -> Self {
        let mut missing = BTreeMap::new();
        if let Err(why) = io_uring::IoUring::new(8) {
            missing.insert(Need::IoUring, format!("io_uring_setup: {why}"));
        }
        if let Err(why) = &stage.eighteen {
            missing.insert(Need::Pg18, why.clone());
        }
        if env::var_os("TEESQL_TEST_PYTHON").is_none() {
            let why = "TEESQL_TEST_PYTHON does not name a python with psycopg 3";
            missing.insert(Need::Psycopg, why.to_owned());
        }
        let knot = std::process::Command::new("/usr/sbin/knotd")
            .arg("--version")
            .output();
        if !knot.is_ok_and(|output| output.status.success()) {
            missing.insert(Need::Knot, "no knotd (Debian's knot)".to_owned());
        }
        Self {
            world: World {
                stage,
                driver: Driver::IoUring,
            },
            missing,
            strict: env::var_os("TEESQL_TEST_STRICT").is_some(),
            trials: Vec::new(),
            skipped: BTreeMap::new(),
        }
    }

    /// Whether it is time for the trials in which no driver plays: they are added once, with the
    /// driver that every machine has.
    pub(crate) fn plays_the_rest(&self) -> bool {
        self.world.driver == Driver::Epoll
    }

    pub(crate) fn set_driver(&mut self, driver: Driver) {
        self.world.driver = driver;
    }

    pub(crate) fn stage(&self) -> Arc<Stage> {
        self.world.stage.clone()
    }

    /// Adds a trial that needs nothing but Debian's Postgres.
    pub(crate) fn add(&mut self, name: &str, play: impl FnOnce(&World) + Send + 'static) {
        self.add_with(&[], name, play);
    }

    /// Adds a trial with needs of its own. What is missing is an error when
    /// `TEESQL_TEST_STRICT` is set, and a visible skip when it is not.
    pub(crate) fn add_with(
        &mut self,
        needs: &[Need],
        name: &str,
        play: impl FnOnce(&World) + Send + 'static,
    ) {
        let world = self.world.clone();
        let driver = (world.driver == Driver::IoUring).then_some(&Need::IoUring);
        let missing = driver
            .into_iter()
            .chain(needs)
            .find_map(|need| self.missing.get(need));
        let missing = missing.cloned();
        let skip = missing.is_some() && !self.strict;
        if let (true, Some(why)) = (skip, &missing) {
            *self.skipped.entry(why.clone()).or_default() += 1;
        }
        let name = format!("{}::{name}", world.driver);
        let trial = Trial::test(name, move || match missing {
            Some(why) => Err(Failed::from(format!(
                "this machine lacks what it needs: {why}"
            ))),
            None => {
                play(&world);
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
