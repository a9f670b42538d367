//! Policies: what is believed of a peer, what its entry grants, and configurations that believe too much.

mod grants;
mod identity;
mod reload;

use std::fs;
use std::process::Command;

use attest::mock::Evidence;

use crate::harness::process::{TIMEOUT, lossy, run};
use crate::harness::settings::Settings;
use crate::harness::suite::Suite;
use crate::harness::tdx_fixture::TdxFixture;

pub(crate) fn add(suite: &mut Suite) {
    identity::add(suite);
    grants::add(suite);
    reload::add(suite);
}

/// In the folder of the TDX fixture.
const FILE: &str = "policy.toml";

/// `[[os]]` of the mock's default evidence.
fn mock_os() -> String {
    format!(
        "[[os]]\nname = \"mock\"\nos_image_hash = \"{}\"\nmrtd = \"{}\"\nrtmr0 = [\"{}\"]\n\
         rtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
        "05".repeat(32),
        "11".repeat(48),
        "20".repeat(48),
        "21".repeat(48),
        "22".repeat(48)
    )
}

/// `[[peer]]` for the application whose id consists of `byte`, on the mock's operating system.
pub(crate) fn peer(name: &str, byte: &str, keys: &str) -> String {
    format!(
        "[[peer]]\nname = \"{name}\"\napp_id = \"{}\"\nos = \"mock\"\n{keys}\n",
        byte.repeat(20)
    )
}

/// Writes a policy of the mock's operating system and these peers; the path.
pub(crate) fn write_policy(tdx: &TdxFixture, peers: &[String]) -> String {
    let path = tdx.path(FILE);
    fs::write(&path, mock_os() + &peers.concat()).expect("policy.toml");
    path
}

/// Evidence of the application whose id consists of `byte`.
fn app(byte: u8) -> Evidence {
    Evidence {
        app_id: vec![byte; 20],
        ..Evidence::default()
    }
}

/// A configuration that must be refused: what the program says.
fn refused(command: Command) -> String {
    let output = run(command, TIMEOUT);
    let text = lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    text
}

fn refused_by_sidecar(settings: &Settings) -> String {
    refused(settings.sidecar_command(&["serve"]))
}

fn refused_by_forwarder(settings: &Settings, flags: &[&str]) -> String {
    refused(settings.forwarder_command(flags))
}
