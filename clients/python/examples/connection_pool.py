"""A pool of psycopg for a service: one forwarder, opened at the start and closed at the end."""

import os

import psycopg_pool

import teesql

with (
    teesql.forward(os.environ["DATABASE_URL"]) as dsn,
    psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=4) as pool,
    pool.connection() as connection,
):
    print(connection.execute("select current_user").fetchone())
