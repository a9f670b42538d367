"""Threads, forks, interpreters that exit, event loops that must not be blocked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

import teesql
from conftest import AT_ONCE, CLIENT_CHAIN, CLIENT_KEY, Silent, descriptors, python, threads, until


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("nothing_left")
def test_a_thousand_forwarders(dsn: str) -> None:
    """They share their threads, and all of them work."""
    identity = teesql.Identity.pem(CLIENT_CHAIN, CLIENT_KEY)
    before = len(threads())
    with many_descriptors(), contextlib.ExitStack() as stack:
        forwarders = [stack.enter_context(teesql.Forwarder(dsn, identity=identity)) for _ in range(1000)]
        assert len(threads()) - before <= 5
        assert len({forwarder.port for forwarder in forwarders}) == 1000
        for forwarder in forwarders[::111]:
            with psycopg.connect(forwarder.dsn) as connection:
                assert connection.execute("select 1").fetchone() == (1,)


@pytest.mark.usefixtures("nothing_left")
def test_too_many_forwarders_for_the_descriptors() -> None:
    """An error with a code, and the others go on."""
    program = """
        import os, resource, teesql
        from conftest import CLIENT_CHAIN, CLIENT_KEY
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
        identity = teesql.Identity.pem(CLIENT_CHAIN, CLIENT_KEY)
        forwarders = []
        try:
            while True:
                forwarders.append(teesql.Forwarder(identity=identity).start())
        except (teesql.Error, OSError) as error:
            print(type(error).__name__, len(forwarders) > 5)
        for forwarder in forwarders:
            forwarder.stop()
    """
    name, some = python(program, PYTHONPATH=os.path.dirname(__file__), **_dev()).stdout.split()
    assert (name in ("SystemError", "OSError"), some) == (True, "True")


def _dev() -> dict[str, str]:
    """What conftest needs to be imported by a program."""
    from conftest import DEV_ENVIRONMENT

    return DEV_ENVIRONMENT


@pytest.mark.usefixtures("nothing_left")
class TestClose:
    def test_while_connecting(self, silent_server: Silent) -> None:
        """The driver gets an error at once, not when the server's time is over."""
        forwarder = teesql.Forwarder(f"postgresql://me:x@{silent_server.address}/db", drain_timeout=0.1).start()
        failures: list[BaseException] = []

        def connect() -> None:
            try:
                teesql.connect(forwarder=forwarder)
            except BaseException as error:
                failures.append(error)

        worker = threading.Thread(target=connect)
        worker.start()
        assert until(lambda: bool(silent_server.accepted))
        begun = time.monotonic()
        forwarder.stop()
        worker.join(10)
        assert time.monotonic() - begun < 4
        assert isinstance(failures[0], psycopg.OperationalError)

    def test_while_starting(self, silent_server: Silent, dsn: str) -> None:
        """A guest agent that never answers."""
        identity = teesql.Identity.guest_agent(f"http://{silent_server.address}")
        forwarder = teesql.Forwarder(dsn, identity=identity, start_timeout=1)
        failures: list[BaseException] = []

        def start() -> None:
            try:
                forwarder.start()
            except BaseException as error:
                failures.append(error)

        worker = threading.Thread(target=start)
        worker.start()
        assert until(lambda: bool(silent_server.accepted))
        forwarder.stop()
        worker.join(10)
        # The start is not interrupted.
        (failure,) = failures
        assert isinstance(failure, teesql.IdentityError)
        assert failure.code == "agent_timeout"

    def test_with_a_session_open(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn, drain_timeout=0.2).start()
        connection = psycopg.connect(forwarder.dsn)
        forwarder.stop()
        with pytest.raises(psycopg.OperationalError, match="terminating|closed"):
            connection.execute("select 1")
        connection.close()

    def test_lets_sessions_finish(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn, drain_timeout=10).start()
        connection = psycopg.connect(forwarder.dsn)
        stopper = threading.Thread(target=forwarder.stop)
        stopper.start()
        assert connection.execute("select pg_sleep(0.3)::text").fetchone() == ("",)
        assert stopper.is_alive()
        connection.close()
        stopper.join(10)
        assert not stopper.is_alive()

    def test_terminate(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn, drain_timeout=60).start()
        connection = psycopg.connect(forwarder.dsn)
        stopper = threading.Thread(target=forwarder.stop)
        stopper.start()
        time.sleep(0.1)
        assert stopper.is_alive()
        forwarder.terminate()
        stopper.join(10)
        assert not stopper.is_alive()
        connection.close()

    def test_twice_and_from_two_threads(self, dsn: str) -> None:
        forwarder = teesql.Forwarder(dsn).start()
        stoppers = [threading.Thread(target=forwarder.stop) for _ in range(4)]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(10)
        forwarder.stop()

    def test_in_a_task_that_is_cancelled(self, silent_server: Silent, dsn: str) -> None:
        async def main() -> None:
            identity = teesql.Identity.guest_agent(f"http://{silent_server.address}")
            forwarder = teesql.Forwarder(dsn, identity=identity, start_timeout=60)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(forwarder.start_async(), 0.2)

        asyncio.run(main())


