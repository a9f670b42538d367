//! Network, process and mount namespaces, made with the programs of util-linux and iproute2.
//!
//! The programs are used because a process with several threads cannot enter namespaces itself. A network namespace
//! lives as long as its holder, so that a member whose processes are killed keeps its network: its kernel still resets
//! connections, as that of a machine does.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::super::error::{DevError, system};
use super::address::{BRIDGE, PREFIX, ip};

/// The limit for a new process to enter its namespace.
const TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The first process of a member: it reaps orphans, as init does. The shell's `wait` reaps every child.
const INIT: &str = "echo; while :; do sleep 1000 & wait $!; done";

/// A member's network namespace.
pub(super) struct Network {
    holder: Child,
    id: u32,
    position: usize,
}

/// A member's processes, with the member's file systems.
pub(super) struct Processes {
    wrapper: Child,
    init: u32,
}

/// Makes the network of the whole: loopback and a bridge.
pub(super) async fn create_bridge() -> Result<(), DevError> {
    ip_link(&["set", "lo", "up"]).await?;
    ip_link(&["add", "members", "type", "bridge"]).await?;
    let address = format!("{BRIDGE}/{PREFIX}");
    run("ip", &["address", "add", &address, "dev", "members"]).await?;
    ip_link(&["set", "members", "up"]).await
}

impl Network {
    /// Makes the namespace, and connects it to the bridge.
    pub(super) async fn create(position: usize) -> Result<Self, DevError> {
        let own = namespace_of("self", "net");
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "infinity"]);
        let holder = spawn(&mut command)?;
        let id = holder.id().unwrap_or_default();
        let network = Self {
            holder,
            id,
            position,
        };
        wait_for(|| namespace_of(&id.to_string(), "net").is_some_and(|found| Some(found) != own))
            .await?;
        network.connect().await?;
        Ok(network)
    }

    async fn connect(&self) -> Result<(), DevError> {
        let host = self.interface();
        let id = self.id.to_string();
        ip_link(&[
            "add", &host, "type", "veth", "peer", "name", "eth0", "netns", &id,
        ])
        .await?;
        ip_link(&["set", &host, "master", "members", "up"]).await?;
        let address = format!("{}/{PREFIX}", ip(self.position));
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["address", "add", &address, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
        ] {
            let enter = ["--target", &id, "--net", "ip"];
            run("nsenter", &[&enter[..], arguments].concat()).await?;
        }
        Ok(())
    }

    fn interface(&self) -> String {
        format!("member{}", self.position)
    }

    /// Connects the member to the others, or pulls its cable.
    pub(super) async fn set_connected(&self, connected: bool) -> Result<(), DevError> {
        let state = if connected { "up" } else { "down" };
        ip_link(&["set", &self.interface(), state]).await
    }

    /// Starts the member's first process.
    pub(super) async fn start_processes(&self) -> Result<Processes, DevError> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.id.to_string(), "--net", "--"])
            .args([
                "unshare",
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
            ])
            .args(["sh", "-c", INIT])
            .stdout(Stdio::piped())
            // unshare complains when its child is killed.
            .stderr(Stdio::null());
        let mut wrapper = spawn(&mut command)?;
        // The line that the shell prints: it runs in all its namespaces.
        let mut line = [0];
        if let Some(mut output) = wrapper.stdout.take() {
            let read = output.read_exact(&mut line).await;
            read.map_err(system("a member's first process does not start"))?;
        }
        let init = child_of(wrapper.id().unwrap_or_default());
        let init =
            init.ok_or_else(|| DevError::Members("a member's first process is gone".to_owned()))?;
        Ok(Processes { wrapper, init })
    }

    /// Ends the namespace.
    pub(super) async fn remove(mut self) {
        let _ = self.holder.kill().await;
    }
}

/// How to run commands among a member's processes.
pub(super) struct Template {
    init: u32,
    user: Option<(u32, u32)>,
    folder: PathBuf,
}

impl Template {
    /// A command among the member's processes.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.init.to_string(),
            "--net",
            "--mount",
            "--pid",
        ]);
        if let Some((user, group)) = self.user {
            command.arg(format!("--setuid={user}"));
            command.arg(format!("--setgid={group}"));
        }
        // nsenter itself begins at the root of the member's mount namespace.
        command.args(["--", "env", "--chdir"]).arg(&self.folder);
        command.arg(program);
        command
            .process_group(0)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

impl Processes {
    /// For commands in `folder`, as `user` and its group, or else as this process's user.
    pub(super) fn template(&self, user: Option<(u32, u32)>, folder: &Path) -> Template {
        Template {
            init: self.init,
            user,
            folder: folder.to_owned(),
        }
    }

    /// Stops all of them as SIGSTOP does, or lets them continue.
    pub(super) async fn set_paused(&self, paused: bool, folder: &Path) -> Result<(), DevError> {
        let signal = if paused { "-STOP" } else { "-CONT" };
        let mut command = self.template(None, folder).command("kill");
        // All processes of the namespace but the first one and the sender.
        let status = command.args([signal, "--", "-1"]).status().await;
        if !status.map_err(system("cannot run kill"))?.success() {
            return Err(DevError::Members("cannot signal a member".to_owned()));
        }
        if !paused {
            self.continue_parents();
        }
        Ok(())
    }

    /// nsenter stops itself when its child is stopped, and would not notice how that ends.
    fn continue_parents(&self) {
        let init = self.init.to_string();
        for id in processes() {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            let enters = words.starts_with(&[&b"nsenter"[..], &b"--target"[..], init.as_bytes()]);
            if let (true, Ok(id)) = (enters, i32::try_from(id)) {
                let _ = kill(Pid::from_raw(id), Signal::SIGCONT);
            }
        }
    }

    /// Kills all of them at once with SIGKILL: the kernel does that when the first one ends.
    pub(super) async fn kill(mut self) {
        if let Ok(init) = i32::try_from(self.init) {
            let _ = kill(Pid::from_raw(init), Signal::SIGKILL);
        }
        let _ = timeout(TIMEOUT, self.wrapper.wait()).await;
    }
}

fn spawn(command: &mut Command) -> Result<Child, DevError> {
    let program = command.as_std().get_program().to_owned();
    command
        .process_group(0)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DevError::Command { program, source })
}

async fn ip_link(arguments: &[&str]) -> Result<(), DevError> {
    run("ip", &[&["link"][..], arguments].concat()).await
}

/// Runs a program to its end. Its message is the error.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<(), DevError> {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(|source| DevError::Command {
        program: program.into(),
        source,
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(DevError::Members(format!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

async fn wait_for(reached: impl Fn() -> bool) -> Result<(), DevError> {
    let deadline = Instant::now() + TIMEOUT;
    while !reached() {
        if Instant::now() > deadline {
            return Err(DevError::Members("a namespace is not made".to_owned()));
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn namespace_of(process: &str, kind: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()
}

/// The first child of a process.
pub(super) fn child_of(parent: u32) -> Option<u32> {
    processes().find(|id| parent_of(*id).is_ok_and(|found| found == Some(parent)))
}

/// The ids of all processes in this namespace and those below it.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn parent_of(process: u32) -> io::Result<Option<u32>> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.and_then(|id| id.trim().parse().ok()))
}
