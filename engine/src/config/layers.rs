//! Collects the texts of settings from the TOML file, the environment and the flags. A later layer
//! overrides an earlier one.
//!
//! Values are not parsed here: [`Reader`](super::reader::Reader) does that. Secrets must never
//! appear in an error, a warning or a description.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ArgMatches;
use zeroize::Zeroizing;

use super::cluster::settings_of_table;
use super::settings::{ALL, SIMULATOR_ENDPOINT, find};
use super::spec::{Kind, Scope, Spec};
use super::{environment, tdx_guest};
use crate::io::private_file;
use crate::tls::certificate::PemIdentity;

/// Largest file that is read as a secret, in bytes.
const MAX_SECRET_FILE: u64 = 64 * 1024;

/// A setting's text and where it was set: a line, a variable or a flag.
struct Entry {
    text: Zeroizing<String>,
    source: String,
}

/// The texts of all settings that were set, after overriding.
pub struct Layers {
    entries: BTreeMap<&'static str, Entry>,
    /// Keys of secrets whose file cannot be read. They are set, but have no text.
    unreadable: Vec<&'static str>,
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    scope: Scope,
    /// Whether this machine is a TDX guest. Simulator mode is refused there.
    pub(super) is_tdx_guest: bool,
    /// The client certificate of a program that a forwarder is part of.
    pub(super) pem_identity: Option<Arc<PemIdentity>>,
}

/// The environment of a program that uses this crate as a library.
pub(crate) struct ProgramEnvironment<'a> {
    /// The value of a variable.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The names of all variables.
    pub(crate) names: Vec<String>,
    /// Settings that are not taken from it, because the program has set what they would contradict.
    pub(crate) hidden: &'a [&'static str],
}

impl Layers {
    fn empty(scope: Scope) -> Self {
        Self {
            entries: BTreeMap::new(),
            unreadable: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            scope,
            is_tdx_guest: false,
            pem_identity: None,
        }
    }

    /// Collects the settings of `scope` from the file that `flags` or `TEESQL_CONFIG` name, from the
    /// environment and from `flags`. A file with a secret of another scope is not opened.
    ///
    /// `names` are all names in the environment, for warnings about unknown settings.
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

    /// Collects the settings of `scope` from `flags` and the environment of this process, and from the
    /// file that they name.
    #[must_use]
    pub fn from_process(scope: Scope, flags: &ArgMatches) -> Self {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        Self::gather(scope, flags, environment::variable, names).on_machine(Path::new("/"))
    }

