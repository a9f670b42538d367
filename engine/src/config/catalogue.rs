//! The settings as data: for manual pages, and for the configuration file that packages install.
//!
//! Both are made from the table in `settings.rs`, as `--help` is, so that they cannot differ from it.
//! Nothing here reads a value.

use std::fmt::Write as _;

use super::Errors;
use super::spec::{Group, Kind, Scope, Spec};

/// Comments of a configuration file end before this column.
const WIDTH: usize = 78;

/// A setting, as a document describes it.
#[derive(Clone, Debug)]
pub struct SettingInfo {
    /// The key in the TOML file; of a secret, the one that names a file.
    pub key: String,
    /// The heading that it stands under.
    pub topic: &'static str,
    /// The placeholder of its value, such as `HOST:PORT`.
    pub value: String,
    /// The value that it has if it is not set.
    pub default: Option<&'static str>,
    /// The environment variable, and another one that is accepted.
    pub variables: Vec<String>,
    /// The flag with its dashes, and another one that is accepted.
    pub flags: Vec<String>,
    /// Whether SIGHUP applies a new value.
    pub reloadable: bool,
    /// One or more sentences.
    pub help: &'static str,
}

/// The settings of `scope`, in the order of `--help`.
pub fn catalogue(scope: Scope) -> impl Iterator<Item = SettingInfo> {
    scope.settings().map(move |spec| info(spec, scope))
}

/// The text of a TOML file with every setting of `scope`: those in `set` with the given value, and all others commented
/// out, with their default. `header` becomes a comment at the top.
///
/// # Errors
/// A key in `set` that `scope` does not have.
pub fn configuration_file(
    scope: Scope,
    header: &str,
    set: &[(&str, &str)],
) -> Result<String, Errors> {
    let unknown = |key: &str| !scope.settings().any(|spec| toml_key(spec) == key);
    let unknown = set.iter().map(|(key, _)| *key).filter(|key| unknown(key));
    let errors: Vec<_> = unknown
        .map(|key| format!("{key}: unknown setting"))
        .collect();
    if !errors.is_empty() {
        return Err(Errors(errors));
    }
    let mut file = String::new();
    for line in header.lines() {
        comment(&mut file, line);
    }
    let mut topic: Option<Group> = None;
    for spec in scope.settings() {
        if topic != Some(spec.group) {
            topic = Some(spec.group);
            let _ = write!(file, "\n### {}\n", spec.group.title());
        }
        file.push('\n');
        comment(&mut file, &description(spec, scope));
        let key = toml_key(spec);
        let given = set.iter().find(|(name, _)| *name == key);
        let (mark, text) = match (given, spec.default_in(scope)) {
            (Some((_, text)), _) => ("", literal(spec, text)),
            (None, Some(text)) => ("#", literal(spec, text)),
            (None, None) => ("#", literal(spec, &placeholder(spec))),
        };
        let _ = writeln!(file, "{mark}{key} = {text}");
    }
    Ok(file)
}

fn info(spec: &'static Spec, scope: Scope) -> SettingInfo {
    let variable = if spec.is_secret() {
        spec.file_variable()
    } else {
        spec.variable()
    };
    let flag_alias = spec.flag_alias.filter(|_| scope == Scope::Forward);
    SettingInfo {
        key: toml_key(spec),
        topic: spec.group.title(),
        value: placeholder(spec),
        default: spec.default_in(scope).filter(|text| !text.is_empty()),
        variables: std::iter::once(variable)
            .chain(spec.env_alias.map(str::to_owned))
            .collect(),
        flags: std::iter::once(spec.flag())
            .chain(flag_alias.map(str::to_owned))
            .map(|flag| format!("--{flag}"))
            .collect(),
        reloadable: spec.reloadable && scope == Scope::Serve,
        help: spec.help,
    }
}

/// The key in the file. A secret is named by its file, which can have another owner and mode than the configuration.
fn toml_key(spec: &Spec) -> String {
    spec.flag_id()
}

fn placeholder(spec: &Spec) -> String {
    if spec.is_secret() {
        "FILE".to_owned()
    } else {
        spec.placeholder()
    }
}

