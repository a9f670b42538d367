//! `teesql-sidecar audit verify`: checks the hash chain of an audit log.
//!
//! It reads the files as a stream, so that their size does not matter.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli::output::{CommandOutput, EX_DATAERR, EX_NOINPUT, EX_USAGE};
use crate::telemetry::audit::chain::{BadLine, Head, LineHash, MAX_LINE, Summary, Verification};

/// The subcommand `audit`.
#[must_use]
pub fn command() -> Command {
    Command::new("audit")
        .about("Check an audit log")
        .subcommand_required(true)
        .subcommand(
            Command::new("verify")
                .about("Check that no line of an audit log was changed, removed or inserted")
                .arg(
                    Arg::new("file")
                        .value_name("FILE")
                        .required(true)
                        .action(ArgAction::Append)
                        .help("The files of one log, oldest first; - is standard input"),
                )
                .arg(
                    Arg::new("contains")
                        .long("contains")
                        .value_name("HASH")
                        .help("Hash of a line that must be there: 64 hex digits, as kept from an earlier check"),
                ),
        )
}

/// Executes `audit`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    match flags.subcommand() {
        Some(("verify", flags)) => verify(flags),
        _ => CommandOutput::error(EX_USAGE, "expected verify".to_owned()),
    }
}

fn verify(flags: &ArgMatches) -> CommandOutput {
    let wanted = match flags.get_one::<String>("contains").map(|text| text.parse()) {
        None => None,
        Some(Ok(hash)) => Some(hash),
        Some(Err(error)) => {
            return CommandOutput::error(EX_USAGE, format!("--contains: {error}"));
        }
    };
    let names = flags.get_many::<String>("file").into_iter().flatten();
    match verify_files(names, wanted) {
        Ok((summary, head)) => report(&summary, head, wanted),
        Err(Failure::Bad { place, fault }) => {
            CommandOutput::error(EX_DATAERR, format!("{place}: {fault}"))
        }
        Err(Failure::Unreadable { file, error }) => {
            CommandOutput::error(EX_NOINPUT, format!("{file}: {error}"))
        }
    }
}

/// Why a log was not verified.
enum Failure {
    /// The first bad line.
    Bad {
        place: String,
        fault: BadLine,
    },
    Unreadable {
        file: String,
        error: io::Error,
    },
}

fn verify_files<'a>(
    names: impl Iterator<Item = &'a String>,
    wanted: Option<LineHash>,
) -> Result<(Summary, Option<Head>), Failure> {
    let mut verification = Verification::new(wanted);
    let mut last = FileEnd::default();
    for (index, name) in names.enumerate() {
        if index > 0 {
            let ended = verification.next_file(&last.rest);
            ended.map_err(|fault| last.failure(fault))?;
        }
        let unreadable = |error| Failure::Unreadable {
            file: name.clone(),
            error,
        };
        let mut input: Box<dyn BufRead> = match name.as_str() {
            "-" => Box::new(io::stdin().lock()),
            path => Box::new(BufReader::new(
                File::open(Path::new(path)).map_err(unreadable)?,
            )),
        };
        last = FileEnd {
            name: name.clone(),
            line: 0,
            damaged: None,
            rest: Vec::new(),
        };
        loop {
            let mut line = std::mem::take(&mut last.rest);
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            let mut limited = Read::by_ref(&mut input).take(limit.saturating_add(2));
            let read = limited.read_until(b'\n', &mut line).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            last.line = last.line.saturating_add(1);
            if line.last() != Some(&b'\n') {
                if line.len() > MAX_LINE {
                    return Err(last.failure(BadLine::TooLong));
                }
                last.rest = line;
                break;
            }
            line.pop();
            last.take_line(&mut verification, &line)?;
        }
    }
    let ended = verification.finish(&last.rest);
    ended.map_err(|fault| last.failure(fault))
}

/// A file up to the line that is read now.
#[derive(Default)]
struct FileEnd {
    name: String,
    line: u64,
    /// The first of the lines that cannot be read, until one notes them.
    damaged: Option<u64>,
    /// Bytes after the last line end.
    rest: Vec<u8>,
}

impl FileEnd {
    fn take_line(&mut self, verification: &mut Verification, line: &[u8]) -> Result<(), Failure> {
        match verification.line(line) {
            Ok(()) if verification.is_damaged() => {
                self.damaged.get_or_insert(self.line);
                Ok(())
            }
            Ok(()) => {
                self.damaged = None;
                Ok(())
            }
            Err(fault) => Err(self.failure(fault)),
        }
    }

    /// The fault of a damaged line is found at a later one.
    fn failure(&self, fault: BadLine) -> Failure {
        let line = self.damaged.unwrap_or(self.line);
        Failure::Bad {
            place: format!("{}:{line}", self.name),
            fault,
        }
    }
}

fn report(summary: &Summary, head: Option<Head>, wanted: Option<LineHash>) -> CommandOutput {
    let Some((head, (first, first_time), (last, last_time))) = head
        .zip(summary.first.clone())
        .zip(summary.last.clone())
        .map(|((head, first), last)| (head, first, last))
    else {
        return CommandOutput::error(EX_DATAERR, "there is no line".to_owned());
    };
    if let (Some(hash), false) = (wanted, summary.has_wanted) {
        let error = format!(
            "no line has the hash {hash}: the log was rewritten, or its newest lines were removed"
        );
        return CommandOutput::error(EX_DATAERR, error);
    }
    let mut text = format!(
        "lines {first} to {last}, {first_time} to {last_time}: no line was changed, removed or inserted\n"
    );
    if first > 1 {
        text += &format!("the lines before {first} are not in these files\n");
    }
    if summary.gaps > 0 {
        text += &format!(
            "gaps: {}, with {} lost lines, {} of them written incompletely\n",
            summary.gaps, summary.lost, summary.torn
        );
    }
    text += &format!("hash of the last line: {}\n", head.hash);
    CommandOutput::text(text)
}
