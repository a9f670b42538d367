//! Logs in with sqlx, with TLS or through a forwarder (without TLS). The connection is that of
//! libpq's variables. Run by scripts/drivers.

use std::error::Error;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Reads libpq's variables.
    let mut connection = PgConnectOptions::new().connect().await?;
    let (user,): (String,) = sqlx::query_as("select current_user::text")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    println!("sqlx 0.8: {user}");
    match std::env::var("PGUSER") {
        Ok(expected) if expected == user => Ok(()),
        _ => Err("sqlx: not the user of PGUSER".into()),
    }
}
