"""An endpoint that speaks TLS, with Python's own `ssl`: says what it was asked, and to whom it spoke."""

from __future__ import annotations

import hashlib
import os
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.harness.certificates import Authority, Pair


class Echo(BaseHTTPRequestHandler):
    """Answers with the headers it got, or with the digest of the body; `/bulk` with 4 MiB, a body for `?close` not at
    all: it closes.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.resumed.append(bool(self.connection.session_reused))  # type: ignore[attr-defined]
        self.server.protocols.append((self.path, self.connection.selected_alpn_protocol()))  # type: ignore[attr-defined]
        if self.path == "/bulk":
            self._answer(BULK)
        else:
            self._answer("".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items()).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("?close"):
            self.close_connection = True
            return
        self._answer(hashlib.sha256(body).hexdigest().encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


BULK = os.urandom(4 << 20)


class TlsServer(ThreadingHTTPServer):
    """An endpoint that speaks TLS; with `clients_of` only to whom that authority has signed."""

    daemon_threads = True
    request_queue_size = 128  # five is too few for those who all come at once

    def __init__(self, directory: Path, pair: Pair, clients_of: Authority | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.names: list[str | None] = []
        """Whom the clients asked for (SNI), one for each handshake."""
        self.resumed: list[bool] = []
        """Of each request: whether its connection had resumed a session."""
        self.protocols: list[tuple[str, str | None]] = []
        """Of each request: its target, and what its connection had agreed on (ALPN)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = directory / f"server-{self.server_address[1]}.pem"
        path.write_text(pair.chain + pair.key)
        context.load_cert_chain(path)
        context.set_alpn_protocols(["http/1.1"])
        context.sni_callback = lambda _, name, __: self.names.append(name)
        if clients_of is not None:
            context.load_verify_locations(cadata=clients_of.pem)
            context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Failed handshakes are what some tests want."""
