"""The leader of a cluster, which a signed manifest in the DNS names."""

from __future__ import annotations

from . import _native
from ._operation import wait, wait_async
from ._values import Manifest, signer_bytes


def resolve_leader(
    domain: str,
    signer: bytes | str,
    *,
    cluster: str | None = None,
    dns_server: str | None = None,
    timeout: float = 5.0,
) -> Manifest:
    """Queries ``_teesql-leader.<domain>``, and returns the valid manifest with the highest epoch.

    signer: the address that signs the manifests: 20 bytes, or ``0x`` and 40 hex digits.
    cluster: the cluster's address, ``0x…``, that the manifest must name.
    dns_server: ``IP:PORT``; by default this machine's name servers.
    timeout: seconds for all queries.
    """
    operation = _native.resolve_leader(domain, signer_bytes(signer), timeout=timeout, dns_server=dns_server, cluster=cluster)
    return Manifest(**wait(operation))


async def resolve_leader_async(
    domain: str,
    signer: bytes | str,
    *,
    cluster: str | None = None,
    dns_server: str | None = None,
    timeout: float = 5.0,
) -> Manifest:
    """As `resolve_leader`, for asyncio."""
    operation = _native.resolve_leader(domain, signer_bytes(signer), timeout=timeout, dns_server=dns_server, cluster=cluster)
    return Manifest(**await wait_async(operation))


def query_manifest_records(domain: str, *, dns_server: str | None = None, timeout: float = 5.0) -> list[str]:
    """The TXT records at ``_teesql-leader.<domain>``, unverified."""
    records: list[str] = wait(_native.query_manifest_records(domain, timeout=timeout, dns_server=dns_server))
    return records


def parse_manifest(text: str, signer: bytes | str, *, now: int | None = None) -> Manifest:
    """Verifies the text of a manifest. ``now`` is in Unix seconds, by default the present."""
    return Manifest(**_native.parse_manifest(text, signer_bytes(signer), now))


def server_of_leader_url(url: str) -> tuple[str, int]:
    """The host and port that a leader URL leads to, through a dstack gateway or not."""
    return _native.server_of_leader_url(url)
