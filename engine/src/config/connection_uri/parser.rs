//! The syntax of connection URIs, as in libpq's `conninfo_uri_parse_options`.

use percent_encoding::percent_decode_str;

use super::{ConnectionUri, SCHEMES, UriError};

/// The scheme, in lower case, and what follows `://`, if `text` is a URI for Postgres.
pub(super) fn scheme_of(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let (kind, driver) = scheme.split_once('+').unwrap_or((&scheme, "none"));
    let is_word = !driver.is_empty()
        && driver
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (SCHEMES.contains(&kind) && is_word).then_some((scheme.clone(), rest))
}

pub(super) fn parse(text: &str) -> Result<ConnectionUri, UriError> {
    let (scheme, rest) = scheme_of(text).ok_or(UriError::NotUri)?;
    let (user, password, rest) = split_login(rest);
    let (hosts, ports, rest) = split_servers(rest)?;
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, query),
        None => (rest, ""),
    };
    let mut uri = ConnectionUri {
        scheme,
        user: decode(user)?,
        password: decode(password)?,
        database: decode(path.strip_prefix('/').unwrap_or(path))?,
        hosts: decode(&hosts)?,
        ports: decode(&ports)?,
        parameters: Vec::new(),
        repeated: None,
    };
    let mut seen = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(UriError::Separator)?;
        if value.contains('=') {
            return Err(UriError::Separator);
        }
        add_parameter(&mut uri, &mut seen, decode(name)?, value)?;
    }
    Ok(uri)
}

/// User name, password and the rest. A `@` before the first `/` ends them.
fn split_login(text: &str) -> (&str, &str, &str) {
    let end = text.find(['@', '/']);
    match end.and_then(|end| text.split_at_checked(end)) {
        Some((login, rest)) if rest.starts_with('@') => {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (user, password, rest.get(1..).unwrap_or_default())
        }
        _ => ("", "", text),
    }
}

/// Hosts and ports, each separated by commas, and the rest, which is empty or begins with `/` or `?`.
fn split_servers(mut text: &str) -> Result<(String, String, &str), UriError> {
    let (mut hosts, mut ports) = (String::new(), String::new());
    loop {
        let host;
        (host, text) = match text.strip_prefix('[') {
            Some(address) => {
                let (address, rest) = address.split_once(']').ok_or(UriError::Ipv6)?;
                if address.is_empty()
                    || !(rest.is_empty() || rest.starts_with([':', '/', '?', ',']))
                {
                    return Err(UriError::Ipv6);
                }
                (address, rest)
            }
            None => split_before(text, &[':', '/', '?', ',']),
        };
        hosts.push_str(host);
        if let Some(rest) = text.strip_prefix(':') {
            let port;
            (port, text) = split_before(rest, &['/', '?', ',']);
            ports.push_str(port);
        }
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return Ok((hosts, ports, text)),
        }
        hosts.push(',');
        ports.push(',');
    }
}

fn split_before<'a>(text: &'a str, ends: &[char]) -> (&'a str, &'a str) {
    let end = text.find(ends).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// Stores a parameter. The last one of a name takes effect.
fn add_parameter(
    uri: &mut ConnectionUri,
    seen: &mut Vec<&'static str>,
    name: String,
    value: &str,
) -> Result<(), UriError> {
    let text = decode(value)?;
    let (known, field) = match name.as_str() {
        "user" => ("user", &mut uri.user),
        "password" => ("password", &mut uri.password),
        "dbname" => ("dbname", &mut uri.database),
        "host" => ("host", &mut uri.hosts),
        "port" => ("port", &mut uri.ports),
        _ => {
            uri.parameters.retain(|(other, _)| *other != name);
            uri.parameters.push((name, value.to_owned()));
            return Ok(());
        }
    };
    // An empty value is that of the authority. [libpq: the default]
    if !text.is_empty() {
        *field = text;
    }
    if seen.contains(&known) && matches!(known, "host" | "port") {
        uri.repeated = Some(known);
    }
    seen.push(known);
    Ok(())
}

/// Decodes as libpq: `+` is not a space.
pub(super) fn decode(text: &str) -> Result<String, UriError> {
    let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
    for (position, _) in text.match_indices('%') {
        let byte = |offset: usize| text.as_bytes().get(position + offset).copied();
        if !is_hex(byte(1)) || !is_hex(byte(2)) {
            return Err(UriError::PercentEncoding);
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    match decoded {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => Err(UriError::Text),
    }
}
