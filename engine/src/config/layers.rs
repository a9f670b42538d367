//! Where a setting's text comes from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use zeroize::Zeroizing;

use super::settings::{
    FLAG_ALIASES, SIMULATOR, SIMULATOR_DEFAULTS, Scope, Setting, all, env_name, find, flag_name,
};

/// A secret file is a line, not a disk.
const MAX_SECRET_FILE: u64 = 64 * 1024;

/// One setting's text and its place.
struct Found {
    text: Zeroizing<String>,
    place: String,
}

/// All that was said, strongest last.
pub struct Layers {
    found: BTreeMap<&'static str, Found>,
    /// Said, but by a file that cannot be read.
    unreadable: Vec<&'static str>,
    errors: Vec<String>,
    warnings: Vec<String>,
    scope: Scope,
}

/// `command` with a flag for each setting of `scope` (for secrets, of the file
/// with it).
#[must_use]
pub fn with_flags(command: Command, scope: Scope) -> Command {
    let command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("TOML file with any of these settings [env: TEESQL_CONFIG]"),
    );
    scope.settings().fold(command, |command, setting| {
        let name = if setting.secret {
            format!("{}_file", setting.name)
        } else {
            setting.name.to_owned()
        };
        let mut help = setting.help.to_owned();
        let _ = write!(help, " [env: {}", env_name(setting.name));
        if setting.secret {
            help.push_str("[_FILE]");
        }
        help.push(']');
        if let Some(default) = scope.default(setting).filter(|text| !text.is_empty()) {
            let _ = write!(help, " [default: {default}]");
        }
        let flag = Arg::new(&name).long(flag_name(&name)).help(help);
        let alias = FLAG_ALIASES
            .iter()
            .find(|(name, _)| scope == Scope::Forward && *name == setting.name);
        let flag = flag.visible_aliases(alias.map(|(_, alias)| *alias));
        let flag = match setting.is_list() {
            true => flag.action(ArgAction::Append),
            false => flag,
        };
        command.arg(match setting.value {
            _ if setting.secret => flag.value_name("FILE"),
            // `--provision` says as much as `--provision true`.
            "BOOL" => flag
                .value_name("BOOL")
                .num_args(0..=1)
                .default_missing_value("true"),
            value => flag.value_name(value),
        })
    })
}

impl Layers {
    fn empty(scope: Scope) -> Self {
        Self {
            found: BTreeMap::new(),
            unreadable: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            scope,
        }
    }

    /// Gathers what the file, the environment and the flags say of the settings
    /// of `scope`. A file with a secret of another scope is not opened.
    #[must_use]
    pub fn gather(
        scope: Scope,
        flags: &ArgMatches,
        environment: impl Fn(&str) -> Option<OsString>,
        names: impl Iterator<Item = String>,
    ) -> Self {
        let mut layers = Self::empty(scope);
        let file = flags
            .get_one::<String>("config")
            .map(PathBuf::from)
            .or_else(|| environment("TEESQL_CONFIG").map(PathBuf::from));
        if let Some(file) = file {
            layers.read_toml(&file);
        }
        layers.read_environment(&environment, names);
        layers.read_flags(flags);
        layers
    }

