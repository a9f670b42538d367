"""Django through a forwarder: an entry of ``DATABASES``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from ._forwarder import Forwarder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._forwarder import Options

#: Forwarders that run until the interpreter exits.
_forwarders: list[Forwarder] = []


def database(dsn: str | None = None, **options: Unpack[Options]) -> dict[str, Any]:
    """Starts a forwarder, which runs until the process ends, and returns an entry of ``DATABASES``::

        DATABASES = {"default": teesql.django.database(os.environ["DATABASE_URL"])}

    It takes the arguments of `teesql.Forwarder`. Processes that are forked later, such as workers of gunicorn, connect
    through their parent's forwarder.
    """
    forwarder = Forwarder(dsn, **options).start()
    _forwarders.append(forwarder)
    parts = urlsplit(forwarder.dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": forwarder.host,
        "PORT": str(forwarder.port),
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "OPTIONS": {name: value for name, value in parse_qsl(parts.query) if name not in ("host", "port", "user", "password")},
    }
