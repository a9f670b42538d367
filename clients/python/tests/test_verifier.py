"""Verifiers of the application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable

import asyncpg
import psycopg
import pytest

import teesql
from conftest import threads, until
from teesql._dispatcher import MAX_THREADS

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_sees_what_the_server_presents(dsn: str) -> None:
    seen: list[teesql.Evidence] = []

    def verifier(evidence: teesql.Evidence) -> bool:
        seen.append(evidence)
        return True

    with teesql.connect(dsn, verifier=verifier) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    (evidence,) = seen
    assert evidence.claims.tcb_status == "UpToDate"
    assert not evidence.claims.is_debug
    assert evidence.claims.app_id
    assert len(evidence.claims.mrtd) == 96
    assert teesql.extract_tdx_quote(evidence.chain[0]) == evidence.quote
    assert teesql.read_quote(evidence.quote).mrtd == evidence.claims.mrtd


def test_is_asked_for_each_connection(dsn: str) -> None:
    calls = []
    with teesql.Forwarder(dsn, verifier=lambda evidence: calls.append(evidence)) as forwarder:
        for _ in range(3):
            psycopg.connect(forwarder.dsn).close()
    assert len(calls) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_refuses(dsn: str, is_async: bool) -> None:
    def refuse(_: teesql.Evidence) -> None:
        raise teesql.Refused("not ours:\nsecond line")

    async def refuse_async(evidence: teesql.Evidence) -> None:
        await asyncio.sleep(0)
        refuse(evidence)

    with pytest.raises(teesql.RefusedError, match="not ours") as raised:
        teesql.connect(dsn, verifier=refuse_async if is_async else refuse)
    assert raised.value.code == "verifier_refused"
    assert "\n" not in raised.value.messages[0]


def test_refuses_by_returning_false(dsn: str) -> None:
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.connect(dsn, verifier=lambda _: False)
    assert raised.value.code == "verifier_refused"


@pytest.mark.parametrize("result", [1, "UpToDate", [], object()])
def test_accepts_only_by_none_and_true(dsn: str, result: object) -> None:
    with pytest.raises(teesql.UnavailableError, match="instead of None, True or False") as raised:
        teesql.connect(dsn, verifier=lambda _: result)  # type: ignore[arg-type, return-value]
    assert raised.value.code == "verifier_failed"


def test_that_raises(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: teesql.Evidence) -> bool:
        raise KeyError("no such table")

    with caplog.at_level(logging.ERROR, "teesql"), pytest.raises(teesql.UnavailableError) as raised:
        teesql.connect(dsn, verifier=broken)
    assert raised.value.code == "verifier_failed"
    assert "KeyError: 'no such table'" in str(raised.value)
    # The traceback is in the log.
    assert until(lambda: any(record.exc_info for record in caplog.records))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_that_wants_to_exit(dsn: str, error: BaseException) -> None:
    def broken(_: teesql.Evidence) -> bool:
        raise error

    with pytest.raises(teesql.UnavailableError) as raised:
        teesql.connect(dsn, verifier=broken)
    assert raised.value.code == "verifier_failed"


@pytest.mark.parametrize("is_async", [False, True])
def test_that_never_returns(dsn: str, is_async: bool) -> None:
    end = threading.Event()

    def endless(_: teesql.Evidence) -> None:
        end.wait()

    async def endless_async(_: teesql.Evidence) -> None:
        while not end.is_set():
            await asyncio.sleep(0.01)

    verifier = endless_async if is_async else endless
    with teesql.Forwarder(dsn, verifier=verifier, verifier_timeout=0.3) as forwarder:
        begun = time.monotonic()
        with pytest.raises(teesql.TimeoutError) as raised:
            teesql.connect(forwarder=forwarder)
        assert raised.value.code == "verifier_timeout"
        assert time.monotonic() - begun >= 0.3
    end.set()


def test_that_never_returns_does_not_delay_others(dsn: str) -> None:
    """Of 40 connections at once, 8 keep half of the threads."""
    end = threading.Event()
    lock = threading.Lock()
    calls = []

    def verifier(_: teesql.Evidence) -> None:
        with lock:
            number = len(calls)
            calls.append(number)
        if number < 8:
            end.wait()

    results: list[str] = []

    def work(forwarder: teesql.Forwarder) -> None:
        try:
            teesql.connect(forwarder=forwarder).close()
            results.append("accepted")
        except teesql.Error as error:
            results.append(error.code)

    with teesql.Forwarder(dsn, verifier=verifier, verifier_timeout=3) as forwarder:
        workers = [threading.Thread(target=work, args=(forwarder,)) for _ in range(40)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
    end.set()
    assert sorted(results) == ["accepted"] * 32 + ["verifier_timeout"] * 8


def test_that_keeps_all_threads(dsn: str) -> None:
    """Further connections do not wait for their deadline, until a function returns."""
    end = threading.Event()
    entered = []

    def endless(_: teesql.Evidence) -> None:
        entered.append(threading.current_thread())
        end.wait()

    with (
        teesql.Forwarder(dsn, verifier=endless, verifier_timeout=0.3) as forwarder,
        teesql.Forwarder(dsn, verifier=lambda _: True, verifier_timeout=600) as other,
    ):

        def is_accepted() -> bool:
            try:
                teesql.connect(forwarder=other).close()
            except teesql.UnavailableError:
                return False
            return True

        assert is_accepted()
        # On a busy machine the time of one may be over before its function runs.
        while len(entered) < MAX_THREADS:
            with pytest.raises(teesql.TimeoutError) as late:
                teesql.connect(forwarder=forwarder)
            assert late.value.code == "verifier_timeout"
        with pytest.raises(teesql.UnavailableError, match="all 16 threads for verifiers are kept") as raised:
            teesql.connect(forwarder=other)
        assert raised.value.code == "verifier_failed"
        end.set()
        assert until(is_accepted)
    assert len(set(entered)) == MAX_THREADS


def test_a_coroutine_runs_in_the_event_loop_of_its_forwarder(dsn: str) -> None:
    async def main() -> None:
        loops = []

        async def verifier(_: teesql.Evidence) -> bool:
            await asyncio.sleep(0.01)
            loops.append(asyncio.get_running_loop())
            return True

        async with teesql.forward(dsn, verifier=verifier) as local:
            connection = await asyncpg.connect(local)
            await connection.close()
        async with await teesql.connect_async(dsn, verifier=verifier):
            pass
        assert loops == [asyncio.get_running_loop()] * 2

    asyncio.run(main())


def test_a_coroutine_is_cancelled_when_its_time_is_over(dsn: str) -> None:
    async def main() -> None:
        cancelled = asyncio.Event()

        async def verifier(_: teesql.Evidence) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with teesql.Forwarder(dsn, verifier=verifier, verifier_timeout=0.2) as forwarder:
            with pytest.raises(teesql.TimeoutError):
                await teesql.connect_async(forwarder=forwarder)
            await asyncio.wait_for(cancelled.wait(), 5)

    asyncio.run(main())


def test_a_coroutine_is_cancelled_when_its_forwarder_stops(dsn: str) -> None:
    async def main() -> None:
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def verifier(_: teesql.Evidence) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async with teesql.Forwarder(dsn, verifier=verifier, verifier_timeout=600, drain_timeout=0.1) as forwarder:
            connecting = asyncio.create_task(teesql.connect_async(forwarder=forwarder))
            await asyncio.wait_for(entered.wait(), 10)
        with pytest.raises(psycopg.OperationalError):
            await connecting
        await asyncio.wait_for(cancelled.wait(), 10)

    asyncio.run(main())


def test_a_coroutine_does_not_need_a_loop_that_runs(dsn: str) -> None:
    """A forwarder that was started in a loop that is closed by now, or that the caller blocks."""

    async def verifier(_: teesql.Evidence) -> bool:
        await asyncio.sleep(0.01)
        return True

    forwarder = teesql.Forwarder(dsn, verifier=verifier)
    asyncio.run(_start(forwarder))
    with contextlib.closing(teesql.connect(forwarder=forwarder)):
        forwarder.stop()

    async def main() -> None:
        with teesql.connect(dsn, verifier=verifier) as connection:
            assert connection.execute("select 1").fetchone() == (1,)

    asyncio.run(main())


async def _start(forwarder: teesql.Forwarder) -> None:
    await forwarder.start_async()


def test_a_callable_object(dsn: str) -> None:
    class Verifier:
        def __call__(self, _: teesql.Evidence) -> Awaitable[bool]:
            async def decide() -> bool:
                return True

            return decide()

    with teesql.connect(dsn, verifier=Verifier()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_object_that_is_false_still_decides(dsn: str) -> None:
    class Denied(list[str]):
        def __call__(self, _: teesql.Evidence) -> bool:
            return False

    with pytest.raises(teesql.RefusedError) as raised:
        teesql.connect(dsn, verifier=Denied())
    assert raised.value.code == "verifier_refused"


class TestInsteadOfDcap:
    """Verifiers that decide whether a quote is genuine."""

    def forwarder(self, dsn: str, verifier: teesql.VerifierInsteadOfDcap, **values: object) -> teesql.Forwarder:
        # No collateral, and Intel's root: by DCAP this server would be refused.
        policy = teesql.Policy(allow_any_server=True, settings={"pccs": "off"}, **values)  # type: ignore[arg-type]
        return teesql.Forwarder(dsn, policy=policy, dangerous_verifier_instead_of_dcap=verifier)

    def test_accepts(self, dsn: str) -> None:
        seen = []

        def verifier(evidence: teesql.Evidence) -> str:
            seen.append(evidence.claims.tcb_status)
            return "UpToDate"

        with self.forwarder(dsn, verifier) as forwarder, teesql.connect(forwarder=forwarder) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert seen == [None]

    def test_the_policy_decides_about_the_status(self, dsn: str) -> None:
        with (
            self.forwarder(dsn, lambda _: "OutOfDate") as forwarder,
            pytest.raises(teesql.RefusedError) as raised,
        ):
            teesql.connect(forwarder=forwarder)
        assert raised.value.code == "tcb_out_of_date"

    def test_the_policy_applies(self, dsn: str) -> None:
        with (
            self.forwarder(dsn, lambda _: None, mrtd="00" * 48) as forwarder,
            pytest.raises(teesql.RefusedError) as raised,
        ):
            teesql.connect(forwarder=forwarder)
        assert raised.value.code == "mrtd_not_allowed"


def test_leaves_no_thread(dsn: str) -> None:
    before = threads()
    for _ in range(3):
        teesql.connect(dsn, verifier=lambda _: True).close()
    assert until(lambda: threads() == before)
