"""A websocket server in a thread that sends every message back; `close CODE` closes with that code."""

from __future__ import annotations

import threading

import websockets.exceptions
from websockets.sync.server import ServerConnection, serve

from tests.harness.waiting import DEADLINE


def _echo(connection: ServerConnection) -> None:
    try:
        for message in connection:
            if isinstance(message, str) and message.startswith("close "):
                connection.close(int(message.removeprefix("close ")))
                return
            connection.send(message)
    except websockets.exceptions.ConnectionClosedError:
        return


class WebsocketServer:
    """Serves from construction to close."""

    def __init__(self) -> None:
        self._server = serve(_echo, "127.0.0.1", 0, max_size=None)
        self.port: int = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(DEADLINE)

    def __enter__(self) -> WebsocketServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
