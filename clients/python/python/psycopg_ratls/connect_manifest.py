"""psycopg 3 through a forwarder to the leader of a cluster."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import psycopg

import teesql
from ra_tls_verify import RaTlsVerifier, VerifyOptions

from .connect import connect, connect_async, is_uri
from .discovery import build_record_name, of_first_server, postgres_host_from_leader_url
from .manifest import Manifest, of_teesql

logger = logging.getLogger(__name__)


def resolve_leader(
    cluster_domain: str,
    manifest_signer: bytes,
    *,
    resolver_ips: list[str] | None = None,
    timeout: float = 5.0,
) -> Manifest:
    """The valid manifest of a domain with the highest epoch."""
    domain = build_record_name(cluster_domain).removeprefix("_teesql-leader.")

    def query(server: str | None, left: float) -> teesql.Manifest:
        return teesql.resolve_leader(domain, manifest_signer, dns_server=server, timeout=left)

    if len(manifest_signer) != 20:
        raise ValueError("manifest_signer must be 20 bytes")
    return of_teesql(of_first_server(resolver_ips, timeout, query))


def connect_via_manifest(
    cluster_domain: str,
    dsn_template: str,
    manifest_signer: bytes,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None = None,
    *,
    allow_simulator: bool = False,
    resolver_ips: list[str] | None = None,
    row_factory: Any = None,
    **kwargs: Any,
) -> psycopg.Connection[Any]:
    """Connects to the leader that the manifest names. The server in ``dsn_template`` is replaced."""
    dsn = _dsn_of_leader(cluster_domain, dsn_template, manifest_signer, resolver_ips)
    return connect(dsn, verifier, options, allow_simulator, row_factory, **kwargs)


async def connect_via_manifest_async(
    cluster_domain: str,
    dsn_template: str,
    manifest_signer: bytes,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None = None,
    *,
    allow_simulator: bool = False,
    resolver_ips: list[str] | None = None,
    row_factory: Any = None,
    **kwargs: Any,
) -> psycopg.AsyncConnection[Any]:
    """As `connect_via_manifest`, for asyncio."""
    dsn = await asyncio.to_thread(_dsn_of_leader, cluster_domain, dsn_template, manifest_signer, resolver_ips)
    return await connect_async(dsn, verifier, options, allow_simulator, row_factory, **kwargs)


def _dsn_of_leader(cluster_domain: str, dsn: str, manifest_signer: bytes, resolver_ips: list[str] | None) -> str:
    """The DSN with the leader as its server."""
    if not is_uri(dsn):
        raise ValueError("connect_via_manifest requires a URI-form DSN (postgresql://user:pw@.../db)")
    manifest = resolve_leader(cluster_domain, manifest_signer, resolver_ips=resolver_ips)
    logger.info(
        "manifest resolved: cluster=%s epoch=%d leader_url=%s",
        manifest.cluster,
        manifest.epoch,
        manifest.leader_url,
    )
    host, port = postgres_host_from_leader_url(manifest.leader_url)
    try:
        parts = urlsplit(dsn)
    except ValueError:
        # Python's text quotes a part of the DSN, in which the password may be.
        raise ValueError("DSN is not a valid URI") from None
    user, _, _ = parts.netloc.rpartition("@")
    server = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return parts._replace(netloc=f"{user}@{server}" if user else server).geturl()
