"""Forwarders: a local address for drivers, from which connections go over mutual RA-TLS to a verified server."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

from . import _native
from ._dispatcher import Dispatcher, Verifier, VerifierInsteadOfDcap, dispatcher, only_verifier
from ._errors import ConfigurationError, StoppedError
from ._operation import wait, wait_async
from ._policy import Identity, Policy, setting_text
from ._values import Failure, signer_bytes

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Options(TypedDict, total=False):
    """The options of `Forwarder` and `forward`."""

    target: str | None
    cluster: str | None
    manifest_signer: bytes | str | None
    policy: Policy | None
    identity: Identity | None
    verifier: Verifier | None
    dangerous_verifier_instead_of_dcap: VerifierInsteadOfDcap | None
    verifier_timeout: float | None
    connect_timeout: float | None
    start_timeout: float | None
    drain_timeout: float | None
    settings: Mapping[str, object] | None


#: libpq's variables with which a driver connects to another address than that of the DSN.
_BYPASSING = ("PGHOSTADDR", "PGSERVICE")


class Forwarder:
    """A forwarder, which runs from `start` to `stop`, or as a context manager, synchronous or asynchronous.

    What is not given comes from the environment: ``DATABASE_URL`` and the settings of ``teesql-forward``, ``TEESQL_…``.
    All forwarders of a process share their threads. In a child process after a fork each method raises `ForkedError`.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        target: str | None = None,
        cluster: str | None = None,
        manifest_signer: bytes | str | None = None,
        policy: Policy | None = None,
        identity: Identity | None = None,
        verifier: Verifier | None = None,
        dangerous_verifier_instead_of_dcap: VerifierInsteadOfDcap | None = None,
        verifier_timeout: float | None = None,
        connect_timeout: float | None = None,
        start_timeout: float | None = None,
        drain_timeout: float | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Describes a forwarder. Mistakes are reported by `start`, all together.

        dsn: connection URI. It names the server, unless ``target`` or ``cluster`` does; the rest is for `dsn`.
        target: the server, ``host:port``; several, separated by commas, are tried in turn.
        cluster, manifest_signer: the leader of a cluster, which the manifest at ``_teesql-leader.<cluster>`` names.
        policy: what servers have to prove; by default `Policy.from_env`.
        identity: this client's certificate; by default `Identity.guest_agent`.
        verifier: a further decision about servers that are genuine and allowed. It can only refuse.
        dangerous_verifier_instead_of_dcap: decides whether quotes are genuine. Binding and policy are checked all the same.
        verifier_timeout: seconds for one decision; 10 by default.
        connect_timeout: seconds for each connection attempt, and again for the TLS handshake; 5 by default.
        start_timeout: seconds for the first client certificate; 15 by default.
        drain_timeout: seconds that `stop` lets sessions finish; 2 by default.
        settings: any setting of ``teesql-forward``, by its name in the configuration file.
        """
        if (cluster is None) != (manifest_signer is None):
            raise ConfigurationError("cluster and manifest_signer belong together", code="configuration")
        self._dsn = dsn
        self._target = target
        self._cluster = None if cluster is None or manifest_signer is None else (cluster, signer_bytes(manifest_signer))
        self._policy = policy
        self._identity = identity
        self._verifier, self._instead_of_dcap = only_verifier(verifier, dangerous_verifier_instead_of_dcap)
        self._times = {
            "verifier_timeout": verifier_timeout,
            "connect_timeout": connect_timeout,
            "start_timeout": start_timeout,
            "drain_timeout": drain_timeout,
        }
        self._settings = dict(settings or {})
        self._lock = threading.Lock()
        self._run: _Run | None = None

    def __repr__(self) -> str:
        run = self._run
        state = "stopped" if run is None else "running" if run.is_started else "starting"
        return f"<teesql.Forwarder {state}>"

    # --- start and stop

    def start(self) -> Self:
        """Starts it, and returns when drivers can connect. If it runs already, this does nothing."""
        run = self._begin(None)
        try:
            wait(run.native.start())
        except BaseException:
            self._give_up(run)
            raise
        if not run.has_started():
            wait(run.native.stop())
            raise StoppedError("the forwarder was stopped while it started", code="stopped")
        return self

    async def start_async(self) -> Self:
        """As `start`, without blocking the event loop."""
        run = self._begin(asyncio.get_running_loop())
        try:
            await wait_async(run.native.start())
        except BaseException:
            self._give_up(run)
            raise
        if not run.has_started():
            await wait_async(run.native.stop())
            raise StoppedError("the forwarder was stopped while it started", code="stopped")
        return self

    def stop(self) -> None:
        """Stops accepting, lets sessions finish for ``drain_timeout``, then terminates them.

        When it returns, no thread, socket or file of this forwarder is left.
        """
        run = self._run
        if run is None:
            return
        try:
            if run.is_started:
                wait(run.native.stop())
        finally:
            thread = self._end(run)
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout=5)

    async def stop_async(self) -> None:
        """As `stop`, without blocking the event loop."""
        run = self._run
        if run is None:
            return
        try:
            if run.is_started:
                await wait_async(run.native.stop())
        finally:
            thread = self._end(run)
            for _ in range(1000):
                if thread is None or not thread.is_alive():
                    break
                await asyncio.sleep(0.002)

    def terminate(self) -> None:
        """Ends sessions that `stop` waits for. Does not wait."""
        run = self._run
        if run is not None and run.is_started:
            run.native.terminate()

    def abandon(self) -> None:
        """Stops without letting sessions finish, and without waiting for their end."""
        run = self._run
        if run is not None:
            self._run = None
            run.abandon()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await self.start_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop_async()

    # --- for drivers

    @property
    def host(self) -> str:
        """The host for a driver; of a Unix socket, its directory."""
        return self._running.host_and_port()[0]

    @property
    def port(self) -> int:
        """The port for a driver."""
        return self._running.host_and_port()[1]

    @property
    def dsn(self) -> str:
        """The DSN for a driver: the given one with this forwarder as the server. It may contain a secret."""
        return self._running.dsn()

    def rewrite(self, dsn: str) -> str:
        """Another DSN with this forwarder as the server: its own server is ignored."""
        return self._running.rewrite(dsn)

    # --- failures

    @property
    def last_failure(self) -> Failure | None:
        """The newest connection that was refused or ended by an error. After a driver's error it is its cause, unless another
        connection failed at the same time."""
        fields = self._running.last_failure()
        return None if fields is None else Failure._of(fields)

    def failures_after(self, sequence: int) -> list[Failure]:
        """The failures after the one with this number, oldest first; with 0, all that are kept, which are the newest 32."""
        return [Failure._of(fields) for fields in self._running.failures_after(sequence)]

    # --- internals

    @property
    def _running(self) -> _native.Forwarder:
        run = self._run
        if run is None or not run.is_started:
            raise StoppedError("the forwarder does not run", code="stopped")
        return run.native

    def _begin(self, loop: asyncio.AbstractEventLoop | None) -> _Run:
        """Adds a waiter for the start, and begins a run if there is none. Coroutines of the verifier run in ``loop``."""
        with self._lock:
            if self._run is None:
                self._run = self._new_run(loop)
            self._run.waiters += 1
            return self._run

    def _give_up(self, run: _Run) -> None:
        """Removes a waiter for the start. Without any the run ends."""
        with self._lock:
            run.waiters -= 1
            is_over = run.waiters == 0 and not run.is_started
        if is_over:
            self._end(run)

    def _new_run(self, loop: asyncio.AbstractEventLoop | None) -> _Run:
        _refuse_bypassing_environment()
        of_process = dispatcher()
        mailbox = of_process.hold()
        number = None
        try:
            builder = self._builder()
            if self._verifier is not None:
                number = of_process.add(self._verifier, instead_of_dcap=self._instead_of_dcap, loop=loop)
                builder.verifier(mailbox, number, self._instead_of_dcap)
            return _Run(builder.build(), of_process, number)
        except BaseException:
            if number is not None:
                of_process.remove(number)
            of_process.release()
            raise

    def _end(self, run: _Run) -> threading.Thread | None:
        """Ends a run, unless it belongs to the parent process. Returns the dispatcher's thread if it ends, too."""
        with self._lock:
            if self._run is run and run.is_of_this_process():
                self._run = None
        return run.end()

    def _builder(self) -> _native.Builder:
        builder = _native.Builder()
        if self._dsn is not None:
            builder.url(self._dsn)
        if self._target is not None:
            builder.target(self._target)
        if self._cluster is not None:
            builder.cluster(*self._cluster)
        if self._policy is not None:
            builder.policy(self._policy._native())
        if self._identity is not None:
            builder.identity(self._identity._native)
        for name, seconds in self._times.items():
            if seconds is not None:
                getattr(builder, name)(seconds)
        for name, value in self._settings.items():
            builder.setting(name, setting_text(value))
        return builder

    def __del__(self) -> None:
        run = getattr(self, "_run", None)
        if run is not None and run.is_running() and run.is_of_this_process():
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, source=self, stacklevel=2)
            self.abandon()


