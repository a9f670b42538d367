"""The modules `psycopg_ratls` and `ra_tls_verify`: names, signatures and behaviour of the packages of these names.

The first part does what TeeSQL's pages show: the same imports, arguments and results, with the environment variables that the
pages name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import socket
import ssl
import time
import urllib.request

import psycopg
import pytest
from manifests import CLUSTER, INSTANCE, SIGNER, sign
from name_server import NameServer
from trust_authority import TrustAuthority

import psycopg_ratls
import psycopg_ratls.discovery
import psycopg_ratls.forwarder
import psycopg_ratls.manifest
import ra_tls_verify
import teesql
from conftest import CLIENT_CHAIN, CLIENT_KEY, DEV_ENVIRONMENT, SECRET, SERVER, SIMULATOR, python
from psycopg_ratls import connect, connect_async
from ra_tls_verify import IntelApiVerifier, NoopVerifier, VerifyOptions, extract_tdx_quote

pytestmark = pytest.mark.usefixtures("nothing_left")

SIGNER_BYTES = bytes.fromhex(SIGNER[2:])


@pytest.fixture
def authority(trust_authority: TrustAuthority, monkeypatch: pytest.MonkeyPatch) -> TrustAuthority:
    """The environment that the pages assume."""
    monkeypatch.setenv("INTEL_TRUST_AUTHORITY_API_KEY", TrustAuthority.API_KEY)
    monkeypatch.setenv("TEESQL_TRUST_AUTHORITY", trust_authority.url)
    host, port = SERVER.split(":")
    monkeypatch.setenv("EXPECTED_MRTD", teesql.verify_server(host, int(port)).claims.mrtd)
    return trust_authority


class TestPages:
    """What TeeSQL's pages show."""

    def test_client_libraries(self, authority: TrustAuthority) -> None:
        verifier = IntelApiVerifier(api_key=os.environ["INTEL_TRUST_AUTHORITY_API_KEY"])

        conn = connect(os.environ["DATABASE_URL"], verifier=verifier)
        rows = conn.execute("SELECT current_user, current_database()").fetchall()
        assert rows == [{"current_user": "teesql_readwrite", "current_database": "postgres"}]
        conn.close()
        assert authority.appraisals == 1

    def test_development(self) -> None:
        """A sidecar in simulator mode."""
        conn = connect(
            f"postgresql://teesql_readwrite:{SECRET}@{SIMULATOR}/postgres",
            verifier=NoopVerifier(),
            allow_simulator=True,
        )
        assert conn.execute("SELECT 1 AS one").fetchall() == [{"one": 1}]
        conn.close()

    def test_verify_attestation(self, authority: TrustAuthority) -> None:
        verifier = IntelApiVerifier(api_key=os.environ["INTEL_TRUST_AUTHORITY_API_KEY"])
        options = VerifyOptions(allowed_mr_td=[os.environ["EXPECTED_MRTD"]])

        conn = connect(os.environ["DATABASE_URL"], verifier=verifier, options=options)
        conn.close()

    def test_quickstart(self, authority: TrustAuthority) -> None:
        conn = connect(os.environ["DATABASE_URL"], verifier=IntelApiVerifier())
        conn.execute("CREATE TABLE IF NOT EXISTS notes (id bigserial PRIMARY KEY, body text NOT NULL)")
        conn.execute("INSERT INTO notes (body) VALUES (%s)", ("hello from a CVM",))
        assert conn.execute("SELECT body FROM notes ORDER BY id DESC LIMIT 5").fetchall()[0]["body"] == "hello from a CVM"
        conn.close()

    def test_in_asyncio(self, authority: TrustAuthority) -> None:
        async def main() -> None:
            conn = await connect_async(os.environ["DATABASE_URL"], verifier=IntelApiVerifier())
            cursor = await conn.execute("SELECT current_user")
            assert await cursor.fetchall() == [{"current_user": "teesql_readwrite"}]
            await conn.close()

        asyncio.run(main())

    def test_the_certificate_of_a_server(self, authority: TrustAuthority) -> None:
        host, port = SERVER.split(":")
        ctx = ssl.create_default_context()
        ctx.check_hostname = False
        ctx.verify_mode = ssl.CERT_NONE
        with socket.create_connection((host, int(port))) as s, ctx.wrap_socket(s, server_hostname="localhost") as ts:
            der_cert = ts.getpeercert(binary_form=True)
        assert der_cert is not None

        quote = extract_tdx_quote(der_cert)
        assert quote is not None

        verifier = IntelApiVerifier(api_key=os.environ["INTEL_TRUST_AUTHORITY_API_KEY"])
        options = VerifyOptions(allowed_mr_td=[os.environ["EXPECTED_MRTD"]])
        result = asyncio.run(verifier.verify(quote, options))
        assert (result.mr_td, result.tcb_status) == (os.environ["EXPECTED_MRTD"], "OK")

    def test_the_attestation_endpoint(self, authority: TrustAuthority) -> None:
        if "TEESQL_DEV_ADMIN" not in DEV_ENVIRONMENT:
            pytest.skip("dev has no HTTP server")
        with urllib.request.urlopen(DEV_ENVIRONMENT["TEESQL_DEV_ADMIN"] + "/attestation", timeout=10) as response:
            report = json.load(response)
        verifier = IntelApiVerifier(api_key=os.environ["INTEL_TRUST_AUTHORITY_API_KEY"])
        result = asyncio.run(verifier.verify(bytes.fromhex(report["quote"])))
        assert result.tcb_status in {"OK", "SWHardeningNeeded"}

    def test_a_program_of_its_own(self, authority: TrustAuthority) -> None:
        """Nothing is closed at the end, as on the pages."""
        program = """
            from psycopg_ratls import connect
            from ra_tls_verify import IntelApiVerifier
            import os

            verifier = IntelApiVerifier(api_key=os.environ["INTEL_TRUST_AUTHORITY_API_KEY"])
            conn = connect(os.environ["DATABASE_URL"], verifier=verifier)
            rows = conn.execute("SELECT current_user").fetchall()
            print(rows)
        """
        assert python(program).stdout == "[{'current_user': 'teesql_readwrite'}]\n"


