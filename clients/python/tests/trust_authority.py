"""An Intel Trust Authority on loopback, which believes every quote."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TrustAuthority:
    """Listens until it is closed."""

    API_KEY: ClassVar[str] = "bW9jaw=="

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.appraisals = 0
        authority = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authority._answer(self, 200, authority._keys())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.headers["x-api-key"] != TrustAuthority.API_KEY:
                    authority._answer(self, 401, {"error": "Unauthorized"})
                else:
                    authority.appraisals += 1
                    authority._answer(self, 200, {"token": authority._token(base64.b64decode(body["quote"]))})

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @staticmethod
    def _answer(handler: http.server.BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        n, e = (_encoded(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
        return {"keys": [{"kty": "RSA", "use": "sig", "kid": "1", "alg": "PS384", "n": n, "e": e}]}

    def _token(self, quote: bytes) -> str:
        """A token about a quote of version 4. [Intel TDX DCAP Quoting Library API, A.3]"""
        report = quote[48:632]
        now = int(time.time())
        claims = {
            "exp": now + 300,
            "attester_tcb_status": "UpToDate",
            "tdx_mrtd": report[136:184].hex(),
            **{f"tdx_rtmr{i}": report[328 + 48 * i : 376 + 48 * i].hex() for i in range(4)},
            "tdx_report_data": report[520:584].hex(),
            "tdx_is_debuggable": False,
            "tdx_td_attributes_debug": False,
        }
        header = {"alg": "PS384", "jku": f"{self.url}/certs", "kid": "1", "typ": "JWT"}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        salt = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
        return f"{signed}.{_encoded(self._key.sign(signed.encode(), salt, hashes.SHA384()))}"


@pytest.fixture
def trust_authority() -> Iterator[TrustAuthority]:
    """An Intel Trust Authority on loopback."""
    authority = TrustAuthority()
    yield authority
    authority.close()
