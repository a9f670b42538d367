"""The names of the package ``psycopg-ra-tls``, so that programs that use it run as they are.

What differs:

- It is always checked that the server's quote belongs to the key of its certificate, whatever the verifier is. A server
  could otherwise present a copied quote.
- `VerifyOptions` are enforced whatever the verifier is. So are the settings of the policy in the environment
  (``TEESQL_ALLOWED_APP_ID``, ``TEESQL_POLICY_FILE`` …).
- A forwarder is stopped when the last connection through it is closed, and `RaTlsForwarder` has ``stop``. Connections that
  are open at the same time with equal arguments share one.
- The client certificate is renewed.
- Parameters of the DSN that name another server (``service``, ``hostaddr``) and unknown ones are refused.
- If the server is refused, the error is a ``psycopg.OperationalError`` as before, and also a `teesql.Error` with a code.

For new programs there is the module `teesql`.
"""

from __future__ import annotations

from .connect import connect, connect_async
from .connect_manifest import connect_via_manifest, connect_via_manifest_async, resolve_leader
from .forwarder import RaTlsForwarder
from .manifest import Manifest, ManifestError, parse_and_verify

__all__ = [
    "Manifest",
    "ManifestError",
    "RaTlsForwarder",
    "connect",
    "connect_async",
    "connect_via_manifest",
    "connect_via_manifest_async",
    "parse_and_verify",
    "resolve_leader",
]
