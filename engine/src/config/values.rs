//! Parsers of setting values.
//!
//! An error says what was expected. It must never repeat the value, which may be a secret: the caller
//! adds the values of all other settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use attest::TrustedRoot;
use attest::collateral::{Collateral, Source};
use attest::ita::ApiKey;
use attest::policy::TcbStatuses;
use tracing_subscriber::EnvFilter;
use wire::scram::Password;
use wire::secret::ClusterSecret;

use super::Listen;
use super::connection_uri::DatabaseUrl;
use super::postgres::PostgresLocation;
use crate::io::peer_uid::AllowedUids;
use crate::io::stream::PgAddress;
use crate::io::target::MAX_TARGETS;
use crate::postgres::session_address::socket_file;
use crate::sched::busy_poll::BusyPollMode;

/// Postgres' default port.
const DEFAULT_PORT: u16 = 5432;

pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn from_str<T: FromStr<Err: ToString>>(text: &str) -> Parsed<T> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// `true` for `auto`.
pub(super) fn auto_or_off(text: &str) -> Parsed<bool> {
    match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected auto or off".to_owned()),
    }
}

pub(super) fn listen(text: &str) -> Parsed<SocketAddr> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    address
        .parse()
        .map_err(|_| "expected an IP address and a port, e.g. 0.0.0.0:5433".to_owned())
}

pub(super) fn listen_or_off(text: &str) -> Parsed<Option<SocketAddr>> {
    match text {
        "off" => Ok(None),
        text => listen(text).map(Some).map_err(|error| error + ", or off"),
    }
}

/// A loopback address or a Unix socket. Any client of the forwarder uses the forwarder's
/// certificate towards the server, so only this machine may connect.
pub(super) fn local_listen(text: &str) -> Parsed<Listen> {
    match postgres_address(text)? {
        PgAddress::Unix(path) => Ok(Listen::Unix(path)),
        PgAddress::Tcp(address) if address.ip().is_loopback() => Ok(Listen::Tcp(address)),
        PgAddress::Tcp(_) => {
            Err("expected a loopback address, since connections to it are not encrypted".into())
        }
    }
}

/// `host:port`. An IPv6 address is in brackets.
pub(super) fn target(text: &str) -> Parsed<(String, u16)> {
    let wrong = || "expected HOST:PORT, e.g. db.example:5433".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(wrong)?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    match rustls::pki_types::ServerName::try_from(host) {
        Ok(_) if bare.is_some() || !host.contains(':') => Ok((host.to_owned(), port)),
        _ => Err(wrong()),
    }
}

/// One or more of [`target`], separated by commas.
pub(super) fn targets(text: &str) -> Parsed<Vec<(String, u16)>> {
    let targets: Vec<_> = text
        .split(',')
        .map(|part| target(part.trim()))
        .collect::<Parsed<_>>()?;
    match targets.len() {
        ..=MAX_TARGETS => Ok(targets),
        _ => Err(format!("expected at most {MAX_TARGETS} servers")),
    }
}

/// A DNS name.
pub(super) fn domain(text: &str) -> Parsed<String> {
    match rustls::pki_types::DnsName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected a domain name".to_owned()),
    }
}

/// A connection URI. Whether it can be used matters only where it is used.
pub(super) fn database_url(text: &str) -> Parsed<DatabaseUrl> {
    Ok(DatabaseUrl::parse(text))
}

pub(super) fn dns_server(text: &str) -> Parsed<Option<SocketAddr>> {
    match text {
        "system" => Ok(None),
        text => match (text.parse(), text.parse()) {
            (Ok(address), _) => Ok(Some(address)),
            (_, Ok(ip)) => Ok(Some(SocketAddr::new(ip, 53))),
            _ => Err("expected an IP address, with or without a port, or system".to_owned()),
        },
    }
}

pub(super) fn api_key(text: &str) -> Parsed<ApiKey> {
    ApiKey::new(text).map_err(|error| error.to_string())
}

/// The guest agent's address; `None` for dstack's standard ones.
pub(super) fn agent_address(text: &str) -> Parsed<Option<attest::agent::AgentAddress>> {
    match text {
        "auto" => Ok(None),
        text => from_str(text).map(Some),
    }
}

/// A search path; `None` for `off`.
pub(super) fn search_path(text: &str) -> Parsed<Option<String>> {
    match text {
        "off" => Ok(None),
        "" => Err("expected the names of schemas, or off".to_owned()),
        text if text.len() <= 1_000 && !text.contains('\0') => Ok(Some(text.to_owned())),
        _ => Err("expected at most 1000 bytes".to_owned()),
    }
}

