"""The leader manifest, verified."""

from __future__ import annotations

from dataclasses import dataclass

import teesql
from teesql import ManifestError

__all__ = ["MANIFEST_VERSION", "Manifest", "ManifestError", "parse_and_verify"]

MANIFEST_VERSION = "1"


@dataclass(frozen=True)
class Manifest:
    """What a manifest says."""

    cluster: str
    leader_instance: str
    leader_url: str
    epoch: int
    valid_until: int

    def canonical_body(self) -> str:
        """The text that is signed."""
        fields = {
            "cluster": self.cluster.lower(),
            "epoch": self.epoch,
            "leader_instance": self.leader_instance.lower(),
            "leader_url": self.leader_url,
            "v": MANIFEST_VERSION,
            "valid_until": self.valid_until,
        }
        return ";".join(f"{name}={value}" for name, value in fields.items())


def of_teesql(manifest: teesql.Manifest) -> Manifest:
    """The manifest without the fields that this interface does not have."""
    return Manifest(
        cluster=manifest.cluster,
        leader_instance=manifest.leader_instance,
        leader_url=manifest.leader_url,
        epoch=manifest.epoch,
        valid_until=manifest.valid_until,
    )


def parse_and_verify(txt: str, expected_signer: bytes, *, now: int | None = None) -> Manifest:
    """Verifies the text of a manifest.

    expected_signer: the 20 bytes of the signer's address. now: in Unix seconds, by default the present.
    """
    if len(expected_signer) != 20:
        raise ValueError("expected_signer must be 20 bytes")
    try:
        return of_teesql(teesql.parse_manifest(txt, expected_signer, now=now))
    except ManifestError as error:
        raise ManifestError(_text(error), code=error.code) from None


#: How this interface always began its texts, which programs may look for.
_TEXTS = {
    "manifest_signature": "signer mismatch",
    "manifest_version": "unsupported manifest version",
}


def _text(error: ManifestError) -> str:
    text = str(error)
    begin = _TEXTS.get(error.code)
    return f"{begin}: {text}" if begin else text