    /// Settings by name, and nothing else.
    pub(super) fn of_settings<'a>(
        scope: Scope,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut layers = Self::empty(scope);
        for (name, text) in settings {
            match find(name).filter(|setting| scope.has(setting)) {
                Some(setting) => layers.put(setting, text.to_owned(), "setting".to_owned()),
                None => layers
                    .errors
                    .push(format!("{name}: there is no such setting")),
            }
        }
        layers
    }

    fn read_environment(
        &mut self,
        environment: &impl Fn(&str) -> Option<OsString>,
        names: impl Iterator<Item = String>,
    ) {
        for setting in self.scope.settings() {
            let name = env_name(setting.name);
            let file_name = format!("{name}_FILE");
            let text = |errors: &mut Vec<String>, name: &str| {
                environment(name)?
                    .into_string()
                    .map_err(|_| errors.push(format!("environment {name}: not UTF-8")))
                    .ok()
            };
            let value = text(&mut self.errors, &name).or_else(|| {
                let alias = setting.alias?;
                text(&mut self.errors, alias).filter(|value| !value.is_empty())
            });
            let file = setting
                .secret
                .then(|| text(&mut self.errors, &file_name))
                .flatten();
            if value.is_some() && file.is_some() {
                self.errors
                    .push(format!("environment {name}: {file_name} is set too"));
            }
            if let Some(value) = value {
                self.put(setting, value, format!("environment {name}"));
            } else if let Some(file) = file {
                self.put_file(
                    setting,
                    Path::new(&file),
                    &format!("environment {file_name}"),
                );
            }
        }
        for name in names.filter(|name| is_unknown(name)) {
            self.warnings
                .push(format!("environment {name}: there is no such setting"));
        }
    }

    fn read_flags(&mut self, flags: &ArgMatches) {
        for setting in self.scope.settings() {
            let name = if setting.secret {
                format!("{}_file", setting.name)
            } else {
                setting.name.to_owned()
            };
            let Some(texts) = flags.get_many::<String>(&name) else {
                continue;
            };
            let text = &texts.map(String::as_str).collect::<Vec<_>>().join(",");
            let place = format!("flag --{}", flag_name(&name));
            if setting.secret {
                self.put_file(setting, Path::new(text), &place);
            } else {
                self.put(setting, text.clone(), place);
            }
        }
    }

    fn read_toml(&mut self, path: &Path) {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) => {
                self.errors
                    .push(format!("{shown}: cannot be read: {error}"));
                return;
            }
        };
        let table = match toml::from_str::<
            BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>>,
        >(&text)
        {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(&text, span.start));
                // `message` only: the full error quotes the line, and with it
                // perhaps a secret.
                self.errors
                    .push(format!("{shown}:{line}: {}", error.message()));
                return;
            }
        };
        let mut table: Vec<_> = table.into_iter().collect();
        table.sort_by_key(|(key, _)| key.span().start);
        let mut seen = Vec::new();
        for (key, value) in table {
            let place = format!("{shown}:{}", line_of(&text, key.span().start));
            let key = key.into_inner();
            let value = match value.into_inner() {
                toml::Value::String(text) => text,
                value @ (toml::Value::Integer(_) | toml::Value::Boolean(_)) => value.to_string(),
                _ => {
                    self.errors.push(format!(
                        "{place}: {key}: expected a text, a whole number or true/false"
                    ));
                    continue;
                }
            };
            let plain = find(&key);
            let from_file = key.strip_suffix("_file").and_then(find);
            let from_file = from_file.filter(|setting| setting.secret);
            let Some(setting) = plain.or(from_file) else {
                self.errors
                    .push(format!("{place}: {key}: there is no such setting"));
                continue;
            };
            if seen.contains(&setting.name) {
                self.errors.push(format!(
                    "{place}: {key}: {0} and {0}_file are both set",
                    setting.name
                ));
            }
            seen.push(setting.name);
            if !self.scope.has(setting) {
                drop(Zeroizing::new(value));
                continue;
            }
            if plain.is_some() {
                self.put(setting, value, place);
            } else {
                self.put_file(setting, Path::new(&value), &place);
            }
        }
    }

    fn put(&mut self, setting: &'static Setting, text: String, place: String) {
        let text = Zeroizing::new(text);
        self.found.insert(setting.name, Found { text, place });
    }

    fn put_file(&mut self, setting: &'static Setting, path: &Path, place: &str) {
        let shown = path.display();
        match read_secret(path) {
            Ok(text) => self.put(setting, text, format!("{place}, file {shown}")),
            Err(error) => {
                self.unreadable.push(setting.name);
                self.errors
                    .push(format!("{place}: file {shown} cannot be read: {error}"));
            }
        }
    }

    /// What holds where nothing is said.
    fn default(&self, setting: &Setting) -> Option<(&'static str, &'static str)> {
        if self.found.contains_key(SIMULATOR)
            && self.scope == Scope::Serve
            && let Some((_, text)) = SIMULATOR_DEFAULTS
                .iter()
                .find(|(name, _)| *name == setting.name)
        {
            return Some((text, "default in simulator mode"));
        }
        Some((self.scope.default(setting)?, "default"))
    }

    /// What would be used, a line a setting, secrets redacted.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut lines = String::new();
        for setting in self.scope.settings() {
            let (text, place) = match self.found.get(setting.name) {
                Some(found) => (Some(found.text.as_str()), found.place.as_str()),
                None => match self.default(setting) {
                    Some((text, place)) => (Some(text), place),
                    None => (None, "default"),
                },
            };
            let text = match text {
                Some(_) if setting.secret => "[redacted]",
                Some(text) => text,
                None => "[not set]",
            };
            let _ = writeln!(lines, "{} = {text}  # {place}", setting.name);
        }
        lines
    }
}

