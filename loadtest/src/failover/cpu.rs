//! CPU time of the sidecars of all members.

use std::fs;
use std::time::{Duration, Instant};

use crate::process_usage::{Pid, cpu_of};

/// The share of one core in percent that all sidecars take together, over this time. `None` without sidecars, and if one
/// was started or has ended.
pub(super) async fn of_sidecars(time: Duration) -> Option<f64> {
    let sidecars = sidecars();
    let cpu = || {
        sidecars
            .iter()
            .map(|pid| cpu_of(*pid).ok())
            .sum::<Option<Duration>>()
    };
    let (before, began) = (cpu()?, Instant::now());
    tokio::time::sleep(time).await;
    let taken = cpu()?.saturating_sub(before);
    let share = taken.as_secs_f64() / began.elapsed().as_secs_f64();
    (!sidecars.is_empty()).then_some(100.0 * share)
}

/// The processes of `teesql-sidecar serve`.
fn sidecars() -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let serves = processes.filter_map(|entry| {
        let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let mut arguments = arguments.split('\0');
        let is_sidecar = arguments.next()?.ends_with("teesql-sidecar");
        let serves = is_sidecar && arguments.next() == Some("serve");
        serves.then(|| entry.file_name().to_str()?.parse().ok())?
    });
    serves.collect()
}
