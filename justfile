# The common commands; each is also a script or a plain cargo command (CONTRIBUTING.md).

# List the commands
default:
    @just --list

# Start a whole cluster on this machine, without TDX, and demonstrate it
demo *args:
    scripts/demo {{args}}

# Run every test, against real Postgres servers
test *args:
    scripts/test {{args}}

# Run the tests of engine whose name contains NAME, e.g. `just one-test cancel`
one-test name *args:
    cargo test -p engine --features mock {{args}} -- {{name}}

# Test the npm package with its drivers and ORMs
test-node *args:
    scripts/test-node {{args}}

# Format, lint, and check the rustdoc
lint:
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets --features engine/mock,teesql/sqlx,teesql/tokio-postgres --locked -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --features engine/mock,teesql/sqlx,teesql/tokio-postgres --locked

# Build and open the rustdoc
docs:
    cargo doc --workspace --no-deps --features engine/mock,teesql/sqlx,teesql/tokio-postgres --open

# Compare with other proxies; `just bench --quick` takes 11 minutes
bench *args:
    scripts/bench {{args}}

# Fuzz the parsers: seconds for each, then `wire` or `attest`
fuzz *args:
    scripts/fuzz {{args}}

# Count the instructions of the hot paths; `--accept` stores new figures
instructions *args:
    scripts/instructions {{args}}

# Run everything that must pass before a change is merged
ci:
    .ci/run
