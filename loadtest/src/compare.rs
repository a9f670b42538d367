//! The whole comparison: all arms before the same Postgres, in turns.
//!
//! What is about speed runs before a real Postgres. What is about thousands of
//! connections runs before a fake one ([`crate::peers::fake`]), and says so.

mod cases;
mod options;
mod preflight;
mod run;
mod scalability;
mod targets;
mod threads;

pub use options::{MAX_ROUNDS, Options, Part};

use crate::error::{Error, Result};
use crate::machine::{Machine, Ticks};
use crate::mock_tdx::unix_now;
use crate::peers::postgres::Postgres;
use crate::peers::workspace::{Cores, House};
use crate::progress::Progress;
use crate::report::Report;
use run::Run;

/// Runs the comparison.
///
/// # Errors
/// Postgres or the sidecar do not run, or a signal. Any other arm that fails is
/// left out, and the report says why.
pub fn run(options: &Options, progress: &Progress) -> Result<Report> {
    if options.rounds == 0 || options.rounds > MAX_ROUNDS {
        return Err(Error::Usage(format!("1 to {MAX_ROUNDS} rounds")));
    }
    let cores = Cores::take(options.apart)?;
    let busy = preflight::settle(options.settle, progress)?;
    let machine = Machine::here(cores.count, unix_now(), busy);
    let threads = match options.threads {
        0 => (cores.count / 2).max(1),
        threads => threads,
    };
    progress.line("starting Postgres");
    let house = House::new(cores, options.programs.as_deref())?;
    let postgres = Postgres::start(&house)?;
    let before = Ticks::now();
    let mut run = Run {
        options,
        progress,
        house: &house,
        postgres: &postgres,
        threads,
        quiet: preflight::Cores::new(&house.cores),
        report: Report {
            machine,
            ..Report::default()
        },
    };
    all(&mut run)?;
    let stolen = Ticks::now().stolen_since(before);
    run.settings(stolen);
    run.remarks(stolen);
    let mut report = run.report;
    judge(&mut report);
    Ok(report)
}

/// Judges what was measured by the targets.
pub fn judge(report: &mut Report) {
    report.targets = targets::all(report);
}

fn all(run: &mut Run<'_>) -> Result<()> {
    let peers = run.start()?;
    run.part(Part::Queries, |run| run.queries(&peers))?;
    run.part(Part::Bulk, |run| run.bulk(&peers))?;
    run.part(Part::Connect, |run| run.connect(&peers))?;
    drop(peers);
    run.part(Part::Idle, Run::idle)?;
    run.part(Part::Growth, Run::growth)?;
    run.part(Part::Storm, Run::storm)?;
    run.part(Part::Verdicts, Run::verdicts)
}
