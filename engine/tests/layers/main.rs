//! The layering test: reads the imports of the sources and fails on an upward one.
//!
//! The folders of `engine/src` are layers, and a file may import from lower layers and from
//! its own folder only. Within the library crates no files may import each other in a circle,
//! except a module and its own children. The crates are layered too. The architecture page
//! lists the same layers.
//!
//! It reads text, not syntax: comments and unit tests are cut away, and paths that begin with
//! `crate`, `super` or `self` are followed. Macro-generated imports would escape it; there are
//! none.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod imports;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use imports::{Sources, circles};

/// The layers of `engine/src`, lowest first. Folders of one layer must not import each other.
const LAYERS: [&[&str]; 9] = [
    &["io", "auth"],
    &["tls", "sched", "postgres"],
    &["config"],
    &["telemetry"],
    &["session", "attestation"],
    &["shard", "tasks"],
    &["proxy"],
    &["app"],
    &["cli"],
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn layer(folder: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&folder))
}

/// What is wrong with the folders and imports of an engine with these sources.
fn violations(sources: &Sources) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources.files() {
        let Some((folder, _)) = file.split_once('/') else {
            if file != "lib.rs" {
                found.push(format!("{file}: only lib.rs may lie at the top"));
            }
            continue;
        };
        if folder == "bin" {
            continue;
        }
        let Some(own) = layer(folder) else {
            found.push(format!("{file}: the folder {folder} has no layer"));
            continue;
        };
        for (line, path) in sources.imports(file) {
            let target = path.first().map_or("", String::as_str);
            if target == folder {
                continue;
            }
            // Items of lib.rs have no folder; nothing below may name them.
            let Some(other) = layer(target) else {
                found.push(format!("{file}:{line}: imports crate::{target}"));
                continue;
            };
            if other >= own {
                found.push(format!(
                    "{file}:{line}: {folder} (layer {own}) imports {target} (layer {other})"
                ));
            }
        }
    }
    found
}

#[test]
fn imports_go_down_only() {
    let sources = Sources::read(&root().join("engine/src"));
    assert!(sources.files().count() > 80, "the sources were not found");
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn library_crates_have_no_circles() {
    let mut found = Vec::new();
    for name in ["wire", "attest", "admin", "loadtest"] {
        let sources = Sources::read(&root().join(name).join("src"));
        assert!(
            sources.files().count() > 5,
            "the sources of {name} were not found"
        );
        for circle in circles(&sources) {
            found.push(format!("{name}: {}", circle.join(" <-> ")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The workspace's crates that a crate's manifest names under `[dependencies]`.
fn dependencies(name: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
    let section = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let ours = ["wire", "attest", "admin", "engine", "loadtest"];
    let names = section.lines().filter_map(|line| {
        let end = line.find([' ', '.', '='])?;
        line.get(..end)
    });
    names
        .filter(|name| ours.contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_are_layered() {
    for name in ["wire", "attest", "admin"] {
        assert!(
            dependencies(name).is_empty(),
            "{name} imports {:?}",
            dependencies(name)
        );
    }
    assert_eq!(dependencies("engine"), ["admin", "attest", "wire"]);
    assert_eq!(dependencies("loadtest"), ["attest", "wire"]);
}

#[test]
fn architecture_page_lists_the_layers() {
    let page = root().join("docs/explanation/architecture.md");
    let page = fs::read_to_string(page).unwrap();
    let mut listed: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for line in page.lines() {
        let Some((number, rest)) = line
            .strip_prefix("- ")
            .and_then(|rest| rest.split_once(" `"))
        else {
            continue;
        };
        if let (Ok(number), Some((folder, _))) = (number.parse(), rest.split_once("`:")) {
            listed.entry(number).or_default().push(folder.to_owned());
        }
    }
    let listed: Vec<_> = listed.into_values().collect();
    assert_eq!(
        listed, LAYERS,
        "docs/explanation/architecture.md, section Layers"
    );
}

#[test]
fn lib_rs_lists_the_layers() {
    let text = fs::read_to_string(root().join("engine/src/lib.rs")).unwrap();
    for (number, folders) in LAYERS.iter().enumerate() {
        let start = format!("//! | {number} |");
        let line = text.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("layer {number} is missing in lib.rs"));
        for folder in *folders {
            assert!(line.contains(&format!("`{folder}`")), "{folder}: {line}");
        }
    }
}

/// The checks themselves, on sources that violate them.
mod detects {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        violations(&Sources::from_texts(files))
    }

    #[test]
    fn an_upward_import() {
        let found = of(&[("io/stream.rs", "use crate::proxy::inbound::Handler;\n")]);
        assert_eq!(
            found,
            ["io/stream.rs:1: io (layer 0) imports proxy (layer 6)"]
        );
        let found = of(&[("io/stream.rs", "\nfn f() { super::super::app::run() }\n")]);
        assert_eq!(
            found,
            ["io/stream.rs:2: io (layer 0) imports app (layer 7)"]
        );
        let found = of(&[("io/stream.rs", "use crate::{\n    auth::role,\n};\n")]);
        assert_eq!(
            found,
            ["io/stream.rs:1: io (layer 0) imports auth (layer 0)"]
        );
    }

    #[test]
    fn a_sibling_import_of_the_same_layer() {
        let found = of(&[("tls/session.rs", "use crate::sched::yield_now;\n")]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_file_or_folder_without_a_layer() {
        assert_eq!(of(&[("stray.rs", "")]).len(), 1);
        assert_eq!(of(&[("misc/a.rs", "")]).len(), 1);
        assert!(of(&[("lib.rs", "pub use app::run;\n")]).is_empty());
    }

    #[test]
    fn nothing_in_comments_and_unit_tests() {
        let text = "// crate::proxy\n//! [`crate::app`]\n#[cfg(test)]\nmod tests {\n    use crate::cli::x;\n}\n";
        assert!(of(&[("io/stream.rs", text)]).is_empty());
    }

    #[test]
    fn a_circle_but_not_between_a_module_and_its_children() {
        let circle = Sources::from_texts(&[
            ("lib.rs", ""),
            ("a.rs", "use crate::b::X;\n"),
            ("b.rs", "use crate::c::Y;\n"),
            ("c.rs", "use crate::a::Z;\n"),
        ]);
        assert_eq!(circles(&circle), [["a.rs", "b.rs", "c.rs"]]);
        let family = Sources::from_texts(&[
            ("lib.rs", ""),
            ("a.rs", "use b::X;\nmod b;\n"),
            ("a/b.rs", "use super::Y;\n"),
        ]);
        assert!(circles(&family).is_empty());
    }
}
