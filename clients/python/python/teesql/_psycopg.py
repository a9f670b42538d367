"""psycopg 3 through forwarders: `connect` and `connect_async`.

Connections that are opened with equal arguments share a forwarder, which ends with the last of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, overload

from ._dispatcher import Verifier, dispatcher
from ._errors import KINDS, AuthenticationError, ConfigurationError, Error
from ._forwarder import Forwarder
from ._policy import Identity, Policy, setting_text
from ._values import Failure, signer_bytes

try:
    import psycopg
    from psycopg.rows import AsyncRowFactory, Row, RowFactory, TupleRow
except ImportError as error:
    raise ImportError("teesql.connect needs psycopg 3: pip install 'teesql[psycopg]'") from error

#: Parameters with which a driver would bypass the forwarder.
_RESERVED = frozenset({"host", "hostaddr", "port", "service", "servicefile", "sslmode", "sslnegotiation"})


class Connection(psycopg.Connection[Row]):
    """A `psycopg.Connection` that ends its forwarder when it is closed, unless others use it."""

    _lease: Lease | None = None

    def close(self) -> None:
        """Closes the connection."""
        super().close()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


class AsyncConnection(psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that ends its forwarder when it is closed, unless others use it."""

    _lease: Lease | None = None

    async def close(self) -> None:
        """Closes the connection."""
        await super().close()
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.release_async()


@overload
def connect(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: RowFactory[Row],
    **kwargs: Any,
) -> Connection[Row]: ...


@overload
def connect(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: None = None,
    **kwargs: Any,
) -> Connection[TupleRow]: ...


def connect(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: RowFactory[Any] | None = None,
    **kwargs: Any,
) -> Connection[Any]:
    """Connects to a server after it has proved which code it runs.

    dsn: connection URI; by default ``DATABASE_URL``.
    policy, identity, verifier, cluster, manifest_signer, settings: as those of `Forwarder`.
    forwarder: one that runs already, to be used instead; the server in ``dsn`` is then ignored.
    row_factory and all others: as those of ``psycopg.connect``.

    An error is a `teesql.Error` with a reason code, and if the connection failed also a ``psycopg.OperationalError``.
    """
    check_parameters(kwargs)
    lease = _lease(dsn, policy, identity, verifier, cluster, manifest_signer, settings, forwarder, None)
    return open_connection(lease, dsn, row_factory, kwargs)


@overload
async def connect_async(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: AsyncRowFactory[Row],
    **kwargs: Any,
) -> AsyncConnection[Row]: ...


@overload
async def connect_async(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: None = None,
    **kwargs: Any,
) -> AsyncConnection[TupleRow]: ...


async def connect_async(
    dsn: str | None = None,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    cluster: str | None = None,
    manifest_signer: bytes | str | None = None,
    settings: Mapping[str, object] | None = None,
    forwarder: Forwarder | None = None,
    row_factory: AsyncRowFactory[Any] | None = None,
    **kwargs: Any,
) -> AsyncConnection[Any]:
    """As `connect`, for asyncio. A verifier that is a coroutine function runs in this event loop."""
    check_parameters(kwargs)
    loop = asyncio.get_running_loop()
    lease = _lease(dsn, policy, identity, verifier, cluster, manifest_signer, settings, forwarder, loop)
    return await open_connection_async(lease, dsn, row_factory, kwargs)


def open_connection(
    lease: Lease, dsn: str | None, row_factory: RowFactory[Any] | None, parameters: dict[str, Any]
) -> Connection[Any]:
    """A connection through the forwarder of ``lease``, which it then owns."""
    try:
        lease.forwarder.start()
        attempt = _Attempt(lease.forwarder, dsn, parameters)
        try:
            connection: Connection[Any] = Connection.connect(attempt.conninfo, row_factory=row_factory, **attempt.parameters)
        except psycopg.OperationalError as error:
            raise attempt.cause_of(error) from error
    except BaseException:
        lease.release()
        raise
    _own(connection, lease)
    return connection


async def open_connection_async(
    lease: Lease, dsn: str | None, row_factory: AsyncRowFactory[Any] | None, parameters: dict[str, Any]
) -> AsyncConnection[Any]:
    """As `open_connection`, for asyncio."""
    try:
        await lease.forwarder.start_async()
        attempt = _Attempt(lease.forwarder, dsn, parameters)
        try:
            connection: AsyncConnection[Any] = await AsyncConnection.connect(
                attempt.conninfo, row_factory=row_factory, **attempt.parameters
            )
        except psycopg.OperationalError as error:
            raise attempt.cause_of(error) from error
    except BaseException:
        await lease.release_async()
        raise
    _own(connection, lease)
    return connection


def _own(connection: Connection[Any] | AsyncConnection[Any], lease: Lease) -> None:
    connection._lease = lease
    # For a connection that is never closed. psycopg itself warns about it.
    weakref.finalize(connection, lease.abandon).atexit = False


def check_parameters(parameters: Mapping[str, object]) -> None:
    found = sorted(_RESERVED.intersection(parameters))
    if found:
        text = f"{', '.join(found)}: the forwarder decides where the driver connects to: name the server in the DSN"
        raise ConfigurationError(text, code="configuration")


# --- an attempt to connect, and why it failed