class _Run:
    """A forwarder from its start to its stop."""

    def __init__(self, native: _native.Forwarder, of_process: Dispatcher, verifier: int | None) -> None:
        self.native = native
        self.is_started = False
        #: The number of callers that wait for the start.
        self.waiters = 0
        self._dispatcher = of_process
        self._verifier = verifier
        self._lock = threading.Lock()
        self._has_ended = False

    def has_started(self) -> bool:
        """To be called when the start is over. ``False``: it was stopped meanwhile."""
        with self._lock:
            if self._has_ended:
                return False
            self.is_started = True
        _running.add(self)
        return True

    def is_running(self) -> bool:
        return self.is_started and not self._has_ended

    def is_of_this_process(self) -> bool:
        return self._dispatcher is dispatcher()

    def end(self) -> threading.Thread | None:
        with self._lock:
            if self._has_ended or not self.is_of_this_process():
                return None
            self._has_ended = True
        _running.discard(self)
        if self._verifier is not None:
            self._dispatcher.remove(self._verifier)
        return self._dispatcher.release()

    def abandon(self) -> None:
        if self.is_started and self.is_of_this_process():
            self.native.terminate()
        self.end()


_running: weakref.WeakSet[_Run] = weakref.WeakSet()


def _refuse_bypassing_environment() -> None:
    """Fails if a driver would connect to another address than that of the DSN: it would bypass the forwarder, without TLS."""
    found = [name for name in _BYPASSING if os.environ.get(name)]
    if found:
        text = f"{' and '.join(found)} in the environment would lead drivers around the forwarder: remove it"
        raise ConfigurationError(text, code="configuration")


@atexit.register
def _stop_all() -> None:
    """Ends sessions and native threads before the interpreter does."""
    for run in list(_running):
        if not run.is_of_this_process():
            continue
        with contextlib.suppress(Exception):
            stop = run.native.stop()
            run.native.terminate()
            wait(stop, timeout=5)
        thread = run.end()
        if thread is not None:
            thread.join(timeout=1)


class forward:  # noqa: N801 - used like a function, as contextlib.closing is
    """A context manager, synchronous or asynchronous, that runs a forwarder and returns the DSN for a driver.

    It takes the arguments of `Forwarder`, which is its attribute ``forwarder``::

        with teesql.forward("postgresql://teesql_read:…@db.example:5433/app") as dsn:
            connection = psycopg.connect(dsn)
    """

    def __init__(self, dsn: str | None = None, **options: Unpack[Options]) -> None:
        self.forwarder = Forwarder(dsn, **options)

    def __enter__(self) -> str:
        return self.forwarder.start().dsn

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.forwarder.stop()

    async def __aenter__(self) -> str:
        forwarder = await self.forwarder.start_async()
        return forwarder.dsn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.forwarder.stop_async()
