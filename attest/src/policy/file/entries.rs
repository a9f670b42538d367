//! The keys of `[[os]]` and `[[peer]]`.

use std::sync::Arc;

use super::table::{NEVER_ANY, TableReader};
use super::{ANY, Entry};
use crate::policy::entry::{Grants, KmsRootPin, OsEntry, PeerEntry, PlatformPins};

/// The word for the root of this machine's own guest agent.
const OWN: &str = "own";

pub(super) fn read_os(table: &mut TableReader<'_, '_, '_>) -> OsEntry {
    let os = OsEntry {
        name: table.name(),
        os_image_hash: table.list("os_image_hash"),
        mrtd: table.list("mrtd"),
        rtmr: [
            table.list("rtmr0"),
            table.list("rtmr1"),
            table.list("rtmr2"),
        ],
        xfam: table.list("xfam"),
        td_attributes: table.list("td_attributes"),
    };
    for key in NEVER_ANY {
        if !table.has(key) {
            table.mistake(
                key,
                "not set: an operating system is known by mrtd (firmware), rtmr1 (kernel) and rtmr2 \
                 (command line and initrd) together; teesql-sidecar verify --print-policy prints them",
            );
        }
    }
    for key in NEVER_ANY {
        if table.is_any(key) {
            let text = format!("{ANY:?} is not an operating system: write the value");
            table.mistake(key, text);
        }
    }
    os
}

pub(super) fn read_peer(
    table: &mut TableReader<'_, '_, '_>,
    systems: &[Entry<Arc<OsEntry>>],
) -> PeerEntry {
    let mut peer = PeerEntry {
        name: table.name(),
        app_id: table.list("app_id"),
        compose_hash: table.list("compose_hash"),
        instance_id: table.list("instance_id"),
        os_image_hash: table.list("os_image_hash"),
        rtmr3: table.list("rtmr3"),
        os: read_systems(table, systems),
        kms_root: KmsRootPin::Any,
        mr_config_id: table.list("mr_config_id"),
        mr_owner: table.list("mr_owner"),
        mr_owner_config: table.list("mr_owner_config"),
        platform: PlatformPins {
            mr_seam: table.list("mr_seam"),
            piid: table.list("piid"),
            smt: table.flag("smt"),
            dynamic_platform: table.flag("dynamic_platform"),
            cached_keys: table.flag("cached_keys"),
        },
        grants: Grants {
            roles: read_roles(table),
            databases: read_databases(table),
            max_sessions: table.count("max_sessions"),
        },
        member: table.flag("member") == Some(true),
    };
    peer.kms_root = match read_kms_root(table) {
        Some(pin) => pin,
        None if peer.os.is_empty() && peer.has_identity() => {
            table.context().default_kms_root.clone()
        }
        None => KmsRootPin::Any,
    };
    let says_who = ["app_id", "compose_hash", "instance_id"];
    if !says_who.iter().any(|key| table.has(key)) {
        table.mistake_of_entry(
            "it does not say which application it is for: set app_id, compose_hash or instance_id \
             (app_id = \"any\" admits every application)",
        );
    } else if peer.member && !peer.says_which_application() {
        table.mistake(
            "member",
            "a member reaches the other members' databases, so it must be a certain application: set app_id or \
             compose_hash",
        );
    }
    peer
}

/// The operating systems that a peer names.
fn read_systems(
    table: &mut TableReader<'_, '_, '_>,
    systems: &[Entry<Arc<OsEntry>>],
) -> Vec<Arc<OsEntry>> {
    let mut found: Vec<Arc<OsEntry>> = Vec::new();
    for (name, line) in table.texts("os").unwrap_or_default() {
        let system = systems
            .iter()
            .find(|system| system.entry.name.as_deref() == Some(name));
        match system {
            Some(system) if found.contains(&system.entry) => {
                table.mistake_at(line, "os", "the same name twice: delete one");
            }
            Some(system) => found.push(Arc::clone(&system.entry)),
            None => {
                let text =
                    format!("there is no [[os]] with name = {name:?}: add it, or correct the name");
                table.mistake_at(line, "os", text);
            }
        }
    }
    found
}

/// `None` if it is not set.
fn read_kms_root(table: &mut TableReader<'_, '_, '_>) -> Option<KmsRootPin> {
    let read_roots = table.context().read_roots;
    let is_set = table.has("kms_root");
    let mut roots = Vec::new();
    let Some(texts) = table.texts("kms_root") else {
        // "any" is set and has no texts.
        return is_set.then_some(KmsRootPin::Any);
    };
    for (text, line) in texts.iter().copied() {
        if text == OWN && texts.len() == 1 {
            return Some(KmsRootPin::Own);
        }
        if text == OWN {
            let text = format!("{OWN:?} in a list: write kms_root = {OWN:?} alone");
            table.mistake_at(line, "kms_root", text);
            continue;
        }
        match read_roots(text) {
            Ok(read) => roots.extend(read),
            Err(error) => table.mistake_at(line, "kms_root", format!("{text}: {error}")),
        }
    }
    roots.sort_by_key(crate::chain::KmsRoot::fingerprint);
    roots.dedup_by_key(|root| root.fingerprint());
    Some(KmsRootPin::Roots(roots))
}

/// The roles that an entry grants. A member is no client unless its entry says so.
fn read_roles(table: &mut TableReader<'_, '_, '_>) -> Option<Vec<Box<str>>> {
    let context = table.context();
    let known = context.roles;
    let is_set = table.has("roles");
    let Some(texts) = table.texts("roles") else {
        let default = match table.is_true("member") {
            true => &[],
            false => context.default_roles,
        };
        // "any" is set and has no texts.
        let default = default.iter().map(|role| Box::from(*role));
        return (!is_set).then(|| default.collect());
    };
    let mut roles = Vec::new();
    for (text, line) in texts {
        if known.contains(&text) {
            add(table, &mut roles, "roles", text, line);
        } else {
            let text = format!("{text:?} is not a role; the roles are {}", known.join(", "));
            table.mistake_at(line, "roles", text);
        }
    }
    Some(roles)
}

fn read_databases(table: &mut TableReader<'_, '_, '_>) -> Option<Vec<Box<str>>> {
    let texts = table.texts("databases")?;
    let mut databases = Vec::new();
    for (text, line) in texts {
        // PostgreSQL truncates names to NAMEDATALEN - 1 bytes.
        if text.len() > 63 || text.contains('\0') {
            table.mistake_at(line, "databases", "expected names of 1 to 63 bytes");
        } else {
            add(table, &mut databases, "databases", text, line);
        }
    }
    Some(databases)
}

fn add(
    table: &mut TableReader<'_, '_, '_>,
    names: &mut Vec<Box<str>>,
    key: &str,
    name: &str,
    line: usize,
) {
    if names.iter().any(|known| **known == *name) {
        table.mistake_at(line, key, "the same name twice: delete one");
    } else {
        names.push(name.into());
    }
}
