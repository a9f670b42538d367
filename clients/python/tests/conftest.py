"""Set-up for tests that run as a command of ``teesql-sidecar dev``: `scripts/test-python`.

``dev`` says in the environment what there is to connect to. Tests see the settings that an application would have, and none of
libpq's variables.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from name_server import name_server
from trust_authority import trust_authority

import teesql

if "TEESQL_DEV_GUEST_AGENT" not in os.environ:
    pytest.exit("run these tests by scripts/test-python", returncode=64)

__all__ = ["name_server", "trust_authority"]

#: What ``dev`` has set, as an application's shell would have it.
DEV_ENVIRONMENT = dict(os.environ)

FOLDER = Path(__file__).parent.parent
ROOT = FOLDER.parent.parent

SERVER = f"{os.environ['PGHOST']}:{os.environ['PGPORT']}"
DATABASE = os.environ["PGDATABASE"]
SECRET = os.environ["TEESQL_DEV_READWRITE_SECRET"]
READ_SECRET = os.environ["TEESQL_DEV_READ_SECRET"]
SIMULATOR = f"127.0.0.1:{os.environ['TEESQL_DEV_SIMULATOR_PORT']}"

#: Postgres has places for 100 sessions by default, some of them reserved.
AT_ONCE = 80

#: So many logins at once end in time on a busy machine, too.
LOGINS = 10

#: The certificate that ``dev`` made for psql.
CLIENT_CHAIN = Path(os.environ["PGSSLCERT"]).read_text()
CLIENT_KEY = Path(os.environ["PGSSLKEY"]).read_text()


def _adopt_application_environment() -> None:
    for name in list(os.environ):
        # What starts with TEESQL_TEST_ would be reported as unknown settings.
        if name.startswith(("PG", "TEESQL_TEST_")):
            del os.environ[name]
    for name in ("DSTACK_SIMULATOR_ENDPOINT", "EXPECTED_MRTD", "INTEL_TRUST_AUTHORITY_API_KEY"):
        os.environ.pop(name, None)


_adopt_application_environment()


@pytest.fixture
def dsn() -> str:
    """A DSN of the sidecar in production mode, with the role that may write."""
    return os.environ["DATABASE_URL"]


@pytest.fixture
def read_dsn() -> str:
    """The same for the role that may only read."""
    return f"postgresql://teesql_read:{READ_SECRET}@{SERVER}/{DATABASE}"


def threads() -> list[str]:
    """The names of the threads of this process, the native ones too."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        # The second is from a thread that has ended between the opening of its file and the reading (ESRCH).
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(names)


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    # The numbers of sockets differ.
    return sorted(name.split(":")[0] for name in found if not name.startswith(str(Path("/proc"))))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Waits for a condition. Says whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="session")
def first_forwarder() -> None:
    """The first forwarder of a process makes what stays until the process ends: tokio keeps a pair of sockets for signals."""
    teesql.Forwarder().start().stop()


@pytest.fixture
def nothing_left(first_forwarder: None) -> Iterator[None]:
    """Fails if the test leaves a thread or a descriptor."""
    # What earlier tests left must not end during this one, where it would make up for a leak.
    gc.collect()
    before = Counter(threads()), Counter(descriptors())
    yield

    def left() -> tuple[Counter[str], Counter[str]]:
        return Counter(threads()) - before[0], Counter(descriptors()) - before[1]

    # What an exception's traceback refers to, such as a mailbox, stays until it is collected.
    gc.collect()
    # Idle threads of verifiers end on their own, and those of operations a moment after their result.
    until(lambda: not any(left()), 5)
    assert left() == (Counter(), Counter())


class Silent:
    """A server that accepts connections and says nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.accepted:
            connection.close()


@pytest.fixture
def silent_server() -> Iterator[Silent]:
    """A server that accepts connections and says nothing."""
    server = Silent()
    yield server
    server.close()


#: Without the warnings about what the policy of ``dev`` leaves open, which Python writes to stderr.
QUIET = "import logging; logging.getLogger('teesql').setLevel(logging.ERROR)\n"


def python(program: str, *, seconds: float = 60, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with the interpreter of these tests. It must end in time, with code 0 and nothing on stderr."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", QUIET + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **environment},
    )
    if check:
        assert (result.returncode, result.stderr) == (0, ""), result
    return result