@pytest.mark.usefixtures("nothing_left")
class TestWaiting:
    def test_other_threads_run_meanwhile(self, silent_server: Silent, dsn: str) -> None:
        """The interpreter's lock is not held while a forwarder starts."""
        identity = teesql.Identity.guest_agent(f"http://{silent_server.address}")
        rounds = 0
        worker = threading.Thread(target=lambda: _fails(teesql.Forwarder(dsn, identity=identity, start_timeout=0.5)))
        worker.start()
        while worker.is_alive():
            rounds += 1
            time.sleep(0.005)
        # It would be 1 if the lock was held.
        assert rounds > 10

    def test_the_event_loop_runs_meanwhile(self, silent_server: Silent, dsn: str) -> None:
        async def main() -> None:
            identity = teesql.Identity.guest_agent(f"http://{silent_server.address}")
            forwarder = teesql.Forwarder(dsn, identity=identity, start_timeout=0.5)
            start = asyncio.create_task(forwarder.start_async())
            rounds = 0
            while not start.done():
                rounds += 1
                await asyncio.sleep(0.005)
            # It would be 1 if the loop was blocked.
            assert rounds > 10
            with pytest.raises(teesql.Error):
                await start

        asyncio.run(main())

    def test_ctrl_c(self, silent_server: Silent, dsn: str) -> None:
        identity = teesql.Identity.guest_agent(f"http://{silent_server.address}")
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            teesql.Forwarder(dsn, identity=identity, start_timeout=60).start()
        timer.join()


def _fails(forwarder: teesql.Forwarder) -> None:
    with pytest.raises(teesql.Error):
        forwarder.start()


class TestFork:
    def test_in_the_child(self) -> None:
        program = """
            import os, teesql, psycopg
            forwarder = teesql.Forwarder().start()
            parents = teesql.connect()
            child = os.fork()
            if child == 0:
                for attempt in (
                    lambda: forwarder.dsn,
                    lambda: forwarder.port,
                    lambda: forwarder.rewrite("postgresql://h/db"),
                    forwarder.stop,
                    lambda: teesql.connect(forwarder=forwarder),
                ):
                    try:
                        attempt()
                    except teesql.ForkedError as error:
                        assert error.code == "forked", error.code
                    else:
                        os._exit(3)
                with teesql.connect(verifier=lambda _: True) as connection:
                    assert connection.execute("select 1").fetchone() == (1,)
                with teesql.Forwarder() as own, psycopg.connect(own.dsn) as connection:
                    assert connection.execute("select 1").fetchone() == (1,)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert parents.execute("select 1").fetchone() == (1,)
            parents.close()
            with psycopg.connect(forwarder.dsn) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
            forwarder.stop()
        """
        python(program, PYTHONWARNINGS="ignore::DeprecationWarning")

    def test_a_child_that_exits_as_usual(self) -> None:
        """Its exit handlers must not wait for the parent's threads."""
        program = """
            import os, sys, teesql
            forwarder = teesql.Forwarder().start()
            child = os.fork()
            if child == 0:
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            with teesql.connect(forwarder=forwarder) as connection:
                assert connection.execute("select 1").fetchone() == (1,)
            forwarder.stop()
        """
        python(program, PYTHONWARNINGS="ignore::DeprecationWarning")

    def test_while_other_threads_connect(self) -> None:
        """Whatever a thread of the parent is at, its child can go on."""
        program = """
            import os, threading, teesql
            # CPython's own locks of modules that a thread imports are never released in a child.
            teesql.connect().close()
            done = threading.Event()
            def work():
                while not done.is_set():
                    teesql.connect().close()
            workers = [threading.Thread(target=work) for _ in range(4)]
            for worker in workers:
                worker.start()
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    with teesql.connect() as connection:
                        connection.execute("select 1")
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            done.set()
            for worker in workers:
                worker.join()
        """
        python(program, PYTHONWARNINGS="ignore::DeprecationWarning", seconds=120)

    def test_workers_of_a_pool(self) -> None:
        """Processes that are forked connect through their parent's forwarder, by its DSN."""
        program = """
            import concurrent.futures, multiprocessing, psycopg, teesql
            def work(dsn):
                with psycopg.connect(dsn) as connection:
                    return connection.execute("select 1").fetchone()[0]
            with teesql.forward() as dsn:
                context = multiprocessing.get_context("fork")
                with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
                    print(sum(pool.map(work, [dsn] * 12)))
        """
        assert python(program, PYTHONWARNINGS="ignore::DeprecationWarning").stdout == "12\n"


