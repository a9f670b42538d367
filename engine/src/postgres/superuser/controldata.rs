//! Reads the control file of Postgres and hashes it.
//!
//! The preferred source is the output of `pg_controldata`. It needs that program in the major
//! version of the server, and the data directory, which a sidecar in another container does not
//! have. Otherwise the `pg_control_…()` functions provide the same facts in another format, and
//! [`Source`] says so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::Superuser;
use super::query::Unreadable;

/// The program prints about 3 KiB, within milliseconds.
const MAX_OUTPUT: u64 = 64 * 1024;
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(2);

const PROGRAM: &str = "pg_controldata";

/// `pg_controldata` prints this if it does not understand the file.
const WARNING: &str = "WARNING:";
/// Starts the line that identifies the cluster.
const IDENTIFIER_PREFIX: &str = "Database system identifier:";

/// Returns a line `<function>.<column>=<value>` for each column, in the order of the functions
/// below and of their columns. NULL is empty; times are in ISO 8601 and UTC.
const FUNCTIONS: &str = "\
SELECT f.name || '.' || e.key || '=' || coalesce(e.value, '')
  FROM (SELECT 1, 'pg_control_checkpoint', row_to_json(c) FROM pg_control_checkpoint() c
        UNION ALL SELECT 2, 'pg_control_system', row_to_json(c) FROM pg_control_system() c
        UNION ALL SELECT 3, 'pg_control_init', row_to_json(c) FROM pg_control_init() c
        UNION ALL SELECT 4, 'pg_control_recovery', row_to_json(c) FROM pg_control_recovery() c
       ) AS f (number, name, row),
       json_each_text(f.row) WITH ORDINALITY AS e (key, value, number)
 ORDER BY f.number, e.number";

/// The source of the hashed text.
#[derive(Debug)]
pub enum Source {
    /// The output of the program `pg_controldata`, byte for byte.
    Program,
    /// The functions `pg_control_…()`.
    Functions {
        /// Why the output of the program is not available.
        why: Unreadable,
    },
}

impl Source {
    /// The name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Source::Program => PROGRAM,
            Source::Functions { .. } => "pg_control_functions",
        }
    }
}

/// The content of the control file.
#[derive(Debug)]
pub struct ControlData {
    /// SHA-256 of `text`, in lower-case hex.
    pub hash: String,
    /// The source of `text`.
    pub source: Source,
    /// The hashed text.
    pub text: Vec<u8>,
}

impl ControlData {
    fn new(text: Vec<u8>, source: Source) -> Self {
        let hash = hex::encode(Sha256::digest(&text));
        Self { hash, source, text }
    }
}

pub(super) async fn read(
    postgres: &Superuser,
    program: Option<&Path>,
) -> Result<ControlData, Unreadable> {
    match run_program(postgres, program).await {
        Ok(text) => Ok(ControlData::new(text, Source::Program)),
        Err(why) => {
            let text = query_functions(postgres).await?;
            Ok(ControlData::new(text, Source::Functions { why }))
        }
    }
}

async fn query_functions(postgres: &Superuser) -> Result<Vec<u8>, Unreadable> {
    postgres
        .query_value::<String>("SELECT set_config('TimeZone', 'UTC', false)")
        .await?;
    let mut text = String::new();
    for line in postgres.query_column::<String>(FUNCTIONS).await? {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text.into_bytes())
}

async fn run_program(postgres: &Superuser, program: Option<&Path>) -> Result<Vec<u8>, Unreadable> {
    let data: String = postgres.query_value("SHOW data_directory").await?;
    let data = PathBuf::from(data);
    if let Err(error) = std::fs::File::open(data.join("global/pg_control")) {
        return Err(Unreadable(format!(
            "the data directory cannot be read: {error}"
        )));
    }
    let identifier: String = postgres
        .query_value("SELECT system_identifier::text FROM pg_control_system()")
        .await?;
    let program = match program {
        Some(program) => program.to_owned(),
        None => {
            let version: String = postgres.query_value("SHOW server_version_num").await?;
            find_program(&version)?
        }
    };
    let output = match timeout(PROGRAM_TIMEOUT, run_and_capture(&program, &data)).await {
        Ok(output) => output.map_err(|error| program_error(&program, &error))?,
        Err(_) => return Err(program_error(&program, &"did not end within 2 s")),
    };
    check_output(&output, &identifier).map_err(|why| program_error(&program, &why))?;
    Ok(output)
}

