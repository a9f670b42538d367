//! The copyright file of the packages in Debian's machine-readable format (DEP-5), and the notices of all crates that are
//! linked into the programs.
//!
//! Permissive licenses require that their text and the copyright notices go with the program. The crates are those of
//! `cargo tree` without build dependencies and procedural macros; the notices are the license files in their sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::expression::{Expression, LICENSES};

const HEADER: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: TeeSQL engine
Comment: The programs are linked statically with the crates below, each named as crate-version.
 Their license files are in third-party-licenses.gz, next to this file.

Files: *
Copyright: 2026 the TeeSQL authors
License: Apache-2.0
";

/// Most notices name one to three holders. This many lines of one file are enough for all but a list of contributors.
const MAX_HOLDERS: usize = 20;

/// A crate that is linked into the programs.
pub(crate) struct LinkedCrate {
    name: String,
    version: String,
    license: String,
    authors: Vec<String>,
    /// The texts of its license files.
    notices: Vec<String>,
}

/// The crates that `cargo tree` lists, without those of this workspace, with their license files.
pub(crate) fn linked_crates(tree: &str, metadata: &str) -> Result<Vec<LinkedCrate>> {
    let listed: BTreeSet<_> = tree.lines().filter_map(external_crate).collect();
    let metadata: Value = serde_json::from_str(metadata)?;
    let packages = metadata.get("packages").and_then(Value::as_array);
    let mut all = Vec::new();
    for package in packages.into_iter().flatten() {
        let text = |key| package.get(key).and_then(Value::as_str).unwrap_or_default();
        if !listed.contains(&(text("name"), text("version"))) {
            continue;
        }
        let folder = Path::new(text("manifest_path")).parent();
        let authors = package.get("authors").and_then(Value::as_array);
        let authors = authors.into_iter().flatten().filter_map(Value::as_str);
        all.push(LinkedCrate {
            name: text("name").to_owned(),
            version: text("version").to_owned(),
            license: text("license").to_owned(),
            authors: authors.map(str::to_owned).collect(),
            notices: folder.map(license_files).transpose()?.unwrap_or_default(),
        });
    }
    if all.is_empty() || all.len() != listed.len() {
        return Err(format!(
            "{} crates are linked, but {} were found",
            listed.len(),
            all.len()
        )
        .into());
    }
    all.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(all)
}

/// Name and version of a line such as `clap v4.6.7`; `None` for a crate with a path, which is of this workspace.
fn external_crate(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let is_own = words.any(|word| word.starts_with("(/"));
    (!is_own).then_some((name, version))
}

fn license_files(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_uppercase();
        let is_notice = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"]
            .iter()
            .any(|start| name.starts_with(start));
        if is_notice && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let texts = files.iter().map(|path| {
        let text = String::from_utf8_lossy(&fs::read(path)?).replace("\r\n", "\n");
        Ok(text.trim().to_owned())
    });
    texts.collect()
}

/// The copyright file.
pub(crate) fn dep5(all: &[LinkedCrate]) -> Result<String> {
    let mut file = HEADER.to_owned();
    let mut used = BTreeSet::from(["Apache-2.0"]);
    for linked in all {
        let (name, version) = (&linked.name, &linked.version);
        let expression = Expression::parse(&linked.license)
            .map_err(|error| format!("{name} {version}: {error}"))?;
        used.extend(expression.names());
        let holders = holders(linked).join("\n ");
        let license = expression.dep5();
        let _ = write!(
            file,
            "\nFiles: {name}-{version}/*\nCopyright: {holders}\nLicense: {license}\n"
        );
    }
    for license in LICENSES
        .iter()
        .filter(|license| used.contains(license.name))
    {
        let _ = write!(file, "\nLicense: {}\n", license.name);
        for line in license.text.trim_end().lines() {
            let line = if line.trim().is_empty() { "." } else { line };
            let _ = writeln!(file, " {line}");
        }
    }
    Ok(file)
}

/// The holders that the license files name, or else the authors.
fn holders(linked: &LinkedCrate) -> Vec<String> {
    let mut found = Vec::new();
    for line in linked.notices.iter().flat_map(|text| text.lines()) {
        if let Some(holder) = holder(line)
            && !found.contains(&holder)
        {
            found.push(holder);
        }
    }
    found.truncate(MAX_HOLDERS);
    if found.is_empty() {
        found.clone_from(&linked.authors);
    }
    if found.is_empty() {
        found.push(format!("the authors of {}", linked.name));
    }
    found
}

