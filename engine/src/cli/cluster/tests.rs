use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use wire::scram::Password;
use yaml_rust2::{Yaml, YamlLoader};

use super::*;

fn matches(flags: &[&str]) -> ArgMatches {
    const CLUSTER: [&str; 7] = [
        "config",
        "--cluster-name=orders",
        "--cluster-member=b",
        "--cluster-members=a=a.example:5433",
        "--cluster-members=b=b.example:5433",
        "--cluster-members=c=c.example:5433",
        "--cluster-secrets=derived",
    ];
    let line = CLUSTER.iter().chain(flags);
    config_command().try_get_matches_from(line).unwrap()
}

fn cluster() -> ClusterConfig {
    let flags = matches(&[]);
    let layers = Layers::gather(Scope::Serve, &flags, |_| None, std::iter::empty());
    Config::from_layers(&layers).unwrap().cluster.unwrap()
}

fn passwords() -> MemberPasswords {
    MemberPasswords::of_test(["s", "r", "w", "b"].map(|letter| Password::new(letter.repeat(64))))
}

pub(super) fn files(flags: &[&str], part: Part) -> Vec<File> {
    let cluster = cluster();
    let options = Options::new(&matches(flags), &cluster).unwrap();
    let member = Member::new(&cluster, options).unwrap();
    member.files_with_passwords(part, &passwords()).unwrap()
}

fn shown(files: &[File]) -> String {
    let show = |file: &File| format!("==== {}\n{}", file.name, *file.text);
    let differ = files.iter().filter(|file| file.name != "etcd.sh");
    differ.map(show).collect()
}

const BACKUPS: [&str; 5] = [
    "--backup-repository=/var/lib/pgbackrest",
    "--backup-option=repo1-type=s3",
    "--bin-dir=/usr/lib/postgresql/15/bin",
    "--restore=2026-01-02 03:04:05+00",
    "--synchronous=strict",
];

#[test]
fn files_of_a_member() {
    insta::assert_snapshot!("files", shown(&files(&[], Part::All)));
}

#[test]
fn files_of_a_member_with_backups() {
    insta::assert_snapshot!("files_with_backups", shown(&files(&BACKUPS, Part::All)));
}

#[test]
fn what_is_printed_has_no_password() {
    let cluster = cluster();
    let options = Options::new(&matches(&BACKUPS), &cluster).unwrap();
    let member = Member::new(&cluster, options).unwrap();
    let printed = shown(&member.files(Part::All));
    for letter in ["s", "r", "w", "b"] {
        assert!(!printed.contains(&letter.repeat(64)));
    }
    assert!(printed.contains("repo1-cipher-pass"));
}

#[test]
fn parameters_are_texts_for_yaml_1_1_as_well() {
    // Patroni reads YAML 1.1, where `on` without quotes is a Boolean.
    let files = files(&[], Part::Patroni);
    let text = &files.first().unwrap().text;
    assert!(text.contains("hot_standby: \"on\""), "{}", **text);
    let document = &YamlLoader::load_from_str(text).unwrap()[0];
    let dcs = &document["bootstrap"]["dcs"];
    assert_eq!(dcs["ttl"], Yaml::Integer(20));
}

#[test]
fn a_password_that_needs_escaping_is_refused() {
    let cluster = cluster();
    let options = Options::new(&matches(&[]), &cluster).unwrap();
    let member = Member::new(&cluster, options).unwrap();
    for wrong in ["it's", "a\nb", "a:b", "$HOME", "\\", ""] {
        let texts = [wrong, "r", "w", "b"];
        let passwords = MemberPasswords::of_test(texts.map(Password::new));
        let result = member.files_with_passwords(Part::All, &passwords);
        assert_eq!(result.is_ok(), wrong.is_empty(), "{wrong:?}");
    }
}

#[test]
fn values_that_would_change_a_file_are_refused() {
    for flags in [
        ["--data-dir=relative", "--synchronous=on"],
        ["--data-dir=/a b", "--synchronous=on"],
        ["--recover=d", "--synchronous=on"],
        ["--ttl=14", "--synchronous=on"],
        ["--ttl=301", "--synchronous=on"],
        ["--backup-repository=/b", "--backup-option=no-value"],
        ["--backup-repository=/b", "--backup-option=a=x\ny=z"],
        ["--backup-repository=/b", "--restore=now' ; x"],
    ] {
        assert!(
            Options::new(&matches(&flags), &cluster()).is_err(),
            "{flags:?}"
        );
    }
}

#[test]
fn files_with_passwords_are_private() {
    let folder = tempfile::tempdir().unwrap();
    for file in files(&BACKUPS, Part::All) {
        let path = file.write(folder.path(), None).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let has_password = ["ssss", "rrrr", "wwww", "bbbb"];
        let private = has_password.iter().any(|text| file.text.contains(text));
        assert_eq!(mode, if private { 0o600 } else { 0o644 }, "{}", file.name);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 7);
}

#[test]
fn members_added_later_never_found_an_etcd() {
    let environment = |flags: &[&str]| {
        let files = files(flags, Part::Etcd);
        files.first().unwrap().text.to_string()
    };
    // This is b, the second one.
    let founder = environment(&["--founders=2"]);
    assert!(founder.contains("ETCD_INITIAL_CLUSTER_STATE=new\n"));
    assert!(
        founder
            .contains("ETCD_INITIAL_CLUSTER=a=http://127.0.0.1:13380,b=http://127.0.0.1:13381\n")
    );
    for flags in [["--founders=1"], ["--recover=c"]] {
        assert!(environment(&flags).contains("ETCD_INITIAL_CLUSTER_STATE=existing\n"));
    }
}

/// Patroni's own check. It objects only to loopback, which is unreachable for other hosts unless there are links.
#[test]
fn patroni_accepts_its_configuration() {
    let postgres = "/usr/lib/postgresql/15/bin";
    let patroni = Command::new("patroni").arg("--version").output();
    if patroni.is_err() || !Path::new(postgres).exists() {
        let strict = std::env::var_os("TEESQL_TEST_STRICT").is_some();
        assert!(!strict, "no Patroni or no PostgreSQL 15");
        eprintln!("SKIPPED: no Patroni or no PostgreSQL 15");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data_dir = format!("--data-dir={}", data.display());
    let bin_dir = format!("--bin-dir={postgres}");
    for file in files(&[&data_dir, &bin_dir], Part::Patroni) {
        file.write(folder.path(), None).unwrap();
    }
    let checked = Command::new("patroni")
        .arg("--validate-config")
        .arg(folder.path().join("patroni.yml"))
        .envs(
            ["SUPERUSER", "REPLICATION", "REWIND"]
                .map(|role| (format!("PATRONI_{role}_PASSWORD"), "x")),
        )
        .output()
        .unwrap();
    let text = [checked.stdout, checked.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    let objections: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .filter(|line| !line.contains("must not contain \"127.0.0.1\""))
        // Something listens on the port of this machine's own service, or etcd does not run.
        .filter(|line| !line.contains("is already in use") && !line.contains("not reachable"))
        .collect();
    assert_eq!(objections, [""; 0], "{text}");
}
