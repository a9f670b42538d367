//! The outer process of `dev --members`: it checks what the cluster needs, makes the namespaces of the whole, and serves
//! its ports on this machine.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::super::error::{DevError, system};
use super::address::name;
use super::files::Folder;
use super::{Plan, clock, control, name_server, publish};
use crate::app::runtime;
use crate::app::signals::ProcessSignals;
use crate::cli::subprocess;
use crate::cluster::patroni::{LEAST_VERSION, is_unsafe};

/// The forwarder's port on this machine, those of the sidecars and those of their HTTP servers from the first member on,
/// if they are free.
const FORWARDER_PORT: u16 = 6432;
/// The same for the forwarder that follows the leader and its HTTP server, and for the name server, by TCP only.
const FOLLOWING_PORT: u16 = 6433;
const FOLLOWING_HTTP_PORT: u16 = 9090;
const NAME_SERVER_PORT: u16 = 5353;
const FIRST_SIDECAR_PORT: u16 = 5433;
const FIRST_HTTP_PORT: u16 = 8080;

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 8] = [
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("curl", "curl"),
    ("psql", "postgresql-client"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Runs the cluster until a signal arrives or the command exits, and removes it.
///
/// # Errors
/// [`DevError`]. Nothing is left behind.
pub(in super::super) fn run(plan: &Plan, command: &[OsString]) -> Result<u8, DevError> {
    check_programs(plan)?;
    let runtime = runtime::new_current_thread().map_err(system("cannot start a thread"))?;
    let folder = tempfile::Builder::new().prefix("teesql-dev-").tempdir();
    let folder = folder.map_err(system("cannot create a temporary directory"))?;
    // Postgres runs as another user, if this process runs as root.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
        .map_err(system("cannot make the directory accessible to Postgres"))?;
    runtime.block_on(async {
        let mut signals =
            ProcessSignals::new().map_err(system("cannot install signal handlers"))?;
        check_namespaces().await?;
        let folder = Folder(folder.path().to_owned());
        if command.is_empty() && !plan.plain {
            publish_ports(&folder, plan).await?;
        }
        let mut child = inner(&folder, plan, command)?;
        let mut asked = false;
        loop {
            tokio::select! {
                status = child.wait() => {
                    let status = status.map_err(system("cannot wait for the cluster"))?;
                    return Ok(subprocess::exit_code(status));
                }
                _ = signals.next() => {
                    stop(&folder, &child, asked);
                    asked = true;
                }
            }
        }
    })
}

/// Asks the inner process to end, or kills it if it was asked before.
fn stop(folder: &Folder, child: &Child, asked: bool) {
    if asked {
        subprocess::send_signal(Signal::SIGKILL, child);
    } else {
        let control = folder.control();
        // It may be busy, and a second signal must be noticed.
        std::thread::spawn(move || control::request(&control, &["stop".into()]));
    }
}

fn inner(folder: &Folder, plan: &Plan, command: &[OsString]) -> Result<Child, DevError> {
    let this = std::env::current_exe().map_err(system("cannot find this program"))?;
    let mut inner = Command::new("setpriv");
    // Without this process, the kernel ends all others.
    inner
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(namespaces());
    inner.arg("--").arg(this);
    inner.args(["dev", "--members", &plan.members.to_string()]);
    if plan.plain {
        inner.arg("--plain");
    }
    if plan.backups {
        inner.arg("--backups");
    }
    if plan.clocks {
        inner.arg("--clocks");
    }
    if plan.dns {
        inner.arg("--dns");
    }
    inner.arg("--inner").arg(&folder.0).arg("--").args(command);
    inner.kill_on_drop(true);
    inner.spawn().map_err(|source| DevError::Command {
        program: "setpriv".into(),
        source,
    })
}

/// unshare's flags. Only root can make namespaces without one of users.
fn namespaces() -> Vec<&'static str> {
    let mut flags = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        flags.extend(["--user", "--map-current-user", "--keep-caps"]);
    }
    flags.extend([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    flags
}

async fn check_namespaces() -> Result<(), DevError> {
    let mut command = Command::new("unshare");
    let output = command
        .args(namespaces())
        .args(["--", "true"])
        .stdin(Stdio::null());
    let output = output
        .output()
        .await
        .map_err(system("cannot run unshare"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(DevError::Members(format!(
            "each member needs a network namespace, which this machine refuses: {}. Run it as root, or allow \
             unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu \
             kernel.apparmor_restrict_unprivileged_userns=0, in a container --privileged)",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

fn check_programs(plan: &Plan) -> Result<(), DevError> {
    let backups = plan.backups.then_some(("pgbackrest", "pgbackrest"));
    let missing = PROGRAMS
        .into_iter()
        .chain(backups)
        .filter(|(program, _)| !is_installed(program));
    let clocks = (plan.clocks && clock::library().is_none()).then_some("libfaketime");
    let knot = (plan.dns && !name_server::is_installed()).then_some("knot");
    let packages = missing.map(|(_, package)| package);
    let mut packages: Vec<_> = packages.chain(clocks).chain(knot).collect();
    packages.dedup();
    match packages.as_slice() {
        [] => check_patroni(),
        packages => Err(DevError::Members(format!(
            "programs are missing: apt-get install {}",
            packages.join(" ")
        ))),
    }
}

/// A version that can lose acknowledged writes is not started.
fn check_patroni() -> Result<(), DevError> {
    let output = std::process::Command::new("patroni")
        .arg("--version")
        .output();
    let found = match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.trim().rsplit(' ').next().unwrap_or_default();
            if !is_unsafe(version) {
                return Ok(());
            }
            format!("Patroni {version} can lose acknowledged writes when the leader was paused")
        }
        Err(_) => "Patroni is missing".to_owned(),
    };
    let [major, minor, patch] = LEAST_VERSION;
    Err(DevError::Members(format!(
        "{found}: put {major}.{minor}.{patch} or later first on PATH, for instance with pip install 'patroni[etcd3,psycopg3]' in a \
         virtual environment that every user can execute"
    )))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Listens on this machine, and writes the list of the addresses.
async fn publish_ports(folder: &Folder, plan: &Plan) -> Result<(), DevError> {
    let mut text = String::new();
    for (port, socket, what) in ports(folder, plan) {
        let listen = async {
            let listener = publish::bind(port).await?;
            let address = listener.local_addr()?;
            publish::from_tcp(listener, socket);
            Ok::<_, std::io::Error>(address)
        };
        let address = listen
            .await
            .map_err(system("cannot listen on this machine"))?;
        text.push_str(&format!("  {address:<24} {what}\n"));
    }
    write_published(&folder.published(), &text)
}

/// The ports on this machine, the sockets that they lead to, and what is there.
fn ports(folder: &Folder, plan: &Plan) -> Vec<(u16, PathBuf, String)> {
    let mut ports = vec![(FORWARDER_PORT, folder.forwarder(), "forwarder".to_owned())];
    if plan.dns {
        ports.extend([
            (
                FOLLOWING_PORT,
                folder.following(),
                "forwarder that follows the leader".to_owned(),
            ),
            (
                FOLLOWING_HTTP_PORT,
                folder.published_socket("following", "http"),
                "HTTP of that forwarder".to_owned(),
            ),
            (
                NAME_SERVER_PORT,
                folder.published_socket(name_server::NAME, "tcp"),
                "name server, by TCP".to_owned(),
            ),
        ]);
    }
    for (position, offset) in (0..plan.members).zip(0_u16..) {
        let name = name(position);
        let socket = |kind| folder.published_socket(&name, kind);
        ports.extend([
            (
                FIRST_SIDECAR_PORT + offset,
                socket("sidecar"),
                format!("sidecar of {name}"),
            ),
            (
                FIRST_HTTP_PORT + offset,
                socket("http"),
                format!("HTTP of {name}"),
            ),
        ]);
    }
    ports
}

fn write_published(path: &Path, text: &str) -> Result<(), DevError> {
    std::fs::write(path, text).map_err(system("cannot write the list of addresses"))
}
