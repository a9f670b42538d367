//! The configuration files that the packages install: every setting with its default, from the table of settings, and
//! the few that a package decides.

use clap::Command;
use engine::config::Scope;
use engine::config::catalogue::configuration_file;

use crate::{Product, Result};

const SIDECAR_HEADER: &str = "\
Configuration of teesql-sidecar.service. All settings are listed with their defaults; remove the # before a \
setting to change it. teesql-sidecar.toml(5) has them by topic.

Before the first start: make the two cluster secrets below (README.Debian says how) and say which clients are \
accepted (Attestation). Then check it and start:

teesql-sidecar check --config /etc/teesql/sidecar.toml
systemctl enable --now teesql-sidecar

Variables named TEESQL_… in the unit's environment override this file. Everybody can read it: keep secrets in files of \
their own, owned by root:teesql with mode 0640.";

const FORWARD_HEADER: &str = "\
Configuration of teesql-forward@default.service. Copy it to NAME.toml in this directory for a further instance, \
teesql-forward@NAME. All settings are listed with their defaults; remove the # before a setting to change it. \
teesql-forward.toml(5) has them by topic.

Before the first start: say which server to connect to (target, or cluster) and which servers are accepted (Attestation). \
Then start it:

systemctl enable --now teesql-forward@default

Variables named TEESQL_… in the unit's environment override this file. Everybody can read it: keep secrets in files of \
their own, owned by root:teesql-forward with mode 0640.";

/// `teesql-sidecar`.
pub(crate) fn sidecar(command: Command) -> Product {
    Product {
        command,
        scope: Scope::Serve,
        configuration: "etc/teesql/sidecar.toml",
        header: SIDECAR_HEADER,
        set: &[
            ("provision", "true"),
            ("read_secret_file", "/etc/teesql/read_secret"),
            ("readwrite_secret_file", "/etc/teesql/readwrite_secret"),
            ("collateral_dir", "/var/lib/teesql"),
        ],
        files: &[
            (
                "/etc/teesql/sidecar.toml",
                "Configuration of the service, see teesql-sidecar.toml(5).",
            ),
            (
                "/etc/teesql/read_secret, /etc/teesql/readwrite_secret",
                "The cluster secrets. The package does not create them.",
            ),
            (
                "/run/teesql/control.sock",
                "The control socket, for the commands sessions and kill. Only root and the user teesql can use it.",
            ),
            (
                "/var/lib/teesql",
                "Collateral of Intel's that was fetched, and by custom the audit log. It belongs to the user teesql.",
            ),
        ],
    }
}

/// `teesql-forward`.
pub(crate) fn forward(command: Command) -> Product {
    Product {
        command,
        scope: Scope::Forward,
        configuration: "etc/teesql-forward/default.toml",
        header: FORWARD_HEADER,
        // A fixed port: a service's clients must know it.
        set: &[("forward_listen", "127.0.0.1:15432")],
        files: &[
            (
                "/etc/teesql-forward/NAME.toml",
                "Configuration of the service teesql-forward@NAME, see teesql-forward.toml(5).",
            ),
            (
                "~/.config/teesql-forward/NAME.toml",
                "The same for an instance of a user's service manager, systemctl --user.",
            ),
            (
                "/var/cache/teesql-forward/NAME",
                "Collateral of Intel's that was fetched.",
            ),
        ],
    }
}

/// The text of the product's configuration file.
pub(crate) fn file(product: &Product) -> Result<String> {
    Ok(configuration_file(
        product.scope,
        product.header,
        product.set,
    )?)
}
