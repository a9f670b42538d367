//! The whole comparison: all arms in turn, in front of the same Postgres.
//!
//! Speed is measured in front of a real Postgres. Loads with thousands of connections run in front
//! of a fake one ([`crate::peers::fake_postgres`]), and the report says so.

mod cases;
mod open_loop;
mod options;
mod preflight;
mod run;
mod scalability;
mod targets;
mod threads;

pub use options::{MAX_ROUNDS, Options, Part};

use crate::error::{Error, Result};
use crate::machine::{CpuTicks, KernelThreads, Machine};
use crate::mock_tdx::unix_now;
use crate::peers::postgres::Postgres;
use crate::peers::workspace::{Cores, Workspace};
use crate::progress::Progress;
use crate::report::Report;
use run::Run;

/// Runs the comparison.
///
/// # Errors
/// Postgres or the sidecar fail, or [`Error::Stopped`] after a signal. Any other arm that fails is
/// left out, and the report says why.
pub fn run(options: &Options, progress: &Progress) -> Result<Report> {
    if options.rounds == 0 || options.rounds > MAX_ROUNDS {
        return Err(Error::Usage(format!("rounds: must be 1 to {MAX_ROUNDS}")));
    }
    let cores = Cores::assign(options.placement)?;
    let busy = preflight::wait_until_idle(options.max_settle, progress)?;
    let machine = Machine::current(cores.usable.len(), unix_now(), busy);
    let threads = match options.threads {
        0 => (cores.usable.len() / 2).max(1),
        threads => threads,
    };
    progress.log("starting Postgres");
    let workspace = Workspace::new(cores, options.programs.as_deref())?;
    let postgres = Postgres::start(&workspace)?;
    let (before, kernel_before) = (CpuTicks::now(), KernelThreads::now());
    let mut run = Run {
        options,
        progress,
        workspace: &workspace,
        postgres: &postgres,
        threads,
        core_check: preflight::CoreCheck::new(&workspace.cores, options.max_settle),
        report: Report {
            machine,
            ..Report::default()
        },
    };
    run_parts(&mut run)?;
    let stolen = CpuTicks::now().stolen_since(before);
    run.record_settings(stolen);
    run.record_remarks(stolen, &KernelThreads::now().busy_since(&kernel_before));
    let mut report = run.report;
    evaluate_targets(&mut report);
    Ok(report)
}

/// Evaluates the targets on the measurements of a report.
pub fn evaluate_targets(report: &mut Report) {
    report.targets = targets::all(report);
}

fn run_parts(run: &mut Run<'_>) -> Result<()> {
    let peers = run.start_peers()?;
    run.run_part(Part::Queries, |run| run.queries(&peers))?;
    run.run_part_apart(Part::Apart, |run| run.apart(&peers))?;
    run.run_part_apart(Part::OpenLoop, |run| run.open_loop(&peers))?;
    run.run_part_apart(Part::Mixture, |run| run.mixture(&peers))?;
    run.run_part(Part::Bulk, |run| run.bulk(&peers))?;
    run.run_part(Part::Connect, |run| run.connect(&peers))?;
    drop(peers);
    run.run_part(Part::Idle, Run::idle)?;
    run.run_part(Part::Growth, Run::growth)?;
    run.run_part(Part::Storm, Run::storm)?;
    run.run_part(Part::Verdicts, Run::verdicts)
}
