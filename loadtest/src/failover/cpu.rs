//! CPU time of the sidecars, from `/proc`.

use std::fs;
use std::time::{Duration, Instant};

/// The share of one core in percent that all sidecars take together, over this time. `None` without sidecars.
pub(super) async fn of_sidecars(time: Duration) -> Option<f64> {
    let before = ticks();
    let began = Instant::now();
    tokio::time::sleep(time).await;
    let after = ticks();
    if before.0 == 0 || before.0 != after.0 {
        return None;
    }
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let seconds = after.1.saturating_sub(before.1) as f64 / per_second as f64;
    Some(100.0 * seconds / began.elapsed().as_secs_f64())
}

/// The number of sidecars that serve, and their user and system time in clock ticks.
fn ticks() -> (usize, u64) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let times = processes.filter_map(|entry| {
        let arguments = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let mut arguments = arguments.split('\0');
        let program = arguments.next()?;
        if !program.ends_with("teesql-sidecar") || arguments.next() != Some("serve") {
            return None;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // Fields 14 and 15; the second one is in parentheses and may contain spaces. [proc(5)]
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11);
        let mut time = || fields.next()?.parse::<u64>().ok();
        Some(time()? + time()?)
    });
    times.fold((0, 0), |(count, sum), time| (count + 1, sum + time))
}
