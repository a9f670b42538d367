//! Runs the binary, with a timeout.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A run takes far less.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The exit code and output of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `verify` with `arguments`, in an empty environment.
pub(crate) fn verify<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    verify_in(&[], arguments)
}

pub(crate) fn verify_in<A: AsRef<OsStr>>(
    environment: &[(&str, &str)],
    arguments: impl IntoIterator<Item = A>,
) -> Run {
    let child = Command::new(env!("CARGO_BIN_EXE_teesql-sidecar"))
        .arg("verify")
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(TIMEOUT) else {
        kill(pid, Signal::SIGKILL).expect("it can be killed");
        panic!("verify did not exit within {TIMEOUT:?}");
    };
    let output = output.expect("its output");
    Run {
        code: output.status.code().expect("no signal"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

impl Run {
    pub(crate) fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The step `name` of a report.
pub(crate) fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().expect("steps");
    steps
        .iter()
        .find(|step| step["step"] == name)
        .unwrap_or_else(|| panic!("no step {name} in {report}"))
}

/// The names of all steps of a report.
pub(crate) fn step_names(report: &Value) -> Vec<&str> {
    let steps = report["steps"].as_array().expect("steps");
    let names = steps.iter().map(|step| step["step"].as_str());
    names.map(|name| name.expect("a name")).collect()
}

/// The first step that failed.
pub(crate) fn first_failed(report: &Value) -> Option<&Value> {
    let mut steps = report["steps"].as_array().expect("steps").iter();
    steps.find(|step| step["state"] == "failed")
}