    /// Takes settings from pairs of key and text only.
    pub(super) fn from_settings<'a>(
        scope: Scope,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut layers = Self::empty(scope);
        layers.read_settings(settings);
        layers
    }

    /// Collects the settings of `scope` for a program that uses this crate as a library: from pairs of key and text, and
    /// below them, if there is an `environment`, from its variables and the file that `TEESQL_CONFIG` names, except those
    /// that it hides. `defaults` are below all of them. The environment stays as it is.
    #[must_use]
    pub(crate) fn of_program<'a>(
        scope: Scope,
        environment: Option<ProgramEnvironment<'_>>,
        defaults: &[(&str, &str)],
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut layers = Self::empty(scope);
        layers.read_settings(defaults.iter().copied());
        if let Some(environment) = environment {
            let ProgramEnvironment {
                variable,
                names,
                hidden,
            } = environment;
            if let Some(file) = variable("TEESQL_CONFIG") {
                layers.read_toml(Path::new(&file));
            }
            layers.read_environment(&variable, names.into_iter());
            layers.entries.retain(|key, _| !hidden.contains(key));
        }
        layers.read_settings(settings);
        layers
    }

    /// The same, with a client certificate that no setting names.
    #[must_use]
    pub fn with_pem_identity(self, pem_identity: Option<Arc<PemIdentity>>) -> Self {
        Self {
            pem_identity,
            ..self
        }
    }

    fn read_settings<'a>(&mut self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (key, text) in settings {
            match find(key) {
                Some(spec) if self.scope.has(spec) => {
                    self.insert(spec, text.to_owned(), "setting".to_owned());
                }
                // A policy of a forwarder is also used to verify a quote.
                Some(spec) if self.scope == Scope::Criteria && Scope::Forward.has(spec) => {}
                Some(_) | None => self.errors.push(format!("{key}: unknown setting")),
            }
        }
    }

    /// Notes whether the machine with this root directory is a TDX guest.
    pub(super) fn on_machine(mut self, root: &Path) -> Self {
        self.is_tdx_guest = tdx_guest::is_tdx_guest(root);
        self
    }

    fn read_environment(
        &mut self,
        environment: &impl Fn(&str) -> Option<OsString>,
        names: impl Iterator<Item = String>,
    ) {
        for spec in self.scope.settings() {
            let (name, file_name) = (spec.variable(), spec.file_variable());
            let text = |errors: &mut Vec<String>, name: &str| {
                environment(name)?
                    .into_string()
                    .map_err(|_| errors.push(format!("environment {name}: not UTF-8")))
                    .ok()
            };
            let mut source = format!("environment {name}");
            let value = text(&mut self.errors, &name).or_else(|| {
                let alias = spec.env_alias?;
                let value = text(&mut self.errors, alias)?;
                // Other programs leave theirs empty if they do not need them, but an empty allow-list
                // is a mistake.
                if value.is_empty() && !matches!(spec.kind, Kind::List(_)) {
                    return None;
                }
                source = format!("environment {alias}");
                Some(value)
            });
            let file = spec
                .is_secret()
                .then(|| text(&mut self.errors, &file_name))
                .flatten();
            if value.is_some() && file.is_some() {
                self.errors
                    .push(format!("environment {name}: {file_name} is also set"));
            }
            if let Some(value) = value {
                self.insert(spec, value, source);
            } else if let Some(file) = file {
                let source = format!("environment {file_name}");
                self.insert_file(spec, Path::new(&file), &source);
            }
        }
        for name in names.filter(|name| is_unknown(name)) {
            self.warnings
                .push(format!("environment {name}: unknown setting"));
        }
    }

    fn read_flags(&mut self, flags: &ArgMatches) {
        for spec in self.scope.settings() {
            let Some(texts) = flags.get_many::<String>(&spec.flag_id()) else {
                continue;
            };
            let text = texts.map(String::as_str).collect::<Vec<_>>().join(",");
            let source = format!("flag --{}", spec.flag());
            if spec.is_secret() {
                self.insert_file(spec, Path::new(&text), &source);
            } else {
                self.insert(spec, text, source);
            }
        }
    }

    fn read_toml(&mut self, path: &Path) {
        let shown = path.display();
        let (text, private) = match read_config_file(path) {
            Ok((text, private)) => (Zeroizing::new(text), private),
            Err(error) => {
                self.errors
                    .push(format!("{shown}: cannot be read: {error}"));
                return;
            }
        };
        let table: Result<BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>>, _> =
            toml::from_str(&text);
        let table = match table {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(&text, span.start));
                // Only the message: the full error quotes the line, which may hold a secret.
                self.errors
                    .push(format!("{shown}:{line}: {}", error.message()));
                return;
            }
        };
        let mut table: Vec<_> = table.into_iter().collect();
        table.sort_by_key(|(key, _)| key.span().start);
        let mut seen = Vec::new();
        let mut holds_secret = false;
        for (key, value) in table {
            let source = format!("{shown}:{}", line_of(&text, key.span().start));
            let key = key.into_inner();
            holds_secret |= find(&key).is_some_and(Spec::is_secret);
            self.read_toml_entry(&key, value.into_inner(), source, &mut seen);
        }
        if holds_secret && let Err(error) = private {
            self.errors
                .push(format!("{shown}: holds a secret: {error}"));
        }
    }

    fn read_toml_entry(
        &mut self,
        key: &str,
        value: toml::Value,
        source: String,
        seen: &mut Vec<&'static str>,
    ) {
        let value = match value {
            toml::Value::Table(roles) if key == "roles" => {
                self.read_toml_roles(roles, &source, seen);
                return;
            }
            toml::Value::Table(cluster) if key == "cluster" => {
                for setting in settings_of_table(cluster) {
                    match setting {
                        Ok((key, value)) => self.read_toml_entry(key, value, source.clone(), seen),
                        Err(error) => self.errors.push(format!("{source}: {error}")),
                    }
                }
                return;
            }
            toml::Value::String(text) => text,
            value @ (toml::Value::Integer(_) | toml::Value::Boolean(_)) => value.to_string(),
            _ => {
                self.errors.push(format!(
                    "{source}: {key}: expected a string, an integer or a boolean"
                ));
                return;
            }
        };
        let plain = find(key);
        let from_file = key.strip_suffix("_file").and_then(find);
        let from_file = from_file.filter(|spec| spec.is_secret());
        let Some(spec) = plain.or(from_file) else {
            self.errors
                .push(format!("{source}: {key}: unknown setting"));
            return;
        };
        if seen.contains(&spec.key) {
            self.errors.push(format!(
                "{source}: {key}: {0} and {0}_file are both set",
                spec.key
            ));
        }
        seen.push(spec.key);
        if !self.scope.has(spec) {
            drop(Zeroizing::new(value));
        } else if plain.is_some() {
            self.insert(spec, value, source);
        } else {
            self.insert_file(spec, Path::new(&value), &source);
        }
    }

    /// Reads `[roles.teesql_read]` and `[roles.teesql_readwrite]` with a table `settings` in each, which
    /// is another form of `role_settings_read` and `role_settings_readwrite`.
    fn read_toml_roles(&mut self, roles: toml::Table, source: &str, seen: &mut Vec<&'static str>) {
        for (role, value) in roles {
            let key = match role.as_str() {
                "teesql_read" => "role_settings_read",
                "teesql_readwrite" => "role_settings_readwrite",
                _ => {
                    self.errors.push(format!(
                        "{source}: roles.{role}: expected teesql_read or teesql_readwrite"
                    ));
                    continue;
                }
            };
            let settings = match value {
                toml::Value::Table(mut table) if table.len() == 1 => table.remove("settings"),
                _ => None,
            };
            let options = match settings {
                Some(toml::Value::Table(settings)) => settings_as_options(&settings),
                _ => None,
            };
            match options {
                Some(options) => {
                    let value = toml::Value::String(options);
                    self.read_toml_entry(key, value, source.to_owned(), seen);
                }
                None => self.errors.push(format!(
                    "{source}: roles.{role}: expected settings = {{ name = \"value\", … }}"
                )),
            }
        }
    }

    fn insert(&mut self, spec: &'static Spec, text: String, source: String) {
        let text = Zeroizing::new(text);
        self.entries.insert(spec.key, Entry { text, source });
    }

    fn insert_file(&mut self, spec: &'static Spec, path: &Path, source: &str) {
        let shown = path.display();
        match read_secret(path) {
            Ok(text) => self.insert(spec, text, format!("{source}, file {shown}")),
            Err(error) => {
                self.unreadable.push(spec.key);
                self.errors
                    .push(format!("{source}: file {shown} cannot be read: {error}"));
            }
        }
    }

    /// The text of a setting and its source: as set, or the default.
    pub(super) fn text(&self, spec: &Spec) -> Option<(&str, &str)> {
        match self.entries.get(spec.key) {
            Some(entry) => Some((&entry.text, &entry.source)),
            None => self.default(spec),
        }
    }

    /// Where a setting was set; `None` if it has its default.
    pub(super) fn source(&self, spec: &Spec) -> Option<&str> {
        let entry = self.entries.get(spec.key)?;
        Some(&entry.source)
    }

    fn default(&self, spec: &Spec) -> Option<(&'static str, &'static str)> {
        if self.scope == Scope::Serve
            && self.simulator_mode()
            && let Some(text) = spec.simulator_default
        {
            return Some((text, "default in simulator mode"));
        }
        Some((spec.default_in(self.scope)?, "default"))
    }

    /// Whether an error about this setting is already recorded because its file cannot be read.
    pub(super) fn is_unreadable(&self, spec: &Spec) -> bool {
        self.unreadable.contains(&spec.key)
    }

    /// Whether `DSTACK_SIMULATOR_ENDPOINT` or `simulator_endpoint` is set.
    pub(super) fn simulator_mode(&self) -> bool {
        self.entries.contains_key(SIMULATOR_ENDPOINT.spec.key)
    }

    /// The effective settings, one `key = text  # source` per line, with secrets redacted.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut lines = String::new();
        for spec in self.scope.settings() {
            let (text, source) = match self.text(spec) {
                Some((_, source)) if spec.is_secret() => ("[redacted]", source),
                Some(found) => found,
                None => ("[not set]", "default"),
            };
            let _ = writeln!(lines, "{} = {text}  # {source}", spec.key);
        }
        lines
    }
}

