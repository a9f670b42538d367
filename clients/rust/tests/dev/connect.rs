//! Drivers, roles and identities.

use std::process::Command;

use futures_util::future::try_join_all;
use libtest_mimic::Trial;
use sqlx::postgres::PgPoolOptions;
use teesql::{ErrorKind, Identity};

use crate::built;
use crate::harness::{SOON, builder, connect, connect_by, env, refused, trial, user};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "the_readmes_first_example_runs",
            the_readmes_first_example_runs,
        ),
        trial("a_pool_of_sqlx_connects", a_pool_of_sqlx_connects),
        trial("a_hundred_connections", a_hundred_connections),
        trial("another_role_by_another_dsn", another_role_by_another_dsn),
        trial("a_unix_socket", a_unix_socket),
        trial("shards_of_its_own", shards_of_its_own),
        trial("each_kind_of_identity", each_kind_of_identity),
        trial("without_a_guest_agent", without_a_guest_agent),
    ]
}

/// The first example of the README is `examples/sqlx.rs`, which runs here as a separate program.
async fn the_readmes_first_example_runs() {
    let readme = include_str!("../../README.md");
    let first = readme.split("```rust\n").nth(1).unwrap();
    let first = first.split("```").next().unwrap();
    let source = include_str!("../../examples/sqlx.rs");
    assert!(source.ends_with(first), "{first}");
    for example in ["sqlx", "tokio_postgres"] {
        let program = built("examples").join(example);
        let output = Command::new(&program).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"teesql_readwrite\n", "{example}");
    }
}

async fn a_pool_of_sqlx_connects() {
    let forwarder = builder().start().await.unwrap();
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(forwarder.pg_connect_options().unwrap())
        .await
        .unwrap();
    let queries = (0..40).map(|number: i64| {
        let query = sqlx::query_scalar::<_, i64>("select $1 * 2").bind(number);
        query.fetch_one(&pool)
    });
    let doubled = try_join_all(queries).await.unwrap();
    assert!(doubled.into_iter().eq((0..40).map(|number| number * 2)));
    pool.close().await;
    assert!(forwarder.last_failure().is_none());
    forwarder.stop().await.unwrap();
}

async fn a_hundred_connections() {
    let forwarder = builder().start().await.unwrap();
    let config = forwarder.tokio_postgres_config().unwrap();
    // Postgres has 100 places by default, some of them reserved: ten at a time, which stay.
    let mut clients = Vec::new();
    for _ in 0..10 {
        let ten = (0..10).map(|_| connect_by(&config));
        let ten = try_join_all(ten).await.unwrap();
        for client in &ten {
            assert_eq!(user(client).await, "teesql_readwrite");
        }
        clients = ten;
    }
    drop(clients);
    forwarder.stop().await.unwrap();
}

async fn another_role_by_another_dsn() {
    let forwarder = builder().start().await.unwrap();
    let secret = env("TEESQL_DEV_READ_SECRET");
    let url =
        format!("postgres://teesql_read:{secret}@elsewhere.example/postgres?application_name=x");
    let dsn = forwarder.rewrite(&url).unwrap();
    assert!(!dsn.contains("elsewhere"), "{dsn}");
    let client = connect_by(&dsn.parse().unwrap()).await.unwrap();
    assert_eq!(user(&client).await, "teesql_read");
    let error = forwarder.rewrite("postgres://a@b/c?service=x");
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Configuration);
    let error = forwarder.rewrite("host=db.example user=a").unwrap_err();
    assert_eq!(error.code(), "configuration");
    drop(client);
    forwarder.stop().await.unwrap();
}

async fn a_unix_socket() {
    let folder = std::env::temp_dir().join(format!("teesql-client-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let listen = folder.display().to_string();
    let forwarder = builder().setting("forward_listen", listen).start().await;
    let forwarder = forwarder.unwrap();
    assert_eq!(
        user(&connect(&forwarder).await.unwrap()).await,
        "teesql_readwrite"
    );
    forwarder.stop().await.unwrap();
    // The file of the socket is gone.
    std::fs::remove_dir(&folder).unwrap();
}

async fn shards_of_its_own() {
    let forwarder = builder().setting("shards", "2").start().await.unwrap();
    assert_eq!(crate::harness::threads().get("shard-1"), Some(&1));
    assert_eq!(
        user(&connect(&forwarder).await.unwrap()).await,
        "teesql_readwrite"
    );
    forwarder.stop().await.unwrap();
}

async fn each_kind_of_identity() {
    let agent = env("TEESQL_GUEST_AGENT");
    let issued = teesql::request_client_certificate(Some(&agent), SOON).await;
    let issued = issued.unwrap();
    assert!(!format!("{issued:?}").contains("PRIVATE"));
    let in_memory = Identity::pem(issued.chain_pem.clone(), issued.key_pem.as_bytes());
    let in_files = Identity::pem_files(env("PGSSLCERT"), env("PGSSLKEY"));
    for identity in [in_memory, in_files, Identity::guest_agent_at(agent)] {
        let forwarder = builder().identity(identity).start().await.unwrap();
        assert_eq!(
            user(&connect(&forwarder).await.unwrap()).await,
            "teesql_readwrite"
        );
        forwarder.stop().await.unwrap();
    }
    // Only the server is attested: the sidecar for developers accepts that, and the one for production does not.
    let target = format!("127.0.0.1:{}", env("TEESQL_DEV_SIMULATOR_PORT"));
    let none = || builder().identity(Identity::none());
    let forwarder = none().target(target).start().await.unwrap();
    let client = connect(&forwarder).await;
    let client = client.unwrap_or_else(|error| panic!("{error}: {:?}", forwarder.last_failure()));
    assert_eq!(user(&client).await, "teesql_readwrite");
    drop(client);
    forwarder.stop().await.unwrap();
    let forwarder = none().start().await.unwrap();
    let error = connect(&forwarder).await.err().unwrap();
    assert!(format!("{error:?}").contains("no_certificate"), "{error:?}");
    forwarder.stop().await.unwrap();
    // A key that belongs to another certificate.
    let mixed = Identity::pem(issued.chain_pem, std::fs::read(env("PGSSLKEY")).unwrap());
    let error = builder().identity(mixed).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity);
    assert_eq!(error.code(), "identity_unusable");
    assert!(!error.to_string().contains("PRIVATE"));
}

async fn without_a_guest_agent() {
    let nowhere = builder()
        .identity(Identity::guest_agent_at("/nonexistent/dstack.sock"))
        .start_timeout(std::time::Duration::from_millis(300));
    let error = nowhere.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity);
    assert_eq!(error.code(), "agent_not_found");
    // With allow_simulator it starts without a certificate, which this sidecar wants.
    let forwarder = builder()
        .identity(Identity::guest_agent_at("/nonexistent/dstack.sock"))
        .setting("allow_simulator", "true")
        .start()
        .await
        .unwrap();
    assert!(connect(&forwarder).await.is_err());
    forwarder.stop().await.unwrap();
    // Not to be confused with a server that is not there.
    let forwarder = builder().target("127.0.0.1:1").start().await.unwrap();
    let failure = refused(&forwarder).await;
    assert_eq!(failure.code, "server_unreachable");
    assert_eq!(failure.to_error().kind(), ErrorKind::Network);
    forwarder.stop().await.unwrap();
}
