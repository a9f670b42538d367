"""The leader manifest in the DNS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import teesql

_LABEL = "_teesql-leader."

T = TypeVar("T")


def query_manifest_txt(record_name: str, *, resolver_ips: list[str] | None = None, timeout: float = 5.0) -> str:
    """The text of the first record. The name must begin with ``_teesql-leader.``.

    resolver_ips: name servers, which are asked in turn. timeout: seconds for all of them.
    """
    domain = record_name.removeprefix(_LABEL)
    if domain == record_name:
        raise ValueError(f"the name of a manifest begins with {_LABEL}")

    def query(server: str | None, left: float) -> list[str]:
        return teesql.query_manifest_records(domain, dns_server=server, timeout=left)

    records = of_first_server(resolver_ips, timeout, query)
    if not records:
        raise RuntimeError(f"no TXT records at {record_name}")
    return records[0]


def of_first_server(resolver_ips: list[str] | None, timeout: float, query: Callable[[str | None, float], T]) -> T:
    """What the first name server answers that can be reached, within ``timeout`` seconds for all."""
    deadline = time.monotonic() + timeout
    servers: list[str | None] = [None] if not resolver_ips else [_with_port(ip) for ip in resolver_ips]
    for position, server in enumerate(servers, 1):
        left = max(deadline - time.monotonic(), 0.01)
        try:
            return query(server, left / (len(servers) - position + 1))
        except (teesql.NetworkError, teesql.TimeoutError):
            if position == len(servers):
                raise
    raise AssertionError("there is at least one name server")


def _with_port(ip: str) -> str:
    return f"[{ip}]:53" if ":" in ip else f"{ip}:53"


def build_record_name(cluster_domain: str) -> str:
    """The name of a domain's manifest."""
    return cluster_domain if cluster_domain.startswith(_LABEL) else _LABEL + cluster_domain


def postgres_host_from_leader_url(leader_url: str) -> tuple[str, int]:
    """The host and port that a leader URL leads to: 443 or 80 if it has no port."""
    parts = urlsplit(leader_url)
    if parts.hostname is None:
        raise ValueError(f"leader_url has no hostname: {leader_url}")
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
