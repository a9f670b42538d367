//! A running comparison: its parts, its rounds, and what it adds to the report.

use std::time::Duration;

use super::options::{Options, Part};
use super::preflight;
use crate::error::{Error, Result};
use crate::peers::postgres::Postgres;
use crate::peers::workspace::{Placement, Workspace};
use crate::peers::{self, Peer, PeerKind};
use crate::progress::Progress;
use crate::report::{Arm, Case, Column, Report, Sample, Samples};
use crate::stats::arm_order;

/// State of a running comparison.
pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) progress: &'a Progress,
    pub(super) workspace: &'a Workspace,
    pub(super) postgres: &'a Postgres,
    pub(super) threads: usize,
    pub(super) core_check: preflight::CoreCheck,
    pub(super) report: Report,
}

impl Run<'_> {
    /// Runs one part. If it fails, the report has a remark instead, and the other parts still run.
    pub(super) fn run_part(
        &mut self,
        part: Part,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if !self.options.parts.contains(&part) {
            return Ok(());
        }
        match run(self) {
            Err(Error::Stopped) => Err(Error::Stopped),
            Err(error) => {
                self.remark(format!("{}: {error}", part.name()));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Runs one part with Postgres and the load off the proxies' core.
    pub(super) fn run_part_apart(
        &mut self,
        part: Part,
        run: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.run_part(part, |this| {
            let (cores, postgres) = (&this.workspace.cores, this.postgres.pid());
            if cores.usable.len() < 2 {
                return Err(Error::Usage("needs two cores".to_owned()));
            }
            cores.place(Placement::Apart, postgres)?;
            let done = run(this);
            cores.place(this.options.placement, postgres)?;
            done
        })
    }

    /// Starts the arms in front of the real Postgres. The sidecar must start.
    pub(super) fn start_peers(&mut self) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        for kind in &self.options.arms {
            match peers::start(*kind, self.workspace, &self.postgres.upstream) {
                Ok(peer) => {
                    self.report.arms.push(Arm {
                        name: kind.to_string(),
                        version: peer.version.clone(),
                    });
                    peers.push(peer);
                }
                Err(error) if *kind == PeerKind::Sidecar => return Err(error),
                Err(error) => {
                    self.progress.log(&format!("{kind} is left out: {error}"));
                    let missing = (kind.to_string(), error.to_string());
                    self.report.missing.push(missing);
                }
            }
        }
        Ok(peers)
    }

    pub(super) fn remark(&mut self, text: String) {
        self.progress.log(&text);
        self.report.remarks.push(text);
    }

    /// Measures the named arms in turn, for the configured number of rounds.
    pub(super) fn measure(
        &mut self,
        key: &str,
        title: &str,
        columns: &[(&str, &str)],
        arms: &[String],
        measure: impl FnMut(usize, usize) -> Result<Sample>,
    ) -> Result<()> {
        self.measure_rounds(self.options.rounds, key, title, columns, arms, measure)
    }

    pub(super) fn measure_rounds(
        &mut self,
        rounds: usize,
        key: &str,
        title: &str,
        columns: &[(&str, &str)],
        arms: &[String],
        mut measure: impl FnMut(usize, usize) -> Result<Sample>,
    ) -> Result<()> {
        let samples = |arm: &String| Samples {
            arm: arm.clone(),
            rounds: vec![None; rounds],
        };
        let mut case = Case {
            key: key.to_owned(),
            title: title.to_owned(),
            columns: columns.iter().map(column).collect(),
            arms: arms.iter().map(samples).collect(),
        };
        for round in 0..rounds {
            self.core_check.wait(self.progress)?;
            for index in arm_order(arms.len(), round) {
                let name = arms.get(index).map_or("", String::as_str);
                let what = format!("{title}, round {}: {name}", round + 1);
                self.progress.status(&what);
                match measure(index, round) {
                    Ok(sample) => {
                        self.progress
                            .log(&format!("{what}: {}", describe_sample(&case, &sample)));
                        store_sample(&mut case, index, round, sample);
                    }
                    Err(Error::Stopped) => return Err(Error::Stopped),
                    Err(error) => self.remark(format!("{what}: {error}")),
                }
                self.progress.check_signal()?;
            }
        }
        self.report.cases.push(case);
        Ok(())
    }

    pub(super) fn record_settings(&mut self, stolen: f64) {
        let options = self.options;
        let slowdown = self.core_check.spread();
        let clients: Vec<_> = options.clients.iter().map(usize::to_string).collect();
        let mut put = |name: &str, value: String| {
            self.report.settings.push((name.to_owned(), value));
        };
        put("rounds", options.rounds.to_string());
        put("seconds", options.seconds.to_string());
        put("connections", clients.join(" "));
        put("COPY", format!("{} MiB", options.bulk));
        put("proxies on core", self.workspace.cores.proxy.clone());
        put(
            "Postgres and load on cores",
            self.workspace.cores.others.clone(),
        );
        put("load threads", self.threads.to_string());
        put("Postgres", self.postgres.version.clone());
        put(
            "CPU time stolen by the hypervisor",
            format!("{:.1} %", stolen * 100.0),
        );
        if let Some(spread) = slowdown {
            let range = format!("{:.2} to {:.2}", spread.low, spread.high);
            put(
                "slowdown of a core by work on another one",
                format!("{:.2} ({range})", spread.median),
            );
        }
    }

    /// Adds remarks on everything that makes the results less reliable.
    pub(super) fn record_remarks(&mut self, stolen: f64, kernel_threads: &[(String, f64)]) {
        let machine = &self.report.machine;
        let mut remarks = Vec::new();
        if machine.busy_before > preflight::IDLE_THRESHOLD {
            remarks.push(format!(
                "The machine was not idle: other processes used {:.0} % of its CPU time before the \
                 first measurement. Check the ranges.",
                machine.busy_before * 100.0
            ));
        }
        if stolen > 0.01 {
            remarks.push(format!(
                "The hypervisor gave {:.1} % of the CPU time to other guests.",
                stolen * 100.0
            ));
        }
        if !kernel_threads.is_empty() {
            let name = |(name, share): &(String, f64)| format!("{name} {:.1} %", share * 100.0);
            let names: Vec<_> = kernel_threads.iter().map(name).collect();
            remarks.push(format!(
                "Threads of the kernel used a core at the same time: {}. The upper percentiles contain \
                 the time in which they had it.",
                names.join(", ")
            ));
        }
        if machine.cores < 4 {
            remarks.push(format!(
                "Only {} cores: Postgres, the load and the proxy compete for them.",
                machine.cores
            ));
        }
        if self.options.rounds < 3 {
            remarks.push("Fewer than three rounds: the medians are not reliable.".to_owned());
        }
        remarks.extend(self.core_check.remark());
        remarks.extend(load_costlier_than_peer(&self.report));
        remarks.into_iter().for_each(|text| self.remark(text));
    }

    pub(super) fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }
}

