"""Forwarders."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import dataclass
from typing import Any

from ra_tls_verify import RaTlsVerifier, VerifyOptions, _NativeVerifier, policy_of
from teesql import Evidence, Forwarder, Identity

__all__ = ["RaTlsForwarder", "register", "registered"]

_registered: list[RaTlsForwarder] = []


def register(forwarder: RaTlsForwarder) -> None:
    """Keeps a forwarder from being collected, until it is stopped."""
    _registered.append(forwarder)


def registered() -> list[RaTlsForwarder]:
    """The forwarders that were registered and not stopped."""
    return list(_registered)


class RaTlsForwarder:
    """A forwarder to one server, with a client certificate that is given."""

    def __init__(
        self,
        target_host: str,
        target_port: int,
        client_cert_chain_pem: str,
        client_key_pem: str,
        verifier: RaTlsVerifier,
        options: VerifyOptions | None = None,
        allow_simulator: bool = False,
    ) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.client_cert_chain_pem = client_cert_chain_pem
        self.client_key_pem = client_key_pem
        self.verifier = verifier
        self.options = options or VerifyOptions()
        self.allow_simulator = allow_simulator
        self._forwarder: Forwarder | None = None

    @property
    def local_addr(self) -> tuple[str, int]:
        """Where drivers connect to, once `start` has returned."""
        if self._forwarder is None:
            raise RuntimeError("RaTlsForwarder: start() has not been called")
        return self._forwarder.host, self._forwarder.port

    def start(self) -> None:
        """Starts it, and returns when drivers can connect."""
        if self._forwarder is not None:
            return
        host = f"[{self.target_host}]" if ":" in self.target_host else self.target_host
        forwarder = make(
            f"{host}:{self.target_port}",
            self.verifier,
            self.options,
            self.allow_simulator,
            Identity.pem(self.client_cert_chain_pem, self.client_key_pem),
        )
        self._forwarder = forwarder.start()

    def stop(self) -> None:
        """Lets sessions finish for 2 seconds, and ends it. The package of this name has no such function."""
        forwarder, self._forwarder = self._forwarder, None
        if self in _registered:
            _registered.remove(self)
        if forwarder is not None:
            forwarder.stop()


def make(
    target: str,
    verifier: RaTlsVerifier,
    options: VerifyOptions | None,
    allow_simulator: bool,
    identity: Identity | None,
    start_timeout: float | None = None,
) -> Forwarder:
    """A forwarder with the policy and the verifier that the arguments of this interface mean."""
    policy = policy_of(options, allow_simulator=allow_simulator)
    common: dict[str, Any] = {"target": target, "policy": policy, "identity": identity, "start_timeout": start_timeout}
    if isinstance(verifier, _NativeVerifier):
        return Forwarder(**common, settings=verifier.settings())

    async def decide(evidence: Evidence) -> str | None:
        # One that does not derive from the class may not be a coroutine function.
        result: Any = verifier.verify(evidence.quote, options or VerifyOptions())
        if inspect.isawaitable(result):
            result = await result
        status: str | None = getattr(result, "tcb_status", None)
        return status

    return Forwarder(**common, dangerous_verifier_instead_of_dcap=decide)


@dataclass(frozen=True)
class Shared:
    """What connections must have in common to share a forwarder."""

    target: str
    verifier: RaTlsVerifier
    options: VerifyOptions | None
    allow_simulator: bool
    start_timeout: float
    #: Where the verifier's coroutines run.
    loop: asyncio.AbstractEventLoop | None

    def _key(self) -> tuple[object, ...]:
        options = self.options or VerifyOptions()
        allowed = tuple(options.allowed_mr_td)
        return (
            self.target,
            id(self.verifier),
            allowed,
            options.allow_debug_mode,
            self.allow_simulator,
            self.loop,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shared) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def make(self) -> Forwarder:
        """A forwarder for them, with a certificate of the guest agent."""
        return make(self.target, self.verifier, self.options, self.allow_simulator, None, start_timeout=self.start_timeout)
