"""Verification without a connection to a database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import urllib.request

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from test_refusals import policy

import teesql
from conftest import CLIENT_CHAIN, CLIENT_KEY, SERVER, Silent

pytestmark = pytest.mark.usefixtures("nothing_left")

HOST, PORT = SERVER.split(":")[0], int(SERVER.split(":")[1])


@pytest.fixture(scope="module")
def client() -> x509.Certificate:
    return x509.load_pem_x509_certificate(CLIENT_CHAIN.encode())


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


@pytest.fixture(scope="module")
def quote(client: x509.Certificate) -> bytes:
    found = teesql.extract_tdx_quote(_der(client))
    assert found is not None
    return found


def test_a_server() -> None:
    verified = teesql.verify_server(HOST, PORT)
    assert verified.claims.tcb_status == "UpToDate"
    assert verified.claims.app_id == os.environ["TEESQL_ALLOWED_APP_ID"]
    assert verified.fingerprint == hashlib.sha256(verified.chain[0]).hexdigest()
    spki = x509.load_der_x509_certificate(verified.chain[0]).public_key()
    spki_der = spki.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert teesql.expected_report_data(spki_der).hex() == verified.claims.report_data
    assert verified.valid_until > 1.7e9


def test_a_server_in_asyncio() -> None:
    async def main() -> None:
        results = await asyncio.gather(*(teesql.verify_server_async(HOST, PORT) for _ in range(5)))
        assert len({verified.fingerprint for verified in results}) == 1

    asyncio.run(main())


def test_a_server_with_a_verifier() -> None:
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.verify_server(HOST, PORT, verifier=lambda _: False)
    assert raised.value.code == "verifier_refused"
    seen = []
    verified = teesql.verify_server(
        HOST,
        PORT,
        verifier=lambda evidence: seen.append(evidence),
        identity=teesql.Identity.pem(CLIENT_CHAIN, CLIENT_KEY),
    )
    assert [evidence.quote for evidence in seen] == [verified.quote]


def test_a_server_that_is_refused() -> None:
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.verify_server(HOST, PORT, policy=policy(app_id="00" * 20))
    assert raised.value.code == "app_not_allowed"


def test_a_server_that_says_nothing(silent_server: Silent) -> None:
    host, port = silent_server.address.split(":")
    with pytest.raises(teesql.TimeoutError):
        teesql.verify_server(host, int(port), timeout=0.3)


def test_a_quote(quote: bytes) -> None:
    verified = teesql.verify(quote, policy())
    assert verified.claims.tcb_status == "UpToDate"
    assert verified.claims.mrtd == teesql.read_quote(quote).mrtd
    assert verified.quote == quote
    assert verified.chain == ()
    assert teesql.read_quote(quote).tcb_status is None
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.verify(quote, policy(mrtd="00" * 48))
    assert raised.value.code == "mrtd_not_allowed"


@pytest.mark.parametrize("position", [0, 200, 700, -1])
def test_a_quote_that_was_changed(quote: bytes, position: int) -> None:
    changed = bytearray(quote)
    changed[position] ^= 1
    if position == -1:
        # What follows the quote is padding.
        changed = changed[: len(changed) // 2]
    with pytest.raises(teesql.RefusedError):
        teesql.verify(bytes(changed), policy())


@pytest.mark.parametrize("junk", [b"", b"\0", b"junk" * 1000])
def test_junk(junk: bytes) -> None:
    assert teesql.extract_tdx_quote(junk) is None
    with pytest.raises(teesql.RefusedError):
        teesql.read_quote(junk)
    with pytest.raises(teesql.RefusedError):
        teesql.verify(junk, policy())
    with pytest.raises(teesql.RefusedError):
        teesql.verify_certificate(junk, policy())


def test_a_certificate(client: x509.Certificate) -> None:
    for chain in (CLIENT_CHAIN.encode(), [_der(c) for c in x509.load_pem_x509_certificates(CLIENT_CHAIN.encode())]):
        verified = teesql.verify_certificate(chain, policy())
        assert verified.fingerprint == hashlib.sha256(_der(client)).hexdigest()


def test_a_certificate_with_the_quote_of_another(client: x509.Certificate) -> None:
    """The binding is checked, which is what this is all about."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    thief = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(client.subject)
        .issuer_name(client.subject)
        .public_key(thief.public_key())
        .serial_number(1)
        .not_valid_before(client.not_valid_before_utc)
        .not_valid_after(client.not_valid_after_utc)
    )
    for extension in client.extensions:
        if extension.oid.dotted_string.startswith("1.3.6.1.4.1.62397."):
            builder = builder.add_extension(extension.value, critical=False)
    stolen = builder.sign(thief, hashes.SHA256())
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.verify_certificate(_der(stolen), policy())
    assert raised.value.code == "unbound_key"


def test_verifies_what_the_server_publishes() -> None:
    """The quote of ``/attestation``."""
    if "TEESQL_DEV_ADMIN" not in os.environ:
        pytest.skip("dev has no HTTP server")
    with urllib.request.urlopen(os.environ["TEESQL_DEV_ADMIN"] + "/attestation?nonce=00", timeout=10) as response:
        report = json.load(response)
    assert teesql.verify(bytes.fromhex(report["quote"]), policy()).claims.mrtd == report["tcb_info"]["mrtd"]


def test_a_certificate_without_a_quote() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    reference = x509.load_pem_x509_certificate(CLIENT_CHAIN.encode())
    plain = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(reference.not_valid_before_utc)
        .not_valid_after(reference.not_valid_after_utc)
        .sign(key, hashes.SHA256())
    )
    assert teesql.extract_tdx_quote(_der(plain)) is None
    with pytest.raises(teesql.RefusedError) as raised:
        teesql.verify_certificate(_der(plain), policy())
    assert raised.value.code == "no_evidence"


def test_the_quote_of_a_tls_connection() -> None:
    """By the standard library, as a program without this package's forwarder would do it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    import socket

    with socket.create_connection((HOST, PORT)) as plain, context.wrap_socket(plain) as secure:
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    found = teesql.extract_tdx_quote(der)
    assert found is not None
    assert teesql.verify(found, policy()).claims.tcb_status == "UpToDate"
