//! Runs `package-files` as `scripts/package-deb` does.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every file below a folder, by its path from there.
type Tree = BTreeMap<String, Vec<u8>>;

fn read_tree(root: &Path, folder: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_tree(root, &path, tree);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            tree.insert(name.to_owned(), fs::read(&path).unwrap());
        }
    }
}

fn package_files(name: &str) -> Tree {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    let status = Command::new(env!("CARGO_BIN_EXE_package-files"))
        .arg("files")
        .arg(&folder)
        .status();
    assert!(status.unwrap().success());
    let mut tree = Tree::new();
    read_tree(&folder, &folder, &mut tree);
    fs::remove_dir_all(&folder).unwrap();
    tree
}

#[test]
fn files_are_complete_and_the_same_each_time() {
    let tree = package_files("one");
    assert_eq!(tree, package_files("another-name"));
    for path in [
        "teesql-forward/etc/teesql-forward/default.toml",
        "teesql-forward/usr/share/bash-completion/completions/teesql-forward",
        "teesql-forward/usr/share/man/man1/teesql-forward.1",
        "teesql-forward/usr/share/man/man5/teesql-forward.toml.5",
        "teesql-sidecar/etc/teesql/sidecar.toml",
        "teesql-sidecar/usr/share/fish/vendor_completions.d/teesql-sidecar.fish",
        "teesql-sidecar/usr/share/man/man1/teesql-sidecar.1",
        "teesql-sidecar/usr/share/man/man1/teesql-sidecar-cluster-config.1",
        "teesql-sidecar/usr/share/man/man5/teesql-sidecar.toml.5",
        "teesql-sidecar/usr/share/zsh/vendor-completions/_teesql-sidecar",
    ] {
        assert!(
            tree.get(path).is_some_and(|file| !file.is_empty()),
            "{path}"
        );
    }
}

/// What a package sets is what its unit, its directories and its documentation rely on; all else keeps its default.
#[test]
fn configuration_files_set_what_the_packages_decide() {
    let tree = package_files("configuration");
    let set = |path: &str| -> Vec<String> {
        let text = String::from_utf8(tree[path].clone()).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(str::to_owned).collect()
    };
    let sidecar = set("teesql-sidecar/etc/teesql/sidecar.toml");
    let mut sidecar: Vec<_> = sidecar.iter().map(String::as_str).collect();
    sidecar.sort_unstable();
    assert_eq!(
        sidecar,
        [
            "collateral_dir = \"/var/lib/teesql\"",
            "provision = true",
            "read_secret_file = \"/etc/teesql/read_secret\"",
            "readwrite_secret_file = \"/etc/teesql/readwrite_secret\"",
        ]
    );
    let forward = set("teesql-forward/etc/teesql-forward/default.toml");
    assert_eq!(forward, ["forward_listen = \"127.0.0.1:15432\""]);
}
