//! The flags of `verify`: its own, and the sidecar's settings that make up the policy.

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::error::UsageError;
use super::input::Kind;
use crate::config::{Scope, parse_duration, with_flags};
use crate::tls::certificate::Identity;
use crate::tls::probe::{self, Opening};

const AFTER_HELP: &str = "\
Exit codes:
   0  accepted
   1  refused; the last line says why
   2  a genuine and allowed quote or attestation, without a certificate that it is bound to
  64  the command line or a setting is wrong
  66  a file cannot be read, or does not contain what was expected
  69  no verdict: the server or the collateral is unavailable";

/// The format of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
    /// Entries of a policy file, if the peer is genuine.
    Policy,
}

/// The flags of `verify` itself.
pub(super) struct Options {
    pub(super) subject: String,
    pub(super) kind: Option<Kind>,
    pub(super) server: probe::Options,
    pub(super) collateral: Option<PathBuf>,
    pub(super) at: Option<u64>,
    pub(super) format: Format,
}

/// The subcommand.
#[must_use]
pub fn command() -> Command {
    let command = Command::new("verify")
        .about("Verify a certificate, server or quote like the gate, and report every check")
        .after_help(AFTER_HELP)
        .arg(
            Arg::new("subject")
                .value_name("FILE|HOST:PORT")
                .required(true)
                .help("A file with certificates (PEM or DER), a quote or an attestation (binary or hex), or a server"),
        )
        .arg(
            Arg::new("as")
                .long("as")
                .value_name("KIND")
                .value_parser(PossibleValuesParser::new(Kind::NAMES))
                .help("What it is, if its name and first bytes are ambiguous"),
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .value_parser(PossibleValuesParser::new(["text", "json"]))
                .default_value("text")
                .help("Format of the report"),
        )
        .arg(
            Arg::new("print_policy")
                .long("print-policy")
                .action(ArgAction::SetTrue)
                .conflicts_with("format")
                .help("Print the [[os]] and [[peer]] of a policy file that admit what the peer has proved, whatever the allow-lists say"),
        )
        .arg(
            Arg::new("at")
                .long("at")
                .value_name("SECONDS")
                .value_parser(clap::value_parser!(u64))
                .help("Verify as of this Unix time, in seconds [default: now]"),
        )
        .arg(
            Arg::new("collateral")
                .long("collateral")
                .value_name("FILE")
                .help("Use the collateral in this JSON file instead of requesting it from --pccs"),
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
                .help("Time limit for a server, from name resolution to the end of the TLS handshake"),
        )
        .arg(
            Arg::new("raw_tls")
                .long("raw-tls")
                .action(ArgAction::SetTrue)
                .conflicts_with("ssl_request")
                .help("Connect with a TLS ClientHello, without SSLRequest"),
        )
        .arg(
            Arg::new("ssl_request")
                .long("ssl-request")
                .action(ArgAction::SetTrue)
                .help("Connect with SSLRequest only [default: SSLRequest, then a ClientHello on a new connection]"),
        )
        .arg(
            Arg::new("client_cert")
                .long("client-cert")
                .value_name("FILE")
                .requires("client_key")
                .help("Certificate chain to present if the server requests one (PEM)"),
        )
        .arg(
            Arg::new("client_key")
                .long("client-key")
                .value_name("FILE")
                .requires("client_cert")
                .help("Private key of --client-cert (PEM)"),
        )
}

impl Options {
    pub(super) fn read(flags: &ArgMatches) -> Result<Self, UsageError> {
        let text = |name: &str| flags.get_one::<String>(name);
        let identity = match (text("client_cert"), text("client_key")) {
            (Some(cert), Some(key)) => Some(
                Identity::from_files(Path::new(cert), Path::new(key))
                    .map_err(|error| UsageError::no_input(error.to_string()))?
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
            subject: text("subject").cloned().unwrap_or_default(),
            kind: text("as").and_then(|name| Kind::from_name(name)),
            server: probe::Options {
                opening,
                alpn: true,
                timeout: flags
                    .get_one("timeout")
                    .copied()
                    .unwrap_or(probe::DEFAULT_TIMEOUT),
                identity,
            },
            collateral: text("collateral").map(PathBuf::from),
            at: flags.get_one("at").copied(),
            format: match text("format").map(String::as_str) {
                _ if flags.get_flag("print_policy") => Format::Policy,
                Some("json") => Format::Json,
                _ => Format::Text,
            },
        })
    }
}