/// Years and name of a line such as `Copyright (c) 2019 Jane Doe`, and not of a sentence about copyright or a form.
fn holder(line: &str) -> Option<String> {
    let line = line.trim_matches([' ', '\t', '*', '/', '#', ';', '"']);
    let rest = line
        .get(.."copyright".len())?
        .eq_ignore_ascii_case("copyright");
    let rest = rest.then(|| line.get("copyright".len()..))??;
    let has_year = rest
        .as_bytes()
        .windows(4)
        .any(|four| four.iter().all(u8::is_ascii_digit));
    let marks = ["(c)", "(C)", "©"];
    let is_notice = has_year || marks.iter().any(|mark| rest.trim_start().starts_with(mark));
    let is_form = rest.contains(['[', '{', '<']) && rest.to_lowercase().contains("yyyy");
    if !is_notice || is_form {
        return None;
    }
    let mut rest = rest.trim();
    for mark in marks {
        rest = rest.strip_prefix(mark).unwrap_or(rest).trim_start();
    }
    (!rest.is_empty()).then(|| rest.to_owned())
}

/// The license files of all crates, each text once.
pub(crate) fn notices(all: &[LinkedCrate]) -> String {
    let mut users = BTreeMap::<&str, Vec<String>>::new();
    for linked in all {
        let name = format!("{} {}", linked.name, linked.version);
        for text in &linked.notices {
            let users = users.entry(text).or_default();
            if users.last() != Some(&name) {
                users.push(name.clone());
            }
        }
    }
    let mut texts: Vec<_> = users
        .into_iter()
        .map(|(text, users)| (users, text))
        .collect();
    texts.sort();
    let rule = "=".repeat(72);
    let mut file =
        "The license files of the crates that are linked into the programs.\n".to_owned();
    for (users, text) in texts {
        let _ = write!(file, "\n{rule}\n{}\n{rule}\n\n{text}\n", users.join(", "));
    }
    file
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn linked(name: &str, license: &str, notices: &[&str]) -> LinkedCrate {
        LinkedCrate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.to_owned(),
            authors: vec!["Ann <ann@example.org>".to_owned()],
            notices: notices.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn crates_of_the_workspace_are_not_listed() {
        for (line, expected) in [
            ("clap v4.6.7", Some(("clap", "4.6.7"))),
            ("clap v4.6.7 (*)", Some(("clap", "4.6.7"))),
            ("engine v0.1.0 (/src/engine)", None),
            ("engine v0.1.0 (/src/engine) (*)", None),
            ("", None),
        ] {
            assert_eq!(external_crate(line), expected, "{line}");
        }
    }

    #[test]
    fn holders_are_those_of_notices_and_not_of_prose_or_forms() {
        for (line, expected) in [
            ("Copyright (c) 2019 Jane Doe", Some("2019 Jane Doe")),
            (
                "   Copyright 2014-2020 The Project",
                Some("2014-2020 The Project"),
            ),
            (" * Copyright © The Project", Some("The Project")),
            ("Copyright [yyyy] [name of copyright owner]", None),
            ("Copyright {yyyy} {name of copyright owner}", None),
            ("copyright license to reproduce", None),
            ("COPYRIGHT HOLDERS BE LIABLE", None),
            ("The above copyright notice", None),
        ] {
            assert_eq!(holder(line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn copyright_file_has_each_crate_and_the_text_of_each_license() {
        let all = [
            linked(
                "a",
                "MIT OR Apache-2.0",
                &["MIT License\nCopyright (c) 2019 Jane\nPermission"],
            ),
            linked("b", "ISC", &[]),
        ];
        let file = dep5(&all).unwrap();
        assert!(
            file.contains(
                "\nFiles: a-1.0.0/*\nCopyright: 2019 Jane\nLicense: Apache-2.0 or Expat\n"
            )
        );
        assert!(
            file.contains("\nFiles: b-1.0.0/*\nCopyright: Ann <ann@example.org>\nLicense: ISC\n")
        );
        for name in ["Apache-2.0", "Expat", "ISC"] {
            assert_eq!(
                file.matches(&format!("\nLicense: {name}\n ")).count(),
                1,
                "{name}"
            );
        }
        assert!(!file.contains("\nLicense: Zlib\n"));
        // An empty line would end the paragraph.
        let texts = file.split_once("\nLicense: Expat\n").unwrap().1;
        assert!(
            texts.lines().all(|line| line.is_empty()
                || line.starts_with(' ')
                || line.starts_with("License: "))
        );
    }

    #[test]
    fn an_unknown_license_names_the_crate() {
        let error = dep5(&[linked("a", "GPL-3.0", &[])]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a 1.0.0: no text for the license GPL-3.0"
        );
    }

    #[test]
    fn each_notice_is_written_once() {
        let all = [
            linked("a", "MIT", &["text"]),
            linked("b", "MIT", &["text", "other"]),
        ];
        let file = notices(&all);
        assert_eq!(file.matches("\ntext\n").count(), 1);
        assert!(file.contains("\na 1.0.0, b 1.0.0\n") && file.contains("\nb 1.0.0\n"));
    }

    #[test]
    fn every_linked_crate_must_be_found() {
        let error = linked_crates("a v1.0.0\n", "{\"packages\": []}")
            .err()
            .unwrap();
        assert_eq!(error.to_string(), "1 crates are linked, but 0 were found");
    }
}
