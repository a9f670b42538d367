//! Renews the certificate of the process: from the guest agent after two thirds of its
//! lifetime, with exponential back-off on failure, or from PEM files when they change.
//!
//! Runs on the control thread. New connections use a new certificate immediately; sessions keep
//! the one they started with. A certificate that cannot be used must never replace the current
//! one. So a failed renewal has no effect until the current certificate expires, and `/ready`
//! reports it before that.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attest::certificate::CLOCK_SKEW;
use metrics::Counter;

use crate::io::backoff::Backoff;
use crate::io::clock::{readable_time, unix_now};
use crate::tasks::coalesced_sleep;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate::{Identity, IdentityError, PemFiles};
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};

/// How often PEM files are read. They are small and in the page cache.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The longest sleep, because the wall clock may be set in the meantime.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The longest delay between failed renewals.
const MAX_RETRY: Duration = Duration::from_secs(300);
/// Delays between failed renewals.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), MAX_RETRY);
/// `/ready` fails when less than this remains, or less than a tenth of the lifetime, in seconds.
const NOT_READY_MARGIN: u64 = 3_600;

/// When to renew a certificate and when to report that it expires soon, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RenewalSchedule {
    /// When it was obtained.
    obtained: u64,
    /// Two thirds of its lifetime have passed.
    renew: u64,
    /// It expires so soon that `/ready` fails.
    not_ready: u64,
}

impl RenewalSchedule {
    fn new(obtained: u64, not_after: u64) -> Self {
        let lifetime = not_after.saturating_sub(obtained);
        Self {
            obtained,
            // At least a second: a guest agent that issues expired certificates must not be
            // flooded with requests.
            renew: obtained.saturating_add((lifetime.saturating_mul(2) / 3).max(1)),
            not_ready: not_after.saturating_sub(NOT_READY_MARGIN.min(lifetime / 10)),
        }
    }

    /// When to renew, if that was to be at `due`, and the last attempt has `failed`. If the clock was set back since the
    /// certificate was obtained, that is now: peers find it not valid yet. A retry is never far away.
    fn due_at(&self, due: u64, failed: bool, now: u64) -> u64 {
        if failed {
            due.min(now.saturating_add(MAX_RETRY.as_secs()))
        } else if now.saturating_add(CLOCK_SKEW) < self.obtained {
            now
        } else {
            due
        }
    }
}

/// Makes new connections use a certificate.
pub(crate) type InstallFn = Box<dyn Fn(&Identity) -> Result<(), IdentityError> + Send + Sync>;

/// Renews the certificate for as long as the process runs.
pub(crate) struct CertificateRenewer {
    pub(crate) certificate_source: CertificateSource,
    pub(crate) install: InstallFn,
    pub(crate) latch: admin::Latch,
    pub(crate) renewal_metrics: RenewalMetrics,
}

/// The metrics of the renewal.
#[derive(Clone)]
pub(crate) struct RenewalMetrics {
    renewed: Counter,
    failed: Counter,
    not_after: Arc<AtomicU64>,
}

impl RenewalMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let counter =
            |outcome| metrics.counter("teesql_identity_renewals_total", &[("outcome", outcome)]);
        Self {
            renewed: counter("ok"),
            failed: counter("failed"),
            not_after: Arc::default(),
        }
    }

    /// The expiry of the current certificate in Unix seconds; 0 before the first.
    pub(crate) fn not_after(&self) -> u64 {
        self.not_after.load(Ordering::Relaxed)
    }
}

impl CertificateRenewer {
    /// Renews the certificate forever, starting from `identity`, which is in use already.
    pub(crate) async fn run(self, identity: Identity) {
        self.mark_current(&identity);
        match &self.certificate_source {
            CertificateSource::Files { cert, key } => self.watch_files(cert, key, identity).await,
            CertificateSource::Memory(_) => self.watch_expiry(&identity).await,
            CertificateSource::Agent { .. } => self.renew_from_agent(identity).await,
        }
    }

