"""The leader manifest."""

from __future__ import annotations

import asyncio
import time

import pytest
from manifests import CLUSTER, INSTANCE, SIGNER, sign
from name_server import NameServer

import teesql
from conftest import SERVER

pytestmark = pytest.mark.usefixtures("nothing_left")

RECORD = "_teesql-leader.orders.example"


def test_resolves(name_server: NameServer) -> None:
    name_server.records[RECORD] = [
        sign("https://old.example:5433", epoch=41),
        sign("https://new.example", epoch=42),
        "v=spf1 -all",
    ]
    manifest = teesql.resolve_leader("orders.example", SIGNER, dns_server=name_server.address)
    assert (manifest.host, manifest.port, manifest.epoch) == ("new.example", 443, 42)
    assert (manifest.cluster, manifest.leader_instance) == (CLUSTER, INSTANCE)
    assert manifest.canonical_body.startswith(f"cluster={CLUSTER};epoch=42;")
    by_bytes = teesql.resolve_leader("orders.example", bytes.fromhex(SIGNER[2:]), dns_server=name_server.address)
    assert by_bytes == manifest

    async def main() -> None:
        assert await teesql.resolve_leader_async("orders.example", SIGNER, dns_server=name_server.address) == manifest

    asyncio.run(main())


def test_refuses(name_server: NameServer) -> None:
    def code(**options: str) -> str:
        with pytest.raises(teesql.ManifestError) as raised:
            teesql.resolve_leader("orders.example", SIGNER, dns_server=name_server.address, **options)
        return raised.value.code

    assert code() == "no_manifest"
    name_server.records[RECORD] = [sign("https://new.example", valid_until=1000)]
    assert code() == "manifest_expired"
    name_server.records[RECORD] = [sign("https://new.example").replace("new", "evil")]
    assert code() == "manifest_signature"
    name_server.records[RECORD] = [sign("https://new.example")]
    assert code(cluster="0x" + "00" * 20) == "manifest_other_cluster"


def test_a_name_server_that_says_nothing(name_server: NameServer) -> None:
    name_server.is_silent = True
    begun = time.monotonic()
    with pytest.raises(teesql.TimeoutError):
        teesql.resolve_leader("orders.example", SIGNER, dns_server=name_server.address, timeout=0.5)
    assert time.monotonic() - begun < 5


def test_parses() -> None:
    text = sign("https://db.example:5433", valid_until=2_000_000_000)
    manifest = teesql.parse_manifest(text, SIGNER, now=1_999_999_999)
    assert manifest.valid_until == 2_000_000_000
    with pytest.raises(teesql.ManifestError, match="manifest expired"):
        teesql.parse_manifest(text, SIGNER, now=2_000_000_000)
    with pytest.raises(teesql.ManifestError, match="signature verification failed"):
        teesql.parse_manifest(text, bytes(20))


def test_urls() -> None:
    assert teesql.server_of_leader_url("https://db.example") == ("db.example", 443)
    assert teesql.server_of_leader_url("http://db.example") == ("db.example", 80)
    assert teesql.server_of_leader_url("https://db.example:5433") == ("db.example", 5433)
    with pytest.raises(teesql.ManifestError):
        teesql.server_of_leader_url("https://")


def test_connects_to_the_leader(name_server: NameServer, dsn: str) -> None:
    """The evidence of ``dev`` proves its instance id."""
    host, port = SERVER.split(":")
    instance = teesql.verify_server(host, int(port)).claims.instance_id
    assert instance is not None
    name_server.records[RECORD] = [sign(f"https://{SERVER}", instance=instance)]
    elsewhere = dsn.replace(SERVER, "ignored.example:1")
    settings = {"dns_server": name_server.address}
    with teesql.connect(elsewhere, cluster="orders.example", manifest_signer=SIGNER, settings=settings) as connection:
        assert connection.execute("select current_user").fetchone() == ("teesql_readwrite",)
