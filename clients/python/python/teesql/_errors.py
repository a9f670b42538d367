"""The exceptions of this package.

Each has a ``code``, one of a closed list (``teesql.reason_codes()``), which says what happened and is the same in the log
lines of TeeSQL's programs.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence


class Error(Exception):
    """An error of this package. Its text contains no secret."""

    #: The reason code, such as ``mrtd_not_allowed``.
    code: str
    #: Of a `ConfigurationError`, each mistake; otherwise the one text.
    messages: tuple[str, ...]

    def __init__(self, message: str, *, code: str, messages: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.messages = tuple(messages) or (message,)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), str(self), self.code, self.messages)


def _restore(cls: type[Error], message: str, code: str, messages: tuple[str, ...]) -> Error:
    return cls(message, code=code, messages=messages)


class ConfigurationError(Error, ValueError):
    """A setting, a DSN or an argument is wrong."""


class IdentityError(Error):
    """There is no client certificate: no guest agent, or it refuses, or the PEM cannot be used."""


class RefusedError(Error):
    """The server is refused: by its evidence, the policy, or a verifier's decision."""


class AuthenticationError(Error):
    """The server refuses this client: its evidence, or its role and secret."""


class ManifestError(Error):
    """The leader manifest is missing, or refused."""


class UnavailableError(Error):
    """Something that is needed for a verdict is unavailable: collateral, Trust Authority, a verifier that failed."""


class NetworkError(Error, ConnectionError):
    """A name cannot be resolved, a server cannot be reached, or TLS failed."""


class TimeoutError(Error, builtins.TimeoutError):
    """A deadline has passed."""


class OverloadedError(Error):
    """A limit is reached: connections, lookups, verifications."""


class ForkedError(Error, RuntimeError):
    """The process has forked since the forwarder was started: it belongs to the parent."""


class StoppedError(Error, RuntimeError):
    """The forwarder was stopped."""


class SystemError(Error, OSError):
    """An error of the operating system, or a bug."""


class Refused(Exception):  # noqa: N818 - a verdict, not an error
    """Raised by a verifier that does not accept a server. The text reaches the driver and the log."""


KINDS: dict[str, type[Error]] = {
    "configuration": ConfigurationError,
    "identity": IdentityError,
    "refused": RefusedError,
    "manifest": ManifestError,
    "unavailable": UnavailableError,
    "network": NetworkError,
    "timeout": TimeoutError,
    "overloaded": OverloadedError,
    "forked": ForkedError,
    "stopped": StoppedError,
    "system": SystemError,
}


def from_native(kind: str, code: str, message: str, messages: Sequence[str]) -> Error:
    """The exception for an error of the native module."""
    return KINDS[kind](message, code=code, messages=messages)
