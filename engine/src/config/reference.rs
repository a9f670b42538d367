//! Generates `docs/reference/configuration.md` from the table of settings, and checks that the page
//! and `--help` agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::spec::{Group, Scope, Spec};
use super::with_flags;

const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/reference/configuration.md"
);
/// Set to write the page instead of comparing it.
const UPDATE: &str = "TEESQL_UPDATE_DOCS";

const INTRODUCTION: &str = "\
# Configuration reference

<!-- Generated from engine/src/config/settings.rs. Do not edit. To update, run:
     TEESQL_UPDATE_DOCS=1 cargo test -p engine --lib configuration_page -->

The value of a setting comes from one of these places. A later one overrides an earlier one:

1. the default;
2. the TOML file that `--config FILE` or `TEESQL_CONFIG` names, as the key shown below;
3. the environment variable `TEESQL_` and the key in capitals, e.g. `TEESQL_LOGIN_TIMEOUT`;
4. the flag `--` and the key with dashes, e.g. `--login-timeout`.

Secrets have no flag, since command lines are visible to all users of a machine. Instead each has a
variant that names a file: the key `read_secret_file`, the variable `TEESQL_READ_SECRET_FILE` and the
flag `--read-secret-file`. Line ends at the end of that file are ignored.

All mistakes are reported together, each with its file and line, variable or flag, and the process
exits with code 64. An unknown key in the TOML file is a mistake. An unknown variable that starts with
`TEESQL_` is a warning. `teesql-sidecar check` prints the effective value of each setting and where it
comes from.

| Value | Format |
| --- | --- |
| `BOOL` | `true` or `false` (also `1`, `yes`, `on` and `0`, `no`, `off`). The flag without a value means `true` |
| `TIME` | a duration: numbers with units (`ns`, `us`, `ms`, `s`, `m`, `h`, `day`, …), e.g. `500ms`, `5s` or `1h 30m`; above zero. Where the description says so, also `off` |
| `…,…` | a list, separated by commas. The flag can be repeated |
| `FILE`, `DIR` | the path of a file or directory, which must be readable at start |
| `SECRET` | any text |

Settings marked `SIGHUP` in the column **Reload** take effect when the sidecar receives that signal.
All others need a restart.
";

const SIDECAR: &str = "
## teesql-sidecar

`serve` and `check` take all of these settings. In simulator mode, which `simulator_endpoint` enables,
some defaults differ.
";

const FORWARDER: &str = "
## teesql-forward

The forwarder takes these settings. Some defaults differ from the sidecar's, since it is one of many
processes on a machine that belongs to an application. It does not reload its configuration.
";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    page.push_str(SIDECAR);
    for command in [
        (Scope::Criteria, "`verify` takes"),
        (Scope::Postgres, "`provision` and `password` take"),
        (Scope::Agent, "`ca` takes"),
        (Scope::Secret, "`secret` takes"),
        (Scope::Control, "`sessions` and `kill` take"),
        (Scope::Manifest, "`manifest-address` takes"),
    ] {
        let keys: Vec<_> = command.0.settings().map(|spec| code(spec.key)).collect();
        let _ = write!(page, "\n{} only: {}.\n", command.1, keys.join(", "));
    }
    groups(&mut page, Scope::Serve);
    page.push_str(FORWARDER);
    groups(&mut page, Scope::Forward);
    page
}

fn groups(page: &mut String, scope: Scope) {
    let mut group: Option<Group> = None;
    for spec in scope.settings() {
        if group != Some(spec.group) {
            group = Some(spec.group);
            let _ = write!(page, "\n### {}\n\n{}\n", spec.group.title(), header(scope));
        }
        page.push_str(&row(spec, scope));
    }
}

fn header(scope: Scope) -> &'static str {
    match scope {
        Scope::Forward => "| Setting | Value | Default | Description |\n| --- | --- | --- | --- |",
        _ => {
            "| Setting | Value | Default | Reload | Description |\n| --- | --- | --- | --- | --- |"
        }
    }
}

