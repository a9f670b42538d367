"""Logs in with asyncpg, pg8000 and psycopg 2, with TLS or through a forwarder (without TLS).

The connection is that of libpq's variables. Prints a line for each driver; run by scripts/drivers.
"""

import asyncio
import os
import ssl
import sys

import asyncpg
import pg8000.dbapi
import psycopg2

HOST, PORT = os.environ["PGHOST"], int(os.environ["PGPORT"])
USER, PASSWORD = os.environ["PGUSER"], os.environ["PGPASSWORD"]
DATABASE = os.environ.get("PGDATABASE", "postgres")
TLS = os.environ.get("PGSSLMODE") != "disable"
QUERY = "select current_user"


def context():
    if not TLS:
        return None
    context = ssl.create_default_context(cafile=os.environ["PGSSLROOTCERT"])
    context.load_cert_chain(os.environ["PGSSLCERT"], os.environ["PGSSLKEY"])
    return context


async def with_asyncpg():
    connection = await asyncpg.connect(
        host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, ssl=context() or False
    )
    try:
        return await connection.fetchval(QUERY)
    finally:
        await connection.close()


def with_pg8000():
    connection = pg8000.dbapi.connect(
        USER, host=HOST, port=PORT, password=PASSWORD, database=DATABASE, ssl_context=context()
    )
    try:
        cursor = connection.cursor()
        cursor.execute(QUERY)
        return cursor.fetchone()[0]
    finally:
        connection.close()


def with_psycopg2():
    binding = "require" if TLS else "disable"
    connection = psycopg2.connect(f"channel_binding={binding}")
    try:
        cursor = connection.cursor()
        cursor.execute(QUERY)
        return cursor.fetchone()[0]
    finally:
        connection.close()


def main():
    found = {
        f"asyncpg {asyncpg.__version__}": asyncio.run(with_asyncpg()),
        f"pg8000 {pg8000.__version__}": with_pg8000(),
        f"psycopg2 {psycopg2.__version__.split()[0]}": with_psycopg2(),
    }
    for driver, user in found.items():
        print(f"{driver}: {user}")
    sys.exit(any(user != USER for user in found.values()))


main()
