//! `teesql-sidecar secret`.

use std::path::Path;

use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, run, run_successfully};
use crate::harness::suite::{Fixture, Suite};

pub(crate) fn add(suite: &mut Suite) {
    if suite.is_last_driver() {
        suite.add("secret::printed_and_written", secrets);
    }
}

fn secrets(fixture: &Fixture) {
    let sidecar = || {
        let binary = Path::new(env!("CARGO_BIN_EXE_teesql-sidecar"));
        let mut command = pdeathsig_command(binary, "KILL", None);
        command.arg("secret");
        command
    };
    let one = run_successfully(sidecar(), TIMEOUT);
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    let digits = one.strip_suffix('\n').expect("a line");
    assert!(digits.len() == 64 && digits.chars().all(is_digit), "{one}");
    assert_ne!(run_successfully(sidecar(), TIMEOUT), one);

    let path = fixture.harness.unique_path("secret");
    let write = || {
        let mut command = sidecar();
        command.arg("--file").arg(&path);
        run(command, TIMEOUT)
    };
    let written = write();
    assert_eq!(written.status.code(), Some(0), "{}", lossy(&written.stderr));
    assert!(written.stdout.is_empty());
    let text = std::fs::read_to_string(&path).expect("a file");
    assert_eq!(text.len(), 65);
    let refused = write();
    let error = format!("error: {}: File exists (os error 17)\n", path.display());
    assert_eq!(refused.status.code(), Some(73));
    assert_eq!(lossy(&refused.stderr), error);
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), text);
}
