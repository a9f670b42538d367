"""An application that writes about 20 rows a second and survives failovers, run by `scripts/cluster --applications`.

It prints the number and the time of each acknowledged write. Its argument is a path: when a file exists there, it closes its
pool and its forwarder, and exits.
"""

import os
import sys
import time
from pathlib import Path

import psycopg
import psycopg_pool

import teesql


def main(stop: Path) -> None:
    hosts = os.environ["TEESQL_DEV_SIDECARS"]
    secret = os.environ["TEESQL_DEV_READWRITE_SECRET"]
    identity = teesql.Identity.guest_agent(os.environ["TEESQL_DEV_GUEST_AGENT"])
    remote = f"postgresql://teesql_readwrite:{secret}@{hosts}/postgres"
    with (
        teesql.forward(remote, identity=identity) as dsn,
        psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2, timeout=40) as pool,
    ):
        number = 0
        while not stop.exists():
            number += 1
            try:
                with pool.connection() as connection:
                    connection.execute("INSERT INTO written_python VALUES (%s)", [number])
            except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
                print(f"{time.time():.1f} {number}: {error}", file=sys.stderr, flush=True)
            else:
                print(number, f"{time.time():.3f}", flush=True)
            time.sleep(0.05)


main(Path(sys.argv[1]))
