//! The table `[cluster]` of the TOML file, which is another form of the settings of a cluster.

use toml::{Table, Value};

use crate::config::settings::find;
use crate::config::spec::Group;

/// The settings in the table, as keys and values. `members` and `services` are arrays of tables.
///
/// # Errors
/// What was expected, for each key that is wrong.
pub(in crate::config) fn settings_of_table(
    table: Table,
) -> Vec<Result<(&'static str, Value), String>> {
    let setting = |(key, value): (String, Value)| {
        let found = match key.as_str() {
            "members" => ("cluster_members", Value::String(members(value)?)),
            "services" => ("cluster_services", Value::String(services(value)?)),
            key => {
                let spec = find(&format!("cluster_{key}")).or_else(|| find(key));
                let spec = spec.filter(|spec| spec.group == Group::Cluster);
                (
                    spec.ok_or(format!("cluster.{key}: unknown setting"))?.key,
                    value,
                )
            }
        };
        Ok(found)
    };
    table.into_iter().map(setting).collect()
}

fn members(value: Value) -> Result<String, String> {
    entries(value, |entry| {
        let name = take_text(entry, "name")?;
        let address = take_text(entry, "address")?;
        Some(format!("{name}={address}"))
    })
    .ok_or_else(|| {
        "cluster.members: expected name and address in each [[cluster.members]]".to_owned()
    })
}

fn services(value: Value) -> Result<String, String> {
    entries(value, |entry| {
        let name = take_text(entry, "name")?;
        let port = take_number(entry, "port")?;
        let first_port = take_number(entry, "first_port")?;
        Some(format!("{name}={port}:{first_port}"))
    })
    .ok_or_else(|| {
        "cluster.services: expected name, port and first_port in each [[cluster.services]]"
            .to_owned()
    })
}

/// The entries of an array of tables, joined with commas. `None` if a table lacks a key or has another one.
fn entries(value: Value, entry: impl Fn(&mut Table) -> Option<String>) -> Option<String> {
    let Value::Array(tables) = value else {
        return None;
    };
    let texts = tables.into_iter().map(|table| {
        let Value::Table(mut table) = table else {
            return None;
        };
        let text = entry(&mut table)?;
        table.is_empty().then_some(text)
    });
    Some(texts.collect::<Option<Vec<_>>>()?.join(","))
}

/// A text without the characters that separate entries.
fn take_text(table: &mut Table, key: &str) -> Option<String> {
    match table.remove(key)? {
        Value::String(text) if !text.contains([',', '=']) => Some(text),
        _ => None,
    }
}

fn take_number(table: &mut Table, key: &str) -> Option<i64> {
    table.remove(key)?.as_integer()
}
