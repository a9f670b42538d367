"""What a server has to prove, and what this client presents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from typing_extensions import Self

#: The fields of `Policy` that list allowed values, and their names for the native module.
_VALUES = {
    "mrtd": "mrtd",
    "rtmr0": "rtmr0",
    "rtmr1": "rtmr1",
    "rtmr2": "rtmr2",
    "rtmr3": "rtmr3",
    "app_id": "app_id",
    "compose_hash": "compose_hash",
    "instance_id": "instance_id",
    "os_image_hash": "os_image_hash",
    "accepted_tcb_status": "tcb_status",
}


def setting_text(value: object) -> str:
    """A setting as the configuration has it: lists are separated by commas."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(setting_text(element) for element in value)
    return str(value)


@dataclass(frozen=True)
class Policy:
    """What a server has to prove: one of the values of each field that is not empty.

    It must say which application the server is, or have ``allow_any_server``. A value is hex, or several of them. For a
    forwarder, settings of the environment that are not set here apply too.
    """

    mrtd: str | Iterable[str] = ()
    rtmr0: str | Iterable[str] = ()
    rtmr1: str | Iterable[str] = ()
    rtmr2: str | Iterable[str] = ()
    rtmr3: str | Iterable[str] = ()
    app_id: str | Iterable[str] = ()
    compose_hash: str | Iterable[str] = ()
    instance_id: str | Iterable[str] = ()
    os_image_hash: str | Iterable[str] = ()
    #: TCB statuses that are accepted besides ``UpToDate``, in Intel's spelling.
    accepted_tcb_status: str | Iterable[str] = ()
    #: A policy file, which replaces the values above.
    file: str | os.PathLike[str] | None = None
    #: Accept TDs in debug mode, whose memory the host can read.
    allow_debug_td: bool = False
    #: Accept a policy that does not say which application the server is: any TD can then receive the secret.
    allow_any_server: bool = False
    #: Accept servers without any evidence, such as a simulator: the connection is open to a man in the middle.
    allow_simulator: bool = False
    #: Further settings of the group "Attestation", by their names in the configuration file, such as ``kms_root``.
    settings: Mapping[str, object] = field(default_factory=dict)
    _from_env: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        # Hashable and immutable, so that connections with equal policies can share a forwarder.
        for name in _VALUES:
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        object.__setattr__(self, "settings", _Settings(self.settings))

    @classmethod
    def from_env(cls) -> Self:
        """The policy of the environment: ``TEESQL_ALLOWED_…``, ``TEESQL_POLICY_FILE``, ``TEESQL_PCCS`` and so on.

        It is what applies where no policy is given.
        """
        return cls(_from_env=True)

    def _native(self) -> _native.Policy:
        policy = _native.Policy.from_env() if self._from_env else _native.Policy()
        if self.file is not None:
            policy.file(os.fspath(self.file))
        for name, native_name in _VALUES.items():
            for value in getattr(self, name):
                policy.allow(native_name, value)
        if self.allow_debug_td:
            policy.allow_debug_td()
        if self.allow_any_server:
            policy.allow_any_server()
        if self.allow_simulator:
            policy.allow_simulator()
        for name, value in self.settings.items():
            policy.setting(name, setting_text(value))
        return policy


class _Settings(dict[str, Any]):
    """Settings that can be compared and hashed, and whose values are not shown: one may be a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted((name, setting_text(value)) for name, value in self.items())))

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: ..." for name in self) + "}"


class Identity:
    """The certificate that this client presents to servers.

    A forwarder without an identity uses `guest_agent`.
    """

    def __init__(self, native: _native.Identity, kind: str) -> None:
        self._native = native
        self._kind = kind

    def __repr__(self) -> str:
        return f"<teesql.Identity {self._kind}>"

    @classmethod
    def guest_agent(cls, address: str | os.PathLike[str] | None = None) -> Identity:
        """From dstack's guest agent of this machine, or the one at ``address``: a path, or ``http://host:port``."""
        native = _native.Identity.guest_agent(None if address is None else os.fspath(address))
        return cls(native, "guest agent")

    @classmethod
    def pem(cls, chain: str | bytes, key: str | bytes) -> Identity:
        """From memory: the chain, leaf first, and the leaf's key, in PEM."""
        return cls(_native.Identity.pem(_bytes(chain), _bytes(key)), "PEM")

    @classmethod
    def pem_files(cls, chain: str | os.PathLike[str], key: str | os.PathLike[str]) -> Identity:
        """From PEM files, read again when they change."""
        return cls(_native.Identity.pem_files(os.fspath(chain), os.fspath(key)), "PEM files")

    @classmethod
    def none(cls) -> Identity:
        """None: only the server is attested. The sidecar must accept clients that are not."""
        return cls(_native.Identity.none(), "none")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
