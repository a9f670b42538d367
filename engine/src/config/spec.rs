//! The type of a setting: its spelling in the TOML file, the environment and the command line, its
//! parser, its defaults and its help.

use super::values::Parsed;

/// A setting whose text parses to a `T`.
///
/// All settings are declared in [`settings`](super::settings). Code can read a setting only through
/// its declaration, so that no key occurs twice and every value has one type.
pub(super) struct Setting<T: 'static> {
    pub(super) spec: Spec,
    pub(super) parse: fn(&str) -> Parsed<T>,
}

/// Everything about a setting except its type.
///
/// The TOML key is `key`, the environment variable `TEESQL_` and the key in capitals, the flag `--`
/// and the key with dashes. A secret has no flag, since `ps` shows command lines. It has a
/// `<key>_file` variant in all three places instead, which names a file with the secret in it.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub(super) key: &'static str,
    pub(super) group: Group,
    pub(super) kind: Kind,
    /// Which commands have it.
    pub(super) scopes: &'static [Scope],
    pub(super) default: Option<&'static str>,
    /// The forwarder's default, where it differs from the sidecar's.
    pub(super) forwarder_default: Option<&'static str>,
    /// The default of `serve` in simulator mode, where it differs.
    pub(super) simulator_default: Option<&'static str>,
    /// Another environment variable that is accepted. The variable named after the key takes
    /// precedence.
    pub(super) env_alias: Option<&'static str>,
    /// Another flag that `teesql-forward` accepts, without the dashes.
    pub(super) flag_alias: Option<&'static str>,
    /// Whether the sidecar applies a new value on SIGHUP. All others need a restart.
    pub(super) reloadable: bool,
    /// One or more sentences for `--help` and the reference page.
    pub(super) help: &'static str,
}

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `true` or `false`. The flag alone means `true`.
    Bool,
    /// A number with a unit, such as `500ms`.
    Duration,
    /// One value, described by this placeholder.
    One(&'static str),
    /// Values separated by commas. The flag may be repeated.
    List(&'static str),
    /// A text that is never shown.
    Secret,
}

/// Which settings a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `serve` and `check`: all settings of the sidecar.
    Serve,
    /// `verify`: the settings that decide which peers are accepted.
    Criteria,
    /// `provision` and `password`: the connection to Postgres and the passwords in it.
    Postgres,
    /// `ca`: the certificate and the guest agent that issues it.
    Agent,
    /// `secret`: the guest agent.
    Secret,
    /// `sessions` and `kill`: the control socket.
    Control,
    /// `manifest-address`: the key of the leader manifest, and the guest agent that derives it.
    Manifest,
    /// `teesql-forward`: all settings of the forwarder.
    Forward,
}

/// A topic. Help and the reference page list settings by group, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Listening,
    Postgres,
    Server,
    Identity,
    Secrets,
    Attestation,
    Cluster,
    Manifest,
    Limits,
    Http,
    Control,
    Log,
    Performance,
}

impl Group {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Listening => "Listening",
            Self::Postgres => "Postgres",
            Self::Server => "Server to connect to",
            Self::Identity => "Identity",
            Self::Secrets => "Secrets",
            Self::Attestation => "Attestation",
            Self::Cluster => "Cluster",
            Self::Manifest => "Leader manifest",
            Self::Limits => "Limits and timeouts",
            Self::Http => "HTTP",
            Self::Control => "Control socket",
            Self::Log => "Log",
            Self::Performance => "Performance",
        }
    }
}

impl Spec {
    /// What a declaration may leave out.
    pub(super) const OMITTED: Self = Self {
        key: "",
        group: Group::Listening,
        kind: Kind::Secret,
        scopes: &[],
        default: None,
        forwarder_default: None,
        simulator_default: None,
        env_alias: None,
        flag_alias: None,
        reloadable: false,
        help: "",
    };

    pub(super) fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    /// The value's placeholder, e.g. `HOST:PORT` or `HEX,…`.
    pub(super) fn placeholder(&self) -> String {
        match self.kind {
            Kind::Bool => "BOOL".to_owned(),
            Kind::Duration => "TIME".to_owned(),
            Kind::One(name) => name.to_owned(),
            Kind::List(name) => format!("{name},…"),
            Kind::Secret => "SECRET".to_owned(),
        }
    }

    pub(super) fn variable(&self) -> String {
        format!("TEESQL_{}", self.key.to_ascii_uppercase())
    }

    /// The variable that names a file, of a secret.
    pub(super) fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable())
    }

    /// What identifies the flag to clap.
    pub(super) fn flag_id(&self) -> String {
        if self.is_secret() {
            format!("{}_file", self.key)
        } else {
            self.key.to_owned()
        }
    }

    /// The flag without its two dashes.
    pub(super) fn flag(&self) -> String {
        self.flag_id().replace('_', "-")
    }

    /// The default in this scope, outside simulator mode.
    pub(super) fn default_in(&self, scope: Scope) -> Option<&'static str> {
        match scope {
            Scope::Forward => self.forwarder_default.or(self.default),
            Scope::Serve
            | Scope::Criteria
            | Scope::Postgres
            | Scope::Agent
            | Scope::Secret
            | Scope::Control
            | Scope::Manifest => self.default,
        }
    }
}

impl Scope {
    pub(super) fn has(self, spec: &Spec) -> bool {
        spec.scopes.contains(&self)
    }

    pub(super) fn settings(self) -> impl Iterator<Item = &'static Spec> {
        super::settings::ALL
            .iter()
            .copied()
            .filter(move |spec| self.has(spec))
    }
}
