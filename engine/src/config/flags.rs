//! The command-line flags of the settings.

use clap::{Arg, ArgAction, Command, ValueHint};

use super::spec::{Kind, Scope, Spec};

/// Adds `--config` and a flag for each setting of `scope` to `command`. The flag of a secret names a
/// file.
#[must_use]
pub fn with_flags(command: Command, scope: Scope) -> Command {
    let command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_hint(ValueHint::FilePath)
            .help("TOML file with any of these settings [env: TEESQL_CONFIG]"),
    );
    scope
        .settings()
        .fold(command, |command, spec| command.arg(flag(spec, scope)))
}

fn flag(spec: &Spec, scope: Scope) -> Arg {
    let alias = spec.flag_alias.filter(|_| scope == Scope::Forward);
    let flag = Arg::new(spec.flag_id())
        .long(spec.flag())
        .visible_aliases(alias)
        .value_hint(hint(spec))
        .help(help(spec, scope))
        .help_heading(spec.group.title());
    match spec.kind {
        Kind::Secret => flag.value_name("FILE"),
        // `--provision` means `--provision true`.
        Kind::Bool => flag
            .value_name("BOOL")
            .num_args(0..=1)
            .default_missing_value("true"),
        Kind::List(_) => flag
            .value_name(spec.placeholder())
            .action(ArgAction::Append),
        Kind::Duration | Kind::One(_) => flag.value_name(spec.placeholder()),
    }
}

/// What a shell completes as the value.
fn hint(spec: &Spec) -> ValueHint {
    match spec.kind {
        Kind::Secret | Kind::One("FILE") | Kind::List("FILE") => ValueHint::FilePath,
        Kind::One("DIR") => ValueHint::DirPath,
        Kind::One("PATH") => ValueHint::AnyPath,
        Kind::Bool | Kind::Duration | Kind::One(_) | Kind::List(_) => ValueHint::Other,
    }
}

/// The help sentence, followed by the environment variables, the default and whether SIGHUP reloads it.
fn help(spec: &Spec, scope: Scope) -> String {
    let mut help = format!("{} [env: {}", spec.help, spec.variable());
    if spec.is_secret() {
        help.push_str("[_FILE]");
    }
    if let Some(alias) = spec.env_alias {
        help.push_str(", ");
        help.push_str(alias);
    }
    help.push(']');
    if let Some(default) = spec.default_in(scope).filter(|text| !text.is_empty()) {
        help.push_str(" [default: ");
        help.push_str(default);
        help.push(']');
    }
    if spec.reloadable && scope == Scope::Serve {
        help.push_str(" [reload: SIGHUP]");
    }
    help
}
