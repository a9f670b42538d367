//! Flags and parts of the output that all loads share.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ArgMatches;

use super::flags::{address, path, text, value};
use crate::endpoint::{Endpoint, Identity, Login, Opening};
use crate::error::{Error, Result, io_context};
use crate::latency::LatencyHistogram;
use crate::load::Meter;
use crate::mock_tdx::MockTdx;
use crate::stats::format_figure;

pub(super) fn endpoint(flags: &ArgMatches, tdx: &MockTdx) -> Result<Endpoint> {
    let to = address(flags, "to")?;
    let opening = value(flags, "opening")?.unwrap_or(Opening::SslRequest);
    let identity = match (
        path(flags, "cert"),
        path(flags, "key"),
        flags.get_flag("mock-tdx"),
    ) {
        (Some(cert), Some(key), false) => Some(Identity::read(&cert, &key)?),
        (None, None, true) => Some(tdx.identity("client")?),
        (None, None, false) => None,
        _ => {
            return Err(Error::Usage(
                "use either --cert and --key, or --mock-tdx, or none of them".to_owned(),
            ));
        }
    };
    match path(flags, "ca") {
        None => Endpoint::loopback(to, opening, identity.as_ref()),
        Some(ca) => {
            let name = text(flags, "server-name").unwrap_or("localhost");
            Endpoint::trusted(to, opening, identity.as_ref(), &ca, name)
        }
    }
}

/// Reads the password from a file or the environment: command lines are visible to other users.
pub(super) fn login(flags: &ArgMatches) -> Result<Login> {
    let password = match path(flags, "password-file") {
        Some(file) => {
            let read = std::fs::read_to_string(&file);
            read.map_err(io_context(file.display().to_string()))?
        }
        None => std::env::var("PGPASSWORD").unwrap_or_default(),
    };
    let role = text(flags, "user").unwrap_or("teesql_read");
    let database = text(flags, "database").unwrap_or("postgres");
    Ok(Login::new(
        role,
        database,
        password.trim_end_matches(['\r', '\n']),
    ))
}

pub(super) fn distribution(text: &mut String, latencies: &LatencyHistogram) {
    let _ = write!(text, "\nlatency µs:");
    for percent in [50.0, 90.0, 99.0, 99.9] {
        let _ = write!(
            text,
            " p{percent} {}",
            format_figure(latencies.percentile(percent))
        );
    }
    let _ = write!(text, " max {}", format_figure(latencies.summary().max));
}

/// Appends the CPU time used, with a warning if the load used more than the measured process.
pub(super) fn cost(text: &mut String, meter: &Meter, seconds: f64) {
    let share = |time: Duration| 100.0 * time.as_secs_f64() / seconds.max(1e-9);
    let _ = write!(text, "\nCPU: load {:.0} % of a core", share(meter.load_cpu));
    if let Some(theirs) = meter.process_cpu {
        let _ = write!(text, ", process {:.0} %", share(theirs));
        if meter.load_cpu > theirs {
            text.push_str("; warning: the load used more CPU than the measured process");
        }
    }
}
