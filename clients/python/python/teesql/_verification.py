"""Verification without a connection to a database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from . import _native
from ._dispatcher import Verifier, VerifierInsteadOfDcap, dispatcher, only_verifier
from ._operation import wait, wait_async
from ._policy import Identity, Policy
from ._values import Claims, Verified


def _policy(policy: Policy | None) -> _native.Policy:
    return (Policy.from_env() if policy is None else policy)._native()


def verify(quote: bytes, policy: Policy | None = None) -> Verified:
    """Verifies a bare quote: Intel's signatures, the TCB, and of the policy what a quote can show (MRTD and RTMRs).

    It does not prove who sent the quote.
    """
    return Verified._of(wait(_native.verify(quote, _policy(policy))))


async def verify_async(quote: bytes, policy: Policy | None = None) -> Verified:
    """As `verify`, for asyncio."""
    return Verified._of(await wait_async(_native.verify(quote, _policy(policy))))


def verify_certificate(chain: bytes | Sequence[bytes], policy: Policy | None = None) -> Verified:
    """Verifies a certificate chain, leaf first, in DER or PEM: the binding, and all that `verify` and the policy require."""
    return Verified._of(wait(_native.verify_certificate(_chain(chain), _policy(policy))))


async def verify_certificate_async(chain: bytes | Sequence[bytes], policy: Policy | None = None) -> Verified:
    """As `verify_certificate`, for asyncio."""
    return Verified._of(await wait_async(_native.verify_certificate(_chain(chain), _policy(policy))))


def verify_server(
    host: str,
    port: int = 5433,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    dangerous_verifier_instead_of_dcap: VerifierInsteadOfDcap | None = None,
    verifier_timeout: float = 10.0,
    timeout: float = 5.0,
) -> Verified:
    """Connects to a server, verifies it as a forwarder does, and closes the connection without a login.

    policy: by default that of the environment.
    identity: the certificate to present if the server requests one; none by default.
    timeout: seconds for the guest agent's certificate, if that is the identity, and the connection with its TLS handshake.
    """
    with _verifier(verifier, dangerous_verifier_instead_of_dcap, verifier_timeout, None) as remote:
        operation = _verify_server(host, port, policy, identity, timeout, remote)
        return Verified._of(wait(operation))


async def verify_server_async(
    host: str,
    port: int = 5433,
    *,
    policy: Policy | None = None,
    identity: Identity | None = None,
    verifier: Verifier | None = None,
    dangerous_verifier_instead_of_dcap: VerifierInsteadOfDcap | None = None,
    verifier_timeout: float = 10.0,
    timeout: float = 5.0,
) -> Verified:
    """As `verify_server`, for asyncio."""
    loop = asyncio.get_running_loop()
    with _verifier(verifier, dangerous_verifier_instead_of_dcap, verifier_timeout, loop) as remote:
        operation = _verify_server(host, port, policy, identity, timeout, remote)
        return Verified._of(await wait_async(operation))


_Remote = tuple[_native.Mailbox, int, bool, float]


def _verify_server(
    host: str, port: int, policy: Policy | None, identity: Identity | None, timeout: float, remote: _Remote | None
) -> _native.Operation:
    native_identity = None if identity is None else identity._native
    return _native.verify_server(host, port, _policy(policy), timeout=timeout, identity=native_identity, verifier=remote)


@contextlib.contextmanager
def _verifier(
    verifier: Verifier | None,
    instead: VerifierInsteadOfDcap | None,
    timeout: float,
    loop: asyncio.AbstractEventLoop | None,
) -> Iterator[_Remote | None]:
    """What the native module needs to call a verifier, while it may do so."""
    function, instead_of_dcap = only_verifier(verifier, instead)
    if function is None:
        yield None
        return
    of_process = dispatcher()
    mailbox = of_process.hold()
    number = of_process.add(function, instead_of_dcap=instead_of_dcap, loop=loop)
    try:
        yield mailbox, number, instead_of_dcap, timeout
    finally:
        of_process.remove(number)
        of_process.release()


def _chain(chain: bytes | Sequence[bytes]) -> list[bytes]:
    return [chain] if isinstance(chain, bytes) else list(chain)


def extract_tdx_quote(der: bytes) -> bytes | None:
    """The TDX quote in a certificate in DER; ``None`` if there is none. Nothing is verified."""
    return _native.extract_tdx_quote(der)


def read_quote(quote: bytes) -> Claims:
    """What a quote says, without verifying it."""
    return Claims(**_native.read_quote(quote))


def expected_report_data(spki: bytes) -> bytes:
    """The report data of a quote that is bound to the key with this SubjectPublicKeyInfo in DER: 64 bytes."""
    return _native.expected_report_data(spki)
