//! Runs the sessions that the README and the quickstart show, and the tour of `scripts/demo`: what a new user types
//! first must print what these pages say.

use crate::harness::suite::Suite;

#[cfg(not(feature = "mock"))]
pub(super) fn add(_: &mut Suite) {}

#[cfg(feature = "mock")]
pub(super) fn add(suite: &mut Suite) {
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::documented_sessions::print_what_the_pages_say",
            tests::print_what_the_pages_say,
        );
        suite.add(
            "cvm_integration::documented_sessions::tour_of_the_demo_works",
            tests::tour_of_the_demo_works,
        );
    }
}

#[cfg(feature = "mock")]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use crate::harness::fixture::Fixture;
    use crate::harness::process::{TIMEOUT, lossy, run};
    use crate::harness::settings::sidecar_command;

    const PAGES: [&str; 2] = ["README.md", "docs/quickstart.md"];
    /// Printed by the script before each command.
    const MARK: &str = "\u{1}";
    /// The port that `dev` uses unless it runs a command.
    const DEFAULT_PORT: &str = "5433";

    /// A command of a session, and what the page shows as its output.
    struct Step {
        command: String,
        expected: Vec<String>,
    }

    pub(super) fn print_what_the_pages_say(fixture: &Fixture) {
        for page in PAGES {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
            let text = fs::read_to_string(&path).expect("a page");
            let steps = steps(&text);
            assert!(steps.len() > 2, "{page}: no session found");
            let outputs = run_all(fixture, &steps);
            assert_eq!(outputs.len(), steps.len(), "{page}");
            for (step, output) in steps.iter().zip(outputs) {
                assert!(
                    matches(&step.expected, &output),
                    "{page}: $ {}\nthe page shows:\n{}\nit printed:\n{}",
                    step.command,
                    step.expected.join("\n"),
                    output.join("\n")
                );
            }
        }
    }

    pub(super) fn tour_of_the_demo_works(fixture: &Fixture) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/demo");
        let arguments = [
            "dev",
            "--",
            script.to_str().expect("UTF-8"),
            "--tour",
            "--once",
        ];
        let folder = folder(fixture);
        let environment = [
            ("TMPDIR", folder.to_str().expect("UTF-8")),
            ("TEESQL_LOG", "error"),
            ("TEESQL_DEV_BINARY", env!("CARGO_BIN_EXE_teesql-sidecar")),
        ];
        let tour = run(sidecar_command(&arguments, &environment), TIMEOUT * 2);
        assert!(tour.status.success(), "{}", lossy(&tour.stdout));
    }

    /// An empty folder that Postgres can read, whoever it runs as.
    fn folder(fixture: &Fixture) -> PathBuf {
        let folder = fixture.harness.unique_path("sessions");
        fs::create_dir(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("permissions");
        folder
    }

    /// The commands of all blocks that begin with a prompt. Those that build the programs and load the environment
    /// have been run already.
    fn steps(page: &str) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let blocks = page.split("```").skip(1).step_by(2);
        for block in blocks.filter(|block| block.starts_with("\n$ ")) {
            for line in block.trim_matches('\n').lines() {
                match (line.strip_prefix("$ "), steps.last_mut()) {
                    (Some(command), _) => steps.push(Step {
                        command: command.to_owned(),
                        expected: Vec::new(),
                    }),
                    (None, Some(step)) => step.expected.push(line.trim_end().to_owned()),
                    (None, None) => panic!("output without a command: {line}"),
                }
            }
        }
        let prepares = |command: &str| command.starts_with("cargo ") || command.starts_with(". ");
        steps.retain(|step| !prepares(&step.command));
        steps
    }

    /// Runs the commands in one shell below `dev`. Returns the lines that each of them printed.
    fn run_all(fixture: &Fixture, steps: &[Step]) -> Vec<Vec<String>> {
        let folder = folder(fixture);
        let sidecar = Path::new(env!("CARGO_BIN_EXE_teesql-sidecar"));
        let programs = sidecar.parent().expect("a folder").display();
        let mut script = "exec 2>&1\nprintf '%s\\n' \"$PGPORT\"\n".to_owned();
        for step in steps {
            let command = step.command.replace("target/debug", &programs.to_string());
            writeln!(script, "printf '\\n{MARK}'\n{command}").expect("a String");
        }
        let environment = [
            ("TMPDIR", folder.to_str().expect("UTF-8")),
            ("TEESQL_LOG", "error"),
        ];
        let dev = sidecar_command(&["dev", "--", "sh", "-c", &script], &environment);
        let output = lossy(&run(dev, TIMEOUT * 2).stdout);
        let (port, outputs) = output.split_once('\n').expect("a port");
        let outputs = outputs.replace(&format!("port {port}"), &format!("port {DEFAULT_PORT}"));
        let lines = |output: &str| {
            output
                .trim()
                .lines()
                .map(|line| line.trim_end().to_owned())
                .collect()
        };
        outputs.split(MARK).skip(1).map(lines).collect()
    }

    /// Whether `output` is what a page shows. A line `…` stands for any lines, and `…` within a line for any text.
    fn matches(shown: &[String], output: &[String]) -> bool {
        let trimmed = |lines: &[String]| {
            lines
                .iter()
                .filter(|line| !line.trim().is_empty())
                .cloned()
                .collect::<Vec<_>>()
        };
        lines_match(&trimmed(shown), &trimmed(output))
    }

    fn lines_match(shown: &[String], output: &[String]) -> bool {
        match (shown.split_first(), output.split_first()) {
            (None, None) => true,
            (Some((first, rest)), _) if first == "…" => {
                (0..=output.len()).any(|skipped| lines_match(rest, &output[skipped..]))
            }
            (Some((first, rest)), Some((line, others))) => {
                line_matches(first, line) && lines_match(rest, others)
            }
            _ => false,
        }
    }

    fn line_matches(shown: &str, line: &str) -> bool {
        let mut parts = shown.trim().split('…');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = line.trim().strip_prefix(first) else {
            return false;
        };
        let mut last = None;
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else {
                return false;
            };
            rest = after;
            last = Some(part);
        }
        rest.is_empty() || last == Some("")
    }
}
