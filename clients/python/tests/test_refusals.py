"""Refusals and mistakes: a typed error, whose code is one of the closed list."""

from __future__ import annotations

import asyncio
import os
import re
import socket

import psycopg
import pytest
from trust_authority import TrustAuthority

import teesql
from conftest import ROOT, SERVER, SIMULATOR, Silent
from teesql._errors import KINDS

pytestmark = pytest.mark.usefixtures("nothing_left")

#: Settings under which the evidence of ``dev`` can be verified.
VERIFIABLE = {name: os.environ[f"TEESQL_{name.upper()}"] for name in ("pccs", "dangerous_tdx_root_ca")}


def policy(**values: object) -> teesql.Policy:
    return teesql.Policy(allow_any_server=True, settings={**VERIFIABLE, "allow_unpinned_os": True}, **values)  # type: ignore[arg-type]


def test_the_codes_are_a_closed_list() -> None:
    codes = teesql.reason_codes()
    assert {"mrtd_not_allowed", "unbound_key", "verifier_timeout", "server_unreachable"} <= codes
    assert all(code == code.lower() and code.replace("_", "").isalnum() for code in codes)


def test_every_kind_of_error_has_an_exception() -> None:
    """``KINDS`` has no default. The compiler has the engine's match name every kind."""
    source = (ROOT / "engine/src/app/embed/error.rs").read_text()
    names = re.search(r"pub fn name\(self\).*?\{\n +match self \{\n(.*?)\n +\}\n", source, re.DOTALL)
    assert names is not None
    arms = names[1].splitlines()
    kinds = re.findall(r'Self::\w+ => "(\w+)",', names[1])
    assert len(kinds) == len(arms)
    assert sorted(kinds) == sorted(KINDS)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"mrtd": "00" * 48}, "mrtd_not_allowed"),
        ({"rtmr0": ["00" * 48, "11" * 48]}, "rtmr_not_allowed"),
        ({"rtmr3": "00" * 48}, "rtmr_not_allowed"),
        ({"app_id": "00" * 20}, "app_not_allowed"),
        ({"compose_hash": "00" * 32}, "compose_hash_not_allowed"),
        ({"instance_id": "00" * 20}, "instance_not_allowed"),
        ({"os_image_hash": "00" * 32}, "os_image_hash_not_allowed"),
    ],
)
def test_a_server_that_the_policy_does_not_allow(dsn: str, values: dict[str, object], code: str) -> None:
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.connect(dsn, policy=policy(**values))
    error = raised.value
    assert error.code == code
    assert code in teesql.reason_codes()
    # Programs that know psycopg only, and retry, still do.
    assert isinstance(error, psycopg.OperationalError)
    assert isinstance(error.__cause__, psycopg.OperationalError)


def test_a_refusal_in_asyncio(dsn: str) -> None:
    async def main() -> None:
        with pytest.raises(teesql.RefusedError) as raised:
            await teesql.connect_async(dsn, policy=policy(app_id="00" * 20))
        assert raised.value.code == "app_not_allowed"
        assert isinstance(raised.value, psycopg.OperationalError)

    asyncio.run(main())


def test_other_drivers_find_the_cause_at_the_forwarder(dsn: str) -> None:
    with teesql.Forwarder(dsn, policy=policy(app_id="00" * 20)) as forwarder:
        assert forwarder.last_failure is None
        for attempt in (1, 2):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(forwarder.dsn)
            failure = forwarder.last_failure
            assert failure is not None
            assert (failure.sequence, failure.code, failure.in_session) == (attempt, "app_not_allowed", False)
            assert failure.sqlstate == "28000"
            assert failure.client is not None
            assert failure.client[0] == "127.0.0.1"
            error = failure.to_error()
            assert isinstance(error, teesql.RefusedError)
            assert error.code == failure.code
        assert [failure.sequence for failure in forwarder.failures_after(1)] == [2]


