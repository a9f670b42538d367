"""Log lines, by Python's own logging."""

from __future__ import annotations

import logging
import threading
import time

import psycopg
import pytest
from test_refusals import policy

import teesql
from conftest import SECRET, until


def test_refusals_are_logged(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.time()
    with (
        caplog.at_level(logging.WARNING, "teesql"),
        teesql.Forwarder(dsn, policy=policy(app_id="00" * 20)) as forwarder,
    ):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(forwarder.dsn)
        assert until(lambda: any("app_not_allowed" in record.getMessage() for record in caplog.records))
    record = next(record for record in caplog.records if "app_not_allowed" in record.getMessage())
    assert record.name == "teesql"
    assert record.levelno == logging.WARNING
    assert begun - 1 <= record.created <= time.time() + 1
    assert all(SECRET not in record.getMessage() for record in caplog.records)


def test_the_level_is_that_of_the_logger(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "teesql"):
        with (
            teesql.Forwarder(dsn, policy=policy(app_id="00" * 20)) as forwarder,
            pytest.raises(psycopg.OperationalError),
        ):
            psycopg.connect(forwarder.dsn)
        assert not caplog.records
    with caplog.at_level(logging.INFO, "teesql"):
        with teesql.connect(dsn) as connection:
            connection.execute("select 1")
        assert any(record.levelno == logging.INFO for record in caplog.records)


def test_a_filter_that_fails_does_not_end_the_thread(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: logging.LogRecord) -> bool:
        raise RuntimeError("a broken filter")

    logger = logging.getLogger("teesql")
    logger.addFilter(broken)
    try:
        with teesql.Forwarder(dsn, policy=policy(app_id="00" * 20), verifier=lambda _: True) as forwarder:
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(forwarder.dsn)
            assert until(lambda: "a broken filter" in capsys.readouterr().err)
            assert "teesql" in {thread.name for thread in threading.enumerate()}
    finally:
        logger.removeFilter(broken)


def test_nothing_on_stderr(dsn: str, capfd: pytest.CaptureFixture[str]) -> None:
    with teesql.connect(dsn) as connection:
        connection.execute("select 1")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
