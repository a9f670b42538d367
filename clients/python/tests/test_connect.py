"""`teesql.connect` and `teesql.connect_async`: psycopg 3."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import threading
import warnings
from collections import Counter

import psycopg
import pytest
from psycopg.rows import dict_row

import teesql
from conftest import AT_ONCE, LOGINS, READ_SECRET, SERVER, threads, until

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_connects(dsn: str) -> None:
    with teesql.connect(dsn) as connection:
        assert connection.execute("select current_user").fetchone() == ("teesql_readwrite",)
        assert isinstance(connection, psycopg.Connection)


def test_takes_the_dsn_and_the_policy_of_the_environment() -> None:
    with teesql.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_passes_arguments_on_to_psycopg(dsn: str) -> None:
    with teesql.connect(dsn, row_factory=dict_row, autocommit=True, application_name="shop") as connection:
        row = connection.execute("select current_setting('application_name') as name").fetchone()
        assert row == {"name": "shop"}
        assert connection.autocommit


def test_connects_in_asyncio(dsn: str) -> None:
    async def main() -> None:
        async with await teesql.connect_async(dsn) as connection:
            cursor = await connection.execute("select current_user")
            assert await cursor.fetchone() == ("teesql_readwrite",)

    asyncio.run(main())


def test_accepts_the_spellings_of_other_libraries(dsn: str) -> None:
    rest = dsn.removeprefix("postgresql://")
    for scheme in ("postgres", "postgresql+psycopg"):
        with teesql.connect(f"{scheme}://{rest}") as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    host, port = SERVER.split(":")
    in_parameters = f"postgresql:///postgres?user=teesql_read&password={READ_SECRET}&host={host}&port={port}"
    with teesql.connect(in_parameters) as connection:
        assert connection.execute("select current_user").fetchone() == ("teesql_read",)


def test_the_environment_cannot_lead_around_the_forwarder(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGHOST", "192.0.2.1")
    with teesql.connect(dsn) as connection:
        assert connection.info.hostaddr == "127.0.0.1"
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    with pytest.raises(teesql.ConfigurationError, match="PGHOSTADDR"):
        teesql.connect(dsn)


@pytest.mark.parametrize("name", ["host", "hostaddr", "port", "service", "sslmode"])
def test_arguments_cannot_lead_around_the_forwarder(dsn: str, name: str) -> None:
    with pytest.raises(teesql.ConfigurationError, match=name):
        teesql.connect(dsn, **{name: "192.0.2.1"})


def test_connections_with_equal_arguments_share_a_forwarder(dsn: str) -> None:
    policy = teesql.Policy.from_env()
    first = teesql.connect(dsn, policy=policy)
    second = teesql.connect(dsn, policy=teesql.Policy.from_env())
    other = teesql.connect(dsn, policy=policy, settings={"connect_timeout": "4s"})
    assert first.info.port == second.info.port != other.info.port
    first.close()
    assert second.execute("select 1").fetchone() == (1,)
    second.close()
    other.close()


def test_a_hundred_connections(dsn: str) -> None:
    before = Counter(threads())
    places, logins = threading.Semaphore(AT_ONCE - 1), threading.Semaphore(LOGINS)
    ports = set()
    errors = []

    def work() -> None:
        try:
            with places, contextlib.ExitStack() as stack:
                with logins:
                    connection = stack.enter_context(teesql.connect(dsn))
                ports.add(connection.info.port)
                for number in range(10):
                    assert connection.execute("select %s::int", (number,)).fetchone() == (number,)
        except BaseException as error:
            errors.append(error)

    with teesql.connect(dsn):
        workers = [threading.Thread(target=work) for _ in range(100)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert not errors
        assert len(ports) == 1

        # Those of the package, however many connections there were. `join` returns before the system's thread is gone.
        def started() -> int:
            return (Counter(threads()) - before).total()

        assert until(lambda: started() <= 4), threads()


def test_a_hundred_connections_in_asyncio(dsn: str) -> None:
    async def work(places: asyncio.Semaphore, logins: asyncio.Semaphore, number: int) -> int:
        async with places, contextlib.AsyncExitStack() as stack:
            async with logins:
                connection = await stack.enter_async_context(await teesql.connect_async(dsn))
            cursor = await connection.execute("select %s::int", (number,))
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

    async def main() -> None:
        places, logins = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(LOGINS)
        assert await asyncio.gather(*(work(places, logins, number) for number in range(100))) == list(range(100))

    asyncio.run(main())


def test_a_cancelled_task_does_not_disturb_one_that_waits_for_the_same_start(dsn: str) -> None:
    async def main() -> None:
        first = asyncio.create_task(teesql.connect_async(dsn))
        second = asyncio.create_task(teesql.connect_async(dsn))
        await asyncio.sleep(0)
        first.cancel()
        async with await second as connection:
            cursor = await connection.execute("select 1")
            assert await cursor.fetchone() == (1,)
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())


def test_a_forwarder_of_ones_own(dsn: str, read_dsn: str) -> None:
    with teesql.Forwarder(dsn) as forwarder:
        with teesql.connect(forwarder=forwarder) as connection:
            assert connection.execute("select current_user").fetchone() == ("teesql_readwrite",)
        with teesql.connect(read_dsn, forwarder=forwarder) as connection:
            assert connection.execute("select current_user").fetchone() == ("teesql_read",)
            assert connection.info.port == forwarder.port
        with pytest.raises(teesql.ConfigurationError, match="has its policy"):
            teesql.connect(forwarder=forwarder, policy=teesql.Policy())


def test_a_connection_that_is_not_closed_leaves_nothing(dsn: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        connection = teesql.connect(dsn)
        del connection
        gc.collect()
    assert until(lambda: "teesql" not in threads())


def test_an_error_can_be_pickled(dsn: str) -> None:
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.connect(
            dsn,
            policy=teesql.Policy(mrtd="00" * 48, allow_any_server=True, settings={"pccs": os.environ["TEESQL_PCCS"]}),
        )
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy), copy.code) == (type(raised.value), str(raised.value), raised.value.code)
