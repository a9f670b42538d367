//! Secrets in the environment: moved out of the block that `/proc/PID/environ` shows.
//!
//! The kernel puts the environment on the stack of a new process, where it stays: removing a variable only removes the
//! pointer to it. So the bytes themselves are overwritten, through `/proc/self/mem`. The secrets are kept here, since a
//! reload reads the configuration again.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use zeroize::{Zeroize as _, Zeroizing};

use super::settings::ALL;
use super::spec::Scope;

/// Position of `env_start` in `/proc/PID/stat`, counted from the field after the name of the program, which is the third;
/// `env_end` follows. [proc_pid_stat(5), fields 50 and 51]
const ENV_START: usize = 50 - 3;

static SECRETS: OnceLock<BTreeMap<String, Zeroizing<Vec<u8>>>> = OnceLock::new();

/// Keeps the secrets of `scope` that are in the environment, and overwrites them there. Call it before the first thread
/// starts, and before the process gives up access to its own memory (`PR_SET_DUMPABLE`).
///
/// # Errors
/// The memory cannot be written on this platform. The secrets are in the environment then, and all else works.
pub fn take_secrets(scope: Scope) -> io::Result<()> {
    let range = environment_range()?;
    let length =
        usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    // Growing would leave copies in freed memory.
    let mut block = Zeroizing::new(Vec::with_capacity(length.saturating_add(1)));
    File::open("/proc/self/environ")?.read_to_end(&mut block)?;
    let found = secrets_in(&block, scope);
    let kept = found.iter().map(|secret| {
        let value = block.get(secret.start..secret.end).unwrap_or_default();
        (secret.name.clone(), Zeroizing::new(value.to_vec()))
    });
    // Only the first call has secrets to keep.
    let _ = SECRETS.set(kept.collect());
    if found.is_empty() {
        return Ok(());
    }
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    for secret in &found {
        let Some(value) = block.get_mut(secret.start..secret.end) else {
            continue;
        };
        value.zeroize();
        let offset = u64::try_from(secret.start).map_err(io::Error::other)?;
        memory.write_all_at(value, range.start.saturating_add(offset))?;
    }
    Ok(())
}

/// A variable of this process, which may have been taken.
pub(crate) fn variable(name: &str) -> Option<OsString> {
    let taken = SECRETS.get().and_then(|secrets| secrets.get(name));
    match taken {
        Some(value) => Some(OsStr::from_bytes(value).to_owned()),
        None => std::env::var_os(name),
    }
}

/// The names of the variables that have been taken. A child process must not get their empty remains.
pub(crate) fn taken() -> impl Iterator<Item = &'static str> {
    let names = SECRETS.get().into_iter().flat_map(BTreeMap::keys);
    names.map(String::as_str)
}

/// A variable's value within the environment block.
struct SecretVariable {
    name: String,
    start: usize,
    end: usize,
}

fn secrets_in(block: &[u8], scope: Scope) -> Vec<SecretVariable> {
    let mut found = Vec::new();
    let mut start = 0;
    for entry in block.split(|byte| *byte == 0) {
        let end = start + entry.len();
        let mut parts = entry.splitn(2, |byte| *byte == b'=');
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && !value.is_empty()
            && let Ok(name) = std::str::from_utf8(name)
            && is_secret(name, scope)
        {
            found.push(SecretVariable {
                name: name.to_owned(),
                start: end - value.len(),
                end,
            });
        }
        start = end + 1;
    }
    found
}

fn is_secret(name: &str, scope: Scope) -> bool {
    ALL.iter().any(|spec| {
        spec.is_secret()
            && scope.has(spec)
            && (spec.variable() == name || spec.env_alias == Some(name))
    })
}

/// Where the environment block is in the memory of this process.
fn environment_range() -> io::Result<Range<u64>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name of the program is in parentheses and may contain spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut addresses = fields.split_whitespace().skip(ENV_START).map(str::parse);
    match (addresses.next(), addresses.next()) {
        (Some(Ok(start)), Some(Ok(end))) if start != 0 => Ok(start..end),
        _ => Err(io::Error::other(
            "no address of the environment in /proc/self/stat",
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_the_secrets_of_a_scope() {
        let block = b"A=1\0TEESQL_READ_SECRET=ab=c\0TEESQL_LISTEN=x\0TEESQL_LAUNCH_TOKEN=\0DATABASE_URL=u\0";
        let found = |scope| {
            let secrets = secrets_in(block, scope);
            secrets
                .iter()
                .map(|found| (found.name.clone(), block[found.start..found.end].to_vec()))
                .collect::<Vec<_>>()
        };
        let named = |name: &str, value: &[u8]| vec![(name.to_owned(), value.to_vec())];
        assert_eq!(found(Scope::Serve), named("TEESQL_READ_SECRET", b"ab=c"));
        assert_eq!(found(Scope::Forward), named("DATABASE_URL", b"u"));
    }

    const VALUE: &str = "5ec2e75ec2e75ec2e75ec2e7";

    /// Runs the next test in a process whose environment has a secret.
    #[test]
    fn secrets_leave_the_environment_block() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .arg("config::environment::tests::takes_its_own_secrets")
            .env("TEESQL_READ_SECRET", VALUE)
            .env("TEESQL_LISTEN", "stays")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }

    #[test]
    #[ignore = "only in the process that the test above starts"]
    fn takes_its_own_secrets() {
        let block = || String::from_utf8(fs::read("/proc/self/environ").unwrap()).unwrap();
        assert!(block().contains(VALUE));
        take_secrets(Scope::Serve).unwrap();
        assert!(!block().contains(VALUE) && block().contains("TEESQL_LISTEN=stays"));
        assert_eq!(std::env::var("TEESQL_READ_SECRET").unwrap(), "");
        assert_eq!(variable("TEESQL_READ_SECRET").unwrap(), VALUE);
        assert_eq!(variable("TEESQL_LISTEN").unwrap(), "stays");
        assert_eq!(taken().collect::<Vec<_>>(), ["TEESQL_READ_SECRET"]);
    }
}