/// A common name of at most 64 characters. [RFC 5280, ub-common-name]
pub(super) fn common_name(text: &str) -> Parsed<String> {
    match text.chars().count() {
        1..=64 if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err("expected 1 to 64 characters".to_owned()),
    }
}

/// DNS names and IP addresses.
pub(super) fn host_names(text: &str) -> Parsed<Vec<String>> {
    let names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    names
        .map(|name| match rustls::pki_types::ServerName::try_from(name) {
            Ok(_) => Ok(name.to_owned()),
            Err(_) => Err(format!("{name:?} is neither a DNS name nor an IP address")),
        })
        .collect()
}

pub(super) fn postgres_location(text: &str) -> Parsed<PostgresLocation> {
    match text {
        "auto" => Ok(PostgresLocation::Auto { port: DEFAULT_PORT }),
        text => match text.strip_prefix("auto:").map(str::parse) {
            Some(Ok(port)) if port != 0 => Ok(PostgresLocation::Auto { port }),
            Some(_) => Err("expected auto:PORT, e.g. auto:5433".to_owned()),
            None => match postgres_address(text) {
                Ok(address) => Ok(PostgresLocation::At(address)),
                Err(error) => Err(format!("{error}, or auto")),
            },
        },
    }
}

pub(super) fn postgres_address(text: &str) -> Parsed<PgAddress> {
    let address = if text.starts_with('/') {
        let path = PathBuf::from(text);
        PgAddress::Unix(if path.is_dir() {
            path.join(socket_file(DEFAULT_PORT))
        } else {
            path
        })
    } else {
        PgAddress::Tcp(listen(text).map_err(|_| {
            "expected IP:PORT or the path of a Unix socket, e.g. 127.0.0.1:5432".to_owned()
        })?)
    };
    address
        .sock_addr()
        .map_err(|_| "the path is too long for a Unix socket (at most 107 bytes)".to_owned())?;
    Ok(address)
}

/// The id or name of a user of this system; `None` for `auto`.
pub(super) fn user(text: &str) -> Parsed<Option<AllowedUids>> {
    if text == "auto" {
        return Ok(None);
    }
    let uid = match text.parse() {
        Ok(uid) => Some(uid),
        Err(_) => AllowedUids::uid_of(text),
    };
    match uid {
        // -1 stands for "no user" in system calls.
        Some(uid) if uid != u32::MAX => Ok(Some(AllowedUids::only(uid))),
        _ => Err("expected auto, a user id, or the name of a user of this system".to_owned()),
    }
}

/// The name of a database. PostgreSQL truncates names to NAMEDATALEN - 1 = 63 bytes.
pub(super) fn database(text: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > 63 || text.contains('\0') {
        return Err("expected a database name of 1 to 63 bytes".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn readable_file(text: &str) -> Parsed<PathBuf> {
    let path = PathBuf::from(text);
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

pub(super) fn shards(text: &str) -> Parsed<usize> {
    if text == "auto" {
        return Ok(std::thread::available_parallelism().map_or(1, usize::from));
    }
    match text.parse() {
        Ok(shards @ 1..=1024) => Ok(shards),
        _ => Err("expected auto or a number from 1 to 1024".to_owned()),
    }
}

pub(super) fn count(text: &str) -> Parsed<usize> {
    match text.parse() {
        Ok(count @ 1..=1_000_000) => Ok(count),
        _ => Err("expected a number from 1 to 1000000".to_owned()),
    }
}

/// A number; `None` for `auto`.
pub(super) fn count_or_auto(text: &str) -> Parsed<Option<usize>> {
    match text {
        "auto" => Ok(None),
        _ => count(text)
            .map(Some)
            .map_err(|_| "expected auto or a number from 1 to 1000000".to_owned()),
    }
}

pub(crate) fn duration(text: &str) -> Parsed<Duration> {
    match humantime::parse_duration(text) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected a duration above zero, e.g. 500ms, 5s or 2m".to_owned()),
    }
}

pub(super) fn duration_or_off(text: &str) -> Parsed<Option<Duration>> {
    match text {
        "off" | "0" => Ok(None),
        text => duration(text).map(Some).map_err(|error| error + ", or off"),
    }
}

/// Waking up an idle core takes less time than this, so that longer polling only wastes CPU.
const MAX_BUSY_POLL: Duration = Duration::from_millis(1);

pub(super) fn busy_poll(text: &str) -> Parsed<BusyPollMode> {
    match (text, duration_or_off(text)) {
        ("auto", _) => Ok(BusyPollMode::Auto),
        (_, Ok(None)) => Ok(BusyPollMode::Off),
        (_, Ok(Some(time))) if time <= MAX_BUSY_POLL => Ok(BusyPollMode::Always(time)),
        _ => Err("expected auto, off or a duration of at most 1ms, e.g. 50us".to_owned()),
    }
}

pub(super) fn networks(text: &str) -> Parsed<Vec<ipnet::IpNet>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .or_else(|_| part.parse().map(|address: std::net::IpAddr| address.into()))
                .map_err(|_| "expected networks such as 10.0.0.0/8,::1/128".to_owned())
        })
        .collect()
}

