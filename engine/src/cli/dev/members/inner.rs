//! The inner process of `dev --members`: the first one in its namespaces. It starts the members, carries out requests,
//! and runs the command or waits for a signal.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::super::error::{DevError, system};
use super::address::{FOLLOWING_HTTP, HTTP_PORT, SIDECAR_PORT, ip};
use super::control::{self, Answer, Request};
use super::files::{self, Folder};
use super::member::Member;
use super::name_server::{self, NameServer};
use super::world::World;
use super::{Plan, forwarder, namespace, publish, text};
use crate::app::runtime;
use crate::app::signals::ProcessSignals;
use crate::cli::subprocess;

/// The limit for the first leader to take writes: initdb and two elections, on a slow machine.
const START_TIMEOUT: Duration = Duration::from_secs(180);
/// The limit for a request that runs a program.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the command may take to exit after SIGTERM.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a program's output that an answer has.
const MAX_OUTPUT: usize = 1 << 20;

/// Runs the cluster in the namespaces that the outer process made.
///
/// # Errors
/// [`DevError`]. All members have ended.
pub(in super::super) fn run(
    folder: PathBuf,
    plan: &Plan,
    command: &[OsString],
) -> Result<u8, DevError> {
    let runtime = runtime::new_current_thread().map_err(system("cannot start a thread"))?;
    runtime.block_on(async {
        let mut signals =
            ProcessSignals::new().map_err(system("cannot install signal handlers"))?;
        let folder = Folder(folder);
        let requests = control::listen(&folder.control())?;
        let mut cluster = Cluster::create(folder, plan.clone()).await?;
        let result = cluster.run(requests, &mut signals, command).await;
        cluster.remove().await;
        result
    })
}

/// The members, and what they share.
struct Cluster {
    world: World,
    plan: Plan,
    members: Vec<Member>,
    name_server: Option<NameServer>,
    /// This program.
    this: PathBuf,
}

impl Cluster {
    async fn create(folder: Folder, plan: Plan) -> Result<Self, DevError> {
        let this = std::env::current_exe().map_err(system("cannot find this program"))?;
        namespace::create_bridge().await?;
        if plan.backups {
            let user = super::super::postgres::postgres_user()?;
            let user = user.map(|user| (user.uid.as_raw(), user.gid.as_raw()));
            files::create(&folder.backups(), user)?;
        }
        let world = World::create(&folder, &plan).await?;
        let mut name_server = plan.dns.then(|| NameServer::new(&folder));
        if let Some(name_server) = &mut name_server {
            name_server.start();
        }
        let mut members = Vec::new();
        for position in 0..plan.members {
            let mut member = Member::create(&world, &plan, position, &this).await?;
            member.start(&world, &plan, position, &this).await?;
            members.push(member);
        }
        Ok(Self {
            world,
            plan,
            members,
            name_server,
            this,
        })
    }

