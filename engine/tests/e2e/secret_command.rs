//! Tests of `teesql-sidecar secret`.

use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, lossy, run, run_successfully};
use crate::harness::settings::sidecar_command;
use crate::harness::suite::Suite;

pub(crate) fn add(suite: &mut Suite) {
    if suite.adds_driver_independent() {
        suite.add(
            "secret_command::prints_or_writes_a_secret",
            prints_or_writes,
        );
    }
}

fn prints_or_writes(fixture: &Fixture) {
    let secret = run_successfully(sidecar_command(&["secret"], &[]), TIMEOUT);
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    let digits = secret.strip_suffix('\n').expect("a line");
    assert!(
        digits.len() == 64 && digits.chars().all(is_digit),
        "{secret}"
    );
    assert_ne!(
        run_successfully(sidecar_command(&["secret"], &[]), TIMEOUT),
        secret
    );

    let path = fixture.harness.unique_path("secret");
    let write = || {
        let mut command = sidecar_command(&["secret"], &[]);
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
