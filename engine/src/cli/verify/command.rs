//! The flags of `verify`: its own, and those of the policy, which are the
//! sidecar's settings.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::Mistake;
use super::input::Kind;
use super::server::{self, Opening};
use crate::config::{Scope, parse_duration, with_flags};
use crate::tls::certificate::Identity;

const AFTER_HELP: &str = "\
Exit codes:
   0  accepted
   1  refused; the last line says why
   2  a genuine quote or attestation that is bound to nobody's certificate
  64  the command line or a setting is wrong
  66  a file cannot be read, or holds nothing of the kind
  69  no verdict: the server or the collateral is not to be had";

/// How the report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// What the command line says, besides the policy.
pub(super) struct Options {
    pub(super) name: String,
    pub(super) kind: Option<Kind>,
    pub(super) server: server::Options,
    pub(super) collateral: Option<PathBuf>,
    pub(super) at: Option<u64>,
    pub(super) format: Format,
}

/// The subcommand.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("verify")
        .about("Say whether a certificate, server or quote would be let in, and why")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("subject")
                .value_name("FILE|HOST:PORT")
                .required(true)
                .help("Certificates (PEM or DER), a quote or attestation (binary or hex), or a server"),
        )
        .arg(
            Arg::new("as")
                .long("as")
                .value_name("KIND")
                .value_parser(PossibleValuesParser::new(Kind::NAMES))
                .help("What it is, where its name or first bytes do not say"),
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["text", "json"]))
                .default_value("text")
                .help("How the report is written"),
        )
        .arg(
            Arg::new("at")
                .long("at")
                .value_name("SECONDS")
                .value_parser(clap::value_parser!(u64))
                .help("Judge as of this unix time [default: now]"),
        )
        .arg(
            Arg::new("collateral")
                .long("collateral")
                .value_name("FILE")
                .help("Judge with this collateral (JSON) instead of asking --pccs"),
        );
    with_flags(with_server(command), Scope::Criteria)
}

fn with_server(command: Command) -> Command {
    command
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(parse_duration)
                .default_value("5s")
                .help("For everything with a server, from its name to the end of the handshake"),
        )
        .arg(
            Arg::new("raw_tls")
                .long("raw-tls")
                .action(ArgAction::SetTrue)
                .conflicts_with("ssl_request")
                .help("Open with a TLS ClientHello at once"),
        )
        .arg(
            Arg::new("ssl_request")
                .long("ssl-request")
                .action(ArgAction::SetTrue)
                .help("Open with SSLRequest, and do not try without [default: SSLRequest, then a ClientHello]"),
        )
        .arg(
            Arg::new("client_cert")
                .long("client-cert")
                .value_name("FILE")
                .requires("client_key")
                .help("What to show a server that asks for a certificate, PEM"),
        )
        .arg(
            Arg::new("client_key")
                .long("client-key")
                .value_name("FILE")
                .requires("client_cert")
                .help("Its private key, PEM"),
        )
}

impl Options {
    pub(super) fn read(flags: &ArgMatches) -> Result<Self, Mistake> {
        let text = |name: &str| flags.get_one::<String>(name);
        let identity = match (text("client_cert"), text("client_key")) {
            (Some(cert), Some(key)) => Some(
                Identity::from_files(Path::new(cert), Path::new(key))
                    .map_err(|error| Mistake::no_input(error.to_string()))?
                    .certified()
                    .clone(),
            ),
            _ => None,
        };
        let opening = match (flags.get_flag("raw_tls"), flags.get_flag("ssl_request")) {
            (true, _) => Opening::RawTls,
            (false, true) => Opening::SslRequest,
            (false, false) => Opening::Either,
        };
        Ok(Self {
            name: text("subject").cloned().unwrap_or_default(),
            kind: text("as").and_then(|name| Kind::from_name(name)),
            server: server::Options {
                opening,
                timeout: flags
                    .get_one("timeout")
                    .copied()
                    .unwrap_or(server::DEFAULT_TIMEOUT),
                identity,
            },
            collateral: text("collateral").map(PathBuf::from),
            at: flags.get_one("at").copied(),
            format: match text("format").map(String::as_str) {
                Some("json") => Format::Json,
                _ => Format::Text,
            },
        })
    }
}
