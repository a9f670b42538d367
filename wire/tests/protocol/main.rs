//! Integration tests of the crate in one binary: transcripts, transition tables and properties.

// `.clippy.toml` allows panics in test functions, but not in their helpers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod backend;
mod cluster_key;
mod errors;
mod frontend;
mod harness;
mod instructions;
mod link;
mod link_harness;
mod negotiation;
mod opening;
mod packets;
mod properties;
mod ready;
mod scram;
mod secret;
mod version_probe;

/// Formats a transition table: a row for each input, a column for each state.
fn table<'a>(head: Vec<String>, rows: impl Iterator<Item = (&'a str, Vec<String>)>) -> String {
    let mut lines = vec![(String::new(), head)];
    lines.extend(rows.map(|(input, cells)| (input.to_owned(), cells)));
    let width = |texts: &mut dyn Iterator<Item = &String>| texts.map(String::len).max();
    let first = width(&mut lines.iter().map(|(input, _)| input)).unwrap();
    let widths: Vec<_> = (0..lines[0].1.len())
        .map(|column| width(&mut lines.iter().map(|(_, cells)| &cells[column])).unwrap())
        .collect();
    let mut text = String::new();
    for (input, cells) in &lines {
        text += &format!("{input:<first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            text += &format!(" | {cell:<width$}");
        }
        text = text.trim_end().to_owned() + "\n";
    }
    text
}
