"""What differs between two Configs in certificates and TLS, said without keys."""

from __future__ import annotations

import msgspec
import pytest

from lb.certs.pem import read_chain
from lb.model.config import Config
from lb.model.diff import diff
from lb.model.listener import Listener
from lb.model.tls import Certificate, ClientCertificates, ListenerTls, TlsHost, UpstreamTls
from lb.model.upstream import Upstream
from lb.problems import Origin
from tests.harness.certificates import Authority, Pair, make_key

AUTHORITY = Authority()
KEY = make_key()
OLD, NEW = AUTHORITY.issue("shop.example.com", key=KEY), AUTHORITY.issue("shop.example.com", days=300)


def config(pair: Pair | None = OLD, tls: ListenerTls | None = None, upstream: UpstreamTls | None = None) -> Config:
    certificates = {"shop": Certificate("shop", pair.chain, pair.key, origin=Origin(file="a.yaml"))} if pair else {}
    listener = Listener("public", 443, protocol="https", tls=tls or ListenerTls())
    return Config({"public": listener}, {}, {"web": Upstream("web", tls=upstream)}, certificates)


def effects(before: Config, after: Config) -> list[str]:
    changes = diff(before, after)
    told = msgspec.json.encode(changes).decode()
    for pair in (OLD, NEW):
        assert not any(line in told for line in pair.key.splitlines() if "-----" not in line)
    return [change.effect for change in changes]


def about(pair: Pair) -> str:
    found = read_chain(pair.chain)
    return f"shop.example.com, EC, serial {found.serial}, until {found.not_after:%Y-%m-%d}"


def test_certificates() -> None:
    assert effects(config(OLD), config(OLD)) == []
    assert effects(config(None), config(OLD)) == [f"adds certificate shop ({about(OLD)})"]
    assert effects(config(OLD), config(None)) == [f"removes certificate shop ({about(OLD)})"]
    assert effects(config(OLD), config(NEW)) == [f"certificate shop: {about(OLD)} -> {about(NEW)}"]
    longer = Pair(OLD.chain + AUTHORITY.pem, OLD.key)
    assert effects(config(OLD), config(longer)) == [
        f"certificate shop ({about(OLD)}) has another chain, key or OCSP response"
    ]


REQUIRED = ClientCertificates("required", AUTHORITY.pem)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ListenerTls(), ListenerTls(policy="modern"), ["listener public: policy intermediate -> modern"]),
        (ListenerTls(), ListenerTls(hsts="max-age=1"), ["listener public: hsts none -> max-age=1"]),
        (
            ListenerTls(),
            ListenerTls({"a": TlsHost(("shop",))}),
            ["a is served on public with shop instead of what other names get"],
        ),
        (
            ListenerTls({"a": TlsHost(("shop",))}),
            ListenerTls({"a": TlsHost()}),
            ["a is served on public with lb's self-made certificate instead of shop"],
        ),
        (
            ListenerTls({"a": TlsHost(("shop",))}),
            ListenerTls({"a": TlsHost(("shop",), REQUIRED)}),
            ["client certificates of a on public: off -> required"],
        ),
        (
            ListenerTls({"a": TlsHost(("shop",), REQUIRED)}),
            ListenerTls({"a": TlsHost(("shop",), msgspec.structs.replace(REQUIRED, depth=1))}),
            ["a on public asks something else of client certificates"],
        ),
    ],
)
def test_listeners(before: ListenerTls, after: ListenerTls, expected: list[str]) -> None:
    assert effects(config(tls=before), config(tls=after)) == expected


def test_upstreams() -> None:
    system, unverified = UpstreamTls("web.test"), UpstreamTls(verify=False)
    assert effects(config(), config(upstream=system)) == [
        "upstream web: TLS for web.test (trusting the system's) instead of without TLS"
    ]
    assert effects(config(upstream=system), config(upstream=unverified)) == [
        "upstream web: TLS that is not verified instead of TLS for web.test (trusting the system's)"
    ]
    (ours,) = effects(config(upstream=system), config(upstream=UpstreamTls("web.test", ca=AUTHORITY.pem)))
    assert "trusting authorities " in ours