fn description(spec: &Spec, scope: Scope) -> String {
    match spec.reloadable && scope == Scope::Serve {
        true => format!("{} SIGHUP applies a new value.", spec.help),
        false => spec.help.to_owned(),
    }
}

/// `text` as a value in TOML.
fn literal(spec: &Spec, text: &str) -> String {
    let is_number = || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match spec.kind {
        Kind::Bool if matches!(text, "true" | "false") => text.to_owned(),
        Kind::One("N") if is_number() => text.to_owned(),
        _ => toml::Value::String(text.to_owned()).to_string(),
    }
}

/// Appends `text` as lines of comment.
fn comment(file: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line.len() > 1 {
            let _ = writeln!(file, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(file, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that are settings, without the mark of those that are commented out.
    fn settings(file: &str) -> Vec<&str> {
        let lines = file.lines().filter(|line| !line.is_empty());
        lines
            .filter(|line| !line.starts_with("# ") && !line.starts_with("##") && *line != "#")
            .map(|line| line.trim_start_matches('#'))
            .collect()
    }

    #[test]
    fn file_has_every_setting_with_its_default() {
        for scope in [Scope::Serve, Scope::Forward] {
            let file = configuration_file(scope, "", &[]).unwrap();
            let lines = settings(&file);
            assert_eq!(lines.len(), scope.settings().count());
            for (line, spec) in lines.into_iter().zip(scope.settings()) {
                let table: toml::Table = toml::from_str(line).unwrap();
                let value = &table[&toml_key(spec)];
                let text = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                let expected = spec.default_in(scope).map(str::to_owned);
                assert_eq!(text, expected.unwrap_or_else(|| placeholder(spec)));
            }
        }
    }

    #[test]
    fn file_sets_what_is_given_and_comments_fit_the_page() {
        let set = [
            ("provision", "true"),
            ("max_connections", "7"),
            ("read_secret_file", "/etc/teesql/read_secret"),
        ];
        let file = configuration_file(Scope::Serve, "One line.\n\nAnother.", &set).unwrap();
        assert!(file.starts_with("# One line.\n#\n# Another.\n\n### Listening\n"));
        let table: toml::Table = toml::from_str(&file).unwrap();
        let found: Vec<_> = table.into_iter().collect();
        let expected = [
            ("max_connections", toml::Value::Integer(7)),
            ("provision", toml::Value::Boolean(true)),
            ("read_secret_file", set[2].1.into()),
        ];
        let mut expected = expected.map(|(key, value)| (key.to_owned(), value));
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, expected);
        for line in file.lines().filter(|line| line.starts_with("# ")) {
            let is_one_word = line.matches(' ').count() == 1;
            assert!(line.chars().count() <= WIDTH || is_one_word, "{line}");
        }
    }

    #[test]
    fn file_has_no_unknown_setting() {
        let set = [("provisoin", "true"), ("target", "a:1"), ("listen", "x")];
        let errors = configuration_file(Scope::Serve, "", &set).unwrap_err();
        assert_eq!(
            errors.0,
            ["provisoin: unknown setting", "target: unknown setting"]
        );
    }

    #[test]
    fn catalogue_names_the_file_of_a_secret_and_all_aliases() {
        let find = |scope, key| catalogue(scope).find(|info| info.key == key).unwrap();
        let secret = find(Scope::Serve, "read_secret_file");
        assert_eq!(secret.variables, ["TEESQL_READ_SECRET_FILE"]);
        assert_eq!(secret.flags, ["--read-secret-file"]);
        assert_eq!((secret.value.as_str(), secret.reloadable), ("FILE", true));
        let listen = find(Scope::Forward, "forward_listen");
        assert_eq!(listen.flags, ["--forward-listen", "--listen"]);
        let mrtd = find(Scope::Forward, "allowed_mrtd");
        assert_eq!(mrtd.variables, ["TEESQL_ALLOWED_MRTD", "EXPECTED_MRTD"]);
        assert!(!mrtd.reloadable);
    }
}
