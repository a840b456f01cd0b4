"""A TLS client with Python's own `ssl`: what it is shown, and one request after another."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.harness.certificates import Pair
from tests.harness.client import Address
from tests.harness.messages import Reader, Response


@dataclass
class TlsClient:
    """Connects as `name`, trusting only `ca`."""

    address: Address
    ca: str
    name: str = "shop.example.com"
    version: ssl.TLSVersion | None = None
    certificate: Pair | None = None
    session: ssl.SSLSession | None = None
    check_name: bool = True

    def context(self, directory: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca)
        context.check_hostname = self.check_name
        if self.version is not None:
            context.minimum_version = context.maximum_version = self.version
        if self.certificate is not None:
            assert directory is not None
            (directory / "client.crt").write_text(self.certificate.chain)
            (directory / "client.key").write_text(self.certificate.key)
            context.load_cert_chain(directory / "client.crt", directory / "client.key")
        return context

    def connect(self, context: ssl.SSLContext | None = None, directory: Path | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(self.address, 20)
        context = context or self.context(directory)
        try:
            return context.wrap_socket(plain, server_hostname=self.name, session=self.session)
        except BaseException:
            plain.close()
            raise


def ask(client: ssl.SSLSocket, host: str, path: str = "/", *, headers: str = "", body: bytes = b"") -> Response:
    """One request and its whole response."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    method = "POST" if body else "GET"
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n".encode() + body)
    return Reader(lambda: client.recv(65_536)).response(method)