/// The text of a TOML file, and whether only its owner can read it, which matters if it holds a secret.
fn read_config_file(path: &Path) -> std::io::Result<(String, std::io::Result<()>)> {
    use std::io::Read as _;
    let mut file = std::fs::File::open(path)?;
    let private = private_file::check(&file);
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, private))
}

/// Writes a table of settings of Postgres as in `PGOPTIONS`.
fn settings_as_options(settings: &toml::Table) -> Option<String> {
    let mut options = String::new();
    for (name, value) in settings {
        let value = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Boolean(true) => "on".to_owned(),
            toml::Value::Boolean(false) => "off".to_owned(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            _ => return None,
        };
        let _ = write!(options, "-c {}={} ", escape(name), escape(&value));
    }
    Some(options)
}

/// Escapes backslashes and white space as `PGOPTIONS` needs it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' || c.is_ascii_whitespace() {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn read_secret(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    private_file::open(path)?
        .take(MAX_SECRET_FILE)
        .read_to_string(&mut text)?;
    // Editors and `echo` end the file with a newline that is not part of the secret.
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    Ok(text)
}

fn is_unknown(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("TEESQL_") else {
        return false;
    };
    // `dev` sets TEESQL_DEV_… for the commands that it runs, and TEESQL_TEST_… is for the project's own tests.
    rest != "CONFIG"
        && !rest.starts_with("DEV_")
        && !rest.starts_with("TEST_")
        && !ALL
            .iter()
            .any(|spec| name == spec.variable() || spec.is_secret() && name == spec.file_variable())
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}
