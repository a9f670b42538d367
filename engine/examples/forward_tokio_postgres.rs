//! A Rust service that embeds the forwarder and connects with tokio-postgres.
//!
//! ```sh
//! DATABASE_URL=postgres://teesql_read:$SECRET@db.example:5433/app \
//!   cargo run -p engine --example forward_tokio_postgres
//! ```
//!
//! All settings of `teesql-forward` are available. A service takes them from its own configuration;
//! this example takes them from its arguments, `name=value`.

#![allow(clippy::print_stdout, reason = "an example prints its result")]

use std::error::Error;
use std::str::FromStr;

use engine::Forwarder;
use engine::config::ForwarderConfig;
use tokio_postgres::{Config, NoTls};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("DATABASE_URL")?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let settings = arguments.iter().filter_map(|pair| pair.split_once('='));
    let settings = [("database_url", url.as_str())].into_iter().chain(settings);
    let settings = ForwarderConfig::from_settings(settings)?;
    // `start` blocks until the first certificate is available: it must not run on this runtime's
    // thread.
    let forwarder = tokio::task::spawn_blocking(|| Forwarder::start(settings)).await??;

    // Role, password and database come from the DSN; the server is the forwarder.
    let given = Config::from_str(&url)?;
    let (host, port) = forwarder.host_and_port();
    let mut config = Config::new();
    config.host(host).port(port);
    config.user(given.get_user().unwrap_or("teesql_read"));
    config.password(given.get_password().unwrap_or_default());
    config.dbname(given.get_dbname().unwrap_or("postgres"));
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let row = client.query_one("select current_user::text", &[]).await?;
    println!("connected as {}", row.get::<_, &str>(0));
    drop(client);
    connection.await??;
    tokio::task::spawn_blocking(|| forwarder.stop()).await??;
    Ok(())
}
