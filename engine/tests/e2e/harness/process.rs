//! Child processes that cannot outlive the tests, however these end.
//!
//! The kernel sends a child its parent-death signal when the *thread* that
//! started it ends, so one thread that never ends starts them all.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

/// How long anything that should happen at once may take on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

type Order = (Command, mpsc::Sender<io::Result<Child>>);

static STARTER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    thread::spawn(move || {
        for (mut command, reply) in inbox {
            let _ = reply.send(command.spawn());
        }
    });
    orders
});

/// Starts `command` from the thread that never ends.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    STARTER
        .send((command, reply))
        .expect("the starter thread lives for ever");
    answer.recv().expect("the starter thread lives for ever")
}

/// A command for `program` that the kernel ends with `death` when the tests die.
pub(crate) fn pdeathsig_command(program: &Path, death: &str, user: Option<&User>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", death]);
    if let Some(user) = user {
        command.args(["--reuid", &user.name, "--regid", &user.gid.to_string()]);
        command.arg("--init-groups");
    }
    command.arg("--").arg(program);
    command
}

/// Whom Postgres runs as, where it must not be ourselves: it refuses to be root.
pub(crate) fn postgres_user() -> Option<User> {
    if !Uid::effective().is_root() {
        return None;
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("our own child can be signalled");
}

/// Waits for the end of `child`; `None` when it did not end in time.
pub(crate) fn wait(child: &mut Child, timeout: Duration) -> Option<std::process::ExitStatus> {
    poll_until(timeout, || {
        child.try_wait().expect("our own child can be waited for")
    })
}

/// Asks until there is an answer, for events that nothing announces.
pub(crate) fn poll_until<T>(timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if started.elapsed() > timeout {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `command` to its end, or kills it after `timeout`.
pub(crate) fn run(mut command: Command, timeout: Duration) -> Output {
    let shown = shown(&command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
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
            "still running after {timeout:?}: {shown}\n{}",
            lossy(&stderr)
        ),
    }
}

/// Runs `command`, insists on success, and returns what it printed.
pub(crate) fn run_successfully(command: Command, timeout: Duration) -> String {
    let shown = shown(&command);
    let output = run(command, timeout);
    assert!(
        output.status.success(),
        "{}: {shown}\n{}{}",
        output.status,
        lossy(&output.stdout),
        lossy(&output.stderr)
    );
    lossy(&output.stdout)
}

/// Its arguments, without `setpriv`'s and the environment.
fn shown(command: &Command) -> String {
    let arguments = command
        .get_args()
        .map(|argument| lossy(argument.as_encoded_bytes()));
    let own: Vec<String> = arguments
        .skip_while(|argument| argument != "--")
        .skip(1)
        .collect();
    own.join(" ")
}

pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        all
    })
}
