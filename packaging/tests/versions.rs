//! All packages have one version, that of the workspace: it is what a user of several languages compares.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use toml::Table;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read_toml(path: &str) -> Table {
    let text = fs::read_to_string(root().join(path)).unwrap();
    text.parse().unwrap()
}

/// The value at a path of keys, such as `workspace.package.version`.
fn value<'a>(table: &'a Table, path: &str) -> Option<&'a toml::Value> {
    let mut keys = path.split('.');
    let first = table.get(keys.next()?);
    keys.fold(first, |value, key| value?.get(key))
}

fn workspace_version(workspace: &Table) -> &str {
    let version = value(workspace, "workspace.package.version").unwrap();
    version.as_str().unwrap()
}

#[test]
fn crates_have_the_version_of_the_workspace() {
    let workspace = read_toml("Cargo.toml");
    let version = workspace_version(&workspace);
    for member in value(&workspace, "workspace.members")
        .unwrap()
        .as_array()
        .unwrap()
    {
        let member = member.as_str().unwrap();
        let manifest = read_toml(&format!("{member}/Cargo.toml"));
        let inherited =
            value(&manifest, "package.version.workspace").and_then(toml::Value::as_bool);
        assert_eq!(inherited, Some(true), "{member}");
    }
    let dependencies = value(&workspace, "workspace.dependencies").unwrap();
    let own = dependencies.as_table().unwrap().iter();
    for (name, own) in own.filter(|(_, dependency)| dependency.get("path").is_some()) {
        let required = own.get("version").and_then(toml::Value::as_str);
        assert_eq!(required, Some(version), "{name}");
    }
}

#[test]
fn the_wheel_has_the_version_of_its_crate() {
    let project = read_toml("clients/python/pyproject.toml");
    assert_eq!(value(&project, "project.version"), None);
    let dynamic = value(&project, "project.dynamic")
        .unwrap()
        .as_array()
        .unwrap();
    assert!(dynamic.iter().any(|key| key.as_str() == Some("version")));
}

/// The Node package and the packages with its native parts.
#[test]
fn npm_packages_have_the_version_of_the_workspace() {
    let workspace = read_toml("Cargo.toml");
    let version = Json::from(workspace_version(&workspace));
    let folder = root().join("clients/node");
    let mut manifests = vec![folder.join("package.json")];
    for native in fs::read_dir(folder.join("npm")).into_iter().flatten() {
        manifests.push(native.unwrap().path().join("package.json"));
    }
    for manifest in manifests.iter().filter(|manifest| manifest.exists()) {
        let package: Json = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
        assert_eq!(package["version"], version, "{}", manifest.display());
        let natives = package["optionalDependencies"]
            .as_object()
            .into_iter()
            .flatten();
        for (name, required) in
            natives.filter(|(name, _)| name.starts_with("teesql") || name.starts_with("@teesql/"))
        {
            assert_eq!(*required, version, "{name} in {}", manifest.display());
        }
    }
}

#[test]
fn pages_name_the_files_of_this_version() {
    let workspace = read_toml("Cargo.toml");
    let version = workspace_version(&workspace);
    let archive = format!("teesql-rust-{version}");
    for (page, file) in [
        ("clients/rust/README.md", &archive),
        ("docs/how-to/use-the-rust-package.md", &archive),
        (
            "docs/how-to/use-the-python-package.md",
            &format!("teesql-{version}-cp310"),
        ),
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        assert!(text.contains(file), "{page} does not name {file}");
    }
}
