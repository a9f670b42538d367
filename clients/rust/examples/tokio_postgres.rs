//! A service that connects with tokio-postgres.
//!
//! ```sh
//! teesql-sidecar dev -- cargo run -p teesql --features tokio-postgres --example tokio_postgres
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use teesql::Forwarder;
use tokio_postgres::NoTls;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // DATABASE_URL and TEESQL_…
    let forwarder = Forwarder::from_env().start().await?;
    let (client, connection) = forwarder.tokio_postgres_config()?.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let row = client.query_one("select current_user::text", &[]).await?;
    println!("{}", row.get::<_, String>(0));
    drop(client);
    connection.await??;
    forwarder.stop().await?;
    Ok(())
}
