//! Measures an idle embedded forwarder: resident memory in KiB before and after its start,
//! separately for anonymous memory and for pages of the program file. Arguments are settings,
//! `name=value`. It opens no connection.

#![allow(clippy::print_stdout, reason = "it prints a measurement")]

use std::error::Error;
use std::time::Duration;

use engine::Forwarder;
use engine::config::ForwarderConfig;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let settings = arguments.iter().filter_map(|pair| pair.split_once('='));
    let settings = [("target", "db.example:5433")].into_iter().chain(settings);
    let settings = ForwarderConfig::from_settings(settings)?;
    let before = (resident("RssAnon:")?, resident("RssFile:")?);
    let forwarder = Forwarder::start(settings)?;
    std::thread::sleep(Duration::from_secs(2));
    let after = (resident("RssAnon:")?, resident("RssFile:")?);
    println!(
        "anonymous {} -> {}, file {} -> {}",
        before.0, after.0, before.1, after.1
    );
    forwarder.stop()?;
    Ok(())
}

fn resident(kind: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(kind));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no such memory")?.parse()?)
}