class TestExit:
    """An interpreter that exits with something open: code 0, nothing on stderr, and without waiting for what is open, which
    would take ten minutes or for ever."""

    @pytest.mark.parametrize(
        "program",
        [
            # A session.
            "import teesql; connection = teesql.connect(); connection.execute('select 1')",
            # A forwarder with a driver's session.
            "import teesql, psycopg; f = teesql.Forwarder().start(); c = psycopg.connect(f.dsn); c.execute('select 1')",
            # A session in the middle of a statement.
            """
            import teesql, threading, time
            connection = teesql.connect()
            thread = threading.Thread(target=lambda: connection.execute("select pg_sleep(600)"), daemon=True)
            thread.start()
            time.sleep(0.3)
            """,
            # A verifier that never returns.
            """
            import teesql, threading, time
            entered = threading.Event()
            def verifier(_):
                entered.set()
                time.sleep(600)
            thread = threading.Thread(target=lambda: teesql.connect(verifier=verifier), daemon=True)
            thread.start()
            entered.wait()
            """,
            # A verifier that does not stop to compute.
            """
            import teesql, threading
            entered = threading.Event()
            def verifier(_):
                entered.set()
                while True:
                    pass
            thread = threading.Thread(target=lambda: teesql.connect(verifier=verifier), daemon=True)
            thread.start()
            entered.wait()
            """,
            # A forwarder that starts.
            """
            import socket, teesql, threading
            listener = socket.create_server(("127.0.0.1", 0))
            identity = teesql.Identity.guest_agent(f"http://127.0.0.1:{listener.getsockname()[1]}")
            forwarder = teesql.Forwarder(identity=identity, start_timeout=600)
            threading.Thread(target=forwarder.start, daemon=True).start()
            listener.accept()
            """,
            # An event loop that was left in a hurry.
            """
            import asyncio, teesql
            async def main():
                global connection
                connection = await teesql.connect_async()
                await connection.execute("select 1")
            asyncio.run(main())
            """,
            # A hundred forwarders.
            """
            import teesql
            from conftest import CLIENT_CHAIN, CLIENT_KEY
            identity = teesql.Identity.pem(CLIENT_CHAIN, CLIENT_KEY)
            forwarders = [teesql.Forwarder(identity=identity).start() for _ in range(100)]
            """,
        ],
    )
    def test_does_not_wait(self, program: str) -> None:
        # psycopg and this package warn about what is left open; that is not the point here.
        options = {"PYTHONWARNINGS": "ignore", "PYTHONPATH": os.path.dirname(__file__), **_application(program)}
        # A thread may still see that its connection ends.
        quiet = "import threading; threading.excepthook = lambda _: None\n"
        python(quiet + textwrap.dedent(program), **options)

    def test_after_a_fatal_error(self) -> None:
        result = python("import teesql; f = teesql.Forwarder().start(); raise SystemExit(7)", check=False)
        assert result.returncode == 7

    def test_by_a_signal(self) -> None:
        program = "import os, signal, teesql; f = teesql.Forwarder().start(); os.kill(os.getpid(), signal.SIGTERM)"
        assert python(program, check=False).returncode == -signal.SIGTERM