def test_a_server_without_evidence_of_the_right_root(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEESQL_DANGEROUS_TDX_ROOT_CA")
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.connect(dsn, policy=teesql.Policy(allow_any_server=True, settings={"pccs": VERIFIABLE["pccs"]}))
    assert raised.value.code == "bad_signature"


def test_no_policy_says_which_server(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEESQL_ALLOWED_APP_ID")
    with pytest.raises(teesql.ConfigurationError):
        teesql.connect(dsn, policy=teesql.Policy(settings=VERIFIABLE))


def test_collateral_is_unavailable(dsn: str) -> None:
    settings = {"dangerous_tdx_root_ca": VERIFIABLE["dangerous_tdx_root_ca"], "pccs": "off"}
    with pytest.raises(teesql.UnavailableError) as raised:
        teesql.connect(dsn, policy=teesql.Policy(allow_any_server=True, settings=settings))
    assert raised.value.code == "collateral_unavailable"


def test_a_wrong_secret(dsn: str) -> None:
    wrong = dsn.replace(dsn.split(":")[2].split("@")[0], "0" * 64)
    with pytest.raises(teesql.AuthenticationError) as raised:
        teesql.connect(wrong)
    assert raised.value.code == "authentication_failed"


def test_a_client_without_evidence(dsn: str) -> None:
    with pytest.raises(teesql.AuthenticationError) as raised:
        teesql.connect(dsn, identity=teesql.Identity.none())
    assert raised.value.code == "no_certificate"


def test_no_guest_agent(dsn: str) -> None:
    with pytest.raises(teesql.IdentityError):
        teesql.Forwarder(dsn, identity=teesql.Identity.guest_agent("/nonexistent/dstack.sock"), start_timeout=0.5).start()


def test_pem_that_is_none(dsn: str) -> None:
    with pytest.raises(teesql.IdentityError) as raised:
        teesql.Forwarder(dsn, identity=teesql.Identity.pem("no chain", "no key")).start()
    assert raised.value.code == "identity_unusable"


def test_a_port_without_a_listener() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(teesql.NetworkError) as raised:
            teesql.connect(f"postgresql://teesql_read:x@127.0.0.1:{port}/db")
    assert raised.value.code == "server_unreachable"


def test_a_server_that_says_nothing(silent_server: Silent) -> None:
    with pytest.raises(teesql.TimeoutError) as raised:
        teesql.connect(f"postgresql://teesql_read:x@{silent_server.address}/db", settings={"connect_timeout": "300ms"})
    assert raised.value.code == "handshake_timeout"


def test_a_name_that_does_not_exist() -> None:
    # No name server is asked about `invalid`. [RFC 6761, 6.4]
    with pytest.raises(teesql.NetworkError) as raised:
        teesql.connect("postgresql://teesql_read:x@nonexistent.invalid:5433/db")
    assert raised.value.code == "no_address"


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "not a dsn",
        "host=db.example port=5433 user=teesql_read",
        "mysql://me@db.example/db",
        "postgresql://",
        "postgresql:///db",
        "postgresql:///db?host=/var/run/postgresql",
        "postgresql://me:%zz@db.example/db",
        "postgresql://me@db.example:port/db",
        "postgresql://me@db.example:65536/db",
        "postgresql://me@[::1/db",
        "postgresql://me@a.example,b.example:1:2/db",
        "postgresql://me@db.example/db?service=other",
        "postgresql://me@db.example/db?hostaddr=192.0.2.1",
        "postgresql://me@db.example/db?unheard_of=1",
        "postgresql://me@db.example/db?require_auth=password",
        "postgresql://me@db.example/db?host=a&host=b",
    ],
)
def test_a_dsn_that_cannot_be_used(spelling: str) -> None:
    with pytest.raises(teesql.ConfigurationError) as raised:
        teesql.connect(spelling)
    assert raised.value.code in teesql.reason_codes()
    assert isinstance(raised.value, ValueError)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(teesql.ConfigurationError) as raised:
        teesql.Forwarder(
            "postgresql://me@db.example/db?service=other",
            policy=teesql.Policy(mrtd="short", app_id="xyz"),
            settings={"unheard_of": 1},
        ).start()
    assert len(raised.value.messages) >= 4


@pytest.mark.parametrize(
    "arguments",
    [{"settings": {"shards": None}}, {"connect_timeout": -1.0}, {"verifier_timeout": float("nan")}],
)
def test_values_of_the_wrong_kind(dsn: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - a ConfigurationError is one
        teesql.Forwarder(dsn, **arguments).start()  # type: ignore[arg-type]


def test_types_are_checked(dsn: str) -> None:
    with pytest.raises(TypeError):
        teesql.Forwarder(dsn, connect_timeout="5s").start()  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        teesql.Forwarder(17).start()  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        teesql.verify("quote")  # type: ignore[arg-type]


class TestTrustAuthority:
    """Intel Trust Authority instead of DCAP."""

    def settings(self, authority: TrustAuthority, key: str) -> dict[str, object]:
        return {"verifier": "ita", "trust_authority": authority.url, "trust_authority_key": key}

    def test_a_key_that_has_expired(self, dsn: str, trust_authority: TrustAuthority) -> None:
        with pytest.raises(teesql.UnavailableError) as raised:
            teesql.connect(dsn, settings=self.settings(trust_authority, "ZXhwaXJlZA=="))
        assert raised.value.code == "ita_unauthorized"

    def test_a_key_that_is_accepted(self, dsn: str, trust_authority: TrustAuthority) -> None:
        settings = self.settings(trust_authority, TrustAuthority.API_KEY)
        with teesql.connect(dsn, settings=settings) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert trust_authority.appraisals == 1


def test_a_server_in_simulator_mode(dsn: str) -> None:
    """Its evidence is genuine in ``dev``, and it does not ask for a certificate."""
    local = dsn.replace(SERVER, SIMULATOR)
    with teesql.connect(local, identity=teesql.Identity.none()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
