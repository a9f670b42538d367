//! Prints the entries for what a peer has proved.

use std::fmt::{Display, Write as _};

use super::ANY;
use crate::verify::AttestedPeer;

/// The `[[os]]` and `[[peer]]` that admit `peer`, every other instance of its build, and no other
/// application, build or operating system. RTMR0 depends on the VM's CPUs and memory: another size of the
/// VM has another value.
#[must_use]
pub fn print(peer: &AttestedPeer) -> String {
    let identity = peer.identity();
    let [rtmr0, rtmr1, rtmr2, rtmr3] = peer.rtmrs();
    let system = match identity.os_image_hash() {
        Some(hash) => format!("os {}", head(&hash)),
        None => format!("os {}", head(&peer.mrtd())),
    };
    let name = match identity.app_id() {
        Some(app) => format!("app {}", head(&app)),
        None => format!("td {}", head(&rtmr3)),
    };
    let mut os = Table::new("os", &system);
    os.optional("os_image_hash", identity.os_image_hash());
    os.line("mrtd", peer.mrtd());
    os.line("rtmr0", rtmr0);
    os.line("rtmr1", rtmr1);
    os.line("rtmr2", rtmr2);
    let mut entry = Table::new("peer", &name);
    entry.optional("app_id", identity.app_id());
    entry.optional("compose_hash", identity.compose_hash());
    if identity.app_id().is_none() && identity.compose_hash().is_none() {
        entry.line("rtmr3", rtmr3);
        entry.line("app_id", ANY);
    }
    entry.line("os", system);
    format!("{}\n{}", os.0, entry.0)
}

/// The text of one entry. Values are hex or names made of it, so that nothing needs escaping.
struct Table(String);

impl Table {
    fn new(kind: &str, name: &str) -> Self {
        Self(format!("[[{kind}]]\nname = \"{name}\"\n"))
    }

    fn line(&mut self, key: &str, value: impl Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{key} = \"{value}\"");
    }

    fn optional(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }
}

/// The first digits: enough for a name.
fn head(value: &impl Display) -> String {
    value.to_string().chars().take(12).collect()
}
