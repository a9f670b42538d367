//! Tests of `teesql-sidecar dev`: the commands that it prints work, and it leaves neither processes
//! nor files.

use crate::harness::suite::Suite;

#[cfg(not(feature = "mock"))]
pub(super) fn add(_: &mut Suite) {}

#[cfg(feature = "mock")]
pub(super) fn add(suite: &mut Suite) {
    if suite.adds_driver_independent() {
        suite.add(
            "cvm_integration::dev_command::printed_commands_work",
            tests::printed_commands_work,
        );
        suite.add(
            "cvm_integration::dev_command::public_clients_and_sdks_can_use_it",
            tests::public_clients,
        );
        suite.add(
            "cvm_integration::dev_command::cleans_up_when_interrupted",
            tests::cleans_up,
        );
    }
}

#[cfg(feature = "mock")]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    use attest::certificate::Leaf;
    use attest::evidence::{EvidenceFormat, UnboundEvidence};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;

    use crate::harness::fixture::Fixture;
    use crate::harness::process::{
        TIMEOUT, pdeathsig_command, poll_until, run, run_successfully, signal, spawn, wait,
    };
    use crate::harness::settings::sidecar_command;

    struct Dev {
        child: Child,
        output: Arc<Mutex<String>>,
        folder: PathBuf,
    }

    impl Drop for Dev {
        /// Stops its Postgres too if the test has failed.
        fn drop(&mut self) {
            let server = postgres_pid(&self.folder).and_then(|pid| i32::try_from(pid).ok());
            let _ = self.child.kill();
            let _ = self.child.wait();
            if let (Some(pid), true) = (server, thread::panicking()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
        }
    }

    /// Starts `dev` with all of its files below `folder`.
    fn start(folder: &Path) -> Dev {
        fs::create_dir(folder).expect("a folder");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut dev = sidecar_command(
            &["dev"],
            &[
                ("TMPDIR", folder.to_str().expect("UTF-8")),
                ("TEESQL_LISTEN", "127.0.0.1:0"),
                ("TEESQL_ADMIN_LISTEN", "127.0.0.1:0"),
                ("TEESQL_LOG", "error"),
            ],
        );
        dev.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(dev).expect("setpriv starts");
        let mut out = child.stdout.take().expect("a pipe");
        let output = Arc::new(Mutex::new(String::new()));
        let collected = output.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..read]);
                collected.lock().expect("no panic").push_str(&text);
            }
        });
        let folder = folder.to_owned();
        Dev {
            child,
            output,
            folder,
        }
    }

    /// The process id of the Postgres below `folder`, once it runs.
    fn postgres_pid(folder: &Path) -> Option<u32> {
        let mut entries = fs::read_dir(folder).ok()?.flatten();
        let pid = entries.next()?.path().join("postgres/data/postmaster.pid");
        fs::read_to_string(pid).ok()?.lines().next()?.parse().ok()
    }

    /// The command lines that contain `folder`.
    fn processes(folder: &Path) -> Vec<String> {
        let folder = folder.to_str().expect("UTF-8");
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(folder)).collect()
    }

    fn assert_nothing_left(folder: &Path) {
        let left: Vec<_> = fs::read_dir(folder).expect("a folder").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(processes(folder), Vec::<String>::new());
    }

    fn shell(line: &str) -> Command {
        let mut shell = pdeathsig_command("sh", "KILL", None);
        shell.args(["-c", line]);
        shell
    }

    pub(super) fn printed_commands_work(fixture: &Fixture) {
        for how in [Signal::SIGTERM, Signal::SIGINT] {
            let folder = fixture.harness.unique_path("dev");
            let mut dev = start(&folder);
            let instructions = poll_until(TIMEOUT * 2, || {
                let output = dev.output.lock().expect("no panic");
                output.contains("/attestation\n").then(|| output.clone())
            });
            let instructions =
                instructions.unwrap_or_else(|| panic!("no instructions: {:?}", dev.output));
            assert!(postgres_pid(&folder).is_some(), "its own Postgres runs");
            assert!(!processes(&folder).is_empty());
            run_instructions(&instructions);
            signal(&dev.child, how);
            let status = wait(&mut dev.child, TIMEOUT).expect("it exits");
            assert_eq!(status.code(), Some(0), "{how}");
            assert_nothing_left(&folder);
        }
    }

    /// Runs the commands of the instructions as a person would.
    fn run_instructions(instructions: &str) {
        const QUERY: &str = "-X -q -A -t -w -c 'select current_user'";
        let sidecar = env!("CARGO_BIN_EXE_teesql-sidecar");
        let (mut users, mut verdicts, mut lists, mut pages) = (Vec::new(), 0, 0, 0);
        let mut source = "";
        for line in instructions.lines().map(str::trim) {
            let command = line.split("  #").next().unwrap_or(line).trim_end();
            if command.starts_with(". ") {
                source = command;
            } else if command == "psql"
                || command.contains("psql -U")
                || command.contains("psql \"")
            {
                let script = format!("{source}\n{command} {QUERY}");
                users.push(run_successfully(shell(&script), TIMEOUT).trim().to_owned());
            } else if let Some((_, verify)) = command.split_once("teesql-sidecar verify ") {
                let script = format!("{source}\n{sidecar} verify {verify}");
                assert!(run_successfully(shell(&script), TIMEOUT).ends_with("ACCEPTED\n"));
                verdicts += 1;
            } else if command == "teesql-sidecar sessions" {
                let script = format!("{source}\n{sidecar} sessions");
                run_successfully(shell(&script), TIMEOUT);
                lists += 1;
            } else if let Some(at) = command.find("curl ") {
                let output = run_successfully(shell(&command[at..]), TIMEOUT);
                assert!(output.contains("\"production\""), "{output}");
                pages += 1;
            }
        }
        let expected = [
            "teesql_readwrite",
            "teesql_read",
            "postgres",
            "teesql_readwrite",
            "postgres",
        ];
        assert_eq!(users, expected, "{instructions}");
        assert_eq!((verdicts, lists, pages), (1, 1, 2), "{instructions}");
    }

    /// What public clients and dstack's SDKs read: V0, and the path of a socket.
    pub(super) fn public_clients(fixture: &Fixture) {
        let folder = fixture.harness.unique_path("dev");
        fs::create_dir(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("permissions");
        let script = "test -S \"$TEESQL_DEV_GUEST_AGENT\" && cat \"$PGSSLCERT\"";
        let run_with = |variables: &[(&str, &str)]| {
            let always = [("TMPDIR", folder.to_str().expect("UTF-8"))];
            let environment = [&always[..], variables].concat();
            run(
                sidecar_command(&["dev", "--", "sh", "-c", script], &environment),
                TIMEOUT * 2,
            )
        };
        for (variables, format) in [
            (&[][..], EvidenceFormat::V0),
            (&[("TEESQL_DEV_EVIDENCE", "v1")], EvidenceFormat::V1),
        ] {
            let output = run_with(variables);
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let chain = CertificateDer::from_pem_slice(&output.stdout).expect("a certificate");
            let leaf = Leaf::parse(&chain).expect("a leaf");
            let evidence = UnboundEvidence::from_extensions(leaf.extensions()).expect("evidence");
            assert_eq!(evidence.format(), format);
        }
        let output = run_with(&[("TEESQL_DEV_EVIDENCE", "v2")]);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        assert_nothing_left(&folder);
    }

    /// A signal while Postgres is being created, and while the sidecars start.
    pub(super) fn cleans_up(fixture: &Fixture) {
        let states: [fn(&Path) -> bool; 2] = [
            |folder| fs::read_dir(folder).is_ok_and(|below| below.count() > 0),
            |folder| postgres_pid(folder).is_some(),
        ];
        for reached in states {
            for how in [Signal::SIGINT, Signal::SIGTERM] {
                let folder = fixture.harness.unique_path("dev");
                let mut dev = start(&folder);
                poll_until(TIMEOUT, || reached(&folder).then_some(()))
                    .expect("it reaches this state");
                thread::sleep(Duration::from_millis(20));
                signal(&dev.child, how);
                let status = wait(&mut dev.child, TIMEOUT * 2).expect("it exits");
                assert!(status.code().is_some(), "{how}: {status}");
                assert_nothing_left(&folder);
            }
        }
    }
}
