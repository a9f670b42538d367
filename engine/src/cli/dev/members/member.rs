//! A member of `dev --members`: etcd, Patroni with Postgres, and a sidecar, in separate namespaces.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::super::error::DevError;
use super::super::postgres::{find_programs, postgres_user};
use super::address::{ip, name};
use super::files;
use super::namespace::{Network, Processes};
use super::process::{Program, supervise};
use super::world::{CLUSTER, World};
use super::{Plan, address, clock};

/// How long a program may take to end after SIGTERM: Patroni waits for Postgres. The member is then killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A member, which runs or was killed.
pub(super) struct Member {
    pub(super) name: String,
    folder: PathBuf,
    user: Option<(u32, u32)>,
    network: Network,
    running: Option<Running>,
}

/// Its processes.
struct Running {
    processes: Processes,
    /// In the order in which they are stopped: Patroni needs etcd, and etcd the sidecar's links.
    programs: Vec<Program>,
}

impl Member {
    /// Makes the member's network, folder and configuration. The settings of its sidecar are in `world`.
    pub(super) async fn create(
        world: &World,
        plan: &Plan,
        position: usize,
        this: &Path,
    ) -> Result<Self, DevError> {
        let user = postgres_user()?.map(|user| (user.uid.as_raw(), user.gid.as_raw()));
        let name = name(position);
        let folder = world.folder.member(&name);
        files::create(&folder, user)?;
        let member = Self {
            name,
            folder,
            user,
            network: Network::create(position).await?,
            running: None,
        };
        member.configure(world, plan, position, this).await?;
        Ok(member)
    }

