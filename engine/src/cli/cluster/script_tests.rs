//! Runs etcd.sh with programs that only say how they were called. `scripts/cluster --operations` runs it with the real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::etcd;

/// Members as etcd answers them: two that have started, and what is known of this one.
const OTHERS: &str = r#"{"id":1,"peerURLs":["http://127.0.0.1:13380"],"name":"a","clientURLs":["http://127.0.0.1:12379"]},{"id":3,"peerURLs":["http://127.0.0.1:13382"],"name":"c","clientURLs":["http://127.0.0.1:12381"]}"#;

/// A machine of the member b.
struct Machine(TempDir);

impl Machine {
    fn new(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Self(folder);
        machine.write("etcd.sh", etcd::SCRIPT);
        let data = machine.path("data").display().to_string();
        let etcd_dir = format!("--etcd-dir={data}");
        let flags: Vec<_> = flags.iter().copied().chain([&*etcd_dir]).collect();
        let files = super::tests::files(&flags, super::Part::Etcd);
        machine.write("etcd.env", &files.first().unwrap().text);
        // etcd waits for its end only where it is told to recover.
        machine.program(
            "etcd",
            "echo \"etcd $* $ETCD_INITIAL_CLUSTER_STATE $ETCD_INITIAL_CLUSTER\"\n[ -z \"$*\" ] || { : >running; exec sleep 60; }",
        );
        machine.program("curl", "cat members");
        machine.program(
            "etcdctl",
            "shift 3; echo \"etcdctl $*\" >>calls\n\
             case $* in 'member list') cat list ;; 'endpoint health') [ -e healthy ] ;; *) [ ! -e refuses ] ;; esac",
        );
        machine
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.write(name, &format!("#!/bin/sh\n{text}\n"));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.path(name), mode).unwrap();
    }

    /// What etcd answers at the port for members.
    fn members(&self, own: &str) {
        self.write("members", &format!("[{OTHERS}{own}]\n"));
    }

    fn has_data(&self) {
        fs::create_dir_all(self.path("data/member")).unwrap();
    }

    /// How etcd was started, or nothing if it was not.
    fn start(&self) -> String {
        let path = std::env::var("PATH").unwrap();
        let output = Command::new("timeout")
            .args(["20", "sh", "./etcd.sh"])
            .env("PATH", format!("{}:{path}", self.0.path().display()))
            .env("TEESQL_ETCD_WAIT", "0")
            .current_dir(self.0.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }
}

const FOUNDED: &str =
    "etcd  new a=http://127.0.0.1:13380,b=http://127.0.0.1:13381,c=http://127.0.0.1:13382\n";
const JOINED: &str = "etcd  existing b=http://127.0.0.1:13381,other1=http://127.0.0.1:13380,other2=http://127.0.0.1:13382\n";

#[test]
fn goes_on_with_data() {
    let machine = Machine::new(&[]);
    machine.has_data();
    assert_eq!(machine.start(), FOUNDED);
    assert_eq!(machine.calls(), "");
}

#[test]
fn founds_where_no_other_etcd_runs() {
    assert_eq!(Machine::new(&[]).start(), FOUNDED);
}

#[test]
fn founds_with_others_that_wait_for_it() {
    let machine = Machine::new(&[]);
    machine.members(r#",{"id":2,"peerURLs":["http://127.0.0.1:13381"],"name":"b"}"#);
    assert_eq!(machine.start(), FOUNDED);
}

#[test]
fn adds_itself() {
    let machine = Machine::new(&["--founders=1"]);
    machine.members("");
    assert_eq!(machine.start(), JOINED);
    let add = "etcdctl member add b --peer-urls=http://127.0.0.1:13381\n";
    assert_eq!(machine.calls(), add);
}

#[test]
fn joins_where_it_was_added() {
    let machine = Machine::new(&[]);
    machine.members(r#",{"id":2,"peerURLs":["http://127.0.0.1:13381"]}"#);
    assert_eq!(machine.start(), JOINED);
    assert_eq!(machine.calls(), "");
}

#[test]
fn is_a_new_member_without_its_disk() {
    let machine = Machine::new(&[]);
    machine.members(
        r#",{"id":2,"peerURLs":["http://127.0.0.1:13381"],"name":"b","clientURLs":["http://127.0.0.1:12380"]}"#,
    );
    machine.write(
        "list",
        "2a, started, b, http://127.0.0.1:13381, http://127.0.0.1:12380, false\n",
    );
    assert_eq!(machine.start(), JOINED);
    let calls = "etcdctl member list\netcdctl member remove 2a\n\
                 etcdctl member add b --peer-urls=http://127.0.0.1:13381\n";
    assert_eq!(machine.calls(), calls);
}

/// Another etcd beside the one of the others, which have no majority, would be refused by them for good.
#[test]
fn founds_nothing_beside_an_etcd_without_a_majority() {
    let machine = Machine::new(&[]);
    machine.members("");
    machine.write("refuses", "");
    let text = etcd::SCRIPT.replace("    sleep 1\n", "    exit 5\n");
    machine.write("etcd.sh", &text);
    assert_eq!(machine.start(), "");
}

#[test]
fn recovers_once() {
    let machine = Machine::new(&["--recover=b"]);
    machine.has_data();
    // Only its own etcd answers, once it has started.
    machine.program(
        "etcdctl",
        "case $1 in *:2379) shift 3; echo \"etcdctl $*\" >>calls; [ -e running ] ;; *) exit 1 ;; esac",
    );
    let forced = machine.start();
    assert!(forced.starts_with("etcd --force-new-cluster "), "{forced}");
    assert!(forced.lines().count() == 2, "{forced}");
    assert!(machine.calls().contains("del /service/orders/sync"));
    assert_eq!(machine.start().lines().count(), 1);
    // Without the flag it can be used again later.
    let environment = fs::read_to_string(machine.path("etcd.env")).unwrap();
    let without = environment.replace("RECOVER='b'", "RECOVER=''");
    machine.write("etcd.env", &without);
    machine.start();
    assert!(!Path::new(&machine.path("data/member/recovered")).exists());
}

#[test]
fn recovers_nothing_where_others_have_a_majority() {
    let machine = Machine::new(&["--recover=b"]);
    machine.has_data();
    machine.write("healthy", "");
    assert_eq!(machine.start().lines().count(), 1);
    assert_eq!(machine.calls(), "etcdctl endpoint health\n");
}