class _Attempt:
    """The arguments for psycopg, and the number of the forwarder's newest failure before the attempt."""

    def __init__(self, forwarder: Forwarder, dsn: str | None, parameters: dict[str, Any]) -> None:
        # Not the forwarder: its failures are needed after it was stopped, too.
        self._native = forwarder._running
        self.conninfo = _for_libpq(forwarder.dsn if dsn is None else forwarder.rewrite(dsn))
        # Without it libpq would take the address in the environment or in a service file.
        hostaddr = "" if forwarder.host.startswith("/") else forwarder.host
        self.parameters = {**parameters, "hostaddr": hostaddr}
        last = forwarder.last_failure
        self._sequence = 0 if last is None else last.sequence

    def cause_of(self, error: psycopg.OperationalError) -> BaseException:
        """A typed error for the driver's, if the cause is known; otherwise the driver's."""
        text = str(error)
        failures = [Failure._of(fields) for fields in self._native.failures_after(self._sequence)]
        for failure in reversed(failures):
            # The forwarder may have truncated a long text.
            if failure.message[:100].rstrip("…") in text:
                return _typed(failure.to_error(), error)
        code = _code_of_refused_client(text)
        if code is not None:
            return _typed(AuthenticationError(text, code=code), error)
        # The driver has received no text. If all failures since then have one code, it is the cause.
        if "FATAL" not in text and len({failure.code for failure in failures}) == 1:
            return _typed(failures[-1].to_error(), error)
        return error


def _for_libpq(dsn: str) -> str:
    """``postgresql+psycopg://`` is for SQLAlchemy."""
    return re.sub(r"^[A-Za-z]+(\+\w+)?://", "postgresql://", dsn, count=1)


def _code_of_refused_client(text: str) -> str | None:
    """The reason code in what a sidecar tells a client that it refuses."""
    rejected = re.search(r"client attestation rejected: (\w+)", text)
    if rejected:
        return rejected[1]
    return "authentication_failed" if "password authentication failed" in text else None


#: For each kind of error one that is also psycopg's.
_TYPED: dict[type[Error], type[Error]] = {}
for _kind in (*KINDS.values(), AuthenticationError):
    _TYPED[_kind] = type(_kind.__name__, (_kind, psycopg.OperationalError), {"__module__": __name__})
    globals()[_kind.__name__ + "FromDriver"] = _TYPED[_kind]
    _TYPED[_kind].__qualname__ = _kind.__name__ + "FromDriver"


def _typed(error: Error, of_driver: psycopg.OperationalError) -> Error:
    typed = _TYPED[type(error)](str(error), code=error.code, messages=error.messages)
    typed.__dict__.update(of_driver.__dict__)
    return typed


# --- forwarders shared by connections


class Lease:
    """The right to use a forwarder, which ends when the last lease is released."""

    def __init__(self, forwarder: Forwarder, entry: _Entry | None) -> None:
        self.forwarder = forwarder
        self._entry = entry

    def release(self) -> None:
        """Stops the forwarder if no other connection uses it."""
        if self._give_back():
            self.forwarder.stop()

    async def release_async(self) -> None:
        """As `release`, for asyncio."""
        if self._give_back():
            await self.forwarder.stop_async()

    def abandon(self) -> None:
        """As `release`, without waiting: from the garbage collector."""
        if self._give_back():
            self.forwarder.abandon()

    def _give_back(self) -> bool:
        entry, self._entry = self._entry, None
        return entry is not None and entry.give_back()


class _Entry:
    """A shared forwarder."""

    def __init__(self, key: object, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.leases = 0
        self._key = key
        self._dispatcher = dispatcher()

    def give_back(self) -> bool:
        """Whether the forwarder has to be stopped."""
        if self._dispatcher is not dispatcher():
            # In a child process the forwarder belongs to the parent.
            return False
        with _lock:
            self.leases -= 1
            if self.leases:
                return False
            if _entries.get(self._key) is self:
                del _entries[self._key]
            return True


#: Reentrant: the garbage collector may release a lease in the middle of `lease_of`.
_lock = threading.RLock()
_entries: dict[object, _Entry] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _entries.clear()


os.register_at_fork(after_in_child=_after_fork)


def lease_of(key: object, make: Callable[[], Forwarder]) -> Lease:
    """A lease of the forwarder with this key, which is made if there is none. A key without a hash is not shared."""
    try:
        hash(key)
    except TypeError:
        key = object()
    with _lock:
        while True:
            entry = _entries.get(key)
            if entry is None:
                entry = _entries[key] = _Entry(key, make())
            entry.leases += 1
            # Unless the garbage collector has released its last lease just now.
            if _entries.get(key) is entry:
                return Lease(entry.forwarder, entry)


def _lease(
    dsn: str | None,
    policy: Policy | None,
    identity: Identity | None,
    verifier: Verifier | None,
    cluster: str | None,
    manifest_signer: bytes | str | None,
    settings: Mapping[str, object] | None,
    forwarder: Forwarder | None,
    loop: asyncio.AbstractEventLoop | None,
) -> Lease:
    given = [policy, identity, verifier, cluster, manifest_signer, settings]
    if forwarder is not None:
        if any(value is not None for value in given):
            text = "a forwarder that runs already has its policy, identity, verifier, cluster and settings"
            raise ConfigurationError(text, code="configuration")
        return Lease(forwarder, None)
    signer = None if manifest_signer is None else signer_bytes(manifest_signer)
    all_settings = tuple(sorted((name, setting_text(value)) for name, value in (settings or {}).items()))
    # Coroutines of a verifier run in the event loop in which their forwarder was started.
    loop = None if verifier is None else loop
    key = (dsn or os.environ.get("DATABASE_URL"), policy, identity, verifier, loop, cluster, signer, all_settings)
    return lease_of(
        key,
        lambda: Forwarder(
            dsn,
            policy=policy,
            identity=identity,
            verifier=verifier,
            cluster=cluster,
            manifest_signer=signer,
            settings=settings,
        ),
    )