fn program_error(program: &Path, why: &dyn std::fmt::Display) -> Unreadable {
    Unreadable(format!("{}: {why}", program.display()))
}

/// Searches Debian's directory for the major version, which is not in `PATH`, then `PATH`.
fn find_program(version: &str) -> Result<PathBuf, Unreadable> {
    let major = version.parse().unwrap_or(0) / 10_000;
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(debian)
        .chain(std::env::split_paths(&path).filter(|folder| folder.is_absolute()))
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or_else(|| Unreadable(format!("{PROGRAM} is not installed")))
}

/// Runs the program and returns its standard output. It gets an empty environment, because that of
/// this process may contain secrets.
async fn run_and_capture(program: &Path, data: &Path) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("-D")
        .arg(data)
        .env_clear()
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut output = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        pipe.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > MAX_OUTPUT {
        return Err(io::Error::other("it prints more than 64 KiB"));
    }
    let status = child.wait().await?;
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    Ok(output)
}

/// Checks that the program understood the file, and that the file belongs to the cluster with this
/// system identifier. In another container, the same path may be the directory of another cluster.
fn check_output(output: &[u8], identifier: &str) -> Result<(), &'static str> {
    let text = String::from_utf8_lossy(output);
    if text.contains(WARNING) {
        return Err("it does not understand the control file");
    }
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(IDENTIFIER_PREFIX));
    match found.map(str::trim) {
        Some(found) if found == identifier => Ok(()),
        Some(_) => Err("the data directory belongs to another cluster"),
        None => Err("it prints no system identifier"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "pg_control version number:            1300\n\
                           Database system identifier:           7566\n";

    #[test]
    fn output_of_another_cluster_or_with_a_warning_is_rejected() {
        assert_eq!(check_output(PRINTED.as_bytes(), "7566"), Ok(()));
        assert_eq!(
            check_output(PRINTED.as_bytes(), "756"),
            Err("the data directory belongs to another cluster")
        );
        let warned = format!("WARNING: Calculated CRC checksum does not match\n{PRINTED}");
        assert_eq!(
            check_output(warned.as_bytes(), "7566"),
            Err("it does not understand the control file")
        );
        assert_eq!(check_output(b"", ""), Err("it prints no system identifier"));
    }

    /// Runs the program. Another test may fork while the script is being written. Its child keeps
    /// the script open for writing until it calls `exec`, and until then the script is busy.
    fn run_retrying(program: &Path) -> io::Result<Vec<u8>> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            loop {
                match run_and_capture(program, Path::new("/data")).await {
                    Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                    done => return done,
                }
            }
        })
    }

    fn program(text: &str) -> (tempfile::TempDir, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PROGRAM);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    #[test]
    fn the_program_gets_an_empty_environment() {
        let (_folder, path) = program("printf '%s ' \"$@\"; echo \"$LC_ALL ${HOME-none}\"");
        let output = run_retrying(&path).unwrap();
        assert_eq!(output, b"-D /data C none\n");
    }

    #[test]
    fn a_failing_program_and_endless_output_are_errors() {
        let (_folder, path) = program("echo half; exit 3");
        let error = run_retrying(&path).unwrap_err();
        assert_eq!(error.to_string(), "exit status: 3");
        let (_folder, path) = program("while :; do echo more; done");
        let error = run_retrying(&path).unwrap_err();
        assert_eq!(error.to_string(), "it prints more than 64 KiB");
    }
}
