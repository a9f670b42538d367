//! What `dev --members` prints, and the variables with which programs use the cluster.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use super::super::cluster::{CA, CLIENT_CERT, CLIENT_KEY, write as write_file};
use super::super::error::DevError;
use super::super::instructions::shell_quoted;
use super::Plan;
use super::address::{ip, name};
use super::world::World;

/// Variables by name.
pub(super) type Variables = Vec<(&'static str, OsString)>;

/// libpq's variables for a session on the leader: through the forwarder, or directly.
pub(super) fn session(world: &World, plan: &Plan) -> Variables {
    let mut variables: Variables = vec![
        ("PGDATABASE", "postgres".into()),
        ("PGSSLMODE", "disable".into()),
        ("PGCONNECT_TIMEOUT", "10".into()),
    ];
    let text = |text: &str| OsString::from(text);
    if plan.plain {
        let hosts = (0..plan.members).map(|member| ip(member).to_string());
        let hosts = hosts.collect::<Vec<_>>().join(",");
        variables.extend([
            ("PGHOST", hosts.into()),
            ("PGPORT", text("5432")),
            ("PGUSER", text("postgres")),
            ("PGPASSWORD", text(&world.superuser_password)),
            ("PGTARGETSESSIONATTRS", text("read-write")),
        ]);
    } else {
        variables.extend([
            ("PGHOST", world.folder.0.clone().into_os_string()),
            ("PGPORT", text("5432")),
            ("PGUSER", text("teesql_readwrite")),
            ("PGPASSWORD", text(&world.readwrite_secret)),
        ]);
    }
    variables
}

/// The same, and what else a program may need.
pub(super) fn variables(world: &World, plan: &Plan, this: &Path) -> Variables {
    let mut variables = session(world, plan);
    variables.extend(world.client());
    let names: Vec<_> = (0..plan.members).map(name).collect();
    variables.extend([
        ("TEESQL_DEV_BINARY", this.as_os_str().to_owned()),
        (
            "TEESQL_DEV_CONTROL",
            world.folder.control().into_os_string(),
        ),
        ("TEESQL_DEV_FOLDER", world.folder.0.clone().into_os_string()),
        ("TEESQL_DEV_MEMBERS", names.join(" ").into()),
        ("TEESQL_DEV_SIDECARS", world.sidecars().into()),
        ("TEESQL_DEV_GUEST_AGENT", world.client_agent()),
        ("TEESQL_DEV_READ_SECRET", (&**world.read_secret).into()),
        (
            "TEESQL_DEV_READWRITE_SECRET",
            (&**world.readwrite_secret).into(),
        ),
        (
            "TEESQL_DEV_SUPERUSER_PASSWORD",
            (&**world.superuser_password).into(),
        ),
        ("TEESQL_DEV_CA", world.file(CA).into_os_string()),
        (
            "TEESQL_DEV_CLIENT_CERT",
            world.file(CLIENT_CERT).into_os_string(),
        ),
        (
            "TEESQL_DEV_CLIENT_KEY",
            world.file(CLIENT_KEY).into_os_string(),
        ),
    ]);
    variables
}

/// Writes the variables to a file that a shell can source.
pub(super) fn write(path: &Path, variables: &Variables) -> Result<(), DevError> {
    let mut text = zeroize::Zeroizing::new(String::with_capacity(4096));
    for (name, value) in variables {
        let value = shell_quoted(&value.to_string_lossy());
        let _ = writeln!(text, "export {name}={value}");
    }
    write_file(path, &text, 0o600)
}

/// The text for people.
pub(super) fn instructions(world: &World, this: &Path) -> String {
    let env = shell_quoted(&world.file("env").display().to_string());
    let this = shell_quoted(&this.display().to_string());
    let published = std::fs::read_to_string(world.folder.published()).unwrap_or_default();
    format!(
        "\nThe cluster runs under its own mock TDX root. Ctrl-C stops it and removes all its files.\n\n\
         Through the forwarder, as a client. In another terminal:\n\n  \
         . {env}\n  \
         psql                                                             # as teesql_readwrite, on the leader\n  \
         PGPASSWORD=$TEESQL_DEV_READ_SECRET psql -U teesql_read           # where it connects\n\n\
         Members. {this} dev --request … is short for the commands below:\n\n  \
         alias member=\"{this} dev --request\"\n  \
         member exec a patronictl list                                    # who leads\n  \
         member exec a patronictl switchover --force                      # planned\n  \
         member kill a                                                    # kill -9 of everything on a\n  \
         member start a                                                   # it comes back\n  \
         member isolate a                                                 # pull its cable; join a plugs it in\n\n\
         On this machine:\n\n{published}\n\
         Logs: {}/*/*.log\n",
        world.folder.0.display(),
    )
}
