//! Throughput of a base backup from the leader, which a standby takes: through a link, or directly.

use std::time::Instant;

use tokio_postgres::Config;

use super::cluster::Cluster;
use super::writer;
use crate::error::{Error, Result};

/// MiB per second for a database of `size` MiB.
pub(super) async fn base_backup(
    cluster: &Cluster,
    config: &Config,
    size: u64,
) -> Result<Option<f64>> {
    let client = writer::connect(config).await?;
    // Rows of about 1 kB that do not compress, on a member's disk and in its cache.
    let fill = format!(
        "CREATE TABLE IF NOT EXISTS filling AS SELECT string_agg(md5((g * 32 + i)::text), '') AS text \
         FROM generate_series(1, {}) AS g, generate_series(1, 32) AS i GROUP BY g",
        size * 1000
    );
    client
        .batch_execute(&fill)
        .await
        .map_err(|error| Error::Server(error.to_string()))?;
    let leader = cluster.leader().await?;
    let standby = cluster.standby().await?;
    let link = 15432 + cluster.position(&leader);
    let line = format!(
        ". ./patroni.env; address=127.0.0.1:{link}; grep -q \"$address\" patroni.yml etcd.env || true; \
         direct=$(sed -n 's/^  connect_address: *\"\\{{0,1\\}}\\(10[^\"]*:5432\\)\"\\{{0,1\\}}$/\\1/p' ../{leader}/patroni.yml); \
         address=${{direct:-$address}}; \
         PGPASSWORD=$PATRONI_REPLICATION_PASSWORD pg_basebackup -h ${{address%:*}} -p ${{address#*:}} -U replicator \
         --checkpoint=fast -X none -F t -D - | wc -c"
    );
    let began = Instant::now();
    let output = cluster.shell(&standby, &line).await?;
    let seconds = began.elapsed().as_secs_f64();
    let count = output
        .split_whitespace()
        .find_map(|word| word.parse::<u64>().ok());
    client
        .batch_execute("DROP TABLE filling")
        .await
        .map_err(|error| Error::Server(error.to_string()))?;
    let bytes = count.ok_or_else(|| Error::Peer(format!("pg_basebackup: {}", output.trim())))?;
    Ok(Some(bytes as f64 / f64::from(1 << 20) / seconds))
}
