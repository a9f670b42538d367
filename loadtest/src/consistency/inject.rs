//! Makes the planned faults happen to the members of a cluster, and ends them.

use std::time::{Duration, Instant};

use super::plan::Fault;
use crate::dev_cluster::DevCluster;
use crate::error::Result;

/// The time between two looks at the state of the cluster.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Makes a fault happen to a member.
///
/// # Errors
/// `dev` refuses the request. A switchover may fail: Patroni refuses it while no standby is in sync.
pub(super) fn begin(cluster: &DevCluster, member: &str, fault: Fault) -> Result<()> {
    let request = |words: &[&str]| cluster.request(words).map(drop);
    match fault {
        Fault::Kill => request(&["kill", member]),
        Fault::Pause => request(&["pause", member]),
        Fault::CutOff => request(&["isolate", member]),
        Fault::ClockOffset(seconds) => request(&["clock", member, &format!("{seconds:+}")]),
        Fault::Switchover => request(&["exec", member, "patronictl", "switchover", "--force"]),
    }
}

/// Ends the fault.
///
/// # Errors
/// `dev` refuses the request.
pub(super) fn end(cluster: &DevCluster, member: &str, fault: Fault) -> Result<()> {
    let request = |words: &[&str]| cluster.request(words).map(drop);
    match fault {
        Fault::Kill => request(&["start", member]),
        Fault::Pause => request(&["resume", member]),
        Fault::CutOff => request(&["join", member]),
        Fault::ClockOffset(_) => request(&["clock", member, "+0"]),
        Fault::Switchover => Ok(()),
    }
}

/// Waits until the cluster is complete as each of its members sees it.
///
/// # Errors
/// That did not happen in time: what the first member that sees it otherwise saw at last.
pub(super) fn await_complete(
    cluster: &DevCluster,
    limit: Duration,
) -> std::result::Result<(), String> {
    let deadline = Instant::now() + limit;
    let otherwise = |member: &String| match cluster.list_of(member) {
        Ok(list) if cluster.is_complete(&list) => None,
        Ok(list) => Some(format!("{member} sees {list:?}")),
        Err(error) => Some(format!("{member}: {error}")),
    };
    while let Some(seen) = cluster.members().iter().find_map(otherwise) {
        if Instant::now() + POLL_INTERVAL > deadline {
            return Err(seen);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
