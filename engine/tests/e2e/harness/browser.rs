//! A real browser without a window, for the status page: Chromium or Chrome.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::harness::process::{TIMEOUT, lossy, pdeathsig_command, run};

/// Names of Chromium and Chrome in Debian, Ubuntu and Google's packages.
const PROGRAMS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// The browser of this machine: `TEESQL_TEST_BROWSER`, or the first that is found.
pub(crate) fn program() -> Result<String, String> {
    if let Ok(program) = env::var("TEESQL_TEST_BROWSER") {
        return Ok(program);
    }
    let works = |program: &&str| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = PROGRAMS.iter().copied().find(works);
    found
        .map(str::to_owned)
        .ok_or_else(|| "no Chromium (Debian's chromium)".to_owned())
}

/// A page after its script has run.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// The document as HTML.
    pub(crate) dom: String,
    /// What the page has said on its console, such as violations of its policy.
    pub(crate) console: Vec<String>,
}

/// Opens `url` and lets so many milliseconds pass for the page, which need not pass for us.
pub(crate) fn open(url: &str, profile: &Path, milliseconds: u32) -> Rendered {
    let mut browser = pdeathsig_command(program().expect("a browser"), "KILL", None);
    browser
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--no-first-run",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--virtual-time-budget={milliseconds}"))
        .arg(url);
    let output = run(browser, 2 * TIMEOUT);
    let log = lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let console = log.lines().filter(|line| line.contains("CONSOLE"));
    Rendered {
        dom: lossy(&output.stdout),
        console: console.map(str::to_owned).collect(),
    }
}