    /// Runs `teesql-sidecar cluster config`, as an operator does.
    async fn configure(
        &self,
        world: &World,
        plan: &Plan,
        position: usize,
        this: &Path,
    ) -> Result<(), DevError> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(this);
        command
            .args(["cluster", "config", "all", "--dir"])
            .arg(&self.folder)
            .arg(format!("--data-dir={}", path("data")))
            .arg(format!("--etcd-dir={}", path("etcd")))
            .arg(format!("--socket-dir={}", self.folder.display()))
            .arg(format!("--bin-dir={}", find_programs()?.display()))
            // Patroni must not arm the watchdog of this machine.
            .arg("--watchdog=off")
            .envs(world.sidecar(position))
            .stdin(Stdio::null());
        if plan.backups {
            let repository = world.folder.backups();
            command.arg(format!("--backup-repository={}", repository.display()));
            command.arg(format!(
                "--backup-option=log-path={}",
                self.folder.display()
            ));
            command.arg(format!(
                "--backup-option=lock-path={}",
                self.folder.display()
            ));
        }
        if let Some((user, group)) = self.user {
            command.arg(format!("--owner={user}:{group}"));
        }
        let output = command.output().await;
        let output = output.map_err(|source| DevError::Command {
            program: this.into(),
            source,
        })?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(DevError::Members(message));
        }
        match plan.plain {
            true => self.address_directly(plan, position),
            false => Ok(()),
        }
    }

    /// Replaces the links' addresses by those of the members themselves.
    fn address_directly(&self, plan: &Plan, position: usize) -> Result<(), DevError> {
        let own = ip(position);
        for file in ["patroni.yml", "etcd.env"] {
            let path = self.folder.join(file);
            let failed = |error| DevError::System {
                doing: format!("cannot change {}", path.display()),
                source: error,
            };
            let mut text = std::fs::read_to_string(&path).map_err(failed)?;
            for (first, port) in [(15432, 5432), (18008, 8008), (12379, 2379), (13380, 2380)] {
                text = text.replace(&format!("127.0.0.1:{port}"), &format!("{own}:{port}"));
                for (link, member) in (first..).zip(0..plan.members) {
                    let direct = format!("{}:{port}", ip(member));
                    text = text.replace(&format!("127.0.0.1:{link}"), &direct);
                }
            }
            text = text.replace(
                "127.0.0.1/32",
                &format!("{}/{}", address::BRIDGE, address::PREFIX),
            );
            // Patroni and clients of the baseline use the server's address, and no Unix socket.
            std::fs::write(&path, text).map_err(failed)?;
        }
        Ok(())
    }

    /// Starts the processes, unless they run.
    pub(super) async fn start(
        &mut self,
        world: &World,
        plan: &Plan,
        position: usize,
        this: &Path,
    ) -> Result<(), DevError> {
        if self.running.is_some() {
            return Ok(());
        }
        self.forget_processes();
        let processes = self.network.start_processes().await?;
        if plan.clocks {
            clock::prepare(&self.folder)?;
        }
        let patroni = "set -a; . ./patroni.env; exec patroni patroni.yml";
        // The other members are on this machine, and people wait.
        let etcd = "TEESQL_ETCD_WAIT=5 exec sh ./etcd.sh";
        let mut programs = vec![
            self.shell(&processes, "patroni", patroni, plan.clocks),
            self.shell(&processes, "etcd", etcd, false),
        ];
        if !plan.plain {
            programs.push(self.sidecar(&processes, this, world.sidecar(position), plan.clocks));
        }
        self.running = Some(Running {
            processes,
            programs,
        });
        Ok(())
    }

    /// Removes the files with the process ids of a killed Postgres. In a new process namespace the numbers begin again, so
    /// that they are those of other programs, and Postgres would take one of them for a server that still runs. On a
    /// machine the numbers hardly ever meet, and the socket's folder is empty after a reboot.
    fn forget_processes(&self) {
        for file in ["data/postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
            // At the first start there are none.
            let _ = std::fs::remove_file(self.folder.join(file));
        }
    }

    /// Keeps a program running that a line of shell starts in the member's folder.
    fn shell(
        &self,
        processes: &Processes,
        program: &str,
        line: &'static str,
        own_clock: bool,
    ) -> Program {
        let template = processes.template(self.user, &self.folder);
        let folder = self.folder.clone();
        supervise(self.log(program), move || {
            let mut command = template.command("sh");
            command.args(["-c", line]);
            command.env("HOME", &folder).env("LC_ALL", "C.UTF-8");
            if own_clock {
                clock::apply(&mut command, &folder);
            }
            command
        })
    }

    fn sidecar(
        &self,
        processes: &Processes,
        this: &Path,
        settings: std::collections::BTreeMap<&'static str, OsString>,
        own_clock: bool,
    ) -> Program {
        let template = processes.template(None, &self.folder);
        let (this, folder) = (this.to_owned(), self.folder.clone());
        supervise(self.log("sidecar"), move || {
            let mut command = template.command(&this);
            command.arg("serve").envs(&settings);
            if own_clock {
                clock::apply(&mut command, &folder);
            }
            command
        })
    }

    fn log(&self, program: &str) -> PathBuf {
        self.folder.join(format!("{program}.log"))
    }

    /// Kills all processes with SIGKILL. The network stays.
    pub(super) async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            // The kernel ends the first process only when every other one has been reaped, by the nsenter that is its
            // parent and that the tasks would kill.
            running.processes.kill().await;
            for program in running.programs {
                program.abort();
            }
        }
    }

    /// Stops the programs as a service manager does, so that Patroni hands over and Postgres writes a checkpoint.
    pub(super) async fn stop(&mut self) {
        let running = self.running.as_mut();
        for program in running
            .into_iter()
            .flat_map(|running| &mut running.programs)
        {
            program.stop(STOP_TIMEOUT).await;
        }
        self.kill().await;
    }

    /// Stops all processes as SIGSTOP does, or lets them continue.
    pub(super) async fn set_paused(&self, paused: bool) -> Result<(), DevError> {
        self.running()?
            .processes
            .set_paused(paused, &self.folder)
            .await
    }

    /// Sets the member's clock off.
    pub(super) fn set_clock(&self, offset: &str) -> Result<(), DevError> {
        clock::set(&self.folder, offset)
    }

    fn running(&self) -> Result<&Running, DevError> {
        let running = self.running.as_ref();
        running.ok_or_else(|| DevError::Members(format!("{} does not run", self.name)))
    }

    /// Whether its processes run.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Connects the member to the others, or pulls its cable.
    pub(super) async fn set_connected(&self, connected: bool) -> Result<(), DevError> {
        self.network.set_connected(connected).await
    }

    /// A command of an operator on the member, with what `patronictl`, `pgbackrest` and `psql` need.
    pub(super) fn command(&self, program: &str) -> Result<Command, DevError> {
        let mut command = self
            .running()?
            .processes
            .template(self.user, &self.folder)
            .command(program);
        command
            .env("HOME", &self.folder)
            .env("LC_ALL", "C.UTF-8")
            .env("PATRONICTL_CONFIG_FILE", self.folder.join("patroni.yml"))
            .env("PGBACKREST_CONFIG", self.folder.join("pgbackrest.conf"))
            .env("PGBACKREST_STANZA", CLUSTER)
            .env("PGPASSFILE", self.folder.join("pgpass"))
            .env("PGHOST", &self.folder)
            .env("PGUSER", "postgres");
        Ok(command)
    }

    /// Ends everything.
    pub(super) async fn remove(mut self) {
        self.kill().await;
        self.network.remove().await;
    }
}