    fn mark_current(&self, identity: &Identity) {
        self.renewal_metrics
            .not_after
            .store(identity.not_after(), Ordering::Relaxed);
        self.latch.set_ready();
    }

    fn activate(&self, identity: &Identity) -> Result<(), IdentityError> {
        (self.install)(identity)?;
        self.mark_current(identity);
        self.renewal_metrics.renewed.increment(1);
        tracing::info!(
            fingerprint = %identity.fingerprint(),
            not_after = readable_time(identity.not_after()),
            "new certificate in use"
        );
        Ok(())
    }

    async fn renew_from_agent(&self, mut identity: Identity) {
        let mut retry = RETRY;
        let mut failed = false;
        let mut schedule = RenewalSchedule::new(unix_now(), identity.not_after());
        let mut due = schedule.renew;
        loop {
            sleep_towards(due.min(schedule.not_ready)).await;
            let now = unix_now();
            due = schedule.due_at(due, failed, now);
            if now >= due {
                match self.checking_expiry(schedule, self.obtain()).await {
                    Ok(new) => {
                        (identity, failed) = (new, false);
                        retry.reset();
                        schedule = RenewalSchedule::new(unix_now(), identity.not_after());
                        due = schedule.renew;
                    }
                    Err(error) => {
                        failed = true;
                        due = now + retry.next_delay().as_secs();
                        self.renewal_metrics.failed.increment(1);
                        let left = identity.not_after().saturating_sub(now);
                        tracing::warn!(%error, seconds_left = left, "certificate not renewed");
                    }
                }
            }
            self.check_expiry(schedule, failed);
        }
    }

    async fn obtain(&self) -> Result<Identity, CertificateSourceError> {
        let identity = self.certificate_source.obtain().await?;
        self.activate(&identity)?;
        Ok(identity)
    }

    /// Runs `work`. If the guest agent does not answer before the certificate expires soon,
    /// `/ready` reports that while `work` continues.
    async fn checking_expiry<T>(
        &self,
        schedule: RenewalSchedule,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = sleep_until(schedule.not_ready) => self.check_expiry(schedule, true),
        }
        work.await
    }

    /// A certificate in memory is not renewed.
    async fn watch_expiry(&self, identity: &Identity) {
        let schedule = RenewalSchedule::new(unix_now(), identity.not_after());
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.check_expiry(schedule, false);
        }
    }

    /// Makes `/ready` fail when the certificate expires soon, and pass again when a clock that was set forward has been
    /// set back: PEM files may not change for months.
    fn check_expiry(&self, schedule: RenewalSchedule, failed: bool) {
        if unix_now() < schedule.not_ready {
            self.latch.set_ready();
            return;
        }
        let detail = if failed {
            ", and its renewal fails"
        } else {
            ""
        };
        self.latch
            .set_not_ready(format!("the certificate is about to expire{detail}"));
    }

    /// Polls the files, and uses a new certificate that is valid.
    async fn watch_files(&self, cert: &Path, key: &Path, mut identity: Identity) {
        let mut schedule = RenewalSchedule::new(unix_now(), identity.not_after());
        let (mut last_digest, mut read_errors, mut rejected) = (None, 0_u32, false);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.check_expiry(schedule, false);
            let files = match PemFiles::read(cert, key) {
                Ok(files) => files,
                Err(error) => {
                    read_errors = read_errors.saturating_add(1);
                    // The first error may be due to a replacement in progress.
                    if read_errors == 2 {
                        self.reject(&error);
                    }
                    continue;
                }
            };
            read_errors = 0;
            let digest = files.digest();
            let is_known = last_digest.replace(digest) == Some(digest);
            if is_known && !rejected {
                continue;
            }
            // What was rejected is tried again: a certificate may not be valid yet, or the clock wrong.
            let activated = self.activate_if_new(&files, &identity);
            rejected = activated.is_err();
            match activated {
                Ok(Some(new)) => {
                    identity = new;
                    schedule = RenewalSchedule::new(unix_now(), identity.not_after());
                }
                Ok(None) => {}
                Err(error) if !is_known => self.reject(&error),
                Err(_) => {}
            }
        }
    }

    /// Uses the certificate in the files, unless it is `current`.
    fn activate_if_new(
        &self,
        files: &PemFiles<'_>,
        current: &Identity,
    ) -> Result<Option<Identity>, IdentityError> {
        let new = Identity::from_pem(files)?;
        if new.certified().cert == current.certified().cert {
            return Ok(None);
        }
        new.check_dates(unix_now())?;
        self.activate(&new)?;
        Ok(Some(new))
    }

    fn reject(&self, error: &IdentityError) {
        self.renewal_metrics.failed.increment(1);
        tracing::warn!(%error, "the certificate files have changed but cannot be used, keeping the current certificate");
    }
}

