"""psycopg 3 through a forwarder."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg import conninfo
from psycopg.rows import dict_row

from ra_tls_verify import RaTlsVerifier, VerifyOptions
from teesql import _psycopg as shared

from .forwarder import Shared

#: What is sent as the password if the DSN has none.
_PLACEHOLDER = "ratls"

#: Seconds for the client certificate: the first one of a TD takes long.
_CERTIFICATE_TIMEOUT = 60.0


def connect(
    dsn: str,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None = None,
    allow_simulator: bool = False,
    row_factory: Any = None,
    **kwargs: Any,
) -> psycopg.Connection[Any]:
    """Connects to a server after ``verifier`` has accepted its quote.

    dsn: connection URI; without a port, 5432. Without a password, ``ratls`` is sent.
    options: what the quote has to show.
    allow_simulator: accept a server that presents no evidence, for development only.
    row_factory: by default ``dict_row``.
    kwargs: as those of ``psycopg.connect``.
    """
    lease, parameters = _prepare(dsn, verifier, options, allow_simulator, kwargs, None)
    return shared.open_connection(lease, dsn, row_factory or dict_row, parameters)


async def connect_async(
    dsn: str,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None = None,
    allow_simulator: bool = False,
    row_factory: Any = None,
    **kwargs: Any,
) -> psycopg.AsyncConnection[Any]:
    """As `connect`, for asyncio."""
    lease, parameters = _prepare(dsn, verifier, options, allow_simulator, kwargs, asyncio.get_running_loop())
    return await shared.open_connection_async(lease, dsn, row_factory or dict_row, parameters)


def _prepare(
    dsn: str,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None,
    allow_simulator: bool,
    parameters: dict[str, Any],
    loop: asyncio.AbstractEventLoop | None,
) -> tuple[shared.Lease, dict[str, Any]]:
    host, port = target_of(dsn)
    shared.check_parameters(parameters)
    if not conninfo.conninfo_to_dict(dsn).get("password"):
        parameters = {"password": _PLACEHOLDER, **parameters}
    forwarder = Shared(f"{host}:{port}", verifier, options, allow_simulator, _CERTIFICATE_TIMEOUT, loop)
    return shared.lease_of(forwarder, forwarder.make), parameters


def target_of(dsn: str) -> tuple[str, int]:
    """The server that a DSN names. A host with colons is in brackets."""
    if not is_uri(dsn):
        raise ValueError("psycopg-ra-tls requires a URI-form DSN (postgresql://user:pw@host:port/db)")
    try:
        parts = urlsplit(dsn)
        host, port = parts.hostname, parts.port
    except ValueError:
        # Python's text quotes a part of the DSN, in which the password may be.
        raise ValueError("DSN is not a valid URI") from None
    if not host:
        raise ValueError("DSN has no host")
    return f"[{host}]" if ":" in host else host, port or 5432


def is_uri(dsn: str) -> bool:
    """Whether a DSN has the form of a URI."""
    return dsn.startswith(("postgresql://", "postgres://"))
