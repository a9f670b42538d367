//! One run of the binary, ended by force if it hangs.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Far beyond what any run may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How it ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// `verify` with `arguments`, in an empty environment.
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
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        kill(pid, Signal::SIGKILL).expect("it can be killed");
        panic!("verify hangs");
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

/// A step of a report.
pub(crate) fn step<'a>(report: &'a Value, name: &str) -> &'a Value {
    let steps = report["steps"].as_array().expect("steps");
    steps
        .iter()
        .find(|step| step["step"] == name)
        .unwrap_or_else(|| panic!("no step {name} in {report}"))
}

/// The code of the first step that failed.
pub(crate) fn first_failed(report: &Value) -> Option<&str> {
    let steps = report["steps"].as_array().expect("steps");
    let failed = steps.iter().find(|step| step["state"] == "failed")?;
    failed["code"].as_str()
}