pub(super) fn log_filter(text: &str) -> Parsed<EnvFilter> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|_| "expected error, warn, info, debug, trace or module=level pairs".to_owned())
}

pub(super) fn cluster_secret(text: &str) -> Parsed<ClusterSecret> {
    from_str(text)
}

pub(super) fn password(text: &str) -> Parsed<Password> {
    if text.is_empty() {
        return Err("expected a password, found an empty value".to_owned());
    }
    Ok(Password::new(text))
}

/// Values separated by commas or whitespace.
pub(super) fn value_list<T: FromStr<Err: ToString>>(text: &str) -> Parsed<Vec<T>> {
    attest::policy::parse_list(text).map_err(|error: T::Err| error.to_string())
}

pub(super) fn tcb_statuses(text: &str) -> Parsed<TcbStatuses> {
    value_list(text).map(TcbStatuses::new)
}

/// Values separated by commas or whitespace, or `any` for an empty list, which allows every value.
pub(super) fn allow_list<T: FromStr<Err: ToString>>(text: &str) -> Parsed<Vec<T>> {
    if text == "any" {
        return Ok(Vec::new());
    }
    match value_list(text) {
        Ok(values) if values.is_empty() => {
            Err("an empty list allows nothing: write any to allow every value".to_owned())
        }
        result => result,
    }
}

/// Whether the superuser can log in.
pub(super) fn superuser_logins(text: &str) -> Parsed<bool> {
    match text {
        "granted" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected granted or off".to_owned()),
    }
}

/// A `tcbEvaluationDataNumber`; `None` for any.
pub(super) fn tcb_evaluation(text: &str) -> Parsed<Option<u32>> {
    match (text, text.parse()) {
        ("any", _) => Ok(None),
        (_, Ok(number)) => Ok(Some(number)),
        _ => Err("expected a number, or any".to_owned()),
    }
}

/// Intel's root if the text is empty.
pub(super) fn tdx_root(text: &str) -> Parsed<TrustedRoot> {
    if text.is_empty() {
        return Ok(TrustedRoot::intel());
    }
    let bytes = std::fs::read(text).map_err(|error| format!("cannot be read: {error}"))?;
    TrustedRoot::dangerous(&bytes).map_err(|error| error.to_string())
}

pub(super) fn pccs(text: &str) -> Parsed<Option<Source>> {
    match text {
        "off" => Ok(None),
        text => from_str(text).map(Some),
    }
}

pub(super) fn optional_directory(text: &str) -> Parsed<Option<PathBuf>> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(Some(path)),
        Ok(_) => Err("expected a directory".to_owned()),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

pub(super) fn collateral_files(text: &str) -> Parsed<Vec<Collateral>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            attest::collateral::load_file(std::path::Path::new(part))
                .map_err(|error| format!("{part}: {error}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_a_target_as_host_and_port() {
        for (text, host, port) in [
            ("db.example:5433", "db.example", 5433),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ] {
            assert_eq!(target(text).unwrap(), (host.to_owned(), port), "{text}");
        }
        for text in [
            "", "db", "db:", "db:0", "db:65536", ":1", "::1:5433", "a b:1", "db:x",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parses_several_targets() {
        let wanted = [("a", 1), ("2001:db8::1", 2)].map(|(host, port)| (host.to_owned(), port));
        assert_eq!(targets("a:1, [2001:db8::1]:2").unwrap(), wanted);
        assert_eq!(targets("a:1").unwrap(), wanted[..1]);
        assert_eq!(targets(&["a:1"; 8].join(",")).unwrap().len(), 8);
        let many = ["a:1"; 9].join(",");
        for text in ["", ",", "a:1,", "a:1,,b:2", "a:1,b", &many] {
            assert!(targets(text).is_err(), "{text}");
        }
    }
}
