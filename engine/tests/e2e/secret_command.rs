//! `teesql-sidecar secret`.

use std::path::Path;

use crate::harness::process::{PATIENCE, lossy, mortal, run, succeed};
use crate::harness::suite::{Suite, World};

pub(crate) fn add(suite: &mut Suite) {
    if suite.plays_the_rest() {
        suite.add("secret::printed_and_written", secrets);
    }
}

fn secrets(world: &World) {
    let sidecar = || {
        let binary = Path::new(env!("CARGO_BIN_EXE_teesql-sidecar"));
        let mut command = mortal(binary, "KILL", None);
        command.arg("secret");
        command
    };
    let one = succeed(sidecar(), PATIENCE);
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    let digits = one.strip_suffix('\n').expect("a line");
    assert!(digits.len() == 64 && digits.chars().all(is_digit), "{one}");
    assert_ne!(succeed(sidecar(), PATIENCE), one);

    let path = world.stage.path("secret");
    let write = || {
        let mut command = sidecar();
        command.arg("--file").arg(&path);
        run(command, PATIENCE)
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
