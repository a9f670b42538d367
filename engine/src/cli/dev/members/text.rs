//! What `dev --members` prints, and the variables with which programs use the cluster.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;

use super::super::cluster::{CA, CLIENT_CERT, CLIENT_KEY, write as write_file};
use super::super::error::DevError;
use super::super::instructions::shell_quoted;
use super::Plan;
use super::address::{FOLLOWING_HTTP, ip, name};
use super::files::FOLLOWING_PORT;
use super::name_server::{ADDRESS, DOMAIN, Publication};
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

/// The same through the forwarder that follows the leader.
pub(super) fn following(session: &Variables) -> Variables {
    let mut variables = session.clone();
    variables.retain(|(name, _)| *name != "PGPORT");
    variables.push(("PGPORT", FOLLOWING_PORT.to_string().into()));
    variables
}

/// What a program needs to read the leader manifest, and to use the forwarder that follows it.
fn publication(publication: &Publication) -> Variables {
    vec![
        ("TEESQL_DEV_NAME_SERVER", ADDRESS.to_string().into()),
        ("TEESQL_DEV_DOMAIN", DOMAIN.into()),
        (
            "TEESQL_DEV_MANIFEST_SIGNER",
            publication.signer.to_checksummed().into(),
        ),
        (
            "TEESQL_DEV_FOLLOWING_PORT",
            FOLLOWING_PORT.to_string().into(),
        ),
        (
            "TEESQL_DEV_FOLLOWING_ADMIN",
            format!("http://{FOLLOWING_HTTP}").into(),
        ),
    ]
}

/// The same as [`session`], and what else a program may need.
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
    variables.extend(world.publication.iter().flat_map(publication));
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

const FOLLOWING: &str = "\
Through the forwarder that follows the leader manifest:

  psql -p $TEESQL_DEV_FOLLOWING_PORT
  kdig @127.0.0.1 -p 5353 +tcp TXT _teesql-leader.$TEESQL_DEV_DOMAIN  # kdig: Debian's knot-dnsutils
  member kill dns                                                  # and: member start dns

";

/// The text for people.
pub(super) fn instructions(world: &World, this: &Path) -> String {
    let env = shell_quoted(&world.file("env").display().to_string());
    let this = shell_quoted(&this.display().to_string());
    let published = std::fs::read_to_string(world.folder.published()).unwrap_or_default();
    let following = match world.publication {
        Some(_) => FOLLOWING,
        None => "",
    };
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
         {following}\
         On this machine:\n\n{published}\n\
         Logs: {}/*/*.log\n",
        world.folder.0.display(),
    )
}
