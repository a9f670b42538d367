//! The connections as a table for people.

use serde_json::Value;

use crate::cli::escape::escape;

/// Characters of a hash or an instance id that are shown. `--json` has all.
const SHORT: usize = 12;

/// A column: its heading, its alignment, and what it shows of a connection.
struct Column {
    heading: &'static str,
    right: bool,
    cell: fn(&Value) -> String,
}

const fn left(heading: &'static str, cell: fn(&Value) -> String) -> Column {
    Column {
        heading,
        right: false,
        cell,
    }
}

const fn right(heading: &'static str, cell: fn(&Value) -> String) -> Column {
    Column {
        heading,
        right: true,
        cell,
    }
}

const COLUMNS: [Column; 13] = [
    right("ID", |one| text(one, "id")),
    left("STATE", |one| text(one, "state")),
    right("AGE", |one| time(one, "age_ms")),
    right("IDLE", |one| time(one, "idle_ms")),
    left("ROLE", role),
    left("DATABASE", database),
    left("PEER", |one| text(one, "peer")),
    left("APP ID", |one| text(one, "app_id")),
    left("INSTANCE", |one| short(one, "instance_id")),
    left("CERTIFICATE", |one| short(one, "certificate")),
    left("ADDRESS", address),
    right("RECEIVED", |one| bytes(one, "received")),
    right("SENT", |one| bytes(one, "sent")),
];

/// The table, or a line that says that there is nothing.
pub(super) fn table(connections: &[Value]) -> String {
    if connections.is_empty() {
        return "no connections\n".to_owned();
    }
    let rows: Vec<[String; COLUMNS.len()]> = connections
        .iter()
        .map(|one| COLUMNS.each_ref().map(|column| (column.cell)(one)))
        .collect();
    let widths: Vec<usize> = (0..)
        .zip(&COLUMNS)
        .map(|(position, column)| {
            let cells = rows.iter().filter_map(|row| row.get(position));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or_default().max(column.heading.len())
        })
        .collect();
    let headings = COLUMNS.each_ref().map(|column| column.heading.to_owned());
    let mut table = String::new();
    for row in std::iter::once(&headings).chain(&rows) {
        push_line(&mut table, row, &widths);
    }
    table
}

fn push_line(table: &mut String, row: &[String; COLUMNS.len()], widths: &[usize]) {
    let start = table.len();
    for ((cell, width), column) in row.iter().zip(widths).zip(&COLUMNS) {
        let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
        let (before, after) = if column.right {
            (padding.as_str(), "")
        } else {
            ("", padding.as_str())
        };
        for part in [before, cell, after, "  "] {
            table.push_str(part);
        }
    }
    let end = table.trim_end_matches(' ').len().max(start);
    table.truncate(end);
    table.push('\n');
}

/// A field as text; `-` if it does not apply.
fn text(connection: &Value, key: &str) -> String {
    match connection.get(key) {
        Some(Value::String(text)) => escape(text),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => escape(other),
    }
}

fn short(connection: &Value, key: &str) -> String {
    text(connection, key).chars().take(SHORT).collect()
}

/// Of a link it is the direction.
fn role(connection: &Value) -> String {
    match connection.get("direction").and_then(Value::as_str) {
        Some(direction) => format!("link {}", escape(direction)),
        None => text(connection, "role"),
    }
}

/// Of a link it is the service, and the member that it leads to.
fn database(connection: &Value) -> String {
    if connection.get("direction").is_none_or(Value::is_null) {
        return text(connection, "database");
    }
    match connection.get("member").and_then(Value::as_str) {
        Some(member) => format!("{} of {}", text(connection, "service"), escape(member)),
        None => text(connection, "service"),
    }
}

/// The client's address, rather than that of the proxy in between.
fn address(connection: &Value) -> String {
    match connection.get("client") {
        None | Some(Value::Null) => text(connection, "address"),
        Some(_) => text(connection, "client"),
    }
}

/// A time in its two largest units.
fn time(connection: &Value, key: &str) -> String {
    let Some(milliseconds) = connection.get(key).and_then(Value::as_u64) else {
        return "-".to_owned();
    };
    let seconds = milliseconds / 1000;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// A number of bytes with three digits.
fn bytes(connection: &Value, key: &str) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(bytes) = connection.get(key).and_then(Value::as_u64) else {
        return "-".to_owned();
    };
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match (unit, value) {
        ("B", _) => format!("{bytes} B"),
        (_, ..10.0) => format!("{value:.2} {unit}"),
        (_, ..100.0) => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sessions_and_links_are_rows() {
        let connections = [
            json!({
                "id": 7, "state": "idle", "age_ms": 3_723_000, "idle_ms": 61_000, "role": "teesql_read",
                "database": "orders", "peer": "orders api", "app_id": "5a".repeat(20),
                "instance_id": "59d2".repeat(10), "certificate": "91d0".repeat(16),
                "address": "10.0.3.7:51022", "client": null, "direction": null,
                "received": 1_000, "sent": 20_480,
            }),
            json!({
                "id": 1_042, "state": "login", "age_ms": 20, "address": "10.0.3.1:4", "client": "192.0.2.9:5",
                "direction": "opened", "service": "postgres", "member": "b", "received": 0, "sent": 3,
            }),
        ];
        insta::assert_snapshot!(table(&connections));
        assert_eq!(table(&[]), "no connections\n");
    }

    #[test]
    fn a_name_cannot_control_the_terminal() {
        let hostile =
            json!({ "id": 1, "database": "a\u{1b}[2J\r\nb\u{202e}", "peer": "x\u{9b}1A" });
        let table = table(&[hostile]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(
            !table
                .trim_end()
                .chars()
                .any(|char| char.is_control() && char != '\n')
        );
        assert!(table.contains(r"a\u{1b}[2J\r\nb\u{202e}"), "{table}");
    }

    #[test]
    fn times_and_sizes_are_short() {
        let shown = |milliseconds: u64| time(&json!({ "x": milliseconds }), "x");
        assert_eq!(shown(999), "0s");
        assert_eq!(shown(59_999), "59s");
        assert_eq!(shown(60_000), "1m00s");
        assert_eq!(shown(90_000_000), "1d01h");
        let shown = |count: u64| bytes(&json!({ "x": count }), "x");
        assert_eq!(shown(999), "999 B");
        assert_eq!(shown(1 << 20), "1.00 MiB");
        assert_eq!(shown(u64::MAX), "16.0 EiB");
    }
}
