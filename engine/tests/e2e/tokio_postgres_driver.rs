//! Tests of tokio-postgres over tokio-rustls, a driver that shares no code with libpq.

use std::future::Future;
use std::io::{self, Cursor};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::try_join_all;
use futures_util::{SinkExt, TryStreamExt, stream};
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Config, Error, Socket};
use tokio_rustls::TlsConnector;

use crate::harness::fixture::Fixture;
use crate::harness::process::{TIMEOUT, block_on};
use crate::harness::sidecar::Sidecar;
use crate::harness::suite::Suite;
use crate::harness::{READ_SECRET, READWRITE_SECRET, WRONG_SECRET};

pub(crate) fn add(suite: &mut Suite) {
    for (name, negotiation) in [
        ("ssl_request", SslNegotiation::Postgres),
        ("direct_tls", SslNegotiation::Direct),
    ] {
        let test = move |fixture: &Fixture| run_test(session(fixture, negotiation));
        suite.add(&format!("tokio_postgres_driver::session::{name}"), test);
    }
    suite.add("tokio_postgres_driver::pipeline", |fixture| {
        run_test(pipeline(fixture))
    });
    suite.add(
        "tokio_postgres_driver::copy_in_both_directions",
        |fixture| run_test(copy(fixture)),
    );
    suite.add("tokio_postgres_driver::notifications", |fixture| {
        run_test(notifications(fixture))
    });
    suite.add("tokio_postgres_driver::cancel", |fixture| {
        run_test(cancel(fixture))
    });
    suite.add("tokio_postgres_driver::large_values", |fixture| {
        run_test(large_values(fixture))
    });
    suite.add("tokio_postgres_driver::many_connections", |fixture| {
        run_test(many_connections(fixture))
    });
}

/// Runs a test with a timeout for a busy machine.
fn run_test(test: impl Future<Output = Result<(), Error>>) {
    let outcome = block_on(TIMEOUT * 4, test);
    outcome.unwrap_or_else(|e| panic!("{e}: {:?}", e.as_db_error()));
}

/// tokio-postgres leaves TLS to its caller.
#[derive(Clone)]
struct Tls(TlsConnector);

struct Stream(tokio_rustls::client::TlsStream<Socket>);

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _: &str) -> io::Result<Self> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for Tls {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let name = ServerName::try_from("localhost").expect("a good name");
        Box::pin(async move { self.0.connect(name, socket).await.map(Stream) })
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first).expect("a certificate");
        ChannelBinding::tls_server_end_point(Sha256::digest(certificate).to_vec())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn tls(fixture: &Fixture) -> Tls {
    Tls(TlsConnector::from(Arc::new(
        fixture.harness.certificates.client(Some(b"postgresql")),
    )))
}

fn config(sidecar: &Sidecar, role: &str, secret: &str) -> Config {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(sidecar.port())
        .user(role)
        .password(secret)
        .dbname("via_scram")
        .ssl_mode(SslMode::Require);
    config
}

async fn connect(fixture: &Fixture, config: &Config) -> Result<Client, Error> {
    let (client, connection) = config.connect(tls(fixture)).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn writer(fixture: &Fixture) -> Result<Client, Error> {
    connect(
        fixture,
        &config(&fixture.sidecar(), "teesql_readwrite", READWRITE_SECRET),
    )
    .await
}

async fn session(fixture: &Fixture, negotiation: SslNegotiation) -> Result<(), Error> {
    let sidecar = fixture.sidecar();
    let mut refused = config(&sidecar, "teesql_read", WRONG_SECRET);
    let error = connect(fixture, refused.ssl_negotiation(negotiation))
        .await
        .err();
    let error = error.expect("the login is refused");
    let error = error.as_db_error().expect("by an ErrorResponse");
    assert_eq!(error.code().code(), "28P01");
    assert_eq!(
        error.message(),
        "authentication_failed: password authentication failed"
    );

    let mut good = config(&sidecar, "teesql_readwrite", READWRITE_SECRET);
    good.ssl_negotiation(negotiation);
    let mut client = connect(fixture, &good).await?;
    let table = fixture.harness.unique_name("accounts");
    client
        .batch_execute(&format!(
            "create table {table} (id int primary key, note text)"
        ))
        .await?;

    let transaction = client.transaction().await?;
    let insert = transaction
        .prepare(&format!("insert into {table} values ($1, $2)"))
        .await?;
    for id in 0..100_i32 {
        transaction
            .execute(&insert, &[&id, &format!("note {id}")])
            .await?;
    }
    transaction.commit().await?;
    let duplicate = client
        .execute(&format!("insert into {table} values (7, 'again')"), &[])
        .await;
    let code = duplicate
        .expect_err("a duplicate")
        .code()
        .map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("23505"));

    // A portal that is read in parts.
    let transaction = client.transaction().await?;
    let portal = transaction
        .bind(&format!("select id from {table} order by id"), &[])
        .await?;
    let mut ids: Vec<i32> = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 7).await?;
        if rows.is_empty() {
            break;
        }
        ids.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
    }
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    transaction.rollback().await?;
    client.batch_execute(&format!("drop table {table}")).await
}

/// A thousand queries before the first result is read.
async fn pipeline(fixture: &Fixture) -> Result<(), Error> {
    let client = writer(fixture).await?;
    let double = client
        .prepare("select $1::int * 2, repeat('x', 300)")
        .await?;
    let (client, double) = (&client, &double);
    let queries = (0..1000_i32).map(|n| async move { client.query_one(double, &[&n]).await });
    for (n, row) in (0..).zip(try_join_all(queries).await?) {
        assert_eq!(row.get::<_, i32>(0), n * 2);
        assert_eq!(row.get::<_, &str>(1).len(), 300);
    }
    Ok(())
}

