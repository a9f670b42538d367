//! Example: a service that embeds the forwarder and connects to it with sqlx.
//!
//! ```sh
//! DATABASE_URL=postgresql://teesql_read:$SECRET@db.example:5433/postgres cargo run
//! ```
//!
//! Everything else, such as the server's allowed measurements and the guest agent, is a setting of
//! the forwarder (docs/reference/configuration.md): a pair of name and value.

use std::error::Error;

use engine::config::ForwarderConfig;
use engine::Forwarder;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL")?;
    let mut settings = vec![("database_url".to_owned(), url.clone())];
    // TEESQL_FORWARD_SETTINGS="pccs=phala policy_file=cluster.toml"
    let more = std::env::var("TEESQL_FORWARD_SETTINGS").unwrap_or_default();
    let pairs = more
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='));
    settings.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let pairs = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let config = ForwarderConfig::from_settings(pairs)?;
    // `start` blocks until the first certificate is available, so it must not run on this thread.
    let forwarder = tokio::task::spawn_blocking(|| Forwarder::start(config)).await??;

    let (host, port) = forwarder.host_and_port();
    let options = PgConnectOptions::from_url(&url.parse()?)?
        .host(&host)
        .port(port)
        .ssl_mode(PgSslMode::Disable);
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options)
        .await?;
    let (user,): (String,) = sqlx::query_as("select current_user::text")
        .fetch_one(&pool)
        .await?;
    println!("{user}");
    pool.close().await;
    tokio::task::spawn_blocking(|| forwarder.stop()).await??;
    Ok(())
}
