"""A gRPC server (grpcio) whose methods take and give raw bytes, so that no message needs a definition."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures

import grpc

from tests.harness.certificates import Pair
from tests.harness.payload import payload
from tests.harness.waiting import DEADLINE

SERVICE = "lb.test.Calls"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class GrpcServer:
    """Serves from construction to close.

    echo    (one to one)    the request
    fail    (one to one)    ends with the status and details of its request, `CODE details`
    meta    (one to one)    the request's metadata as text; sends some of its own, before and behind
    wait    (one to one)    never; `waits` knows by its request whether it has come, and whether it was given up
    repeat  (one to many)   as many messages of that size as the request, `COUNT SIZE`, says
    digest  (many to one)   count and digest of all messages
    chat    (many to many)  each message, with the server's name
    """

    def __init__(
        self, name: str = "one", *, pair: Pair | None = None, options: Iterable[tuple[str, object]] = ()
    ) -> None:
        self.name = name
        self.waits: dict[bytes, threading.Event] = {}
        """Request of `wait` -> set when its client has given up."""
        kinds = {
            "echo": grpc.unary_unary_rpc_method_handler(self._echo),
            "fail": grpc.unary_unary_rpc_method_handler(self._fail),
            "meta": grpc.unary_unary_rpc_method_handler(self._meta),
            "wait": grpc.unary_unary_rpc_method_handler(self._wait),
            "repeat": grpc.unary_stream_rpc_method_handler(self._repeat),
            "digest": grpc.stream_unary_rpc_method_handler(self._digest),
            "chat": grpc.stream_stream_rpc_method_handler(self._chat),
        }
        self._server = grpc.server(
            futures.ThreadPoolExecutor(32), options=[*UNLIMITED, ("grpc.so_reuseport", 0), *options]
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, kinds),))
        address = "127.0.0.1:0"
        if pair is None:
            self.port = self._server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials([(pair.key.encode(), pair.chain.encode())])
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _echo(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    def _fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        code, _, details = request.decode().partition(" ")
        context.set_trailing_metadata((("x-why", "because"), ("failure-bin", b"\x00\xff")))
        context.abort(next(one for one in grpc.StatusCode if one.value[0] == int(code)), details)
        raise AssertionError

    def _meta(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("x-begin", "1"), ("begin-bin", b"\x01\xfe")))
        context.set_trailing_metadata((("any-name", "2"), ("end-bin", b"\x02\xfd")))
        return "\n".join(f"{key}={value!r}" for key, value in context.invocation_metadata()).encode()

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        ended = threading.Event()
        context.add_callback(ended.set)
        self.waits[request] = ended
        ended.wait(DEADLINE)
        return b""

    def _repeat(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        count, size = map(int, request.split())
        message = payload(size)
        for _ in range(count):
            if not context.is_active():
                return
            yield message

    def _digest(self, requests: Iterable[bytes], _: grpc.ServicerContext) -> bytes:
        seen = hashlib.sha256()
        count = 0
        for request in requests:
            seen.update(request)
            count += 1
        return b"%d %b" % (count, seen.hexdigest().encode())

    def _chat(self, requests: Iterable[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield self.name.encode() + b" " + request

    def close(self) -> None:
        self._server.stop(0).wait(DEADLINE)

    def __enter__(self) -> GrpcServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Calls:
    """The methods of GrpcServer, as a client sees them."""

    def __init__(
        self, target: str, authority: str, *, ca: str = "", options: Iterable[tuple[str, object]] = ()
    ) -> None:
        # Channels with equal options share connections; each of ours is to have its own.
        own = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *options]
        if ca:
            own += [("grpc.ssl_target_name_override", authority)]
            self.channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca.encode()), options=own)
        else:
            own += [("grpc.default_authority", authority)]
            self.channel = grpc.insecure_channel(target, options=own)
        self.echo = self.channel.unary_unary(f"/{SERVICE}/echo")
        self.fail = self.channel.unary_unary(f"/{SERVICE}/fail")
        self.meta = self.channel.unary_unary(f"/{SERVICE}/meta")
        self.wait = self.channel.unary_unary(f"/{SERVICE}/wait")
        self.repeat = self.channel.unary_stream(f"/{SERVICE}/repeat")
        self.digest = self.channel.stream_unary(f"/{SERVICE}/digest")
        self.chat = self.channel.stream_stream(f"/{SERVICE}/chat")

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
