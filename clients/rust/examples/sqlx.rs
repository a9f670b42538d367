//! A service that connects with sqlx.
//!
//! ```sh
//! teesql-sidecar dev -- cargo run -p teesql --features sqlx --example sqlx
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use sqlx::PgPool;
use teesql::Forwarder;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // DATABASE_URL and TEESQL_…
    let forwarder = Forwarder::from_env().start().await?;
    let pool = PgPool::connect_with(forwarder.pg_connect_options()?).await?;
    let user: String = sqlx::query_scalar("select current_user::text")
        .fetch_one(&pool)
        .await?;
    println!("{user}");
    pool.close().await;
    forwarder.stop().await?;
    Ok(())
}
