//! Measures what forwarders without connections cost a program: resident memory, threads and descriptors.
//!
//! ```sh
//! cargo run --release -p teesql --example idle -- 1000
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use teesql::{Forwarder, Identity, Policy};

/// Resident memory in KiB, and of that what no file backs, threads, and open descriptors of this process.
fn used() -> Result<[usize; 4], Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap_or_default().parse::<usize>()
    };
    let descriptors = fs::read_dir("/proc/self/fd")?.count();
    Ok([
        value("VmRSS:")?,
        value("RssAnon:")?,
        value("Threads:")?,
        descriptors,
    ])
}

fn start() -> Result<Forwarder, teesql::Error> {
    Forwarder::builder()
        .target("127.0.0.1:5433")
        .identity(Identity::none())
        .policy(Policy::new().mrtd("0".repeat(96)).allow_any_server())
        .start_blocking()
}

fn show(what: &str, [memory, own, threads, descriptors]: [usize; 4]) {
    println!(
        "{what}: {memory} KiB ({own} KiB not of files), {threads} threads, {descriptors} descriptors"
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let count: usize = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    show("before", used()?);
    let begun = Instant::now();
    let first = start()?;
    println!("first one started in {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_secs(1));
    show("one forwarder", used()?);
    let begun = Instant::now();
    let others: Result<Vec<_>, _> = (1..count).map(|_| start()).collect();
    let others = others?;
    println!("{} more started in {:?}", others.len(), begun.elapsed());
    std::thread::sleep(Duration::from_secs(1));
    show("all forwarders", used()?);
    let begun = Instant::now();
    for forwarder in others {
        forwarder.stop_blocking()?;
    }
    println!("stopped in {:?}", begun.elapsed());
    show("one forwarder", used()?);
    first.stop_blocking()?;
    show("none", used()?);
    let again = start()?;
    show("one again", used()?);
    let begun = Instant::now();
    drop(again);
    println!("dropped in {:?}", begun.elapsed());
    show("none", used()?);
    Ok(())
}
