//! Throughput of a standby's base backup from the leader and of a client's COPY of the same data. In a cluster with
//! sidecars the one goes through a link and the other through a forwarder: each is relayed twice.
//!
//! Both take turns, so that whatever else the machine does concerns both.

use std::pin::pin;
use std::time::Instant;

use futures_util::TryStreamExt as _;
use tokio_postgres::{Client, Config};

use crate::dev_cluster::{DevCluster, connect, server_error};
use crate::error::{Error, Result};
use crate::stats::Spread;

/// The port of the first member's Postgres on every member: the default of `cluster_services`.
const FIRST_LINK: usize = 15432;
/// Backups and copies, of which the median counts.
const ROUNDS: usize = 3;

/// MiB per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throughput {
    pub(super) backup: f64,
    pub(super) copy: f64,
}

/// Measures with a table of `size` MiB.
pub(super) async fn measure(
    cluster: &DevCluster,
    config: &Config,
    size: u64,
) -> Result<Throughput> {
    let client = connect(config).await.map_err(server_error)?;
    // Rows of about 1 kB that do not compress, on a member's disk and in its cache.
    let fill = format!(
        "CREATE TABLE IF NOT EXISTS filling AS SELECT string_agg(md5((g * 32 + i)::text), '') AS text \
         FROM generate_series(1, {}) AS g, generate_series(1, 32) AS i GROUP BY g",
        size * 1000
    );
    client.batch_execute(&fill).await.map_err(server_error)?;
    let (mut backups, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        backups.push(base_backup(cluster, size << 20).await?);
        copies.push(copy(&client, size * 1000 * 1024).await?);
    }
    client
        .batch_execute("DROP TABLE filling")
        .await
        .map_err(server_error)?;
    let median = |values: Vec<f64>| Spread::of(values).map_or(f64::NAN, |spread| spread.median);
    Ok(Throughput {
        backup: median(backups),
        copy: median(copies),
    })
}

/// MiB per second of a base backup, which has at least `least` bytes.
async fn base_backup(cluster: &DevCluster, least: u64) -> Result<f64> {
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
    let bytes = count.ok_or_else(|| Error::Peer(format!("pg_basebackup: {}", output.trim())))?;
    // wc hides the exit code of a backup that was cut off.
    if bytes < least {
        return Err(Error::Peer(format!(
            "pg_basebackup sent only {bytes} bytes"
        )));
    }
    Ok(mib(bytes) / seconds)
}

/// MiB per second of a COPY of the whole table, which has at least `least` bytes.
async fn copy(client: &Client, least: u64) -> Result<f64> {
    let began = Instant::now();
    let statement = "COPY filling TO STDOUT (FORMAT binary)";
    let stream = client.copy_out(statement).await.map_err(server_error)?;
    let mut stream = pin!(stream);
    let mut bytes = 0;
    while let Some(chunk) = stream.try_next().await.map_err(server_error)? {
        bytes += chunk.len() as u64;
    }
    if bytes < least {
        return Err(Error::Peer(format!("COPY sent only {bytes} bytes")));
    }
    Ok(mib(bytes) / began.elapsed().as_secs_f64())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