/// Sleeps until the start of the second `due`, but no longer than [`MAX_SLEEP`], and at least a little. A sleep of whole
/// seconds would take a considerable part of the lifetime of a certificate that is valid for seconds.
async fn sleep_towards(due: u64) {
    let due = UNIX_EPOCH + Duration::from_secs(due);
    let left = due.duration_since(SystemTime::now()).unwrap_or_default();
    if left > MAX_SLEEP + coalesced_sleep::MAX_DELAY {
        coalesced_sleep::sleep(MAX_SLEEP).await;
    } else if left.is_zero() {
        tokio::time::sleep(MAX_SLEEP).await;
    } else {
        tokio::time::sleep(left.min(MAX_SLEEP)).await;
    }
}

/// Sleeps until the second `due`, by the clock as it is set by then.
async fn sleep_until(due: u64) {
    while unix_now() < due {
        sleep_towards(due).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_after_two_thirds_and_readiness_fails_before_expiry() {
        let day = RenewalSchedule::new(1_000, 1_000 + 86_400);
        assert_eq!(day.renew, 1_000 + 57_600);
        assert_eq!(day.not_ready, 1_000 + 86_400 - 3_600);
        let minutes = RenewalSchedule::new(0, 600);
        assert_eq!((minutes.renew, minutes.not_ready), (400, 540));
        let short = RenewalSchedule::new(0, 3);
        assert_eq!((short.renew, short.not_ready), (2, 3));
        let expired = RenewalSchedule::new(10, 5);
        assert_eq!((expired.renew, expired.not_ready), (11, 5));
    }

    #[test]
    fn readiness_follows_the_clock_in_both_directions() {
        let readiness = admin::Readiness::new();
        let renewer = CertificateRenewer {
            certificate_source: CertificateSource::Files {
                cert: "cert.pem".into(),
                key: "key.pem".into(),
            },
            install: Box::new(|_| Ok(())),
            latch: readiness.latch("identity", "no certificate yet"),
            renewal_metrics: RenewalMetrics::new(&Metrics::new().unwrap()),
        };
        let expires_in = |seconds: i64| {
            let now = unix_now();
            RenewalSchedule::new(now - 10_000, now.saturating_add_signed(seconds))
        };
        for (seconds, ready) in [(100_000, true), (-1, false), (100_000, true)] {
            renewer.check_expiry(expires_in(seconds), false);
            assert_eq!(readiness.is_ready(), ready, "{seconds}");
        }
    }

    #[test]
    fn a_clock_that_is_set_makes_the_renewal_due() {
        let day = 86_400;
        let schedule = RenewalSchedule::new(10 * day, 11 * day);
        let due = schedule.renew;
        let due_at = |failed, now| schedule.due_at(due, failed, now);
        assert_eq!(due_at(false, 10 * day + 1), due);
        // Forward: it is due by the clock, which is read every second.
        assert!(due_at(false, 400 * day) <= 400 * day);
        assert_eq!(due_at(false, 10 * day - CLOCK_SKEW), due);
        assert_eq!(due_at(false, 2 * day), 2 * day, "set back");
        // The back-off is kept, and does not wait for the old time.
        let retry = 2 * day + MAX_RETRY.as_secs();
        assert_eq!(due_at(true, 2 * day), retry);
        assert_eq!(schedule.due_at(2 * day + 7, true, 2 * day), 2 * day + 7);
    }
}