async fn copy(fixture: &Fixture) -> Result<(), Error> {
    let client = writer(fixture).await?;
    let table = fixture.harness.unique_name("copied");
    client
        .batch_execute(&format!("create table {table} (n int, t text)"))
        .await?;
    let sink = client.copy_in(&format!("copy {table} from stdin")).await?;
    let lines: Vec<String> = (0..200_000).map(|n| format!("{n}\tline {n}\n")).collect();
    let text = lines.concat();
    let chunks = text
        .as_bytes()
        .chunks(10_007)
        .map(|chunk| Ok(Cursor::new(chunk.to_vec())));
    let mut chunks = stream::iter(chunks);
    let mut sink = pin!(sink);
    sink.send_all(&mut chunks).await?;
    assert_eq!(sink.finish().await?, 200_000);
    let back = client
        .copy_out(&format!(
            "copy (select * from {table} order by n) to stdout"
        ))
        .await?;
    let back: Vec<_> = back.try_collect().await?;
    assert!(
        back.concat() == text.as_bytes(),
        "COPY returned different data"
    );

    // The session remains usable after the client aborts a COPY.
    let mut half = Box::pin(
        client
            .copy_in::<_, &[u8]>(&format!("copy {table} from stdin"))
            .await?,
    );
    half.send(b"1\tonly\n").await?;
    drop(half);
    let row = client
        .query_one(&format!("select count(*) from {table}"), &[])
        .await?;
    assert_eq!(row.get::<_, i64>(0), 200_000);
    client.batch_execute(&format!("drop table {table}")).await
}

async fn notifications(fixture: &Fixture) -> Result<(), Error> {
    let channel = fixture.harness.unique_name("channel");
    let settings = config(&fixture.sidecar(), "teesql_read", READ_SECRET);
    let (listener, mut connection) = settings.connect(tls(fixture)).await?;
    let (sender, mut inbox) = mpsc::unbounded_channel();
    tokio::spawn(std::future::poll_fn(move |cx| {
        while let Some(message) = std::task::ready!(connection.poll_message(cx)) {
            if let Ok(AsyncMessage::Notification(note)) = message {
                let _ = sender.send((note.channel().to_owned(), note.payload().to_owned()));
            }
        }
        Poll::Ready(())
    }));
    listener.batch_execute(&format!("listen {channel}")).await?;
    let notifier = writer(fixture).await?;
    for n in 0..100 {
        notifier
            .execute("select pg_notify($1, $2)", &[&channel, &format!("{n}")])
            .await?;
    }
    // Notifications arrive in an idle session without a query.
    for n in 0..100 {
        assert_eq!(inbox.recv().await, Some((channel.clone(), n.to_string())));
    }
    Ok(())
}

async fn cancel(fixture: &Fixture) -> Result<(), Error> {
    let client = writer(fixture).await?;
    let marker = fixture.harness.unique_name("sleep");
    let token = client.cancel_token();
    let sql = format!("select pg_sleep(3600) as {marker}");
    let canceller = async {
        let asleep =
            "select count(*) from pg_stat_activity where query = $1 and wait_event = 'PgSleep'";
        // A role sees the queries of its own sessions only.
        let other = writer(fixture).await?;
        while other.query_one(asleep, &[&sql]).await?.get::<_, i64>(0) == 0 {
            tokio::task::yield_now().await;
        }
        token.cancel_query(tls(fixture)).await
    };
    let (slept, cancelled) = tokio::join!(client.batch_execute(&sql), canceller);
    cancelled?;
    let code = slept
        .expect_err("the query is cancelled")
        .code()
        .map(|code| code.code().to_owned());
    assert_eq!(code.as_deref(), Some("57014"));
    // Postgres signals the backend twice for a request, and the driver does not wait until both were sent. The second
    // signal may cancel one more query.
    let mut row = client.query_one("select 'still here'", &[]).await;
    if matches!(&row, Err(e) if e.code().is_some_and(|code| code.code() == "57014")) {
        row = client.query_one("select 'still here'", &[]).await;
    }
    let row = row?;
    assert_eq!(row.get::<_, &str>(0), "still here");
    Ok(())
}

async fn large_values(fixture: &Fixture) -> Result<(), Error> {
    let client = writer(fixture).await?;
    for length in [
        0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 1_000_003, 50_000_000,
    ] {
        let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let row = client
            .query_one("select $1::bytea, md5($1::bytea)", &[&sent])
            .await?;
        assert!(
            row.get::<_, &[u8]>(0) == sent,
            "{length} bytes have changed"
        );
    }
    Ok(())
}

/// Many concurrent connections, opened and closed repeatedly, each with a query.
async fn many_connections(fixture: &Fixture) -> Result<(), Error> {
    let settings = config(&fixture.sidecar(), "teesql_read", READ_SECRET);
    let settings = &settings;
    for _ in 0..3 {
        let sessions = (0..40_i32).map(|n| async move {
            let client = connect(fixture, settings).await?;
            let row = client.query_one("select $1::int + 1", &[&n]).await?;
            assert_eq!(row.get::<_, i32>(0), n + 1);
            Ok::<_, Error>(())
        });
        try_join_all(sessions).await?;
    }
    Ok(())
}
