//! Shell completions, by clap_complete, where Debian's shells look for them.

use clap::Command;
use clap_complete::{Shell, generate};

/// The scripts for bash, zsh and fish, each with its path from the root.
pub(crate) fn scripts(command: &Command) -> [(String, Vec<u8>); 3] {
    let name = command.get_name().to_owned();
    let script = |shell| {
        let mut text = Vec::new();
        generate(shell, &mut without_hidden(command), &name, &mut text);
        text
    };
    [
        (
            format!("usr/share/bash-completion/completions/{name}"),
            fix_labels(&name, script(Shell::Bash)),
        ),
        (
            format!("usr/share/zsh/vendor-completions/_{name}"),
            script(Shell::Zsh),
        ),
        (
            format!("usr/share/fish/vendor_completions.d/{name}.fish"),
            script(Shell::Fish),
        ),
    ]
}

/// clap_complete 4.6 sets `a__b__subcmd__x` for the command x of the program a-b, and has a case for `a__subcmd__b__subcmd__x`.
fn fix_labels(name: &str, script: Vec<u8>) -> Vec<u8> {
    let script = String::from_utf8_lossy(&script);
    let wrong = format!("{}__subcmd__", name.replace('-', "__subcmd__"));
    let right = format!("{}__subcmd__", name.replace('-', "__"));
    script.replace(&wrong, &right).into_bytes()
}

/// The same commands and arguments without the hidden ones, which clap_complete offers too.
fn without_hidden(command: &Command) -> Command {
    let arguments = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set());
    let subcommands = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut visible = Command::new(command.get_name().to_owned())
        .args(arguments.cloned())
        .subcommands(subcommands.map(without_hidden));
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        visible = visible.version(version.to_owned());
    }
    visible
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn scripts_have_what_is_visible_and_nothing_hidden() {
        let inner = Command::new("shown").about("Says it");
        let inner = inner.arg(Arg::new("flag").long("shown-flag"));
        let inner = inner.arg(Arg::new("secret").long("hidden-flag").hide(true));
        let command = Command::new("program")
            .version("1")
            .subcommand(inner)
            .subcommand(Command::new("concealed").hide(true));
        for (path, script) in scripts(&command) {
            let script = String::from_utf8(script).unwrap();
            for shown in ["shown", "shown-flag", "version"] {
                assert!(script.contains(shown), "{path}: {shown}");
            }
            for hidden in ["hidden-flag", "concealed"] {
                assert!(!script.contains(hidden), "{path}: {hidden}");
            }
        }
    }
    #[test]
    fn bash_has_a_case_for_every_command() {
        let inner = Command::new("one-two").subcommand(Command::new("three-four"));
        let command = Command::new("program-name").subcommand(inner);
        let [(_, bash), ..] = scripts(&command);
        let bash = String::from_utf8(bash).unwrap();
        let set = bash.lines().filter_map(|line| {
            let line = line.trim().strip_prefix("cmd=\"")?;
            line.strip_suffix('"').filter(|cmd| !cmd.is_empty())
        });
        let set: Vec<_> = set.collect();
        assert!(set.len() >= 3, "{set:?}");
        for cmd in set {
            let is_label = |line: &str| line.trim().strip_suffix(')') == Some(cmd);
            assert!(bash.lines().any(is_label), "{cmd}");
        }
    }
}