fn row(spec: &Spec, scope: Scope) -> String {
    let mut default = match spec.default_in(scope) {
        Some(text) if !text.is_empty() => code(text),
        _ => String::new(),
    };
    if scope == Scope::Serve
        && let Some(text) = spec.simulator_default
    {
        let _ = write!(default, "; in simulator mode {}", code(text));
    }
    let mut help = code_words(spec.help);
    if let Some(alias) = spec.env_alias {
        let _ = write!(
            help,
            " The environment variable {} is accepted too.",
            code(alias)
        );
    }
    if scope == Scope::Forward
        && let Some(alias) = spec.flag_alias
    {
        let alias = code(&format!("--{alias}"));
        let _ = write!(help, " The flag {alias} is accepted too.");
    }
    let reload = match (scope, spec.reloadable) {
        (Scope::Forward, _) => "",
        (_, true) => " `SIGHUP` |",
        (_, false) => "  |",
    };
    format!(
        "| {} | {} | {default} |{reload} {help} |\n",
        code(spec.key),
        code(&spec.placeholder()),
    )
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// Marks keys, paths, URLs and assignments as code.
fn code_words(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let start = word.len() - word.trim_start_matches('(').len();
        let end = word.trim_end_matches(['.', ',', ';', ':', ')']).len();
        let Some(core) = word.get(start..end).filter(|core| core.len() > 1) else {
            return word.to_owned();
        };
        if core.contains(['_', '=']) || core.contains("://") || core.starts_with(['/', '.']) {
            format!("{}`{core}`{}", &word[..start], &word[end..])
        } else {
            word.to_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn configuration_page_is_current() {
    let page = page();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(PATH, &page).unwrap();
    }
    let found = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        found == page,
        "{PATH} is out of date: run {UPDATE}=1 cargo test -p engine --lib configuration_page"
    );
}

/// Key to default and description, as a part of the page has them.
fn rows(part: &str) -> BTreeMap<String, (String, String)> {
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let plain = |cell: &str| cell.trim().replace('`', "");
        let default = plain(cells[2]);
        let default = default.split("; in simulator mode").next().unwrap();
        let help = plain(cells.last().unwrap());
        (plain(cells[0]), (default.to_owned(), help))
    })
    .collect()
}

/// Key to default and help sentence, as clap has them.
fn flags(scope: Scope) -> BTreeMap<String, (String, String)> {
    let command = with_flags(clap::Command::new("any"), scope);
    let flags = command
        .get_arguments()
        .filter(|flag| flag.get_id() != "config");
    flags
        .map(|flag| {
            let help = flag.get_help().unwrap().to_string();
            let (sentence, rest) = help.split_once(" [env: TEESQL_").unwrap();
            let default = rest.split_once("[default: ").map_or("", |(_, text)| text);
            let default = default.split(']').next().unwrap();
            let name = flag.get_id().as_str();
            let key = match rest.contains("[_FILE]") {
                true => name.strip_suffix("_file").unwrap(),
                false => name,
            };
            (key.to_owned(), (default.to_owned(), sentence.to_owned()))
        })
        .collect()
}

#[test]
fn configuration_page_agrees_with_the_help() {
    let page = page();
    let (_, parts) = page.split_once("\n## teesql-sidecar\n").unwrap();
    let (sidecar, forwarder) = parts.split_once("\n## teesql-forward\n").unwrap();
    for (part, scope) in [(sidecar, Scope::Serve), (forwarder, Scope::Forward)] {
        let (page, help) = (rows(part), flags(scope));
        let keys = |map: &BTreeMap<String, _>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&page), keys(&help));
        for (key, (default, sentence)) in help {
            assert_eq!(page[&key].0, default, "{key}");
            assert!(page[&key].1.starts_with(&sentence), "{key}: {sentence}");
        }
    }
}
