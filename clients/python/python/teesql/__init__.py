"""Connect to a TeeSQL database from any PostgreSQL driver: the server proves that it runs inside an Intel TDX VM.

A forwarder listens on this machine and forwards each connection over mutual RA-TLS to a TeeSQL sidecar, after the sidecar has
proved by its TDX quote which code it runs. The driver connects to the forwarder without TLS, by a DSN::

    import teesql

    with teesql.connect("postgresql://teesql_read:…@db.example:5433/app") as connection:  # psycopg 3
        print(connection.execute("select current_user").fetchone())

    with teesql.forward("postgresql://teesql_read:…@db.example:5433/app") as dsn:  # any other driver
        engine = sqlalchemy.create_engine(dsn)

All forwarders of a process share their threads. No thread holds the interpreter's lock while it waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _native
from ._dispatcher import Verifier, VerifierInsteadOfDcap
from ._errors import (
    AuthenticationError,
    ConfigurationError,
    Error,
    ForkedError,
    IdentityError,
    ManifestError,
    NetworkError,
    OverloadedError,
    Refused,
    RefusedError,
    StoppedError,
    SystemError,
    TimeoutError,
    UnavailableError,
)
from ._forwarder import Forwarder, Options, forward
from ._leader import (
    parse_manifest,
    query_manifest_records,
    resolve_leader,
    resolve_leader_async,
    server_of_leader_url,
)
from ._policy import Identity, Policy
from ._values import Claims, Evidence, Failure, Manifest, Verified
from ._verification import (
    expected_report_data,
    extract_tdx_quote,
    read_quote,
    verify,
    verify_async,
    verify_certificate,
    verify_certificate_async,
    verify_server,
    verify_server_async,
)

if TYPE_CHECKING:
    from ._psycopg import AsyncConnection, Connection, connect, connect_async

__all__ = [
    "AsyncConnection",
    "AuthenticationError",
    "Claims",
    "ConfigurationError",
    "Connection",
    "Error",
    "Evidence",
    "Failure",
    "ForkedError",
    "Forwarder",
    "Identity",
    "IdentityError",
    "Manifest",
    "ManifestError",
    "NetworkError",
    "Options",
    "OverloadedError",
    "Policy",
    "Refused",
    "RefusedError",
    "StoppedError",
    "SystemError",
    "TimeoutError",
    "UnavailableError",
    "Verified",
    "Verifier",
    "VerifierInsteadOfDcap",
    "__version__",
    "connect",
    "connect_async",
    "expected_report_data",
    "extract_tdx_quote",
    "forward",
    "parse_manifest",
    "query_manifest_records",
    "read_quote",
    "reason_codes",
    "resolve_leader",
    "resolve_leader_async",
    "server_of_leader_url",
    "verify",
    "verify_async",
    "verify_certificate",
    "verify_certificate_async",
    "verify_server",
    "verify_server_async",
]

__version__ = _native.VERSION

_PSYCOPG_NAMES = ("AsyncConnection", "Connection", "connect", "connect_async")


def __getattr__(name: str) -> object:
    """Imports psycopg when one of its names is first used: forwarders need no driver."""
    if name in _PSYCOPG_NAMES:
        from . import _psycopg

        return getattr(_psycopg, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def reason_codes() -> frozenset[str]:
    """Every code that an `Error` or a `Failure` can have."""
    return frozenset(_native.reason_codes())
