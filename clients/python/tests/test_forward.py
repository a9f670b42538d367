"""Forwarders, and drivers and frameworks behind them."""

from __future__ import annotations

import asyncio

import asyncpg
import django
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

import teesql
from conftest import SECRET, python


@pytest.mark.usefixtures("nothing_left")
class TestForward:
    def test_psycopg(self, dsn: str) -> None:
        with teesql.forward(dsn) as local, psycopg.connect(local) as connection:
            assert connection.execute("select current_user").fetchone() == ("teesql_readwrite",)

    def test_a_pool_of_psycopg(self, dsn: str) -> None:
        with teesql.forward(dsn) as local, psycopg_pool.ConnectionPool(local, min_size=4, timeout=10) as pool:
            pool.wait(10)
            with pool.connection() as connection:
                assert connection.execute("select 1").fetchone() == (1,)

    def test_asyncpg(self, dsn: str) -> None:
        async def main() -> None:
            async with teesql.forward(dsn) as local:
                connection = await asyncpg.connect(local)
                assert await connection.fetchval("select current_user") == "teesql_readwrite"
                await connection.close()
                async with asyncpg.create_pool(local, min_size=2, max_size=4) as pool:
                    results = await asyncio.gather(*(pool.fetchval("select $1::int", n) for n in range(20)))
                    assert results == list(range(20))

        asyncio.run(main())

    def test_sqlalchemy_with_psycopg(self, dsn: str) -> None:
        with teesql.forward(dsn.replace("postgresql://", "postgresql+psycopg://")) as local:
            engine = sqlalchemy.create_engine(local)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("create table if not exists of_sqlalchemy (id int)"))
                connection.execute(sqlalchemy.text("insert into of_sqlalchemy values (1)"))
                assert connection.execute(sqlalchemy.text("select id from of_sqlalchemy")).scalars().first() == 1
                connection.execute(sqlalchemy.text("drop table of_sqlalchemy"))
            engine.dispose()

    def test_sqlalchemy_with_asyncpg(self, dsn: str) -> None:
        async def main() -> None:
            async with teesql.forward(dsn.replace("postgresql://", "postgresql+asyncpg://")) as local:
                engine = create_async_engine(local)
                async with engine.connect() as connection:
                    result = await connection.execute(sqlalchemy.text("select current_user"))
                    assert result.scalar() == "teesql_readwrite"
                await engine.dispose()

        asyncio.run(main())


def test_django() -> None:
    """Django is set up once in a process, and its entry lasts until the process ends."""
    assert django.VERSION
    program = """
        import django
        from django.conf import settings
        import teesql.django
        settings.configure(DATABASES={"default": teesql.django.database()}, DEFAULT_AUTO_FIELD="django.db.models.AutoField")
        django.setup()
        from django.db import connection, models
        class Note(models.Model):
            words = models.TextField()
            class Meta:
                app_label = "notes"
                db_table = "notes_of_django"
        with connection.schema_editor() as editor:
            editor.create_model(Note)
        Note.objects.create(words="hello")
        print(list(Note.objects.values_list("words", flat=True)))
        with connection.schema_editor() as editor:
            editor.delete_model(Note)
    """
    assert python(program).stdout == "['hello']\n"


@pytest.mark.usefixtures("nothing_left")
class TestForwarder:
    def test_says_where_it_is(self, dsn: str) -> None:
        with teesql.Forwarder(dsn) as forwarder:
            assert forwarder.host == "127.0.0.1"
            assert 0 < forwarder.port < 65536
            address = f"127.0.0.1:{forwarder.port}"
            assert f"@{address}/" in forwarder.dsn
            assert "sslmode=disable" in forwarder.dsn
            assert forwarder.rewrite("postgresql://me@elsewhere:1/db") == f"postgresql://me@{address}/db?sslmode=disable"
            assert repr(forwarder) == "<teesql.Forwarder running>"

    def test_shows_no_secret(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn, settings={"trust_authority_key": SECRET})
        assert SECRET not in repr(forwarder)
        policy = teesql.Policy(settings={"trust_authority_key": SECRET})
        assert SECRET not in repr(policy)
        assert SECRET not in repr(teesql.Identity.pem("chain", SECRET))

    def test_can_be_started_again(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn)
        for _ in range(2):
            with forwarder, psycopg.connect(forwarder.dsn) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
            with pytest.raises(teesql.StoppedError) as raised:
                _ = forwarder.dsn
            assert raised.value.code == "stopped"
        forwarder.stop()

    def test_warns_if_it_is_never_stopped(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn).start()
        with pytest.warns(ResourceWarning, match="was not stopped"):
            del forwarder

    def test_refuses_arguments_that_exclude_each_other(self, dsn: str) -> None:
        with pytest.raises(teesql.ConfigurationError, match="belong together"):
            teesql.Forwarder(cluster="orders.example")
        with pytest.raises(teesql.ConfigurationError, match="one verifier"):
            teesql.Forwarder(dsn, verifier=lambda _: True, dangerous_verifier_instead_of_dcap=lambda _: None)
        with pytest.raises(ValueError, match="20 bytes"):
            teesql.Forwarder(cluster="orders.example", manifest_signer="0x12")

    def test_listens_where_it_is_told_to(self, dsn: str, tmp_path: object) -> None:
        with teesql.Forwarder(dsn, settings={"forward_listen": tmp_path}) as forwarder:
            assert forwarder.host == str(tmp_path)
            with psycopg.connect(forwarder.dsn) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
            with teesql.connect(forwarder=forwarder) as other:
                assert other.execute("select 1").fetchone() == (1,)
