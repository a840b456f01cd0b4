"""What `explain` says of TLS: the certificate and why, what is asked of clients, how endpoints are spoken to."""

from __future__ import annotations

import pytest

from lb.model.ask import make_ask
from lb.model.config import Config
from lb.model.explain import explain
from lb.model.explain_tls import describe_clients, describe_upstream
from lb.model.explanation import CertificateStep, Explanation
from lb.model.listener import HttpOptions, Listener
from lb.model.route import Forward, Match, PathMatch, Route, RouteOptions, VirtualHost, WeightedUpstream
from lb.model.tls import Certificate, ClientCertificates, ListenerTls, TlsHost, UpstreamTls
from lb.model.upstream import Endpoint, Upstream
from lb.problems import Origin, Problem
from tests.harness.certificates import Authority

AUTHORITY = Authority("Clients")
PAIRS = {
    "shop": AUTHORITY.issue("shop.example.com"),
    "shop-rsa": AUTHORITY.issue("shop.example.com", kind="RSA"),
    "wild": AUTHORITY.issue("*.wild.example.com"),
    "default": AUTHORITY.issue("default.example.com"),
}
REQUIRED = ClientCertificates("required", AUTHORITY.pem, AUTHORITY.revoke(), forward=("xfcc", "ssl-client"))
NOBODY = ClientCertificates("nobody", why="Secret shop/clients does not exist")
HOSTS = {
    "shop.example.com": TlsHost(("shop-rsa", "shop")),
    "*.wild.example.com": TlsHost(("wild",)),
    "required.example.com": TlsHost(("default",), REQUIRED),
    "nobody.example.com": TlsHost(("default",), NOBODY),
    "bare.example.com": TlsHost(),
    "*": TlsHost(("default",)),
}


def config(upstream: UpstreamTls | None = None, hosts: dict[str, TlsHost] = HOSTS) -> Config:
    options = RouteOptions(https_redirect=308)
    route = Route("all", Match(PathMatch("prefix", "/")), Forward((WeightedUpstream("api"),)), options)
    listeners = (
        Listener("https", 443, protocol="https", tls=ListenerTls(hosts, hsts="max-age=60")),
        Listener("http", 80, http=HttpOptions(trusted_proxies=("10.0.0.0/8",))),
    )
    return Config(
        {one.name: one for one in listeners},
        {"default": {"*": VirtualHost("*", (route,), one_label=False)}},
        {"api": Upstream("api", endpoints=(Endpoint("127.0.0.1", 443),), tls=upstream)},
        {name: Certificate(name, pair.chain, pair.key, origin=Origin(file="lb.yaml")) for name, pair in PAIRS.items()},
    )


def told(url: str, *lines: str, client: str = "", refused: dict[str, Problem] | None = None) -> Explanation:
    return explain(config(), make_ask(url, lines=lines, client=client), refused=refused)


def certificates(url: str) -> list[CertificateStep]:
    tls = told(url).tls
    assert tls is not None
    return list(tls.certificates)


@pytest.mark.parametrize(
    ("host", "entry", "why", "shown"),
    [
        ("shop.example.com", "shop.example.com", "exact name", ["shop", "shop-rsa"]),
        ("SHOP.example.com.", "shop.example.com", "exact name", ["shop", "shop-rsa"]),
        ("a.wild.example.com", "*.wild.example.com", "covers a", ["wild"]),
        ("a.b.wild.example.com", "*", "takes the names that have no entry of their own", ["default"]),
        ("bare.example.com", "bare.example.com", "exact name", [""]),
        ("10.0.0.1", "*", "takes clients that say no name", ["default"]),
        ("[::1]", "*", "takes clients that say no name", ["default"]),
    ],
)
def test_which_certificate_and_why(host: str, entry: str, why: str, shown: list[str]) -> None:
    tls = told(f"https://{host}/").tls
    assert tls is not None
    assert (tls.entry, tls.why, [one.name for one in tls.certificates]) == (entry, why, shown)
    assert tls.policy == "intermediate: TLS 1.2 and 1.3; HSTS max-age=60"