/// A remark that lists where the load used more CPU than the measured process.
fn load_costlier_than_peer(report: &Report) -> Option<String> {
    let mut places = Vec::new();
    for case in &report.cases {
        for samples in &case.arms {
            let of = |column| {
                case.spread(&samples.arm, column)
                    .map(|spread| spread.median)
            };
            if let (Some(load), Some(peer)) = (of("load-cpu"), of("cpu"))
                && load > peer
            {
                places.push(format!(
                    "{} of {} ({:.1} ×)",
                    case.title,
                    samples.arm,
                    load / peer
                ));
            }
        }
    }
    (!places.is_empty()).then(|| {
        format!(
            "The load used more CPU than the measured proxy in: {}.",
            places.join("; ")
        )
    })
}

fn column((key, title): &(&str, &str)) -> Column {
    Column {
        key: (*key).to_owned(),
        title: (*title).to_owned(),
    }
}

fn store_sample(case: &mut Case, arm: usize, round: usize, sample: Sample) {
    let samples = case.arms.get_mut(arm);
    if let Some(slot) = samples.and_then(|samples| samples.rounds.get_mut(round)) {
        *slot = Some(sample);
    }
}

/// Formats a sample on one line.
fn describe_sample(case: &Case, sample: &Sample) -> String {
    let figures = case.columns.iter().zip(&sample.figures);
    let words = figures.filter_map(|(column, value)| {
        let value = crate::stats::format_figure((*value)?);
        Some(format!("{} {value}", column.title))
    });
    words.collect::<Vec<_>>().join(", ")
}
