"""A long-lived connection that is opened again once when it breaks, as it does when a cluster gets another leader."""

import os

import psycopg

import teesql


class Database:
    """One connection for a service."""

    def __init__(self) -> None:
        self.forwarder = teesql.Forwarder(os.environ["DATABASE_URL"]).start()
        self.connection = self.connect()

    def connect(self) -> psycopg.Connection:
        return teesql.connect(forwarder=self.forwarder, autocommit=True)

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        try:
            return self.connection.execute(statement).fetchall()
        except psycopg.OperationalError:
            self.connection.close()
            self.connection = self.connect()
            return self.connection.execute(statement).fetchall()

    def close(self) -> None:
        self.connection.close()
        self.forwarder.stop()


database = Database()
print(database.execute("select 1"))
(pid,) = database.execute("select pg_backend_pid()")[0]
with teesql.connect(forwarder=database.forwarder, autocommit=True) as other:
    other.execute("select pg_terminate_backend(%s)", (pid,))
print(database.execute("select 2"))
database.close()
