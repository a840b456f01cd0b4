"""TLS of checks: clients made of the upstream's own TLS settings, and a stream that encrypts without any socket.

Who is trusted and which names are good is decided as in the data plane (lb/_fastpath/credentials.pyx). Every check
makes a whole handshake: a resumed one would not look at the endpoint's certificate.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakValueDictionary

from lb.certs.pem import CertificateError, covers, read_chain
from lb.health.verdict import Verdict, printable
from lb.model.tls import POLICIES, UpstreamTls

_READ_BYTES = 65_536


class ClientPair(NamedTuple):
    """The certificate that lb shows, as PEM."""

    chain: str
    key: str

    def __repr__(self) -> str:
        return "ClientPair"


class TlsNeeds(NamedTuple):
    """How endpoints are spoken to over TLS."""

    settings: UpstreamTls
    pair: ClientPair | None
    alpn: str


class TlsClient:
    """Opens streams. Clients that ask the same of endpoints share what is expensive to make."""

    def __init__(self, needs: TlsNeeds) -> None:
        """ValueError and OSError when the settings cannot be used."""
        settings = needs.settings
        # Python verifies the name that is sent. Where others are good as well, it is done in TlsStream.
        self.names = settings.names if settings.verify and settings.names != (settings.server_name,) else ()
        self.alpn = needs.alpn
        self.server_name = settings.server_name or None
        self.context = _make_once(
            _Context(settings.verify, not self.names, settings.ca, settings.crl, needs.pair, needs.alpn)
        )

    def open(self) -> TlsStream:
        """A stream for a new connection."""
        return TlsStream(self)


class TlsStream:
    """The encrypted side of one connection."""

    __slots__ = ("_client", "_incoming", "_outgoing", "_tls", "is_open")

    def __init__(self, client: TlsClient) -> None:
        self._client = client
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client.context.wrap_bio(self._incoming, self._outgoing, server_hostname=client.server_name)
        self.is_open = False
        """Whether the handshake is over."""

    def begin(self) -> None:
        """Make the first message."""
        self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """What was encrypted in `data`; empty data says that the endpoint has closed. ssl.SSLError."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self.is_open:
            self._shake_hands()
        return b"".join(self._read()) if self.is_open else b""

    def send(self, data: bytes) -> None:
        """Encrypt."""
        if data:
            self._tls.write(data)

    def take_output(self) -> bytes:
        """What is to be sent as it is."""
        return self._outgoing.read()

    def mistake(self) -> Verdict | None:
        """What is wrong with whom the handshake was made with."""
        if self._client.names and (text := self._name_mistake()):
            return Verdict("tls-failed", text)
        if self._client.alpn == "h2" and self._tls.selected_alpn_protocol() != "h2":
            return Verdict("tls-failed", "the endpoint does not speak HTTP/2 (ALPN)")
        return None

    def _name_mistake(self) -> str:
        try:
            theirs = read_chain(ssl.DER_cert_to_PEM_cert(self._tls.getpeercert(binary_form=True) or b"")).names
        except (CertificateError, ValueError):
            return "the certificate cannot be read"
        if any(covers(theirs, name) for name in self._client.names):
            return ""
        return printable(f"the certificate is for {', '.join(theirs) or 'nobody'}")

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self.is_open = True

    def _read(self) -> Iterator[bytes]:
        while True:
            try:
                data = self._tls.read(_READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return
            if not data:
                return
            yield data


def failure(error: ssl.SSLError) -> Verdict:
    """Why a handshake failed, in OpenSSL's words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Verdict("tls-failed", f"the certificate is not trusted: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):  # which of them, Python's version decides
        return Verdict("tls-failed", "the endpoint closed during the handshake")
    return Verdict("tls-failed", (error.reason or str(error)).lower().replace("_", " "))


class _Context(NamedTuple):
    """What a context is made of."""

    verify: bool
    verify_name: bool
    ca: str
    crl: str
    pair: ClientPair | None
    alpn: str


_contexts: WeakValueDictionary[_Context, ssl.SSLContext] = WeakValueDictionary()


def _make_once(wanted: _Context) -> ssl.SSLContext:
    context = _contexts.get(wanted)
    if context is None:
        context = _contexts[wanted] = _make(wanted)
    return context


def _make(wanted: _Context) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(POLICIES["intermediate"].ciphers)
    context.set_alpn_protocols([wanted.alpn])
    context.check_hostname = wanted.verify and wanted.verify_name
    context.hostname_checks_common_name = False  # RFC 9525 6.3, and the data plane
    context.verify_mode = ssl.CERT_REQUIRED if wanted.verify else ssl.CERT_NONE
    if wanted.verify:
        _trust(context, wanted.ca, wanted.crl)
    if wanted.pair is not None:
        with _Held(wanted.pair.chain) as chain, _Held(wanted.pair.key) as key:
            context.load_cert_chain(chain.path, key.path)
    return context


def _trust(context: ssl.SSLContext, ca: str, crl: str) -> None:
    if not ca:
        context.load_default_certs()
        return
    context.load_verify_locations(cadata=ca)
    # An authority in the bundle is trusted whether it is a root or not.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if crl:
        with _Held(crl) as held:
            context.load_verify_locations(held.path)
        several = crl.count("-----BEGIN X509 CRL-----") > 1
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN if several else ssl.VERIFY_CRL_CHECK_LEAF


class _Held:
    """A text as a file that exists in memory only: Python's ssl reads keys and revocation lists from nothing else."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> _Held:
        self._descriptor = os.memfd_create("lb-check", os.MFD_CLOEXEC)
        with open(self._descriptor, "w", closefd=False) as file:
            file.write(self._text)
        self.path = f"/proc/self/fd/{self._descriptor}"
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