    async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Request>,
        signals: &mut ProcessSignals,
        command: &[OsString],
    ) -> Result<u8, DevError> {
        let forwarders = match self.plan.plain {
            true => Vec::new(),
            false => forwarder::start(&self.world, &self.this),
        };
        self.publish()?;
        let mut child = None;
        let ready = wait_for_leader(self.sessions(), self.world.folder.0.clone());
        tokio::pin!(ready);
        let mut is_ready = false;
        let result = loop {
            tokio::select! {
                result = &mut ready, if !is_ready => {
                    is_ready = true;
                    match result.and_then(|()| self.announce(command)) {
                        Ok(started) => child = started,
                        Err(error) => break Err(error),
                    }
                }
                status = wait(&mut child) => break status,
                Some(request) = requests.recv() => {
                    if request.words == ["stop"] {
                        let _ = request.answer.send(Answer::default());
                        break Ok(0);
                    }
                    self.serve(request).await;
                }
                _ = signals.next() => break Ok(0),
            }
        };
        if let Some(mut child) = child {
            subprocess::send_signal(nix::sys::signal::Signal::SIGTERM, &child);
            if timeout(EXIT_TIMEOUT, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
        for forwarder in forwarders {
            forwarder.abort();
        }
        result
    }

    /// The environments in which `psql` reaches the leader: through each forwarder, or directly.
    fn sessions(&self) -> Vec<text::Variables> {
        let session = text::session(&self.world, &self.plan);
        let following = self.plan.dns.then(|| text::following(&session));
        [session].into_iter().chain(following).collect()
    }

    /// The sockets for the ports on this machine.
    fn publish(&self) -> Result<(), DevError> {
        let publish = |name: &str, kind: &str, server: SocketAddr| {
            let socket = self.world.folder.published_socket(name, kind);
            publish::to_tcp(socket, server).map_err(system(format!("cannot publish {name}")))
        };
        for (position, member) in self.members.iter().enumerate().filter(|_| !self.plan.plain) {
            for (kind, port) in [("sidecar", SIDECAR_PORT), ("http", HTTP_PORT)] {
                publish(&member.name, kind, (ip(position), port).into())?;
            }
        }
        if self.plan.dns {
            let name_server = (name_server::ADDRESS, name_server::PORT).into();
            publish(name_server::NAME, "tcp", name_server)?;
            publish("following", "http", FOLLOWING_HTTP)?;
        }
        Ok(())
    }

    /// Prints how to use the cluster, or starts the command.
    fn announce(&self, command: &[OsString]) -> Result<Option<Child>, DevError> {
        let variables = text::variables(&self.world, &self.plan, &self.this);
        text::write(&self.world.file("env"), &variables)?;
        match command {
            [] => {
                let text = text::instructions(&self.world, &self.this);
                // A closed standard output does not stop the cluster.
                let _ = std::io::stdout().write_all(text.as_bytes());
                Ok(None)
            }
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).envs(variables);
                let child = command.spawn().map_err(|source| DevError::Command {
                    program: program.clone(),
                    source,
                })?;
                Ok(Some(child))
            }
        }
    }

    async fn serve(&mut self, request: Request) {
        let words: Vec<_> = request.words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            ["status"] => Ok(Answer {
                output: self.status(),
                ..Answer::default()
            }),
            ["exec", name, program, arguments @ ..] => {
                let command = self.member(name).and_then(|member| {
                    let mut command = self.at(member)?.command(program)?;
                    command.args(arguments);
                    Ok(command)
                });
                match command {
                    Ok(command) => {
                        // A program may take long, and other requests do not wait for it.
                        tokio::spawn(async move {
                            let _ = request.answer.send(output_of(command).await);
                        });
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
            ["clock", ..] if !self.plan.clocks => Err(DevError::Members(
                "the members have the clock of this machine: start dev with --clocks".to_owned(),
            )),
            ["clock", name, offset] => {
                let set = |member: usize| self.at(member)?.set_clock(offset);
                self.member(name).and_then(set).map(|()| Answer::default())
            }
            [action @ ("kill" | "start"), name_server::NAME] if self.name_server.is_some() => {
                self.change_name_server(action).await;
                Ok(Answer::default())
            }
            [
                action @ ("kill" | "stop" | "start" | "pause" | "resume" | "isolate" | "join"),
                name,
            ] => {
                self.change(action, name).await.map(|()| Answer::default())
            }
            _ => Err(DevError::Members(
                "expected status, kill NAME, stop NAME, start NAME, pause NAME, resume NAME, isolate NAME, join NAME, \
                 clock NAME SECONDS, exec NAME COMMAND …, or with --dns kill dns and start dns"
                    .to_owned(),
            )),
        };
        let answer = answer.unwrap_or_else(|error| Answer {
            code: 1,
            output: format!("error: {error}\n"),
        });
        let _ = request.answer.send(answer);
    }

    async fn change(&mut self, action: &str, name: &str) -> Result<(), DevError> {
        let position = self.member(name)?;
        let member = self.members.get_mut(position);
        let Some(member) = member else {
            return Ok(());
        };
        match action {
            "kill" => {
                member.kill().await;
                Ok(())
            }
            "stop" => {
                member.stop().await;
                Ok(())
            }
            "start" => {
                member
                    .start(&self.world, &self.plan, position, &self.this)
                    .await
            }
            "pause" => member.set_paused(true).await,
            "resume" => member.set_paused(false).await,
            "isolate" => member.set_connected(false).await,
            _ => member.set_connected(true).await,
        }
    }

    async fn change_name_server(&mut self, action: &str) {
        if let Some(name_server) = &mut self.name_server {
            match action {
                "kill" => name_server.kill().await,
                _ => name_server.start(),
            }
        }
    }

    fn member(&self, name: &str) -> Result<usize, DevError> {
        let found = self.members.iter().position(|member| member.name == name);
        found.ok_or_else(|| DevError::Members(format!("no member is named {name:?}")))
    }

    fn at(&self, position: usize) -> Result<&Member, DevError> {
        let found = self.members.get(position);
        found.ok_or_else(|| DevError::Members("no such member".to_owned()))
    }

    fn status(&self) -> String {
        let members = self.members.iter();
        let members = members.map(|member| (member.name.as_str(), member.is_running()));
        let name_server = self.name_server.iter();
        let name_server = name_server.map(|server| (name_server::NAME, server.is_running()));
        let state = |(name, is_running)| match is_running {
            true => format!("{name} running\n"),
            false => format!("{name} killed\n"),
        };
        members.chain(name_server).map(state).collect()
    }

    async fn remove(self) {
        for member in self.members {
            member.remove().await;
        }
        if let Some(mut name_server) = self.name_server {
            name_server.kill().await;
        }
    }
}

/// The exit code of the command, once it has one.
async fn wait(child: &mut Option<Child>) -> Result<u8, DevError> {
    match child {
        Some(child) => {
            let status = child
                .wait()
                .await
                .map_err(system("cannot wait for the command"))?;
            Ok(subprocess::exit_code(status))
        }
        None => std::future::pending().await,
    }
}

async fn output_of(mut command: Command) -> Answer {
    let output = command
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .output();
    match timeout(REQUEST_TIMEOUT, output).await {
        Ok(Ok(output)) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            if text.len() > MAX_OUTPUT {
                text = text.chars().take(MAX_OUTPUT / 4).collect();
            }
            Answer {
                code: subprocess::exit_code(output.status),
                output: text,
            }
        }
        Ok(Err(error)) => Answer {
            code: 127,
            output: format!("error: {error}\n"),
        },
        Err(_) => Answer {
            code: 124,
            output: "error: it takes too long\n".to_owned(),
        },
    }
}

