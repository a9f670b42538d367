"""Signed leader manifests, by `teesql-forward manifest sign`."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from conftest import DEV_ENVIRONMENT

#: The program, of the same build as ``dev``.
FORWARD = DEV_ENVIRONMENT["TEESQL_TEST_FORWARD"]

#: The address of the key that is 32 times 0x11.
SIGNER = "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a"
CLUSTER = "0xbd32b609057a1a4569558a571d535c8f1212b097"
INSTANCE = "ea23198e3419ebbb240571a29d0112d9bcbe69c0"


def sign(url: str, *, epoch: int = 42, valid_until: int | None = None, instance: str = INSTANCE) -> str:
    """The text of a record."""
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / "key"
        key.write_text("11" * 32)
        key.chmod(0o600)
        fields = {
            "key": key,
            "cluster": CLUSTER,
            "leader-instance": instance,
            "leader-url": url,
            "epoch": epoch,
            "valid-until": int(time.time()) + 3600 if valid_until is None else valid_until,
        }
        command = [FORWARD, "manifest", "sign"]
        for name, value in fields.items():
            command += [f"--{name}", str(value)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
