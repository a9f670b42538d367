"""What quotes, certificates, manifests and failed connections say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _native
from ._errors import KINDS, Error, ManifestError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Claims:
    """What a TDX quote, and an event log if there is one, say. Measurements and ids are lower-case hex."""

    mrtd: str
    #: RTMR0 to RTMR3.
    rtmr: tuple[str, str, str, str]
    report_data: str
    is_debug: bool
    #: In Intel's spelling; ``None`` if the quote's signatures were not verified.
    tcb_status: str | None
    #: Intel's advisories that the platform is subject to.
    advisories: tuple[str, ...]
    #: ``None`` unless the event log proves it. The same holds for all that follow.
    app_id: str | None
    compose_hash: str | None
    instance_id: str | None
    os_image_hash: str | None


@dataclass(frozen=True)
class Evidence:
    """What a server presents: certificates, and a quote that is bound to the key of the first."""

    quote: bytes
    #: The certificates in DER, leaf first.
    chain: tuple[bytes, ...]
    #: To a verifier instead of DCAP they are not verified yet, and have no TCB status.
    claims: Claims

    @classmethod
    def _of(cls, decision: _native.Decision) -> Self:
        return cls(decision.quote, decision.chain, Claims(**decision.claims))


@dataclass(frozen=True)
class Verified:
    """The result of a verification that found nothing to refuse."""

    claims: Claims
    quote: bytes
    #: The certificates in DER, leaf first; empty for a bare quote, which proves nothing about who sent it.
    chain: tuple[bytes, ...]
    #: SHA-256 of the leaf certificate in hex; empty for a bare quote.
    fingerprint: str
    #: The last moment at which the result holds, in Unix seconds.
    valid_until: float

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Self:
        return cls(**{**fields, "claims": Claims(**fields["claims"])})


@dataclass(frozen=True)
class Failure:
    """A connection that was refused, or a session that was ended by an error."""

    #: Grows by one with each failure of a forwarder, from 1.
    sequence: int
    #: The reason code.
    code: str
    #: The text of the driver's error, without the code.
    message: str
    #: What the driver received, if it received an error.
    sqlstate: str | None
    #: Whether a session had been established.
    in_session: bool
    #: The address of the driver's socket, unless it is a Unix socket.
    client: tuple[str, int] | None
    #: When it happened, in Unix seconds.
    at: float
    _kind: str

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Self:
        kind = fields.pop("kind")
        return cls(**fields, _kind=kind)

    def to_error(self) -> Error:
        """The failure as an exception."""
        return KINDS[self._kind](self.message, code=self.code)


@dataclass(frozen=True)
class Manifest:
    """A leader manifest whose signature was verified."""

    #: The cluster's address, ``0x…``.
    cluster: str
    leader_instance: str
    leader_url: str
    #: Where to connect to.
    host: str
    port: int
    #: Grows with each change of leader.
    epoch: int
    #: The first Unix second at which it is invalid.
    valid_until: int
    #: The text that the signature is over.
    canonical_body: str


def signer_bytes(signer: bytes | str) -> bytes:
    """The address of a manifest signer: 20 bytes, or ``0x`` and 40 hex digits."""
    if isinstance(signer, str):
        digits = signer[2:] if signer[:2] in ("0x", "0X") else ""
        try:
            signer = bytes.fromhex(digits)
        except ValueError:
            signer = b""
    if len(signer) != 20:
        raise ManifestSignerError("a manifest signer is 20 bytes, or 0x and 40 hex digits", code="configuration")
    return bytes(signer)


class ManifestSignerError(ManifestError, ValueError):
    """The address of a manifest signer is not one."""
