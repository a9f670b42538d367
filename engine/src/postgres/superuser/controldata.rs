//! The control file, as one hash.
//!
//! Best is what `pg_controldata` prints. It needs that program, of Postgres' own
//! major version, and its data directory, which a sidecar in another container
//! does not have. Otherwise Postgres' own functions tell the same facts in
//! another form, and the source says so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::Superuser;
use super::state::Unreadable;

/// It prints about 3 KiB and is done in milliseconds.
const MOST: u64 = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(2);

const PROGRAM: &str = "pg_controldata";

/// What `pg_controldata` prints first where it does not understand the file.
const DISTRUST: &str = "WARNING:";
/// The line that says which cluster it is.
const IDENTIFIER: &str = "Database system identifier:";

/// A line `<function>.<column>=<value>` for each column, in the order of the
/// functions here and of the columns there. NULL is empty, times are ISO 8601
/// in UTC.
const FUNCTIONS: &str = "\
SELECT f.name || '.' || e.key || '=' || coalesce(e.value, '')
  FROM (SELECT 1, 'pg_control_checkpoint', row_to_json(c) FROM pg_control_checkpoint() c
        UNION ALL SELECT 2, 'pg_control_system', row_to_json(c) FROM pg_control_system() c
        UNION ALL SELECT 3, 'pg_control_init', row_to_json(c) FROM pg_control_init() c
        UNION ALL SELECT 4, 'pg_control_recovery', row_to_json(c) FROM pg_control_recovery() c
       ) AS f (number, name, row),
       json_each_text(f.row) WITH ORDINALITY AS e (key, value, number)
 ORDER BY f.number, e.number";

/// Where the hashed text comes from.
#[derive(Debug)]
pub enum Source {
    /// What the program `pg_controldata` prints, byte for byte.
    Program,
    /// The functions `pg_control_…()`, and why not the program.
    Functions {
        /// Why the program's output could not be had.
        why: Unreadable,
    },
}

impl Source {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Source::Program => PROGRAM,
            Source::Functions { .. } => "pg_control_functions",
        }
    }
}

/// The control file's content.
#[derive(Debug)]
pub struct ControlData {
    /// SHA-256 of `text`, in lower-case hex.
    pub hash: String,
    /// Where it comes from.
    pub source: Source,
    /// What was hashed.
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
    match printed(postgres, program).await {
        Ok(text) => Ok(ControlData::new(text, Source::Program)),
        Err(why) => {
            let text = told(postgres).await?;
            Ok(ControlData::new(text, Source::Functions { why }))
        }
    }
}

async fn told(postgres: &Superuser) -> Result<Vec<u8>, Unreadable> {
    postgres
        .ask::<String>("SELECT set_config('TimeZone', 'UTC', false)")
        .await?;
    let mut text = String::new();
    for line in postgres.rows::<String>(FUNCTIONS).await? {
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text.into_bytes())
}

async fn printed(postgres: &Superuser, program: Option<&Path>) -> Result<Vec<u8>, Unreadable> {
    let data: String = postgres.ask("SHOW data_directory").await?;
    let data = PathBuf::from(data);
    if let Err(error) = std::fs::File::open(data.join("global/pg_control")) {
        return Err(Unreadable(format!(
            "the data directory cannot be read: {error}"
        )));
    }
    let identifier: String = postgres
        .ask("SELECT system_identifier::text FROM pg_control_system()")
        .await?;
    let program = match program {
        Some(program) => program.to_owned(),
        None => find(&postgres.ask::<String>("SHOW server_version_num").await?)?,
    };
    let output = match timeout(DEADLINE, run(&program, &data)).await {
        Ok(output) => output.map_err(|error| failed(&program, &error))?,
        Err(_) => return Err(failed(&program, &"no end within 2 s")),
    };
    check(&output, &identifier).map_err(|why| failed(&program, &why))?;
    Ok(output)
}

fn failed(program: &Path, why: &dyn std::fmt::Display) -> Unreadable {
    Unreadable(format!("{}: {why}", program.display()))
}

/// Debian's folder of that major version, which is on no PATH; else the PATH.
fn find(version: &str) -> Result<PathBuf, Unreadable> {
    let major = version.parse().unwrap_or(0) / 10_000;
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(debian)
        .chain(std::env::split_paths(&path).filter(|folder| folder.is_absolute()))
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or_else(|| Unreadable(format!("{PROGRAM} is not installed")))
}

/// Its standard output, without our environment: that may hold secrets.
async fn run(program: &Path, data: &Path) -> io::Result<Vec<u8>> {
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
        pipe.take(MOST + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > MOST {
        return Err(io::Error::other("it prints more than 64 KiB"));
    }
    let status = child.wait().await?;
    if !status.success() {
        return Err(io::Error::other(status.to_string()));
    }
    Ok(output)
}

/// A program of another version misreads the file, and the directory of that
/// name on our side may be another cluster's.
fn check(output: &[u8], identifier: &str) -> Result<(), &'static str> {
    let text = String::from_utf8_lossy(output);
    if text.contains(DISTRUST) {
        return Err("it does not understand the control file");
    }
    let printed = text.lines().find_map(|line| line.strip_prefix(IDENTIFIER));
    match printed.map(str::trim) {
        Some(printed) if printed == identifier => Ok(()),
        Some(_) => Err("the data directory is another cluster's"),
        None => Err("it prints no system identifier"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "pg_control version number:            1300\n\
                           Database system identifier:           7566\n";

    #[test]
    fn only_the_same_cluster_read_without_a_warning_counts() {
        assert_eq!(check(PRINTED.as_bytes(), "7566"), Ok(()));
        assert_eq!(
            check(PRINTED.as_bytes(), "756"),
            Err("the data directory is another cluster's")
        );
        let warned = format!("WARNING: Calculated CRC checksum does not match\n{PRINTED}");
        assert_eq!(
            check(warned.as_bytes(), "7566"),
            Err("it does not understand the control file")
        );
        assert_eq!(check(b"", ""), Err("it prints no system identifier"));
    }

    /// A test beside this one may fork while the script is being written, and
    /// hold it open for writing until it executes something else.
    fn run_now(program: &Path) -> io::Result<Vec<u8>> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            loop {
                match run(program, Path::new("/data")).await {
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
    fn a_program_gets_no_environment_of_ours() {
        let (_folder, path) = program("printf '%s ' \"$@\"; echo \"$LC_ALL ${HOME-none}\"");
        let output = run_now(&path).unwrap();
        assert_eq!(output, b"-D /data C none\n");
    }

    #[test]
    fn a_program_that_fails_or_prints_without_end_is_not_believed() {
        let (_folder, path) = program("echo half; exit 3");
        let error = run_now(&path).unwrap_err();
        assert_eq!(error.to_string(), "exit status: 3");
        let (_folder, path) = program("while :; do echo more; done");
        let error = run_now(&path).unwrap_err();
        assert_eq!(error.to_string(), "it prints more than 64 KiB");
    }
}
