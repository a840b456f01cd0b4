"""Certificates, keys and TLS contexts. Texts of errors never hold key material."""

class Certificate:
    """A chain and its key, as OpenSSL holds them."""

    def __init__(self, chain: bytes, key: bytes, ocsp: bytes = b"", ocsp_until: int = 0) -> None:
        """PEM, the leaf first; `ocsp` is a DER response to be stapled until that many seconds after the epoch (0: for
        ever). ValueError when they cannot be used."""

def known_groups(groups: str) -> str:
    """Those of `groups` that this OpenSSL has, in the same order: X25519MLKEM768 came with 3.5."""

def library_version() -> str:
    """`OpenSSL 3.5.4 30 Sep 2025`"""

def kernel_tls_missing() -> str:
    """Why the kernel can encrypt nothing of what connections send; empty when it can."""

class ServerTls:
    """What names with one policy share."""

    def __init__(
        self,
        *,
        min_version: int,
        max_version: int,
        ciphers: str,
        ciphersuites: str,
        groups: str,
        alpn: tuple[bytes, ...],
        client_mode: int,
        ca: bytes,
        crl: bytes,
        depth: int,
        identity: bytes,
    ) -> None:
        """`client_mode`: 0 not asked, 1 optional, 2 required, 3 unverified, 4 nobody gets in. `identity` (32 bytes):
        sessions are resumed only where it is the same. ValueError when something cannot be used."""

    @property
    def lets_in(self) -> bool:
        """Whether any client can get in."""

class ClientTls:
    """How connections to the endpoints of an upstream are encrypted."""

    def __init__(
        self,
        *,
        min_version: int,
        max_version: int,
        ciphers: str,
        ciphersuites: str,
        alpn: tuple[bytes, ...],
        verify: bool,
        ca: bytes,
        crl: bytes,
        server_name: str,
        names: tuple[str, ...],
        certificate: Certificate | None = None,
    ) -> None:
        """`ca` empty: the system's. ValueError when something cannot be used, and when there is nobody to verify."""

class TlsHost:
    """What a name is served with: a policy and certificates."""

    policy: ServerTls
    certificates: tuple[Certificate, ...]

    def __init__(self, policy: ServerTls, certificates: tuple[Certificate, ...], forward: int = 0) -> None:
        """`forward`: which headers name the client's certificate to endpoints (1 x-forwarded-client-cert, 2
        ssl-client-*)."""
