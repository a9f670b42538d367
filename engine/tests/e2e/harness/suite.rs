//! The list of trials: one for each test function and [`Variant`] of the run. Trials that
//! this machine cannot run are skipped, and the reason is printed.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::harness::Harness;
use crate::harness::browser;
use crate::harness::fixture::Fixture;
use crate::harness::settings::{IoDriver, Variant};

/// Something that a test needs and that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Requirement {
    IoUring,
    Pg18,
    Psycopg,
    Knot,
    PidNamespace,
    /// Chromium or Chrome.
    Browser,
}

/// Arguments of `unshare` with which a program is the first process of a PID namespace.
pub(crate) const NEW_PID_NAMESPACE: [&str; 5] = [
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--mount-proc",
];

/// The trials of a run, and why some of them are skipped.
pub(crate) struct Suite {
    fixture: Fixture,
    missing: BTreeMap<Requirement, String>,
    strict: bool,
    driver_independent: bool,
    pub(crate) trials: Vec<Trial>,
    skipped: BTreeMap<String, usize>,
}

impl Suite {
    pub(crate) fn new(harness: Arc<Harness>) -> Self {
        Self {
            missing: missing_requirements(&harness),
            fixture: Fixture {
                harness,
                variant: Variant::BOTH[0],
            },
            strict: env::var_os("TEESQL_TEST_STRICT").is_some(),
            driver_independent: false,
            trials: Vec::new(),
            skipped: BTreeMap::new(),
        }
    }

    /// Whether to add the tests that depend neither on the I/O driver nor on the record layer.
    /// They are added once.
    pub(crate) fn adds_driver_independent(&self) -> bool {
        self.driver_independent
    }

    pub(crate) fn set_variant(&mut self, variant: Variant, driver_independent: bool) {
        self.fixture.variant = variant;
        self.driver_independent = driver_independent;
    }

    pub(crate) fn has_io_uring(&self) -> bool {
        !self.missing.contains_key(&Requirement::IoUring)
    }

    pub(crate) fn harness(&self) -> Arc<Harness> {
        self.fixture.harness.clone()
    }

    /// Adds a test that needs only Debian's Postgres.
    pub(crate) fn add(&mut self, name: &str, test: impl FnOnce(&Fixture) + Send + 'static) {
        self.add_requiring(&[], name, test);
    }

    /// Adds a test with further requirements. If one is missing, the trial is skipped, or fails if
    /// `TEESQL_TEST_STRICT` is set.
    pub(crate) fn add_requiring(
        &mut self,
        requirements: &[Requirement],
        name: &str,
        test: impl FnOnce(&Fixture) + Send + 'static,
    ) {
        let fixture = self.fixture.clone();
        let driver = (fixture.variant.driver == IoDriver::IoUring).then_some(&Requirement::IoUring);
        let missing = driver
            .into_iter()
            .chain(requirements)
            .find_map(|requirement| self.missing.get(requirement));
        let missing = missing.cloned();
        let skip = missing.is_some() && !self.strict;
        if let (true, Some(reason)) = (skip, &missing) {
            *self.skipped.entry(reason.clone()).or_default() += 1;
        }
        let name = format!("{}::{name}", fixture.variant);
        let trial = Trial::test(name, move || match missing {
            Some(reason) => Err(Failed::from(format!("missing requirement: {reason}"))),
            None => {
                test(&fixture);
                Ok(())
            }
        });
        self.trials.push(trial.with_ignored_flag(skip));
    }

    /// Prints one line for each reason why trials are skipped.
    pub(crate) fn print_skipped(&self) {
        for (reason, count) in &self.skipped {
            eprintln!("skipped: {count} trials: {reason}");
        }
    }
}

fn missing_requirements(harness: &Harness) -> BTreeMap<Requirement, String> {
    let mut missing = BTreeMap::new();
    if let Err(error) = io_uring::IoUring::new(8) {
        missing.insert(Requirement::IoUring, format!("io_uring_setup: {error}"));
    }
    if let Err(reason) = &harness.postgres18 {
        missing.insert(Requirement::Pg18, reason.clone());
    }
    if env::var_os("TEESQL_TEST_PYTHON").is_none() {
        let reason = "TEESQL_TEST_PYTHON does not name a python with psycopg 3";
        missing.insert(Requirement::Psycopg, reason.to_owned());
    }
    let knot = Command::new("/usr/sbin/knotd").arg("--version").output();
    if !knot.is_ok_and(|output| output.status.success()) {
        missing.insert(Requirement::Knot, "no knotd (Debian's knot)".to_owned());
    }
    if let Err(reason) = browser::program() {
        missing.insert(Requirement::Browser, reason);
    }
    let mut unshare = Command::new("unshare");
    let namespace = unshare.args(NEW_PID_NAMESPACE).arg("true").output();
    if !namespace.is_ok_and(|output| output.status.success()) {
        missing.insert(
            Requirement::PidNamespace,
            "no PID namespaces (unshare)".to_owned(),
        );
    }
    missing
}
