"""Checks of psycopg 3 through the sidecar.

The end-to-end tests run: psycopg_suite.py <newest protocol> <unique name>, with
libpq's environment (PGHOST, PGUSER, ...) set for teesql_readwrite. Each check is a
function; the first failure ends the run with a traceback.
"""

import hashlib
import os
import sys
import threading

import psycopg
from psycopg import pq, sql

PROTOCOL, NAME = sys.argv[1:3]
READ_SECRET = os.environ["TEESQL_TEST_READ_SECRET"]
# A pattern that differs from itself after any shift, so that lost bytes are detected.
MEGABYTE = bytes((i * i + i // 251) % 256 for i in range(1 << 20))


def connect(**settings):
    return psycopg.connect(autocommit=True, **settings)


def tls_negotiation():
    """Every way in which libpq negotiates TLS."""
    for settings in (
        {"sslnegotiation": "postgres", "sslmode": "verify-full"},
        {"sslnegotiation": "direct", "sslmode": "verify-full"},
        {"sslnegotiation": "direct", "sslmode": "require", "gssencmode": "disable"},
        {"sslnegotiation": "postgres", "sslmode": "require", "channel_binding": "disable"},
    ):
        with connect(**settings) as connection:
            row = connection.execute("select session_user, current_database()").fetchone()
            assert row == ("teesql_readwrite", "via_scram"), row
            assert connection.pgconn.ssl_in_use


def protocols():
    """libpq 18 requests 3.2, accepts an older version, and refuses one below its minimum."""
    number = 30000 + int(PROTOCOL.split(".")[1])
    for newest, expected in (("3.0", 30000), ("3.2", number), ("latest", number)):
        with connect(max_protocol_version=newest) as connection:
            version = full_protocol_version(connection)
            assert version == expected, (newest, version)
    with connect(min_protocol_version=PROTOCOL) as connection:
        assert full_protocol_version(connection) == number
    if PROTOCOL == "3.0":
        try:
            connect(min_protocol_version="3.2", max_protocol_version="3.2")
        except psycopg.OperationalError as error:
            assert "protocol version" in str(error), error
        else:
            raise AssertionError("libpq accepted protocol 3.0 with a minimum of 3.2")


def full_protocol_version(connection):
    """PQfullProtocolVersion, which psycopg does not wrap."""
    import ctypes

    library = ctypes.CDLL(libpq_path())
    function = library.PQfullProtocolVersion
    function.argtypes = [ctypes.c_void_p]
    return function(connection.pgconn.pgconn_ptr)


def libpq_path():
    """The path of the libpq that psycopg has loaded."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "/libpq" in line}
    assert len(paths) == 1, paths
    return paths.pop()


def refused_logins():
    """Wrong secrets and unknown roles are refused."""
    for role, secret in (
        ("teesql_readwrite", READ_SECRET),
        ("teesql_read", "0" * 64),
        ("unknown_role", READ_SECRET),
    ):
        try:
            connect(user=role, password=secret)
        except psycopg.OperationalError as error:
            text = "FATAL:  authentication_failed: password authentication failed"
            assert text in str(error), error
        else:
            raise AssertionError(f"{role} logged in with the wrong secret")
    with connect(user="teesql_read", password=READ_SECRET) as connection:
        assert connection.execute("select current_user").fetchone() == ("teesql_read",)


def cancel():
    """cancel_safe is libpq's encrypted cancel; the sidecar refuses one in plaintext."""
    for settings in ({"sslnegotiation": "postgres"}, {"sslnegotiation": "direct"}):
        with connect(**settings) as connection, connect() as observer:
            pid = connection.info.backend_pid

            def stop():
                waiting = "select wait_event from pg_stat_activity where pid = %s"
                while observer.execute(waiting, [pid]).fetchone() != ("PgSleep",):
                    pass
                connection.cancel_safe(timeout=30)

            thread = threading.Thread(target=stop)
            thread.start()
            try:
                connection.execute("select pg_sleep(3600)")
            except psycopg.errors.QueryCanceled as error:
                assert "canceling statement due to user request" in str(error), error
            else:
                raise AssertionError("the query was not cancelled")
            thread.join()
            assert connection.execute("select 1").fetchone() == (1,)


def pipeline():
    with connect() as connection, connection.pipeline():
        cursors = [
            connection.execute("select %s::int, repeat('p', 1000)", [n]) for n in range(2000)
        ]
        for n, cursor in enumerate(cursors):
            assert cursor.fetchone() == (n, "p" * 1000)


def prepared_statements():
    with connect(prepare_threshold=0) as connection:
        for n in range(300):
            row = connection.execute("select %s::int + 1, %s::text", [n, "ü" * n]).fetchone()
            assert row == (n + 1, "ü" * n)


def transactions():
    table = sql.Identifier(NAME + "_accounts")
    with psycopg.connect() as connection:
        connection.execute(sql.SQL("create table {} (id int primary key, n int)").format(table))
        connection.commit()
        insert = sql.SQL("insert into {} values (%s, %s)").format(table)
        with connection.cursor() as cursor:
            cursor.executemany(insert, [(n, n * n) for n in range(5000)])
        try:
            with connection.transaction():
                connection.execute(insert, (1, 1))
        except psycopg.errors.UniqueViolation:
            pass
        else:
            raise AssertionError("a duplicate key was accepted")
        total = connection.execute(sql.SQL("select sum(n) from {}").format(table)).fetchone()
        assert total == (sum(n * n for n in range(5000)),), total
        connection.execute(sql.SQL("drop table {}").format(table))


def copy():
    table = sql.Identifier(NAME + "_copy")
    rows = 300_000
    with connect() as connection:
        connection.execute(sql.SQL("create table {} (n int, t text)").format(table))
        sent = hashlib.sha256()
        with connection.cursor().copy(sql.SQL("copy {} from stdin").format(table)) as out:
            for start in range(0, rows, 1000):
                lines = range(start, start + 1000)
                block = "".join(f"{n}\trow {n}\n" for n in lines).encode()
                sent.update(block)
                out.write(block)
        back = hashlib.sha256()
        query = sql.SQL("copy (select * from {} order by n) to stdout").format(table)
        with connection.cursor().copy(query) as incoming:
            for block in incoming:
                back.update(block)
        assert back.digest() == sent.digest()
        connection.execute(sql.SQL("drop table {}").format(table))


def notifications():
    channel = sql.Identifier(NAME + "_channel")
    with connect() as listener, connect() as notifier:
        listener.execute(sql.SQL("listen {}").format(channel))
        for n in range(50):
            notifier.execute("select pg_notify(%s, %s)", [NAME + "_channel", str(n)])
        payloads = [note.payload for note in listener.notifies(timeout=30, stop_after=50)]
        assert payloads == [str(n) for n in range(50)], payloads


def large_object():
    with psycopg.connect() as connection:
        oid = connection.execute("select lo_from_bytea(0, %s)", [MEGABYTE * 8]).fetchone()[0]
        back = connection.execute("select lo_get(%s)", [oid]).fetchone()[0]
        assert back == MEGABYTE * 8
        connection.execute("select lo_unlink(%s)", [oid])


def row_of_200_mb():
    value = MEGABYTE * 200
    with connect() as connection:
        cursor = connection.cursor(binary=True)
        cursor.execute("select md5(%b::bytea), %b::bytea", [value, MEGABYTE])
        assert cursor.fetchone() == (hashlib.md5(value).hexdigest(), MEGABYTE)
        # Postgres limits a message to 1 GB.
        cursor.execute("select repeat(%s, 200)::text", ["x" * (1 << 20)])
        row = cursor.fetchone()[0]
        assert len(row) == 200 << 20 and row.count("x") == len(row)


def main():
    assert pq.version() >= 180000, f"libpq {pq.version()} is older than 18"
    checks = (
        tls_negotiation,
        protocols,
        refused_logins,
        cancel,
        pipeline,
        prepared_statements,
        transactions,
        copy,
        notifications,
        large_object,
        row_of_200_mb,
    )
    for check in checks:
        check()
        print("ok", check.__name__, flush=True)
    print("all checks passed")


main()
