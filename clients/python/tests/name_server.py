"""A name server on loopback, for one TXT record set."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest


class NameServer:
    """Answers over UDP until it is closed."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.is_silent = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if not data:
                return
            if self.is_silent:
                continue
            query = dns.message.from_wire(data)
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA | dns.flags.RA
            question = query.question[0]
            name = question.name.to_text().rstrip(".").lower()
            texts = self.records.get(name)
            if texts is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            for text in texts or []:
                chunks = " ".join(f'"{text[i : i + 255]}"' for i in range(0, len(text), 255))
                answer.answer.append(dns.rrset.from_text(question.name, 1, "IN", "TXT", chunks))
            self._socket.sendto(answer.to_wire(max_size=65535), peer)


@pytest.fixture
def name_server() -> Iterator[NameServer]:
    """A name server on loopback."""
    server = NameServer()
    yield server
    server.close()
