"""A thread that delivers log lines and verifier calls from the native module to Python.

It runs while a forwarder, or a verification with a verifier, is active (reference counting). Verifiers run in a pool of at
most 16 threads, or in the event loop in which their forwarder was started. A connection whose verifier does not return is
refused at the deadline, but a function keeps its thread until it returns. While all 16 are kept in this way, further
connections are refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import os
import queue
import select
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from . import _native
from ._errors import ConfigurationError, Refused
from ._values import Evidence

#: Decides about a server. It accepts by returning ``None`` or ``True``, refuses by raising `Refused` or returning
#: ``False``; any other exception is a failure, which refuses as well. It may be a coroutine function.
Verifier = Callable[[Evidence], "bool | None | Awaitable[bool | None]"]

#: Decides instead of DCAP whether a quote is genuine, and may return the TCB status that it found.
VerifierInsteadOfDcap = Callable[[Evidence], "str | bool | None | Awaitable[str | bool | None]"]

logger = logging.getLogger("teesql")

#: Threads for verifiers that block.
MAX_THREADS = 16

#: Why a connection is refused while there is no thread for its verifier.
_ALL_KEPT = f"all {MAX_THREADS} threads for verifiers are kept by functions that have not returned in time"


def only_verifier(
    verifier: Verifier | None, instead_of_dcap: VerifierInsteadOfDcap | None
) -> tuple[VerifierInsteadOfDcap | None, bool]:
    """The verifier that was given, if one was, and whether it decides instead of DCAP."""
    if verifier is not None and instead_of_dcap is not None:
        text = "there can be one verifier: verifier, or dangerous_verifier_instead_of_dcap"
        raise ConfigurationError(text, code="configuration")
    return (instead_of_dcap, True) if verifier is None else (verifier, False)


@dataclass(frozen=True)
class _Registered:
    function: VerifierInsteadOfDcap
    instead_of_dcap: bool
    #: Where coroutines run. ``None``: each call has a new event loop.
    loop: asyncio.AbstractEventLoop | None

    def is_coroutine_for_loop(self) -> bool:
        function = self.function
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            function = getattr(function, "__call__", function)  # noqa: B004 - the method, not whether there is one
        return self.loop_is_open() and inspect.iscoroutinefunction(function)

    def loop_is_open(self) -> bool:
        return self.loop is not None and not self.loop.is_closed()


class Dispatcher:
    """The thread, and the registered verifiers."""

    def __init__(self) -> None:
        # Reentrant, as that of the pool: the garbage collector may release in the middle of `hold`.
        self._lock = threading.RLock()
        self._holders = 0
        self._mailbox: _native.Mailbox | None = None
        self._thread: threading.Thread | None = None
        self._pool = _Pool()
        self._numbers = itertools.count(1)
        self._verifiers: dict[int, _Registered] = {}
        self._tasks: dict[int, Future[Any]] = {}

    def hold(self) -> _native.Mailbox:
        """Starts the thread if it does not run, and keeps it running until `release`."""
        _native.set_log_level(logger.getEffectiveLevel())
        with self._lock:
            # First, so that a `release` by the garbage collector does not end the thread.
            self._holders += 1
            try:
                if self._mailbox is None:
                    mailbox = _native.Mailbox()
                    thread = threading.Thread(target=self._run, args=(mailbox,), name="teesql", daemon=True)
                    thread.start()
                    self._mailbox, self._thread, self._pool = mailbox, thread, _Pool()
            except BaseException:
                self._holders -= 1
                raise
            return self._mailbox

    def release(self) -> threading.Thread | None:
        """Ends the thread if nothing else holds it. Returns it then, since it may still write log lines."""
        with self._lock:
            self._holders -= 1
            if self._holders or self._mailbox is None:
                return None
            mailbox, thread = self._mailbox, self._thread
            self._mailbox = self._thread = None
            self._pool.close()
            # The thread may end before it has handled the entries "abandoned" of these.
            tasks = list(self._tasks.values())
        mailbox.close()
        for task in tasks:
            task.cancel()
        return thread

    def add(self, function: VerifierInsteadOfDcap, *, instead_of_dcap: bool, loop: asyncio.AbstractEventLoop | None) -> int:
        """Registers a verifier, and returns its number. Its coroutines run in ``loop``; without one, each in a new loop."""
        number = next(self._numbers)
        self._verifiers[number] = _Registered(function, instead_of_dcap, loop)
        return number

    def remove(self, number: int) -> None:
        """Removes a verifier. Servers that wait for it are refused."""
        self._verifiers.pop(number, None)

    def _run(self, mailbox: _native.Mailbox) -> None:
        poller = select.poll()
        poller.register(mailbox.fileno(), select.POLLIN)
        while True:
            # In this order: what happens after `take` makes the descriptor readable.
            entries = mailbox.take()
            is_closed = mailbox.is_closed()
            for entry in entries:
                self._handle(entry)
            if not entries:
                if is_closed:
                    break
                poller.poll(None)
        # Entries that were added between the last `take` and `close`.
        while entries := mailbox.take():
            for entry in entries:
                self._handle(entry)

    def _handle(self, entry: tuple[Any, ...]) -> None:
        kind = entry[0]
        if kind == "log":
            _log(*entry[1:])
        elif kind == "lost":
            with _print_logging_errors():
                logger.warning("%d log lines lost: they came faster than they could be written", entry[1])
        elif kind == "abandoned":
            task = self._tasks.pop(entry[1], None)
            if task is not None:
                task.cancel()
            self._pool.abandon(entry[1])
        elif kind == "decide":
            decision = entry[1]
            try:
                self._decide(decision)
            except Exception as error:
                _answer_error(decision, error)

    def _decide(self, decision: _native.Decision) -> None:
        verifier = self._verifiers.get(decision.verifier)
        if verifier is None:
            decision.fail("the verifier was removed")
        elif verifier.is_coroutine_for_loop():
            self._decide_in_loop(decision, verifier, verifier.function(Evidence._of(decision)))
        else:
            self._pool.run(decision, lambda: self._decide_on_thread(decision, verifier))

    def _decide_on_thread(self, decision: _native.Decision, verifier: _Registered) -> None:
        if decision.is_abandoned():
            return
        try:
            verdict = verifier.function(Evidence._of(decision))
            if not inspect.isawaitable(verdict):
                _answer(decision, verifier, verdict)
            elif verifier.loop_is_open():
                self._decide_in_loop(decision, verifier, verdict)
            else:
                _answer(decision, verifier, asyncio.run(_awaited(verdict)))
        except BaseException as error:
            _answer_error(decision, error)

    def _decide_in_loop(self, decision: _native.Decision, verifier: _Registered, verdict: Any) -> None:
        coroutine = _awaited(verdict)
        try:
            assert verifier.loop is not None  # noqa: S101 - for mypy
            task = asyncio.run_coroutine_threadsafe(coroutine, verifier.loop)
        except RuntimeError:
            coroutine.close()
            # It was not started, of which Python would warn.
            if inspect.iscoroutine(verdict):
                verdict.close()
            raise
        self._tasks[decision.number] = task

        def done(task: Future[Any]) -> None:
            self._tasks.pop(decision.number, None)
            if task.cancelled():
                decision.fail("the verifier was cancelled")
            elif (error := task.exception()) is not None:
                _answer_error(decision, error)
            else:
                _answer(decision, verifier, task.result())

        task.add_done_callback(done)


async def _awaited(verdict: Awaitable[Any]) -> Any:
    return await verdict


def _answer(decision: _native.Decision, verifier: _Registered, verdict: object) -> None:
    if verdict is None or verdict is True:
        decision.accept()
    elif verdict is False:
        decision.refuse("the verifier does not accept this server")
    elif isinstance(verdict, str) and verifier.instead_of_dcap:
        decision.accept(verdict)
    else:
        decision.fail(f"the verifier returned a value of type {type(verdict).__name__} instead of None, True or False")


def _answer_error(decision: _native.Decision, error: BaseException) -> None:
    if isinstance(error, Refused):
        decision.refuse(str(error) or "the verifier does not accept this server")
        return
    decision.fail(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    with _print_logging_errors():
        logger.error("a verifier failed, and the server is refused", exc_info=error)


@contextlib.contextmanager
def _print_logging_errors() -> Iterator[None]:
    """Prints an exception of the application's handlers and filters, which would end the thread, as `logging` does."""
    try:
        yield
    except Exception:
        if logging.raiseExceptions:
            traceback.print_exc()


