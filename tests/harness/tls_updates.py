"""A TLS 1.3 client that changes its keys as often as a test wants, which Python's `ssl` cannot: OpenSSL by ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket

_ssl = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
_crypto = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
for _function in (_ssl.TLS_client_method, _ssl.SSL_CTX_new, _ssl.SSL_new, _crypto.BIO_s_mem, _crypto.BIO_new):
    _function.restype = ctypes.c_void_p
_SET_SERVER_NAME = 55
"""SSL_CTRL_SET_TLSEXT_HOSTNAME"""
_UPDATE_NOT_REQUESTED = 0


class UpdatingClient:
    """Verifies nothing. What it says is made here and sent by whoever has the socket."""

    def __init__(self, plain: socket.socket, name: bytes) -> None:
        self._plain = plain
        context = ctypes.c_void_p(_ssl.SSL_CTX_new(ctypes.c_void_p(_ssl.TLS_client_method())))
        self._session = ctypes.c_void_p(_ssl.SSL_new(context))
        _ssl.SSL_CTX_free(context)
        self._in, self._out = (ctypes.c_void_p(_crypto.BIO_new(ctypes.c_void_p(_crypto.BIO_s_mem()))) for _ in "io")
        _ssl.SSL_set_bio(self._session, self._in, self._out)
        _ssl.SSL_ctrl(self._session, _SET_SERVER_NAME, ctypes.c_long(0), name)
        _ssl.SSL_set_connect_state(self._session)
        while _ssl.SSL_do_handshake(self._session) != 1:
            plain.sendall(self._made())
            received = plain.recv(65_536)
            assert received, "the handshake is refused"
            _crypto.BIO_write(self._in, received, len(received))
        plain.sendall(self._made())

    def _made(self) -> bytes:
        made = b""
        buffer = ctypes.create_string_buffer(65_536)
        while (size := _crypto.BIO_read(self._out, buffer, len(buffer))) > 0:
            made += buffer.raw[:size]
        return made

    def updates(self, count: int) -> bytes:
        """So many changes of its keys, a record each."""
        for _ in range(count):
            assert _ssl.SSL_key_update(self._session, _UPDATE_NOT_REQUESTED) == 1
            assert _ssl.SSL_do_handshake(self._session) == 1
        return self._made()

    def data(self, content: bytes) -> bytes:
        assert _ssl.SSL_write(self._session, content, len(content)) == len(content)
        return self._made()

    def close(self) -> None:
        _ssl.SSL_free(self._session)
