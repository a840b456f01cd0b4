"""Certificates and TLS contexts: what OpenSSL refuses costs itself only, and lets nobody in who should stay out."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from lb._fastpath import credentials
from lb.certs.pem import read_pair
from lb.compile.tls import TlsParts, check, missing_groups
from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.tls import GROUPS, POLICIES, Certificate, ClientCertificates, ListenerTls, TlsHost, TlsPolicy, UpstreamTls
from lb.model.upstream import Endpoint, Upstream
from lb.problems import Origin
from tests.harness.certificates import Authority, Pair
from tests.harness.ocsp import response_for

AUTHORITY = Authority()
PAIR = AUTHORITY.issue("shop.example.com")
BAD_LIST = "-----BEGIN X509 CRL-----\nMAMCAQE=\n-----END X509 CRL-----\n"
BAD_CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"
WHERE = Origin(file="lb.yaml", line=7)


def certificate(pair: Pair = PAIR, name: str = "shop", ocsp: bytes = b"") -> Certificate:
    return Certificate(name, pair.chain, pair.key, base64.b64encode(ocsp).decode(), WHERE)


def listener(clients: ClientCertificates, *certificates: str) -> Listener:
    hosts = {"shop.example.com": TlsHost(certificates, clients), "other.example.com": TlsHost(certificates)}
    return Listener("https", 443, protocol="https", tls=ListenerTls(hosts), origin=WHERE)


def asked(mode: str, **more: object) -> ClientCertificates:
    return ClientCertificates(mode, ca=AUTHORITY.pem, **more)  # type: ignore[arg-type]


def weak(pair: Pair) -> Pair:
    """The same leaf, signed with SHA-1 by what it says: whoever reads it finds nothing wrong."""
    der = ssl.PEM_cert_to_DER_cert(pair.chain)
    sha256, sha1 = bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06072a8648ce3d0401")
    assert der.count(sha256) == 2
    return Pair(ssl.DER_cert_to_PEM_cert(_shorten(der, sha256, sha1)), pair.key)


def _shorten(der: bytes, old: bytes, new: bytes) -> bytes:
    """A certificate (SEQUENCE { tbs, algorithm, signature }) with another algorithm in both places."""

    def element(at: int) -> tuple[int, int]:
        size = der[at + 1]
        if size < 0x80:
            return at + 2, size
        count = size & 0x7F
        return at + 2 + count, int.from_bytes(der[at + 2 : at + 2 + count])

    def wrap(content: bytes) -> bytes:
        return b"\x30\x82" + len(content).to_bytes(2) + content

    def algorithm(name: bytes) -> bytes:
        return b"\x30" + bytes([len(name)]) + name

    outer, _ = element(0)
    tbs, tbs_size = element(outer)
    tbs_end = tbs + tbs_size
    signature = der[tbs_end + len(algorithm(old)) :]
    body = der[tbs:tbs_end].replace(algorithm(old), algorithm(new))
    return wrap(wrap(body) + algorithm(new) + signature)


# What the reader takes for good and OpenSSL does not


def test_a_weak_signature_is_refused_before_any_handshake_and_the_last_good_one_stays() -> None:
    bad = weak(PAIR)
    read_pair(bad.chain, bad.key)
    parts = TlsParts()
    parts.take({"shop": certificate()})
    served = parts.of_listener(listener(ClientCertificates(), "shop"), None, {})
    parts.take({"shop": certificate(bad)})
    assert list(parts.refused) == ["certificate shop"]
    problem = parts.refused["certificate shop"]
    assert (problem.code, problem.origin) == ("LB6007", WHERE)
    assert "md too weak" in problem.what
    again = parts.of_listener(listener(ClientCertificates(), "shop"), None, {})
    assert again["shop.example.com"].certificates == served["shop.example.com"].certificates


def test_a_chain_that_ends_in_nonsense_is_refused() -> None:
    parts = TlsParts()
    parts.take({"shop": certificate(Pair(PAIR.chain + BAD_CERTIFICATE, PAIR.key))})
    assert "certificate 2 of the chain cannot be read" in parts.refused["certificate shop"].what


@pytest.mark.parametrize(
    ("ca", "crl", "what"),
    [
        (AUTHORITY.pem, BAD_LIST, "no revocation list in the CRL"),
        (AUTHORITY.pem, AUTHORITY.revoke() + BAD_LIST, "revocation list 2 of the CRL cannot be read"),
        (AUTHORITY.pem + BAD_CERTIFICATE, "", "certificate 2 of the CA bundle cannot be read"),
        (BAD_CERTIFICATE, "", "no certificate in the CA bundle"),
        ("", "", "no certificate in the CA bundle"),
    ],
)
def test_authorities_that_are_refused_close_their_name_only(ca: str, crl: str, what: str) -> None:
    parts = TlsParts()
    parts.take({"shop": certificate()})
    served = parts.of_listener(listener(ClientCertificates("required", ca, crl), "shop"), None, {})
    assert not served["shop.example.com"].policy.lets_in
    assert served["other.example.com"].policy.lets_in
    (problem,) = parts.refused.values()
    assert (problem.code, problem.origin, problem.field) == (
        "LB6008", WHERE, "listeners.https.tls.hosts.shop.example.com.clients"
    )  # fmt: skip
    assert what in problem.what
    assert problem.why == "no client of this name gets in"


def test_lists_that_turn_bad_leave_in_force_what_was_asked_before() -> None:
    parts = TlsParts()
    good = listener(asked("required", crl=AUTHORITY.revoke(PAIR)), "shop")
    bad = listener(asked("required", crl=BAD_LIST), "shop")
    parts.take({"shop": certificate()})
    served = parts.of_listener(good, None, {})
    renewed = AUTHORITY.issue("shop.example.com")
    parts.take({"shop": certificate(renewed)})
    stays = parts.of_listener(bad, good, served)
    assert stays["shop.example.com"].policy is served["shop.example.com"].policy
    assert stays["shop.example.com"].certificates != served["shop.example.com"].certificates
    assert parts.refused["listener https shop.example.com"].why == "what it asked before stays in force"
    # And over every further build, as long as the list is bad.
    parts.take({"shop": certificate(renewed)})
    assert parts.of_listener(bad, bad, stays)["shop.example.com"].policy is served["shop.example.com"].policy


def test_less_than_is_asked_now_is_no_substitute() -> None:
    parts = TlsParts()
    optional, required = listener(asked("optional"), "shop"), listener(asked("required", crl=BAD_LIST), "shop")
    parts.take({"shop": certificate()})
    served = parts.of_listener(optional, None, {})
    parts.take({"shop": certificate()})
    closed = parts.of_listener(required, optional, served)
    assert not closed["shop.example.com"].policy.lets_in
    parts.take({"shop": certificate()})
    still = parts.of_listener(required, required, closed)
    assert not still["shop.example.com"].policy.lets_in, "what was closed is nothing to fall back on"
    assert parts.refused["listener https shop.example.com"].why == "no client of this name gets in"


# Endpoints


def upstream(**tls: object) -> Upstream:
    return Upstream("api", endpoints=(Endpoint("127.0.0.1", 443),), tls=UpstreamTls("api", **tls), origin=WHERE)  # type: ignore[arg-type]


def test_an_upstream_whose_authorities_are_refused_is_spoken_to_as_before_or_not_at_all() -> None:
    parts = TlsParts()
    parts.take({})
    good, bad = upstream(ca=AUTHORITY.pem), upstream(ca=AUTHORITY.pem, crl=BAD_LIST)
    made = parts.of_upstream(good, None, None)
    assert made is not None
    assert parts.of_upstream(bad, good, made) is made
    assert parts.refused["upstream api"].why == "they are spoken to as before"
    assert parts.of_upstream(bad, None, None) is None
    assert parts.refused["upstream api"].why == "they get no requests, which are answered 503"
    unverified = upstream(verify=False)
    assert parts.of_upstream(bad, unverified, parts.of_upstream(unverified, None, None)) is None


def test_without_the_certificate_to_be_shown_nothing_is_sent() -> None:
    """An endpoint that only asks for one would take the connection of anybody."""
    parts = TlsParts()
    parts.take({"lb": certificate(weak(PAIR), "lb")})
    assert parts.of_upstream(upstream(ca=AUTHORITY.pem, certificate="lb"), None, None) is None
    assert "certificate lb, which lb would show" in parts.refused["upstream api"].what


def test_check_finds_what_a_build_would_refuse() -> None:
    config = Config(
        {"https": listener(asked("optional", crl=BAD_LIST), "shop"), "http": Listener("http", 80)},
        {},
        {"api": upstream(ca=BAD_CERTIFICATE), "plain": Upstream("plain")},
        {"shop": certificate(weak(PAIR))},
    )
    assert list(check(config)) == ["certificate shop", "listener https shop.example.com", "upstream api"]


# Policies


def test_every_policy_can_be_made_and_is_told_apart() -> None:
    parts = TlsParts()
    parts.take({})
    made = set()
    assert POLICIES.keys() == set(get_args(TlsPolicy))
    for name in POLICIES:
        tls = ListenerTls({"a.example.com": TlsHost()}, name)
        made.add(parts.of_listener(Listener("https", 443, protocol="https", tls=tls), None, {})["a.example.com"].policy)
    assert len(made) == len(POLICIES)
    assert not parts.refused


def test_groups_that_the_library_lacks_are_left_out_and_told() -> None:
    known = credentials.known_groups(GROUPS).split(":")
    assert {"X25519", "P-256", "P-384"} <= set(known)
    assert [*missing_groups(), *known] == GROUPS.split(":")
    assert credentials.known_groups("nonsense:X25519") == "X25519"
    assert credentials.library_version().startswith("OpenSSL 3")


def test_unchanged_parts_are_made_once() -> None:
    parts = TlsParts()
    parts.take({"shop": certificate()})
    first = parts.of_listener(listener(asked("required"), "shop"), None, {})
    parts.take({"shop": certificate()})
    assert parts.of_listener(listener(asked("required"), "shop"), None, {}) == first


def test_a_response_with_a_time_is_taken_along() -> None:
    """That it is stapled until then and not after is shown by a running lb (tests/e2e/test_certificates.py)."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    parts = TlsParts()
    parts.take({"shop": certificate(ocsp=response_for(AUTHORITY, PAIR, soon))})
    assert not parts.refused


def test_the_weak_certificate_of_these_tests_says_sha_1() -> None:
    leaf = x509.load_pem_x509_certificate(weak(PAIR).chain.encode())
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA1)
