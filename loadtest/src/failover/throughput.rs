//! Throughput of a base backup from the leader, which a standby takes: through a link, or directly.

use std::time::Instant;

use tokio_postgres::Config;

use crate::dev_cluster::{DevCluster, connect, server_error};
use crate::error::{Error, Result};

/// The port of the first member's Postgres on every member: the default of `cluster_services`.
const FIRST_LINK: usize = 15432;

/// MiB per second for a database of `size` MiB.
pub(super) async fn base_backup(cluster: &DevCluster, config: &Config, size: u64) -> Result<f64> {
    let client = connect(config).await.map_err(server_error)?;
    // Rows of about 1 kB that do not compress, on a member's disk and in its cache.
    let fill = format!(
        "CREATE TABLE IF NOT EXISTS filling AS SELECT string_agg(md5((g * 32 + i)::text), '') AS text \
         FROM generate_series(1, {}) AS g, generate_series(1, 32) AS i GROUP BY g",
        size * 1000
    );
    client.batch_execute(&fill).await.map_err(server_error)?;
    let list = cluster.in_background(DevCluster::list).await?;
    let (leader, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|member| member.leads());
    let [leader] = leader.as_slice() else {
        return Err(Error::Peer("no member leads".to_owned()));
    };
    let standby = others.into_iter().next();
    let standby = standby.ok_or_else(|| Error::Peer("there is no standby".to_owned()))?;
    let leader = &leader.name;
    let link = FIRST_LINK + cluster.position(leader).unwrap_or_default();
    let line = format!(
        ". ./patroni.env; address=127.0.0.1:{link}; \
         direct=$(sed -n 's/^  connect_address: *\"\\{{0,1\\}}\\(10[^\"]*:5432\\)\"\\{{0,1\\}}$/\\1/p' ../{leader}/patroni.yml); \
         address=${{direct:-$address}}; \
         PGPASSWORD=$PATRONI_REPLICATION_PASSWORD pg_basebackup -h ${{address%:*}} -p ${{address#*:}} -U replicator \
         --checkpoint=fast -X none -F t -D - | wc -c"
    );
    let began = Instant::now();
    let shell =
        move |cluster: &DevCluster| cluster.request(&["exec", &standby.name, "sh", "-c", &line]);
    let output = cluster.in_background(shell).await?;
    let seconds = began.elapsed().as_secs_f64();
    let count = output
        .split_whitespace()
        .find_map(|word| word.parse::<u64>().ok());
    client
        .batch_execute("DROP TABLE filling")
        .await
        .map_err(server_error)?;
    let bytes = count.ok_or_else(|| Error::Peer(format!("pg_basebackup: {}", output.trim())))?;
    // wc hides the exit code of a backup that was cut off.
    if bytes < size << 20 {
        return Err(Error::Peer(format!(
            "pg_basebackup sent only {bytes} bytes"
        )));
    }
    Ok(bytes as f64 / f64::from(1 << 20) / seconds)
}
