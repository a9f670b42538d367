//! Checks the Markdown files: links, anchors and source paths that do not exist, and pages of
//! `docs/` that its index does not lead to.
//!
//! It reads text, not Markdown syntax: fenced code is cut away, and a link target is what follows
//! `](`. Links to other hosts are not checked, since a test must not depend on the network.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod deploy;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const INDEX: &str = "docs/README.md";
/// A path in backticks that begins with one of these must exist.
const SOURCES: [&str; 9] = [
    "admin/",
    "attest/",
    "clients/",
    "docs/",
    "engine/",
    "loadtest/",
    "packaging/",
    "scripts/",
    "wire/",
];

/// Markdown files by their path from the root of the repository.
type Pages = BTreeMap<String, String>;

fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchors that GitHub makes of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let mut found = BTreeSet::new();
    for heading in without_code(text).lines().filter(|l| l.starts_with('#')) {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let slug = title.chars().filter(is_kept).collect::<String>();
        let slug = slug.replace(' ', "-");
        let count = seen.entry(slug.clone()).or_insert(0);
        found.insert(match *count {
            0 => slug,
            n => format!("{slug}-{n}"),
        });
        *count += 1;
    }
    found
}

/// The path from the root of `link`, which stands in `page`.
fn resolve(page: &str, link: &str) -> String {
    let mut parts: Vec<_> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What is wrong with `pages`. `exists` says whether a path from the root exists.
fn problems(pages: &Pages, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut links = BTreeMap::<&str, Vec<String>>::new();
    for (page, text) in pages {
        let prose = without_code(text);
        let targets = prose.split("](").skip(1);
        for link in targets.filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file if file.contains("://") => continue,
                file => resolve(page, file),
            };
            let has = |text: &String| anchor.is_empty() || anchors(text).contains(anchor);
            if !exists(&target) {
                found.push(format!("{page}: {link}: no such file"));
            } else if !pages.get(&target).map_or(anchor.is_empty(), has) {
                found.push(format!("{page}: {link}: no such heading"));
            }
            links.entry(page).or_default().push(target);
        }
        let is_path = |text: &&str| {
            SOURCES.iter().any(|start| text.starts_with(start))
                && (text.chars()).all(|c| c.is_alphanumeric() || "-_./".contains(c))
        };
        let paths = prose.split('`').skip(1).step_by(2).filter(is_path);
        for path in paths.filter(|path| !exists(path)) {
            found.push(format!("{page}: `{path}`: no such file"));
        }
    }
    let mut reached = BTreeSet::new();
    let mut next = vec![INDEX.to_owned()];
    while let Some(page) = next.pop() {
        if reached.insert(page.clone()) {
            next.extend(links.get(page.as_str()).into_iter().flatten().cloned());
        }
    }
    let is_lost = |page: &&String| page.starts_with("docs/") && !reached.contains(*page);
    for page in pages.keys().filter(is_lost) {
        found.push(format!("{page}: not reachable from {INDEX}"));
    }
    found
}

#[test]
fn links_anchors_and_paths_exist_and_every_page_is_reachable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = Pages::new();
    let mut folders = vec![PathBuf::new(), ".github".into(), "docs".into()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if path.extension().is_some_and(|end| end == "md") {
                let text = fs::read_to_string(root.join(&path)).unwrap();
                pages.insert(path.display().to_string(), text);
            } else if !path.ends_with("target")
                && folder != Path::new("")
                && root.join(&path).is_dir()
            {
                folders.push(path);
            }
        }
    }
    let found = problems(&pages, |path| root.join(path).exists());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_kind_of_problem_is_found() {
    let pages = [
        (
            INDEX,
            "[a](b/c.md#the-end) [b](#none) [c](b/gone.md) `wire/gone.rs`\n",
        ),
        (
            "docs/b/c.md",
            "# Top\n## `The` end!\n[up](../README.md)\n```\n[x](y.md)\n```\n",
        ),
        (
            "docs/lost.md",
            "# Top\n# Top\n[second](#top-1) [web](https://example.org)\n",
        ),
    ];
    let pages = pages.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let pages = Pages::from(pages);
    let wanted = [
        "docs/README.md: #none: no such heading",
        "docs/README.md: b/gone.md: no such file",
        "docs/README.md: `wire/gone.rs`: no such file",
        "docs/lost.md: not reachable from docs/README.md",
    ];
    assert_eq!(problems(&pages, |path| pages.contains_key(path)), wanted);
}
