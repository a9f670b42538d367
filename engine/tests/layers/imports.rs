//! The imports of a crate's files, and the import cycles among them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files of a crate, by their path below `src`.
pub(crate) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Reads every Rust file below `folder`.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                    files.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
                }
            }
        }
        Self(files)
    }

    /// Sources from memory, to test the checks themselves.
    pub(crate) fn from_texts(files: &[(&str, &str)]) -> Self {
        let files = files.iter();
        Self(
            files
                .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let is_test = |name: &str| name.ends_with("/tests.rs") || name.contains("/tests/");
        self.0
            .keys()
            .map(String::as_str)
            .filter(move |name| !is_test(name))
    }

    /// The line and the path, from the crate's root, of each import of a file.
    pub(crate) fn imports(&self, file: &str) -> Vec<(usize, Vec<String>)> {
        let module = module_of(file);
        let code = code_without_tests(&self.0[file]);
        let mut found = Vec::new();
        for start in ["crate::", "super::", "self::"] {
            for (at, _) in code.match_indices(start) {
                let before = code[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                    continue;
                }
                // `pub(in crate::…)` names a scope, not an import.
                if code[..at].ends_with("in ") {
                    continue;
                }
                let line = code[..at].matches('\n').count() + 1;
                for path in paths(&code[at..]) {
                    found.push((line, resolve(&module, &path)));
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// The file that holds the module or the item of a path.
    fn file_of(&self, path: &[String]) -> Option<&str> {
        (1..=path.len()).rev().find_map(|depth| {
            let stem = path[..depth].join("/");
            [format!("{stem}.rs"), format!("{stem}/mod.rs")]
                .iter()
                .find_map(|name| self.0.get_key_value(name))
                .map(|(name, _)| name.as_str())
        })
    }
}

/// Cycles of files that import each other, except between a module and its children.
pub(crate) fn cycles(sources: &Sources) -> Vec<Vec<String>> {
    let files: Vec<_> = sources.files().collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in &files {
        for (_, path) in sources.imports(file) {
            if let Some(target) = sources.file_of(&path)
                && target != *file
                && !is_ancestor_or_descendant(file, target)
            {
                edges.entry(file).or_default().insert(target);
            }
        }
    }
    let mut cycles: BTreeSet<Vec<String>> = BTreeSet::new();
    for file in &files {
        let reached = reachable(&edges, file);
        let cycle = reached
            .iter()
            .filter(|other| reachable(&edges, other).contains(file));
        let mut cycle: Vec<_> = cycle.map(|name| (*name).to_owned()).collect();
        cycle.sort();
        if cycle.len() > 1 {
            cycles.insert(cycle);
        }
    }
    cycles.into_iter().collect()
}

/// The files that `start` imports directly or indirectly, including itself if it is in a cycle.
fn reachable<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut next: Vec<_> = edges.get(start).into_iter().flatten().copied().collect();
    while let Some(file) = next.pop() {
        if found.insert(file) {
            next.extend(edges.get(file).into_iter().flatten());
        }
    }
    found
}

/// Whether one file's module contains the other's.
fn is_ancestor_or_descendant(one: &str, other: &str) -> bool {
    let (one, other) = (module_of(one), module_of(other));
    one.starts_with(&other) || other.starts_with(&one)
}

fn module_of(file: &str) -> Vec<String> {
    let stem = file.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    match stem {
        "lib" | "main" => Vec::new(),
        stem => stem.split('/').map(str::to_owned).collect(),
    }
}

/// The code without comments, up to the first `#[cfg(test)]` module. Line numbers are unchanged.
fn code_without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_test = line.trim() == "#[cfg(test)]";
        if is_test
            && lines
                .peek()
                .is_some_and(|next| next.trim_start().starts_with("mod ") && next.ends_with('{'))
        {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// The paths at the start of `code`: one, or one for each item of a `{…}` list after a prefix.
fn paths(code: &str) -> Vec<Vec<String>> {
    let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let end = end.unwrap_or(code.len());
    let prefix: Vec<_> = code[..end]
        .split("::")
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect();
    let is_list = code[..end].ends_with("::") && code[end..].starts_with('{');
    if !is_list {
        return vec![prefix];
    }
    let mut found = Vec::new();
    let (mut depth, mut item) = (0, String::new());
    for c in code[end..].chars() {
        match c {
            '{' if depth == 0 => depth = 1,
            '{' => {
                depth += 1;
                item.push(c);
            }
            '}' | ',' if depth == 1 => {
                let inner = std::mem::take(&mut item);
                for rest in paths(inner.trim()) {
                    if !rest.is_empty() {
                        found.push(prefix.iter().cloned().chain(rest).collect());
                    }
                }
                if c == '}' {
                    break;
                }
            }
            '}' => {
                depth -= 1;
                item.push(c);
            }
            c => item.push(c),
        }
    }
    found
}

/// A path from the crate's root: `super` and `self` are replaced.
fn resolve(module: &[String], path: &[String]) -> Vec<String> {
    let mut resolved = match path.first().map(String::as_str) {
        Some("crate") => Vec::new(),
        _ => module.to_vec(),
    };
    for part in path {
        match part.as_str() {
            "crate" | "self" => {}
            "super" => drop(resolved.pop()),
            part => resolved.push(part.to_owned()),
        }
    }
    resolved
}
