//! `teesql-forward manifest sign | verify`: signs and verifies leader manifests, for operators and
//! tests.

use std::path::Path;

use attest::manifest::{
    EthAddress, LeaderInstance, LeaderUrl, MAX_MANIFEST_LEN, Manifest, ManifestPolicy, SigningKey,
    UnsignedManifest,
};
use clap::{Arg, ArgMatches, Command};
use zeroize::Zeroizing;

use crate::cli::output::{CommandOutput, EX_NOINPUT, EX_OSERR, EX_USAGE};
use crate::io::clock::unix_now;
use crate::io::private_file;

/// Exit code if the manifest is refused.
const REFUSED: u8 = 1;
/// Maximum bytes of a string in a TXT record. [RFC 1035, 3.3]
const MAX_CHUNK: usize = 255;

/// The subcommand `manifest`.
#[must_use]
pub fn command() -> Command {
    let required = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .required(true)
            .help(help)
    };
    let at = Arg::new("at")
        .long("at")
        .value_name("SECONDS")
        .value_parser(clap::value_parser!(u64))
        .help("Verify as of this Unix time, in seconds [default: now]");
    Command::new("manifest")
        .about("Sign or verify a leader manifest")
        .subcommand_required(true)
        .subcommand(
            Command::new("sign")
                .about(
                    "Print a signed manifest: the text of the TXT record at _teesql-leader.DOMAIN",
                )
                .args([
                    required("key", "FILE", "File with the signing key: 64 hex digits"),
                    required(
                        "cluster",
                        "ADDRESS",
                        "Ethereum address of the cluster: 0x and 40 hex digits",
                    ),
                    required("leader-instance", "HEX", "Instance id of the leader"),
                    required("leader-url", "URL", "URL of the leader"),
                    required(
                        "epoch",
                        "N",
                        "Number that increases with each change of leader",
                    )
                    .value_parser(clap::value_parser!(u64)),
                    required(
                        "valid-until",
                        "SECONDS",
                        "Unix time at which the manifest expires",
                    )
                    .value_parser(clap::value_parser!(u64)),
                    Arg::new("chunks")
                        .long("chunks")
                        .action(clap::ArgAction::SetTrue)
                        .help("Print quoted strings of at most 255 bytes, for a zone file"),
                ]),
        )
        .subcommand(
            Command::new("verify")
                .about("Verify a manifest, given as text or as - for standard input")
                .arg(Arg::new("text").value_name("TEXT").required(true))
                .arg(required(
                    "signer",
                    "ADDRESS",
                    "Ethereum address of the required signer: 0x and 40 hex digits",
                ))
                .arg(at),
        )
}

/// Executes `manifest`.
#[must_use]
pub fn execute(flags: &ArgMatches) -> CommandOutput {
    let result = match flags.subcommand() {
        Some(("sign", flags)) => sign(flags),
        Some(("verify", flags)) => verify(flags),
        _ => Err(CommandOutput::error(
            EX_USAGE,
            "expected sign or verify".to_owned(),
        )),
    };
    result.unwrap_or_else(|failed| failed)
}

fn parse_flag<T: std::str::FromStr<Err: ToString>>(
    flags: &ArgMatches,
    name: &str,
) -> Result<T, CommandOutput> {
    let text = flags.get_one::<String>(name).map_or("", String::as_str);
    text.parse().map_err(|error: T::Err| {
        CommandOutput::error(EX_USAGE, format!("--{name}: {}", error.to_string()))
    })
}

fn number_flag(flags: &ArgMatches, name: &str) -> u64 {
    flags.get_one(name).copied().unwrap_or_default()
}

fn sign(flags: &ArgMatches) -> Result<CommandOutput, CommandOutput> {
    let file = flags.get_one::<String>("key").map_or("", String::as_str);
    let key_error = |error: &dyn std::fmt::Display| {
        CommandOutput::error(EX_NOINPUT, format!("{file}: {error}"))
    };
    let text = private_file::read(Path::new(file)).and_then(|bytes| {
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| std::io::Error::other("not UTF-8"));
        text.map(Zeroizing::new)
    });
    let key = SigningKey::from_hex(&text.map_err(|error| key_error(&error))?);
    let key = key.map_err(|error| key_error(&error))?;
    let draft = UnsignedManifest {
        cluster: parse_flag::<EthAddress>(flags, "cluster")?,
        leader_instance: parse_flag::<LeaderInstance>(flags, "leader-instance")?,
        leader_url: parse_flag::<LeaderUrl>(flags, "leader-url")?,
        epoch: number_flag(flags, "epoch"),
        valid_until: number_flag(flags, "valid-until"),
    };
    let signed = draft.sign(&key);
    let signed = signed.map_err(|error| CommandOutput::error(EX_OSERR, error.to_string()))?;
    let text = match flags.get_flag("chunks") {
        false => signed,
        true => quoted_chunks(&signed),
    };
    Ok(CommandOutput::text(text + "\n"))
}

/// Splits a text into quoted strings for a zone file. The text must contain no quotes or backslashes.
fn quoted_chunks(text: &str) -> String {
    let mut rest = text;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let (chunk, remainder) = rest.split_at_checked(MAX_CHUNK).unwrap_or((rest, ""));
        chunks.push(format!("\"{chunk}\""));
        rest = remainder;
    }
    chunks.join(" ")
}

fn verify(flags: &ArgMatches) -> Result<CommandOutput, CommandOutput> {
    let signer = parse_flag::<EthAddress>(flags, "signer")?;
    let now = flags.get_one("at").copied().unwrap_or_else(unix_now);
    let text = match flags.get_one::<String>("text").map_or("", String::as_str) {
        "-" => {
            standard_input().map_err(|error| CommandOutput::error(EX_NOINPUT, error.to_string()))?
        }
        text => text.to_owned(),
    };
    let refused = |error: attest::manifest::ManifestError| {
        CommandOutput::error(REFUSED, format!("{error} ({})", error.code()))
    };
    let unverified = Manifest::parse(text.trim_ascii()).map_err(refused)?;
    // No limit on the expiry: that is a setting of the forwarder.
    let policy = ManifestPolicy {
        max_validity: None,
        ..ManifestPolicy::for_signer(signer)
    };
    let manifest = unverified.verify(&policy, now).map_err(refused)?;
    Ok(CommandOutput::text(format!(
        "cluster = {}\nleader_instance = {}\nleader_url = {}\ntarget = {}:{}\nepoch = {}\nvalid_until = {}\n",
        manifest.cluster(),
        manifest.leader_instance(),
        manifest.leader_url().as_str(),
        manifest.target().host(),
        manifest.target().port(),
        manifest.epoch(),
        manifest.valid_until(),
    )))
}

fn standard_input() -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let limit = u64::try_from(MAX_MANIFEST_LEN)
        .unwrap_or(u64::MAX)
        .saturating_add(2);
    std::io::stdin().take(limit).read_to_string(&mut text)?;
    Ok(text)
}
