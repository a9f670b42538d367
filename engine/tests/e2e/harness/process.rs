//! Child processes that cannot outlive the tests, and waiting with a deadline.
//!
//! The kernel sends a child its parent-death signal when the *thread* that started it ends
//! (prctl(2), `PR_SET_PDEATHSIG`). Therefore one thread that never ends starts all children.

use std::fs::OpenOptions;
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

/// How long something that normally happens immediately may take on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two checks of something that is waited for.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(5);

type SpawnRequest = (Command, mpsc::Sender<io::Result<Child>>);

static SPAWNER: LazyLock<mpsc::Sender<SpawnRequest>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<SpawnRequest>();
    thread::spawn(move || {
        for (mut command, reply) in requests {
            let _ = reply.send(command.spawn());
        }
    });
    sender
});

/// Starts `command` from the thread that never ends.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let (reply, child) = mpsc::channel();
    SPAWNER
        .send((command, reply))
        .expect("the spawner thread never ends");
    child.recv().expect("the spawner thread never ends")
}

/// A command that runs `program` as `user`, and that the kernel ends with `signal` when the tests
/// end.
pub(crate) fn pdeathsig_command(
    program: impl AsRef<Path>,
    signal: &str,
    user: Option<&User>,
) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some(user) = user {
        command.args(["--reuid", &user.name, "--regid", &user.gid.to_string()]);
        command.arg("--init-groups");
    }
    command.arg("--").arg(program.as_ref());
    command
}

/// The user to run Postgres as if the tests run as root, because Postgres refuses to run as root.
pub(crate) fn postgres_user() -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
}

/// Writes a file that only its owner can read, as the programs require of secrets.
pub(crate) fn write_private(path: impl AsRef<Path>, text: &str) {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .expect("a private file");
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("our own child can be signalled");
}

/// Waits for `child` to exit; `None` after `timeout`.
pub(crate) fn wait(child: &mut Child, timeout: Duration) -> Option<std::process::ExitStatus> {
    poll_until(timeout, || {
        child.try_wait().expect("our own child can be waited for")
    })
}

/// The same command with a resource limit: an argument of prlimit(1).
pub(crate) fn with_limit(command: &Command, limit: &str) -> Command {
    let mut with = Command::new("prlimit");
    with.args([limit, "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    let variables = command.get_envs();
    with.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    with
}

/// Calls `check` every [`POLL_INTERVAL`] until it returns a value; `None` after `timeout`.
pub(crate) fn poll_until<T>(timeout: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if start.elapsed() > timeout {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Runs `future` on a single-threaded runtime. Panics after `timeout`.
pub(crate) fn block_on<T>(timeout: Duration, future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async { tokio::time::timeout(timeout, future).await });
    outcome.expect("the future completes in time")
}

/// Runs `command` to its end. Kills it and panics after `timeout`.
pub(crate) fn run(mut command: Command, timeout: Duration) -> Output {
    let description = describe(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).unwrap_or_else(|e| panic!("{description}: {e}"));
    let stdout = read_in_background(child.stdout.take());
    let stderr = read_in_background(child.stderr.take());
    let status = wait(&mut child, timeout);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let stdout = stdout.join().expect("the reader does not panic");
    let stderr = stderr.join().expect("the reader does not panic");
    match status {
        Some(status) => Output {
            status,
            stdout,
            stderr,
        },
        None => panic!(
            "still running after {timeout:?}: {description}\n{}",
            lossy(&stderr)
        ),
    }
}

/// Runs `command` to its end and returns standard output and standard error, one after the other.
pub(crate) fn run_for_both_outputs(command: Command, timeout: Duration) -> String {
    let output = run(command, timeout);
    lossy(&output.stdout) + &lossy(&output.stderr)
}

/// Runs `command`, panics unless it succeeds, and returns its standard output.
pub(crate) fn run_successfully(command: Command, timeout: Duration) -> String {
    let description = describe(&command);
    let output = run(command, timeout);
    assert!(
        output.status.success(),
        "{}: {description}\n{}{}",
        output.status,
        lossy(&output.stdout),
        lossy(&output.stderr)
    );
    lossy(&output.stdout)
}

/// Program and arguments, without those of `setpriv` and without the environment.
fn describe(command: &Command) -> String {
    let arguments = command
        .get_args()
        .map(|argument| lossy(argument.as_encoded_bytes()));
    let words: Vec<String> = arguments
        .skip_while(|argument| argument != "--")
        .skip(1)
        .collect();
    words.join(" ")
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read_in_background(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        all
    })
}