class TestSurface:
    """Names and signatures."""

    def test_names(self) -> None:
        assert set(psycopg_ratls.__all__) == {
            "Manifest", "ManifestError", "RaTlsForwarder", "connect", "connect_async", "connect_via_manifest",
            "connect_via_manifest_async", "parse_and_verify", "resolve_leader",
        }  # fmt: skip
        for module in (psycopg_ratls, ra_tls_verify):
            assert all(hasattr(module, name) for name in module.__all__)

    @pytest.mark.parametrize(
        ("function", "parameters"),
        [
            (connect, "dsn verifier options allow_simulator row_factory kwargs"),
            (connect_async, "dsn verifier options allow_simulator row_factory kwargs"),
            (
                psycopg_ratls.connect_via_manifest,
                "cluster_domain dsn_template manifest_signer verifier options allow_simulator resolver_ips row_factory kwargs",
            ),
            (psycopg_ratls.resolve_leader, "cluster_domain manifest_signer resolver_ips timeout"),
            (psycopg_ratls.parse_and_verify, "txt expected_signer now"),
            (
                psycopg_ratls.RaTlsForwarder,
                "target_host target_port client_cert_chain_pem client_key_pem verifier options allow_simulator",
            ),
            (psycopg_ratls.discovery.query_manifest_txt, "record_name resolver_ips timeout"),
        ],
    )
    def test_parameters(self, function: object, parameters: str) -> None:
        assert list(inspect.signature(function).parameters) == parameters.split()  # type: ignore[arg-type]

    def test_results_and_options(self) -> None:
        names = [field.name for field in dataclasses.fields(ra_tls_verify.VerificationResult)]
        assert names == ["mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "tcb_status", "is_debug_mode"]
        assert VerifyOptions() == VerifyOptions(allowed_mr_td=[], allow_debug_mode=False)
        result = asyncio.run(NoopVerifier().verify(b"", VerifyOptions()))
        assert (result.mr_td, result.tcb_status, result.is_debug_mode) == ("0" * 96, "UpToDate", False)

    def test_no_key(self) -> None:
        with pytest.raises(ValueError, match="^Intel Trust Authority API key required"):
            IntelApiVerifier()

    def test_a_key_is_not_shown(self) -> None:
        assert "secret" not in repr(IntelApiVerifier("secret"))


class TestConnect:
    def test_requires_a_uri(self) -> None:
        text = r"^psycopg-ra-tls requires a URI-form DSN \(postgresql://user:pw@host:port/db\)$"
        with pytest.raises(ValueError, match=text):
            connect("host=localhost", NoopVerifier())
        with pytest.raises(ValueError, match="DSN has no host"):
            connect("postgresql:///db", NoopVerifier())

    @pytest.mark.parametrize("dsn", ["postgresql://me:top/secret@host/db", "postgresql://me:top\u2100secret@host/db"])
    def test_an_error_about_a_dsn_does_not_quote_it(self, dsn: str) -> None:
        """Python's text would: the password has a character that must be percent-encoded."""
        with pytest.raises(ValueError, match="^DSN is not a valid URI$"):
            connect(dsn, NoopVerifier())

    def test_row_factory(self, dsn: str) -> None:
        with connect(dsn, NoopVerifier(), row_factory=psycopg.rows.tuple_row) as conn:
            assert conn.execute("select 1").fetchall() == [(1,)]

    def test_sends_a_placeholder_for_a_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In simulator mode a superuser of this machine needs none."""
        with connect(f"postgresql://postgres@{SIMULATOR}/postgres", NoopVerifier(), allow_simulator=True) as conn:
            assert conn.execute("select current_user").fetchall() == [{"current_user": "postgres"}]

    def test_keeps_parameters_and_forces_sslmode(self, dsn: str) -> None:
        with connect(dsn + "?sslmode=require&application_name=shop", NoopVerifier()) as conn:
            assert conn.info.get_parameters()["application_name"] == "shop"

    def test_dcap(self, dsn: str) -> None:
        with connect(dsn, ra_tls_verify.DcapVerifier()) as conn:
            assert conn.execute("select 1").fetchone() == {"?column?": 1}
        with pytest.raises(psycopg.OperationalError, match="is not in the allowlist"):
            connect(dsn, ra_tls_verify.DcapVerifier(), VerifyOptions(allowed_mr_td=["00" * 48]))

    def test_options_apply_whatever_the_verifier_is(self, dsn: str) -> None:
        with pytest.raises(teesql.RefusedError) as raised:
            connect(dsn, NoopVerifier(), VerifyOptions(allowed_mr_td=["00" * 48]))
        assert raised.value.code == "mrtd_not_allowed"
        assert isinstance(raised.value, psycopg.OperationalError)

    def test_a_verifier_of_ones_own(self, dsn: str) -> None:
        class Own(ra_tls_verify.RaTlsVerifier):
            status = "UpToDate"

            async def verify(self, quote: bytes, options: VerifyOptions | None = None) -> ra_tls_verify.VerificationResult:
                assert teesql.read_quote(quote).mrtd
                assert options is not None
                return dataclasses.replace(await NoopVerifier().verify(quote, options), tcb_status=self.status)

        verifier = Own()
        connect(dsn, verifier).close()
        verifier.status = "Revoked"
        with pytest.raises(teesql.RefusedError) as raised:
            connect(dsn, verifier)
        assert raised.value.code == "tcb_revoked"

        class Refusing(ra_tls_verify.RaTlsVerifier):
            async def verify(self, quote: bytes, options: VerifyOptions | None = None) -> ra_tls_verify.VerificationResult:
                raise RuntimeError("not today")

        with pytest.raises(psycopg.OperationalError, match="not today"):
            connect(dsn, Refusing())

    def test_in_a_running_event_loop(self, dsn: str) -> None:
        """A synchronous call blocks the loop, which its verifier must not need."""

        async def main() -> None:
            connect(dsn, NoopVerifier()).close()

        asyncio.run(main())


class TestForwarder:
    def test_start_and_stop(self, dsn: str) -> None:
        host, port = SERVER.split(":")
        forwarder = psycopg_ratls.RaTlsForwarder(host, int(port), CLIENT_CHAIN, CLIENT_KEY, NoopVerifier())
        with pytest.raises(RuntimeError, match=r"start\(\) has not been called"):
            _ = forwarder.local_addr
        forwarder.start()
        psycopg_ratls.forwarder.register(forwarder)
        assert psycopg_ratls.forwarder.registered() == [forwarder]
        local_host, local_port = forwarder.local_addr
        local = dsn.replace(SERVER, f"{local_host}:{local_port}") + "?sslmode=disable"
        with psycopg.connect(local) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        forwarder.stop()
        assert psycopg_ratls.forwarder.registered() == []


class TestManifest:
    """The texts are those that programs may look for."""

    def test_golden_text(self) -> None:
        manifest = psycopg_ratls.Manifest(CLUSTER.upper().replace("0X", "0x"), INSTANCE, "https://a.example", 42, 1713312000)
        assert manifest.canonical_body() == (
            f"cluster={CLUSTER};epoch=42;leader_instance={INSTANCE};leader_url=https://a.example;v=1;valid_until=1713312000"
        )

    def test_round_trip(self) -> None:
        text = sign("https://a.example")
        manifest = psycopg_ratls.parse_and_verify(text, SIGNER_BYTES)
        assert text.startswith(manifest.canonical_body() + ";sig=")

    @pytest.mark.parametrize(
        ("change", "code", "text"),
        [
            (lambda record: record.replace("a.example", "evil.example"), "manifest_signature", "^signer mismatch"),
            (lambda record: record.replace("v=1", "v=2"), "manifest_version", "^unsupported manifest version"),
            (lambda record: record.split(";sig=")[0], "manifest_field_missing", "has no sig$"),
            (lambda record: record.split(";sig=")[0] + ";sig=0xdeadbeef", "manifest_field_value", "sig is not 0x"),
            (lambda record: "", "manifest_malformed", "^malformed manifest"),
        ],
    )
    def test_refusals(self, change: object, code: str, text: str) -> None:
        record = change(sign("https://a.example"))  # type: ignore[operator]
        with pytest.raises(psycopg_ratls.ManifestError, match=text) as raised:
            psycopg_ratls.parse_and_verify(record, SIGNER_BYTES)
        assert raised.value.code == code

    def test_expired(self) -> None:
        with pytest.raises(psycopg_ratls.ManifestError, match="expired"):
            psycopg_ratls.parse_and_verify(sign("https://a.example", valid_until=1000), SIGNER_BYTES, now=2000)

    def test_another_signer(self) -> None:
        with pytest.raises(psycopg_ratls.ManifestError, match="signer mismatch"):
            psycopg_ratls.parse_and_verify(sign("https://a.example"), bytes(20))
        with pytest.raises(ValueError, match="20 bytes"):
            psycopg_ratls.parse_and_verify("", b"short")

    def test_names_and_urls(self) -> None:
        from psycopg_ratls.discovery import build_record_name, postgres_host_from_leader_url

        assert build_record_name("orders.example") == "_teesql-leader.orders.example"
        assert build_record_name("_teesql-leader.orders.example") == "_teesql-leader.orders.example"
        assert postgres_host_from_leader_url("https://a.example") == ("a.example", 443)
        assert postgres_host_from_leader_url("https://a.example:5432") == ("a.example", 5432)
        assert postgres_host_from_leader_url("http://a.example") == ("a.example", 80)
        with pytest.raises(ValueError, match="hostname"):
            postgres_host_from_leader_url("https://")

    def test_connect(self, name_server: NameServer, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psycopg_ratls.discovery, "_with_port", lambda ip: name_server.address)
        name_server.records["_teesql-leader.orders.example"] = [sign(f"https://{SERVER}")]
        assert psycopg_ratls.discovery.query_manifest_txt(
            "_teesql-leader.orders.example", resolver_ips=["127.0.0.1"]
        ).startswith("cluster=")
        template = dsn.replace(SERVER, "ignored.example")
        arguments = ("orders.example", template, SIGNER_BYTES, NoopVerifier())
        with psycopg_ratls.connect_via_manifest(*arguments, resolver_ips=["127.0.0.1"]) as conn:
            assert conn.execute("select current_user").fetchone() == {"current_user": "teesql_readwrite"}

        async def main() -> None:
            async with await psycopg_ratls.connect_via_manifest_async(*arguments, resolver_ips=["127.0.0.1"]) as conn:
                assert conn.info.dbname == "postgres"

        asyncio.run(main())
        name_server.is_silent = True
        begun = time.monotonic()
        with pytest.raises(teesql.TimeoutError):
            psycopg_ratls.resolve_leader("orders.example", SIGNER_BYTES, resolver_ips=["127.0.0.1"] * 2, timeout=0.5)
        assert time.monotonic() - begun < 5