/// Waits until a session that can write is served in each of these ways, as a client sees it.
async fn wait_for_leader(sessions: Vec<text::Variables>, folder: PathBuf) -> Result<(), DevError> {
    let deadline = Instant::now() + START_TIMEOUT;
    for session in sessions {
        wait_for_session(&session, deadline, &folder).await?;
    }
    Ok(())
}

async fn wait_for_session(
    session: &text::Variables,
    deadline: Instant,
    folder: &Path,
) -> Result<(), DevError> {
    let query = "SELECT NOT pg_is_in_recovery()";
    loop {
        let mut command = Command::new("psql");
        command
            .args(["-X", "-w", "-A", "-t", "-c", query])
            .envs(session.clone())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(Duration::from_secs(10), command.output()).await;
        let message = match output {
            Ok(Ok(output)) if output.stdout == b"t\n" => return Ok(()),
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Ok(Err(source)) => {
                return Err(DevError::Command {
                    program: "psql".into(),
                    source,
                });
            }
            Err(_) => "psql does not end".to_owned(),
        };
        if Instant::now() > deadline {
            return Err(DevError::Members(format!(
                "no leader takes writes after {} s: {}\n{}",
                START_TIMEOUT.as_secs(),
                message.trim(),
                log_tails(folder)
            )));
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The last lines of all logs: the folder is removed when the cluster ends.
fn log_tails(folder: &Path) -> String {
    const LINES: usize = 5;
    let mut text = String::new();
    let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = folders.flat_map(|entry| {
        std::fs::read_dir(entry.path())
            .into_iter()
            .flatten()
            .flatten()
    });
    for file in files.map(|entry| entry.path()) {
        if file.extension().is_some_and(|extension| extension == "log") {
            let content = std::fs::read(&file).unwrap_or_default();
            let content = String::from_utf8_lossy(&content);
            let lines: Vec<_> = content.lines().collect();
            let skipped = lines.len().saturating_sub(LINES);
            text.push_str(&format!("---- {}\n", file.display()));
            for line in lines.into_iter().skip(skipped) {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}
