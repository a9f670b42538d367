//! `pg_hba.conf` of a member. Everything comes from loopback: clients by the sidecar, the other members by links.

/// The lines, in the order in which Postgres reads them. A connection that no line names is refused.
pub(super) const LINES: [&str; 3] = [
    // Patroni and pgBackRest on this member.
    "local all postgres scram-sha-256",
    "host replication replicator 127.0.0.1/32 scram-sha-256",
    "host all postgres,teesql_read,teesql_readwrite,rewind 127.0.0.1/32 scram-sha-256",
];

/// The file.
pub(super) fn text() -> String {
    let mut text = "\
# Everything comes from loopback: clients by the sidecar, the other members by its links.
# Patroni writes these lines itself (postgresql.pg_hba in patroni.yml).
"
    .to_owned();
    for line in LINES {
        text.push_str(line);
        text.push('\n');
    }
    text
}