def _log(level: int, target: str, text: str, at: float) -> None:
    if not logger.isEnabledFor(level):
        return
    with _print_logging_errors():
        record = logger.makeRecord(logger.name, level, target, 0, text, (), None, target)
        record.created = at
        record.msecs = at % 1 * 1000
        logger.handle(record)


@dataclass(frozen=True)
class _Work:
    decision: _native.Decision
    function: Callable[[], None]


class _Pool:
    """Daemon threads for functions that may never return."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        #: The numbers of the decisions whose functions run.
        self._running: set[int] = set()
        #: Those of them that are no longer awaited.
        self._kept: set[int] = set()

    def run(self, decision: _native.Decision, function: Callable[[], None]) -> None:
        """Runs a function on a thread, after those that are queued already (FIFO). It must not raise."""
        self._work.put(_Work(decision, function))
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._threads < MAX_THREADS:
                threading.Thread(target=self._serve, name="teesql-verifier", daemon=True).start()
                self._threads += 1
            self._fail_if_all_are_kept()

    def abandon(self, number: int) -> None:
        """Notes that a decision is no longer awaited. If its function runs, it keeps its thread."""
        with self._lock:
            if number in self._running:
                self._kept.add(number)
                self._fail_if_all_are_kept()

    def _fail_if_all_are_kept(self) -> None:
        """Fails the decisions that are queued, if no thread will take them. Must be called under the lock."""
        if len(self._kept) < MAX_THREADS:
            return
        ends = 0
        with contextlib.suppress(queue.Empty):
            while True:
                work = self._work.get_nowait()
                if work is None:
                    ends += 1
                else:
                    work.decision.fail(_ALL_KEPT)
        for _ in range(ends):
            self._work.put(None)

    def close(self) -> None:
        """Ends each thread when it is idle."""
        with self._lock:
            for _ in range(self._threads):
                self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            number = work.decision.number
            with self._lock:
                self._running.add(number)
            work.function()
            with self._lock:
                self._running.discard(number)
                self._kept.discard(number)
            # It would be kept during the next `get`.
            del work
            self._idle.release()


_dispatcher = Dispatcher()


def dispatcher() -> Dispatcher:
    """The dispatcher of this process."""
    return _dispatcher


def _after_fork() -> None:
    """In the child: the parent's thread, its queue and its locks are not here."""
    global _dispatcher
    _dispatcher = Dispatcher()
    # Lines of the child must not go to the parent's queue.
    _native.Mailbox().close()


os.register_at_fork(after_in_child=_after_fork)
