//! Definition and parsing of flags.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Arg, ArgAction, ArgMatches};

use crate::error::{Error, Result};
use crate::load::MAX_SECONDS;

pub(super) fn flag(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

pub(super) fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

pub(super) fn text<'a>(flags: &'a ArgMatches, name: &str) -> Option<&'a str> {
    flags.get_one::<String>(name).map(String::as_str)
}

pub(super) fn path(flags: &ArgMatches, name: &str) -> Option<PathBuf> {
    text(flags, name).map(PathBuf::from)
}

/// The value of a flag, or `None` if the flag is absent.
pub(super) fn value<T>(flags: &ArgMatches, name: &str) -> Result<Option<T>>
where
    T: FromStr<Err: Display>,
{
    let parse = |text: &str| {
        let wrong = |error| Error::Usage(format!("--{name} {text}: {error}"));
        text.parse().map_err(wrong)
    };
    text(flags, name).map(parse).transpose()
}

/// The value of a flag, which must be within `range`.
pub(super) fn number<T>(
    flags: &ArgMatches,
    name: &str,
    range: RangeInclusive<T>,
    default: T,
) -> Result<T>
where
    T: FromStr<Err: Display> + PartialOrd + Display + Copy,
{
    let number = value(flags, name)?.unwrap_or(default);
    match range.contains(&number) {
        true => Ok(number),
        false => {
            let (min, max) = range.into_inner();
            Err(Error::Usage(format!(
                "--{name} {number}: must be {min} to {max}"
            )))
        }
    }
}

pub(super) fn seconds(flags: &ArgMatches, default: f64) -> Result<f64> {
    number(flags, "seconds", 0.1..=MAX_SECONDS, default)
}

/// The values of a flag, separated by commas.
pub(super) fn list<T>(flags: &ArgMatches, name: &str) -> Result<Option<Vec<T>>>
where
    T: FromStr<Err: Display>,
{
    let Some(text) = text(flags, name) else {
        return Ok(None);
    };
    let parse = |part: &str| {
        let wrong = |error| Error::Usage(format!("--{name} {part}: {error}"));
        part.trim().parse().map_err(wrong)
    };
    text.split(',').map(parse).collect::<Result<_>>().map(Some)
}

pub(super) fn address(flags: &ArgMatches, name: &str) -> Result<SocketAddr> {
    let address = value(flags, name)?;
    address.ok_or_else(|| Error::Usage(format!("--{name} is missing")))
}