fn read_secret(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_SECRET_FILE)
        .read_to_string(&mut text)?;
    // An editor or `echo` leaves a line end that nobody means.
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    Ok(text)
}

fn is_unknown(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("TEESQL_") else {
        return false;
    };
    // What `dev` tells the commands that it runs is no setting.
    rest != "CONFIG"
        && !rest.starts_with("DEV_")
        && !all().any(|setting| {
            let known = env_name(setting.name);
            name == known || setting.secret && name.strip_suffix("_FILE") == Some(&known)
        })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// Reads settings and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    layers: &'a Layers,
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            errors: layers.errors.clone(),
            warnings: layers.warnings.clone(),
        }
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.errors.clone()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// A setting that must have a value.
    pub(super) fn get<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.optional(name, parse)?.or_else(|| {
            if self.layers.unreadable.contains(&name) {
                return None;
            }
            let file = find(name).is_some_and(|setting| setting.secret);
            self.errors.push(format!(
                "{name}: not set: use {}{}, --{}{} or the TOML key {name}",
                env_name(name),
                if file { " or …_FILE" } else { "" },
                flag_name(name),
                if file { "-file" } else { "" },
            ));
            None
        })
    }

    /// A setting that may be absent: `Some(None)` then, `None` on a mistake.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let setting = find(name);
        let default = setting.and_then(|setting| self.layers.default(setting));
        let (text, place) = match (self.layers.found.get(name), default) {
            (Some(found), _) => (found.text.as_str(), found.place.as_str()),
            (None, Some((default, place))) => (default, place),
            (None, None) => return Some(None),
        };
        match parse(text) {
            Ok(value) => Some(Some(value)),
            Err(error) if setting.is_some_and(|setting| setting.secret) => {
                self.errors.push(format!("{place}: {name}: {error}"));
                None
            }
            Err(error) => {
                self.errors
                    .push(format!("{place}: {name} = {text:?}: {error}"));
                None
            }
        }
    }

    /// Something that is wrong with several settings.
    pub(super) fn mistake<T>(&mut self, what: &str) -> Option<T> {
        self.errors.push(what.to_owned());
        None
    }

    /// Of two settings that go together only one is there.
    pub(super) fn missing_twin<T>(&mut self, there: &str, missing: &str) -> Option<T> {
        self.errors
            .push(format!("{missing}: not set, although {there} is"));
        None
    }

    /// Whether `DSTACK_SIMULATOR_ENDPOINT` is set.
    pub(super) fn simulated(&self) -> bool {
        self.layers.found.contains_key(SIMULATOR)
    }

    /// Whether clients have to be attested. Running without has to be asked
    /// for twice, outside simulator mode.
    pub(super) fn attestation(&mut self) -> Option<bool> {
        let required = self.get("require_client_attestation", super::values::boolean)?;
        let allowed = self.get("allow_unattested_clients", super::values::boolean)?;
        if !required && !allowed && !self.simulated() {
            self.errors.push(
                "require_client_attestation is false, which lets clients in that did not prove \
                 what they run: confirm with TEESQL_ALLOW_UNATTESTED_CLIENTS=true"
                    .to_owned(),
            );
        }
        Some(required)
    }
}