def test_certificate_for_another_name_is_told() -> None:
    (one,) = certificates("https://a.b.wild.example.com/")
    assert one.mistake == "it is not for a.b.wild.example.com but for default.example.com"
    assert one.source.file == "lb.yaml"
    assert one.expires > 0
    (made,) = certificates("https://bare.example.com/")
    assert made.mistake == "no certificate that could be used was given for this name"


def test_what_openssl_refuses_is_told() -> None:
    refused = {
        "certificate shop": Problem("LB6007", Origin(), "refused by OpenSSL", "the old one serves"),
        "listener https shop.example.com": Problem("LB6008", Origin(), "lists are refused", "nobody gets in"),
        "upstream api": Problem("LB6008", Origin(), "authorities are refused", "503"),
    }
    explanation = told("https://shop.example.com/", refused=refused)
    assert explanation.tls is not None
    assert explanation.tls.certificates[0].mistake == "refused by OpenSSL; the old one serves"
    assert explanation.notes == ("lists are refused: nobody gets in", "authorities are refused: 503")


def test_a_refused_renewal_is_told_with_the_certificate_that_stays() -> None:
    warning = "a newer one is refused (LB3011): a restart loses this one"
    tls = explain(config(), make_ask("https://shop.example.com/"), renewals={"shop": warning}).tls
    assert tls is not None
    assert [(one.name, one.mistake, one.warning) for one in tls.certificates] == [
        ("shop", "", warning),
        ("shop-rsa", "", ""),
    ]


def test_clients() -> None:
    tls = told("https://required.example.com/").tls
    assert tls is not None
    assert tls.clients == (
        "clients must show a certificate, signed by CN=Clients, less what is revoked; depth 4; "
        "endpoints are told by X-Forwarded-Client-Cert and ssl-client-*"
    )
    assert describe_clients(ClientCertificates()) == "clients are not asked for a certificate"
    assert "may show a certificate" in describe_clients(ClientCertificates("optional", AUTHORITY.pem * 5))
    assert "and 2 more" in describe_clients(ClientCertificates("optional", AUTHORITY.pem * 5))
    assert "nobody verifies" in describe_clients(ClientCertificates("unverified"))


def test_ends() -> None:
    nobody = told("https://nobody.example.com/")
    assert (nobody.status, nobody.reason) == (None, "tls-handshake-failed")
    assert "Secret shop/clients does not exist" in nobody.why
    crossing = told("https://shop.example.com/", "Host: required.example.com")
    assert (crossing.status, crossing.reason) == (421, "misdirected")
    assert told("https://shop.example.com/", "Host: a.wild.example.com").reason == "ok", "the same is asked of both"
    plain = told("http://shop.example.com:443/")
    assert (plain.status, plain.reason) == (400, "plain-http")


def test_redirects() -> None:
    sent = told("http://shop.example.com/")
    assert (sent.status, sent.reason, sent.action) == (308, "local-answer", "redirect to https (308)")
    said = "X-Forwarded-Proto: https"
    assert told("http://shop.example.com/", said, client="192.0.2.1").status == 308, "who says so is not believed"
    assert told("http://shop.example.com/", said, client="10.0.0.1").reason == "ok"
    before = told("https://shop.example.com:80/")
    assert "TLS must end at a proxy before it" in before.notes[0]


@pytest.mark.parametrize(
    ("tls", "text"),
    [
        (None, ""),
        (UpstreamTls("api.internal"), "TLS as api.internal, verified by the system's authorities"),
        (
            UpstreamTls(ca=AUTHORITY.pem, names=("a.internal", "10.0.0.1"), certificate="lb"),
            "TLS, must be a.internal or 10.0.0.1, verified by CN=Clients, showing certificate lb",
        ),
        (UpstreamTls("api.internal", verify=False), "TLS as api.internal, NOT VERIFIED"),
    ],
)
def test_endpoints(tls: UpstreamTls | None, text: str) -> None:
    assert describe_upstream(tls) == text
    explanation = explain(config(tls), make_ask("https://shop.example.com/"))
    assert [step.tls for step in explanation.upstreams] == [text]


def test_nothing_that_is_told_is_a_key() -> None:
    everything = repr(told("https://shop.example.com/"))
    for pair in PAIRS.values():
        assert not any(line in everything for line in pair.key.splitlines()[1:-1])
