//! Keeps the sidecar's certificate good: from the guest agent, renewed ahead of
//! its end, or from PEM files, read again when they change.
//!
//! Runs on the control thread. A new certificate is for new connections, at
//! once; sessions keep theirs. What cannot be used is refused, and the one
//! before it stays: a renewal that fails costs nobody anything until that one
//! ends, and `/ready` says so before it does.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::Counter;

use crate::io::backoff::Backoff;
use crate::io::clock::unix_now;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate::{Identity, IdentityError, PemFiles};
use crate::tls::certificate_source::{CertificateSource, CertificateSourceError};

/// PEM files are looked at this often. A few hundred bytes that are in memory.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The clock may be set meanwhile: no sleep is longer.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// Delays between failed renewals.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// Not ready when less than this is left, or a tenth of the lifetime.
const NOT_READY_MARGIN: u64 = 3_600;

/// When to do what about a certificate. Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RenewalSchedule {
    /// Two thirds of its time have passed.
    renew: u64,
    /// So little is left that nobody should be sent here.
    not_ready: u64,
}

impl RenewalSchedule {
    fn new(obtained: u64, not_after: u64) -> Self {
        let lifetime = not_after.saturating_sub(obtained);
        Self {
            // Never at once: an agent whose certificates end at once is not to be flooded.
            renew: obtained.saturating_add((lifetime.saturating_mul(2) / 3).max(1)),
            not_ready: not_after.saturating_sub(NOT_READY_MARGIN.min(lifetime / 10)),
        }
    }
}

/// What is done with a new certificate.
pub(crate) type InstallFn = Box<dyn Fn(&Identity) -> Result<(), IdentityError> + Send + Sync>;

/// Who does it.
pub(crate) struct CertificateRenewer {
    pub(crate) certificate_source: CertificateSource,
    /// Puts a new certificate in force, for new connections.
    pub(crate) install: InstallFn,
    pub(crate) latch: admin::Latch,
    pub(crate) renewal_metrics: RenewalMetrics,
}

/// What `/metrics` says of it.
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

    /// The end of the certificate in use, in unix seconds; 0 before the first.
    pub(crate) fn not_after(&self) -> u64 {
        self.not_after.load(Ordering::Relaxed)
    }
}

impl CertificateRenewer {
    /// Keeps it good for ever, beginning with `identity`, which is in use.
    pub(crate) async fn run(self, identity: Identity) {
        self.in_use(&identity);
        match &self.certificate_source {
            CertificateSource::Files { cert, key } => self.watch(cert, key, identity).await,
            CertificateSource::Agent { .. } => self.renew(identity).await,
        }
    }

    fn in_use(&self, identity: &Identity) {
        self.renewal_metrics
            .not_after
            .store(identity.not_after(), Ordering::Relaxed);
        self.latch.set_ready();
    }

    fn activate(&self, identity: &Identity) -> Result<(), IdentityError> {
        (self.install)(identity)?;
        self.in_use(identity);
        self.renewal_metrics.renewed.increment(1);
        tracing::info!(
            fingerprint = %identity.fingerprint(),
            not_after = identity.not_after(),
            "new certificate in use"
        );
        Ok(())
    }

    async fn renew(&self, mut identity: Identity) {
        let mut retry = RETRY;
        let mut failed = false;
        let mut schedule = RenewalSchedule::new(unix_now(), identity.not_after());
        let mut due = schedule.renew;
        loop {
            sleep_until(due.min(next_look(schedule.not_ready))).await;
            let now = unix_now();
            if now >= due {
                match self.watched(schedule, self.obtain()).await {
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
            self.check_end(schedule, failed);
        }
    }

    async fn obtain(&self) -> Result<Identity, CertificateSourceError> {
        let identity = self.certificate_source.obtain().await?;
        self.activate(&identity)?;
        Ok(identity)
    }

    /// Does `work`, in which an agent may keep us waiting past the moment to be not_ready.
    async fn watched<T>(&self, schedule: RenewalSchedule, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = sleep_until(schedule.not_ready) => self.check_end(schedule, true),
        }
        work.await
    }

    /// Not ready when the end is near.
    fn check_end(&self, schedule: RenewalSchedule, failed: bool) {
        if unix_now() >= schedule.not_ready {
            let why = if failed { "; its renewal fails" } else { "" };
            self.latch
                .set_not_ready(format!("the certificate is about to expire{why}"));
        }
    }

    /// Looks at the files, and takes what is new and good in them.
    async fn watch(&self, cert: &Path, key: &Path, mut identity: Identity) {
        let mut schedule = RenewalSchedule::new(unix_now(), identity.not_after());
        let (mut seen, mut away) = (None, 0_u32);
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.check_end(schedule, false);
            let files = match PemFiles::read(cert, key) {
                Ok(files) => files,
                Err(error) => {
                    away = away.saturating_add(1);
                    // The first look may have come in the middle of a replacement.
                    if away == 2 {
                        self.not_taken(&error);
                    }
                    continue;
                }
            };
            away = 0;
            let digest = files.digest();
            if seen.replace(digest) == Some(digest) {
                continue;
            }
            match self.take(&files, &identity) {
                Ok(Some(new)) => {
                    identity = new;
                    schedule = RenewalSchedule::new(unix_now(), identity.not_after());
                }
                Ok(None) => {}
                Err(error) => self.not_taken(&error),
            }
        }
    }

    /// Puts what is in the files in force, unless it is in use already.
    fn take(
        &self,
        files: &PemFiles<'_>,
        before: &Identity,
    ) -> Result<Option<Identity>, IdentityError> {
        let new = Identity::from_pem(files)?;
        if new.certified().cert == before.certified().cert {
            return Ok(None);
        }
        new.check_dates(unix_now())?;
        self.activate(&new)?;
        Ok(Some(new))
    }

    fn not_taken(&self, error: &IdentityError) {
        self.renewal_metrics.failed.increment(1);
        tracing::warn!(%error, "the certificate's files have changed, and are not used");
    }
}

/// The moment to look at the certificate's end again.
fn next_look(not_ready: u64) -> u64 {
    let now = unix_now();
    if now < not_ready {
        not_ready
    } else {
        now + MAX_SLEEP.as_secs()
    }
}

/// Until that second begins. To the second's beginning and not for so many whole
/// ones: of a certificate that lives for seconds, that would be a good part.
async fn sleep_until(due: u64) {
    let due = UNIX_EPOCH + Duration::from_secs(due);
    // An error says that the moment is past.
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(MAX_SLEEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_renewed_after_two_thirds_and_red_before_the_end() {
        let day = RenewalSchedule::new(1_000, 1_000 + 86_400);
        assert_eq!(day.renew, 1_000 + 57_600);
        assert_eq!(day.not_ready, 1_000 + 86_400 - 3_600);
        let minutes = RenewalSchedule::new(0, 600);
        assert_eq!((minutes.renew, minutes.not_ready), (400, 540));
        let short = RenewalSchedule::new(0, 3);
        assert_eq!((short.renew, short.not_ready), (2, 3));
        let over = RenewalSchedule::new(10, 5);
        assert_eq!((over.renew, over.not_ready), (11, 5));
    }
}
