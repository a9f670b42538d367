//! `teesql-sidecar sessions` and `kill`: list the connections of the sidecar on this machine, and end some of them, over its control
//! socket.
//!
//! Names that clients choose must never reach the terminal as they are: a database may be called like an escape sequence.

mod client;
mod table;

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use crate::app::sidecar::control_socket::protocol::{MAX_IDS, Request};
use crate::cli::output::{CommandOutput, EX_UNAVAILABLE, EX_USAGE};
use crate::config::{ControlConfig, Layers, Scope, with_flags};
use client::Answer;

/// Exit code of `kill` if no connection has ended.
const NOTHING_ENDED: u8 = 1;

/// The subcommand `sessions`.
#[must_use]
pub fn list_command() -> Command {
    let command = Command::new("sessions").about(
        "List who is connected to the sidecar on this machine: sessions, logins and links between members",
    );
    with_flags(command, Scope::Control)
        .arg(peer_flag("Only connections of this app id"))
        .arg(json_flag())
}

/// The subcommand `kill`.
#[must_use]
pub fn kill_command() -> Command {
    let command = Command::new("kill").about(
        "End connections to the sidecar on this machine: clients receive SQLSTATE 57P01 (admin_shutdown)",
    );
    with_flags(command, Scope::Control)
        .arg(
            Arg::new("id")
                .value_name("ID")
                .num_args(1..)
                .required_unless_present("peer")
                .value_parser(clap::value_parser!(u64))
                .help("Number of the connection, as `sessions` shows it"),
        )
        .arg(peer_flag(
            "End the connections of this app id; with ID, only those of them that have this app id",
        ))
        .arg(json_flag())
}

fn peer_flag(help: &'static str) -> Arg {
    Arg::new("peer")
        .long("peer")
        .value_name("APP_ID")
        .value_parser(app_id)
        .help(help)
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print one JSON object per line, with all fields")
}

fn app_id(text: &str) -> Result<String, String> {
    let parsed = text.parse::<attest::values::AppId>();
    parsed
        .map(|_| text.to_owned())
        .map_err(|_| "expected 40 hex characters".to_owned())
}

/// Executes `sessions`.
#[must_use]
pub fn list(flags: &ArgMatches) -> CommandOutput {
    let app_id = flags.get_one::<String>("peer").cloned();
    run(flags, &Request::Sessions { app_id }, |answer| {
        print(flags, answer)
    })
}

/// Executes `kill`.
#[must_use]
pub fn kill(flags: &ArgMatches) -> CommandOutput {
    let ids = flags.get_many::<u64>("id");
    let ids: Option<Vec<u64>> = ids.map(|ids| ids.copied().collect());
    if ids.as_ref().is_some_and(|ids| ids.len() > MAX_IDS) {
        let error = format!("at most {MAX_IDS} connections at once: call it several times");
        return CommandOutput::error(EX_USAGE, error);
    }
    let app_id = flags.get_one::<String>("peer").cloned();
    run(flags, &Request::Kill { ids, app_id }, |answer| {
        // Only if it is known: a shard that has not answered may have ended some.
        let nothing = answer.complete && answer.connections.is_empty();
        let output = print(flags, answer);
        match nothing {
            true => output.with_errors(
                NOTHING_ENDED,
                &["no such connection: nothing was ended".to_owned()],
            ),
            false => output,
        }
    })
}

fn run(
    flags: &ArgMatches,
    request: &Request,
    print: impl FnOnce(&Answer) -> CommandOutput,
) -> CommandOutput {
    let layers = Layers::from_process(Scope::Control, flags);
    let config = match ControlConfig::from_layers(&layers) {
        Ok(config) => config,
        Err(errors) => return CommandOutput::errors(EX_USAGE, &errors.0),
    };
    let Some(path) = config.socket.path() else {
        let error = "control_socket is off: the sidecar has none".to_owned();
        return CommandOutput::error(EX_USAGE, error);
    };
    let output = match client::ask(path, request) {
        Ok(answer) if answer.complete => print(&answer),
        Ok(answer) => print(&answer).with_errors(EX_UNAVAILABLE, &[incomplete(request).to_owned()]),
        Err(error) => CommandOutput::error(error.exit_code(), error.to_string()),
    };
    output.with_warnings(&config.warnings)
}

/// What it means that a shard has not answered.
fn incomplete(request: &Request) -> &'static str {
    match request {
        Request::Sessions { .. } => "the list is incomplete: a shard has not answered within 5 s",
        Request::Kill { .. } => {
            "a shard has not answered within 5 s: connections of it may remain. Call it again"
        }
    }
}

fn print(flags: &ArgMatches, answer: &Answer) -> CommandOutput {
    let text = match flags.get_flag("json") {
        true => answer.connections.iter().map(json_line).collect(),
        false => table::table(&answer.connections),
    };
    // The reader may be `head`.
    CommandOutput::text(text).best_effort()
}

/// JSON leaves characters as they are that a terminal may interpret, such as those that change the direction of writing. Here it
/// is ASCII.
fn json_line(connection: &Value) -> String {
    let mut line = String::new();
    for char in connection.to_string().chars() {
        match char {
            ' '..='~' => line.push(char),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_json_line_is_ascii_without_control_characters() {
        let name = "a\u{1b}[31m\u{9b}31m\n\u{202e}\u{7f}\u{1f600}";
        let line = json_line(&json!({ "database": name }));
        let text = line.trim_end_matches('\n');
        assert!(
            text.chars().all(|char| matches!(char, ' '..='~')),
            "{text:?}"
        );
        let parsed: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["database"], name);
    }

    #[test]
    fn the_error_about_a_silent_shard_is_that_of_the_command() {
        let kill = Request::Kill {
            ids: Some(vec![1]),
            app_id: None,
        };
        assert!(incomplete(&kill).contains("connections of it may remain"));
        let list = Request::Sessions { app_id: None };
        assert!(incomplete(&list).contains("the list is incomplete"));
    }

    #[test]
    fn kill_needs_a_connection_or_a_peer() {
        let parse = |arguments: &[&str]| {
            let all = [&["kill"], arguments].concat();
            kill_command().try_get_matches_from(all)
        };
        let peer = "5a".repeat(20);
        assert!(parse(&[]).is_err());
        assert!(parse(&["x"]).is_err());
        assert!(parse(&["--peer", "5a"]).is_err());
        let ids = parse(&["1", "17", "--peer", &peer]).unwrap();
        let ids: Vec<u64> = ids.get_many("id").unwrap().copied().collect();
        assert_eq!(ids, [1, 17]);
        assert!(parse(&["--peer", &peer]).is_ok());
    }
}
