"""Servers that are checked: scripts on accepted sockets, TLS before them, HTTP/2 by h2, gRPC's own health service."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import h2.config
import h2.connection
import h2.events
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.harness.certificates import Authority, Pair
from tests.harness.waiting import DEADLINE

Script = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(script: Script, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> Iterator[str]:
    """Run the script on every connection, in a thread of its own; gives the server's `ADDRESS:PORT` or `unix:/path`."""
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.removeprefix("unix:"))
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.bind((address, 0))
    listener.listen(512)

    def serve(accepted: socket.socket) -> None:
        accepted.settimeout(DEADLINE)
        with contextlib.suppress(OSError, ssl.SSLError):
            if tls is not None:
                accepted = tls.wrap_socket(accepted, server_side=True)
            script(accepted)
        accepted.close()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        port = "" if listener.family == socket.AF_UNIX else f":{listener.getsockname()[1]}"
        yield f"[{address}]{port}" if listener.family == socket.AF_INET6 else f"{address}{port}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def saying(data: bytes) -> Script:
    """Reads a little, then says this and closes."""

    def script(accepted: socket.socket) -> None:
        accepted.recv(65_536)
        accepted.sendall(data)

    return script


def silent(accepted: socket.socket) -> None:
    """Reads, and never answers."""
    while accepted.recv(65_536):
        pass


def http2(status: int, body: bytes = b"") -> Script:
    """Answers every request over HTTP/2."""

    def script(accepted: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        accepted.sendall(connection.data_to_send())
        while data := accepted.recv(65_536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    connection.send_headers(event.stream_id, [(":status", str(status))], end_stream=not body)
                    if body:
                        connection.send_data(event.stream_id, body, end_stream=True)
            accepted.sendall(connection.data_to_send())

    return script


def server_tls(pair: Pair, *alpn: str, clients_of: Authority | None = None) -> ssl.SSLContext:
    """A server's TLS; with `clients_of` only for clients whom that authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as directory:
        chain, key = Path(directory, "chain.pem"), Path(directory, "key.pem")
        chain.write_text(pair.chain)
        key.write_text(pair.key)
        context.load_cert_chain(chain, key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients_of.pem)
    return context


class GrpcHealth:
    """grpcio's server with its health service."""

    def __init__(self, pair: Pair | None = None) -> None:
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        if pair is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([(pair.key.encode(), pair.chain.encode())])
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.set("", "SERVING")
        self._server.start()

    def set(self, service: str, status: str) -> None:
        self._servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))

    def __enter__(self) -> GrpcHealth:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