def _application(program: str) -> dict[str, str]:
    return _dev() if "conftest" in program else {}


def test_changes_nothing_of_the_process() -> None:
    """No signal handler, no limit, no environment variable, and other processes may still look at it."""
    program = """
        import os, resource, signal, teesql, threading
        # With the first thread glibc installs a signal handler.
        threading.Thread(target=int).start()
        def state():
            status = open("/proc/self/status").read().splitlines()
            signals = [line for line in status if line.startswith("Sig") and not line.startswith("SigQ")]
            limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
            owner = os.stat("/proc/self/environ").st_uid
            return signals, limits, owner, dict(os.environ), os.getpriority(os.PRIO_PROCESS, 0)
        before = state()
        with teesql.connect() as connection:
            connection.execute("select 1")
            assert state() == before
        assert state() == before
    """
    python(program)


def test_interpreters_within_the_process_are_refused() -> None:
    """By an ImportError, not by a crash."""
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    program = f"""
        import teesql, {module} as interpreters
        def run(interpreter):
            try:
                failure = interpreters.run_string(interpreter, "import teesql")
                return str(failure)
            except interpreters.RunFailedError as error:
                return str(error)
        other = interpreters.create()
        assert "ImportError" in run(other), run(other)
        interpreters.destroy(other)
        with teesql.connect() as connection:
            connection.execute("select 1")
    """
    if sys.version_info < (3, 13):
        python(program)
    else:
        python(program.replace("except interpreters.RunFailedError as error:", "except ImportError as error:"))


def test_memory_of_an_idle_forwarder() -> None:
    """Below 6 MB, the first one included. Pages of the package's file do not count: they are shared, and can be dropped."""
    program = """
        import teesql, psycopg
        def used(what):
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith(what))
        before = used("RssAnon:"), used("RssFile:")
        forwarder = teesql.Forwarder().start()
        with psycopg.connect(forwarder.dsn) as connection:
            connection.execute("select 1")
        print(used("RssAnon:") - before[0], used("RssFile:") - before[1])
        forwarder.stop()
    """
    own, of_files = map(int, python(program).stdout.split())
    print(f"an idle forwarder: {own} kB, and {of_files} kB of files")
    assert 0 < own < 6 * 1024


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("settings", [{}, {"driver": "epoll", "shards": 1}, {"driver": "io_uring", "shards": 1}])
def test_nothing_is_left_of_many_connections_at_once(dsn: str, settings: dict[str, object]) -> None:
    """Timers and the thread for verifications end, with shared threads and with dedicated ones."""
    with many_descriptors(), teesql.Forwarder(dsn, settings=settings) as forwarder:
        url = forwarder.dsn
        connections: list[psycopg.Connection] = []

        def work() -> None:
            deadline = time.monotonic() + 50
            while time.monotonic() < deadline:
                # On a busy machine a login's time may be over.
                with contextlib.suppress(psycopg.OperationalError):
                    connections.append(psycopg.connect(url))
                    return

        workers = [threading.Thread(target=work) for _ in range(AT_ONCE)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert len(connections) == AT_ONCE
        for connection in connections:
            connection.close()


def test_descriptors_after_many_starts(dsn: str) -> None:
    """What start and stop cost does not add up."""
    identity = teesql.Identity.pem(CLIENT_CHAIN, CLIENT_KEY)
    before = descriptors()
    for _ in range(100):
        teesql.Forwarder(dsn, identity=identity).start().stop()
    assert descriptors() == before


@pytest.mark.usefixtures("nothing_left")
def test_a_port_that_is_taken(dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(teesql.SystemError, match="cannot listen"):
            teesql.Forwarder(dsn, settings={"forward_listen": address}).start()
