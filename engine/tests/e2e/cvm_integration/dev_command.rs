//! `teesql-sidecar dev`: what it prints works, and nothing of it is left.

use crate::harness::suite::Suite;

#[cfg(not(feature = "mock"))]
pub(super) fn add(_: &mut Suite) {}

#[cfg(feature = "mock")]
pub(super) fn add(suite: &mut Suite) {
    if suite.is_last_driver() {
        suite.add("citizen::dev_does_what_it_says", trial::does_what_it_says);
        suite.add("citizen::dev_ends_early_and_whole", trial::ends_early);
    }
}

#[cfg(feature = "mock")]
mod trial {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::thread;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use crate::cvm_integration::teesql;
    use crate::harness::process::{
        TIMEOUT, pdeathsig_command, poll_until, run_successfully, signal, spawn, wait,
    };
    use crate::harness::suite::Fixture;

    struct Dev {
        child: Child,
        said: Arc<Mutex<String>>,
        folder: PathBuf,
    }

    impl Drop for Dev {
        /// Where a trial has failed, its Postgres would go on.
        fn drop(&mut self) {
            let server = postgres(&self.folder).and_then(|pid| i32::try_from(pid).ok());
            let _ = self.child.kill();
            let _ = self.child.wait();
            if let (Some(pid), true) = (server, thread::panicking()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
        }
    }

    /// With everything of its own below `folder`.
    fn start(folder: &Path) -> Dev {
        fs::create_dir(folder).expect("a folder");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("permissions");
        let mut dev = teesql(
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
        let said = Arc::new(Mutex::new(String::new()));
        let heard = said.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = out.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..read]);
                heard.lock().expect("no panic").push_str(&text);
            }
        });
        let folder = folder.to_owned();
        Dev {
            child,
            said,
            folder,
        }
    }

    /// The Postgres below `folder`, once there is one.
    fn postgres(folder: &Path) -> Option<u32> {
        let mut below = fs::read_dir(folder).ok()?.flatten();
        let pid = below.next()?.path().join("postgres/data/postmaster.pid");
        fs::read_to_string(pid).ok()?.lines().next()?.parse().ok()
    }

    /// Every process that has `folder` in its command line.
    fn processes(folder: &Path) -> Vec<String> {
        let folder = folder.to_str().expect("UTF-8");
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let lines = all.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        lines.filter(|line| line.contains(folder)).collect()
    }

    fn assert_nothing_left(folder: &Path) {
        let left: Vec<_> = fs::read_dir(folder).expect("it").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(processes(folder), Vec::<String>::new());
    }

    fn shell(line: &str) -> Command {
        let mut shell = pdeathsig_command("sh".as_ref(), "KILL", None);
        shell.args(["-c", line]);
        shell
    }

    pub(super) fn does_what_it_says(fixture: &Fixture) {
        for how in [Signal::SIGTERM, Signal::SIGINT] {
            let folder = fixture.harness.unique_path("dev");
            let mut dev = start(&folder);
            let guide = poll_until(TIMEOUT * 2, || {
                let said = dev.said.lock().expect("no panic");
                said.contains("/attestation\n").then(|| said.clone())
            });
            let guide = guide.unwrap_or_else(|| panic!("no guide: {:?}", dev.said));
            assert!(postgres(&folder).is_some(), "a Postgres of its own");
            assert!(!processes(&folder).is_empty());
            follow(&guide);
            signal(&dev.child, how);
            let status = wait(&mut dev.child, TIMEOUT).expect("it ends");
            assert_eq!(status.code(), Some(0), "{how}");
            assert_nothing_left(&folder);
        }
    }

    /// Types what a person would.
    fn follow(guide: &str) {
        const ASK: &str = "-X -q -A -t -w -c 'select current_user'";
        let sidecar = env!("CARGO_BIN_EXE_teesql-sidecar");
        let (mut users, mut verdicts, mut pages) = (Vec::new(), 0, 0);
        let mut source = "";
        for line in guide.lines().map(str::trim) {
            let typed = line.split("  #").next().unwrap_or(line).trim_end();
            if typed.starts_with(". ") {
                source = typed;
            } else if typed == "psql" || typed.contains("psql -U") || typed.contains("psql \"") {
                let ask = format!("{source}\n{typed} {ASK}");
                users.push(run_successfully(shell(&ask), TIMEOUT).trim().to_owned());
            } else if let Some((_, verify)) = typed.split_once("teesql-sidecar verify ") {
                let ask = format!("{source}\n{sidecar} verify {verify}");
                assert!(run_successfully(shell(&ask), TIMEOUT).ends_with("ACCEPTED\n"));
                verdicts += 1;
            } else if let Some(at) = typed.find("curl ") {
                let said = run_successfully(shell(&typed[at..]), TIMEOUT);
                assert!(said.contains("\"production\""), "{said}");
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
        assert_eq!(users, expected, "{guide}");
        assert_eq!((verdicts, pages), (1, 2), "{guide}");
    }

    /// While Postgres is being made, and while the sidecars start.
    pub(super) fn ends_early(fixture: &Fixture) {
        let moments: [fn(&Path) -> bool; 2] = [
            |folder| fs::read_dir(folder).is_ok_and(|below| below.count() > 0),
            |folder| postgres(folder).is_some(),
        ];
        for come in moments {
            for how in [Signal::SIGINT, Signal::SIGTERM] {
                let folder = fixture.harness.unique_path("dev");
                let mut dev = start(&folder);
                poll_until(TIMEOUT, || come(&folder).then_some(())).expect("it has begun");
                thread::sleep(Duration::from_millis(20));
                signal(&dev.child, how);
                let status = wait(&mut dev.child, TIMEOUT * 2).expect("it ends");
                assert!(status.code().is_some(), "{how}: {status}");
                assert_nothing_left(&folder);
            }
        }
    }
}
