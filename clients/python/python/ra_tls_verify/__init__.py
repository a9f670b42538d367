"""The names of the package ``ra-tls-verify``, so that programs that use it run as they are.

What differs:

- `DcapVerifier` exists: it verifies quotes in this process, with Intel's collateral.
- Verifying a bare quote says nothing about who sent it. Where there is a certificate, as in ``psycopg_ratls.connect``, it is
  always checked that the quote belongs to the certificate's key, whatever the verifier is.
- Errors are `teesql.Error`, with a reason code.

For new programs there is the module `teesql`.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import teesql
from teesql import Policy, extract_tdx_quote
from teesql._policy import setting_text

__all__ = [
    "DcapVerifier",
    "IntelApiVerifier",
    "NoopVerifier",
    "RaTlsVerifier",
    "VerificationResult",
    "VerifyOptions",
    "extract_tdx_quote",
]

_MISSING_KEY = (
    "Intel Trust Authority API key required. Pass { apiKey } option or set INTEL_TRUST_AUTHORITY_API_KEY env var. "
    "Register at https://portal.trustauthority.intel.com"
)


@dataclass
class VerifyOptions:
    """What a quote has to show. It applies in addition to what the verifier itself requires."""

    #: Accepted MRTDs: 96 hex digits each. If it is empty, MRTD is not compared.
    allowed_mr_td: Sequence[str] = field(default_factory=list)
    #: Accept TDs in debug mode, whose memory the host can read.
    allow_debug_mode: bool = False


@dataclass(frozen=True)
class VerificationResult:
    """What a quote says."""

    mr_td: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str
    tcb_status: str
    is_debug_mode: bool


class RaTlsVerifier(abc.ABC):
    """Decides whether a quote is genuine. An own one derives from this class, or has its method."""

    @abc.abstractmethod
    async def verify(self, quote: bytes, options: VerifyOptions | None = None) -> VerificationResult:
        """Verifies a quote.

        Any exception refuses it.
        """


#: Settings about what is not in a quote.
_OF_THE_EVENT_LOG = ("allowed_app_id", "allowed_compose_hash", "allowed_instance_id", "allowed_os_image_hash")


class _NativeVerifier(RaTlsVerifier):
    """A verifier of the native module: certificates do not pass through Python."""

    #: How Intel Trust Authority and this project name one status.
    _status_names: dict[str, str] = {}  # noqa: RUF012 - a constant

    def settings(self) -> dict[str, object]:
        """The settings of a forwarder that verifies in this way."""
        raise NotImplementedError

    async def verify(self, quote: bytes, options: VerifyOptions | None = None) -> VerificationResult:
        """Verifies a quote: Intel's signatures, the TCB, debug mode, the options, and the measurements of the environment."""
        base = policy_of(options, allow_simulator=False)
        # Only the event log of a certificate proves these.
        any_value = {name: "any" for name in _OF_THE_EVENT_LOG if f"TEESQL_{name.upper()}" in os.environ}
        policy = replace(base, settings={**base.settings, **any_value, **self.settings()})
        claims = (await teesql.verify_async(quote, policy)).claims
        status = claims.tcb_status or ""
        return VerificationResult(
            claims.mrtd, *claims.rtmr, tcb_status=self._status_names.get(status, status), is_debug_mode=claims.is_debug
        )


class IntelApiVerifier(_NativeVerifier):
    """Has Intel Trust Authority verify quotes."""

    # The service's own name for Intel's UpToDate.
    _status_names = {"UpToDate": "OK"}  # noqa: RUF012

    def __init__(self, api_key: str | None = None, *, region: Literal["us", "eu"] = "us", base_url: str | None = None) -> None:
        """api_key: by default ``INTEL_TRUST_AUTHORITY_API_KEY``. base_url: another service, by default that of the region."""
        key = api_key or os.environ.get("INTEL_TRUST_AUTHORITY_API_KEY")
        if not key:
            raise teesql.ConfigurationError(_MISSING_KEY, code="ita_missing_key")
        self._key = key
        self._base = base_url or (None if region == "us" else region)

    def __repr__(self) -> str:
        return "<IntelApiVerifier>"

    def settings(self) -> dict[str, object]:
        """The settings of a forwarder that verifies in this way."""
        settings: dict[str, object] = {"verifier": "ita", "trust_authority_key": self._key}
        if self._base is not None:
            settings["trust_authority"] = self._base
        return settings


class DcapVerifier(_NativeVerifier):
    """Verifies quotes in this process, with Intel's collateral."""

    def __init__(self, pccs_url: str | None = None) -> None:
        """pccs_url: where the collateral comes from; by default the setting ``TEESQL_PCCS``, or else Intel."""
        self._pccs_url = pccs_url

    def settings(self) -> dict[str, object]:
        """The settings of a forwarder that verifies in this way."""
        settings: dict[str, object] = {"verifier": "dcap"}
        if self._pccs_url is not None:
            settings["pccs"] = self._pccs_url
        return settings


class NoopVerifier(RaTlsVerifier):
    """Accepts every quote, for development only: the connection is open to a man in the middle."""

    async def verify(self, quote: bytes, options: VerifyOptions | None = None) -> VerificationResult:
        """Accepts the quote. The result has zeros."""
        zeros = "0" * 96
        return VerificationResult(zeros, zeros, zeros, zeros, zeros, tcb_status="UpToDate", is_debug_mode=False)


def policy_of(options: VerifyOptions | None, *, allow_simulator: bool) -> Policy:
    """The policy of a connection with these options, on top of that of the environment."""
    options = options or VerifyOptions()
    # A setting replaces that of the environment, where a further value would only be allowed in addition.
    settings = {"allowed_mrtd": setting_text(list(options.allowed_mr_td))} if options.allowed_mr_td else {}
    return replace(
        Policy.from_env(),
        settings=settings,
        allow_debug_td=options.allow_debug_mode,
        # This interface never required to say which application the server is.
        allow_any_server=True,
        allow_simulator=allow_simulator,
    )
