"""TLS that Kubernetes objects ask for, through a running lb: client certificates, and endpoints that are verified."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lb.cli.main import main
from tests.harness.certificates import Authority, Pair
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.tls_client import TlsClient, ask
from tests.harness.tls_server import TlsServer
from tests.harness.waiting import wait_until

PUBLIC, CLIENTS, INTERNAL = Authority("Public"), Authority("Clients"), Authority("Internal")
WEB = PUBLIC.issue("web.example.com", "open.example.com", "*.wild.example.com", "bad.example.com")
Object = dict[str, Any]


def named(kind: str, name: str, version: str = "v1", **content: Any) -> Object:
    annotations = content.pop("annotations", {})
    metadata = {"name": name, "namespace": "shop", "annotations": annotations}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **content}


def ingress(name: str, host: str, secret: str = "web-tls", **annotations: str) -> Object:
    paths = [
        {"path": f"/{one}", "pathType": "Prefix", "backend": {"service": {"name": one, "port": {"number": 443}}}}
        for one in SERVICES
    ]
    return named(
        "Ingress", name, "networking.k8s.io/v1",
        annotations={f"lb/{key.replace('_', '-')}": value for key, value in annotations.items()},
        spec={"tls": [{"hosts": [host], "secretName": secret}], "rules": [{"host": host, "http": {"paths": paths}}]},
    )  # fmt: skip


SERVICES: dict[str, dict[str, str]] = {
    "verified": {"ca": "configmap/internal", "certificate": "lb-tls"},
    "by-another-name": {"ca": "configmap/internal", "certificate": "lb-tls", "server-name": "other.internal"},
    "by-address": {"ca": "configmap/internal", "certificate": "lb-tls", "names": "127.0.0.1"},
    "without-certificate": {"ca": "configmap/internal"},
    "untrusted": {"ca": "clients", "certificate": "lb-tls"},
    "by-the-system": {"tls": "true", "certificate": "lb-tls"},
    "unverified": {"verify": "false", "certificate": "lb-tls"},
    "no-authorities": {"ca": "configmap/nowhere"},
}


@dataclass
class Cluster:
    """Objects in a file, and the ports where lb serves them."""

    path: Path
    endpoint: TlsServer
    https: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    web: Pair = WEB

    def write(self, clients: Authority = CLIENTS) -> None:
        items = [
            ingress("asking", "web.example.com", client_certificate="required", client_ca="clients",
                    client_certificate_headers="ssl-client"),
            ingress("open", "open.example.com"),
            ingress("wild", "*.wild.example.com"),
            ingress("bad", "bad.example.com", client_ca="nowhere"),
            named("Secret", "web-tls", stringData=dict(zip(("tls.crt", "tls.key"), _pair(self.web), strict=True))),
            named("Secret", "clients", stringData={"ca.crt": clients.pem}),
            named("Secret", "lb-tls", stringData=dict(zip(("tls.crt", "tls.key"), _pair(LB), strict=True))),
            named("ConfigMap", "internal", data={"ca.crt": INTERNAL.pem}),
        ]  # fmt: skip
        for name, said in SERVICES.items():
            spoken = {f"lb/backend-{key}": value for key, value in said.items()}
            ports = [{"name": "https", "port": 443, "targetPort": self.endpoint.server_address[1]}]
            items.append(named("Service", name, annotations=spoken, spec={"ports": ports}))
            piece = named(
                "EndpointSlice", f"{name}-1", "discovery.k8s.io/v1", addressType="IPv4",
                ports=[{"name": "https", "port": self.endpoint.server_address[1], "protocol": "TCP"}],
                endpoints=[{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            )  # fmt: skip
            piece["metadata"]["labels"] = {"kubernetes.io/service-name": name}
            items.append(piece)
        half = self.path.with_suffix(".new")
        half.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        half.replace(self.path)

    def options(self) -> tuple[str, ...]:
        publish = (f"80=127.0.0.1:{self.http}", f"443=127.0.0.1:{self.https}")
        return tuple(word for one in publish for word in ("--publish", one))

    def client(self, name: str, certificate: Pair | None = None) -> TlsClient:
        return TlsClient(("127.0.0.1", self.https), PUBLIC.pem, name, certificate=certificate)


LB = INTERNAL.issue("lb.example.com")


def _pair(pair: Pair) -> tuple[str, str]:
    return pair.chain, pair.key


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, LbProcess]]:
    directory = tmp_path_factory.mktemp("tls-objects")
    names = ("verified.shop.svc", "without-certificate.shop.svc", "untrusted.shop.svc", "by-the-system.shop.svc")
    endpoint = TlsServer(directory, INTERNAL.issue(*names, "127.0.0.1"), INTERNAL)
    made = Cluster(directory / "export.json", endpoint)
    made.write()
    with LbProcess([made.path], directory / "lb", *made.options()) as lb:
        yield made, lb
    endpoint.shutdown()


def test_client_certificates(cluster: tuple[Cluster, LbProcess], tmp_path: Path) -> None:
    made, _ = cluster
    someone = CLIENTS.issue("someone.example.com")
    with made.client("web.example.com", someone).connect(directory=tmp_path) as connected:
        told = ask(connected, "web.example.com", "/verified").body.decode()
        assert "ssl-client-subject-dn: CN=someone.example.com\n" in told
        assert ask(connected, "open.example.com").status == 421
    for certificate in (None, INTERNAL.issue("someone.example.com")):
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            made.client("web.example.com", certificate).connect(directory=tmp_path) as connected,
        ):
            ask(connected, "web.example.com")
    with made.client("open.example.com").connect() as connected:
        assert ask(connected, "open.example.com", "/verified").status == 200
        for host in ("web.example.com", "bad.example.com"):
            assert ask(connected, host, "/verified").status == 421, "no way around by another name"


def test_a_host_whose_authorities_are_missing_lets_nobody_in(cluster: tuple[Cluster, LbProcess]) -> None:
    made, lb = cluster
    before = lb.metric("lb_exchange_end_total", reason="tls-handshake-failed")
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"(?i)access.denied"):
        made.client("bad.example.com").connect().close()
    wait_until(lambda: lb.metric("lb_exchange_end_total", reason="tls-handshake-failed") == before + 1, "it is counted")
    problems = {one["code"]: one for one in lb.get("/v1/problems?severity=error")["items"]}
    assert problems["LB3013"]["object"] in ("Ingress shop/bad", "Service shop/no-authorities")


@pytest.mark.parametrize(
    ("service", "status", "reason"),
    [
        ("verified", 200, "ok"),
        ("by-another-name", 502, "upstream-tls-failed"),
        ("by-address", 200, "ok"),
        ("untrusted", 502, "upstream-tls-failed"),
        ("by-the-system", 502, "upstream-tls-failed"),
        ("unverified", 200, "ok"),
        ("no-authorities", 503, "no-endpoint"),
    ],
)
def test_endpoints(cluster: tuple[Cluster, LbProcess], service: str, status: int, reason: str) -> None:
    made, lb = cluster
    with made.client("open.example.com").connect() as connected:
        answer = ask(connected, "open.example.com", f"/{service}")
    assert answer.status == status, answer.body
    lb.wait_log(upstream=f"shop/{service}:443", reason=reason)
    if status == 200:
        assert f"{service}.shop.svc" in made.endpoint.names
    told = lb.get(f"/v1/explain?url=https://open.example.com/{service}")
    (upstream,) = told["upstreams"]
    assert ("NOT VERIFIED" in upstream.get("tls", "")) == (service == "unverified")


def test_an_endpoint_that_asks_for_a_certificate_gets_no_request_without(cluster: tuple[Cluster, LbProcess]) -> None:
    made, _ = cluster
    with made.client("open.example.com").connect() as connected:
        answer = ask(connected, "open.example.com", "/without-certificate")
    assert answer.status == 502


def test_what_is_not_verified_is_told(cluster: tuple[Cluster, LbProcess]) -> None:
    _, lb = cluster
    (problem,) = [one for one in lb.get("/v1/problems")["items"] if one["code"] == "LB5009"]
    assert problem["object"] == "Service shop/unverified"
    assert "LB5009" in lb.ctl("problems")


def test_other_authorities_count_from_the_next_handshake_on(cluster: tuple[Cluster, LbProcess], tmp_path: Path) -> None:
    made, lb = cluster
    new = Authority("New Clients")
    someone, stranger = CLIENTS.issue("someone.example.com"), new.issue("stranger.example.com")

    def gets_in(certificate: Pair) -> bool:
        try:
            with made.client("web.example.com", certificate).connect(directory=tmp_path) as connected:
                return ask(connected, "web.example.com", "/verified").status == 200
        except OSError:
            return False

    with made.client("web.example.com", someone).connect(directory=tmp_path) as kept:
        assert ask(kept, "web.example.com", "/verified").status == 200
        made.write(new)
        wait_until(lambda: gets_in(stranger), "the new authorities")
        assert not gets_in(someone)
        # Who got in by the old authorities has to come again: what is asked for has changed (RFC 9110 15.5.20).
        assert ask(kept, "web.example.com", "/verified").status == 421
    made.write()
    wait_until(lambda: gets_in(someone), "the old authorities again")
    assert lb.metric("lb_config_builds_total", outcome="refused") == 0


@pytest.mark.parametrize(
    "name", ["open.example.com", "a.wild.example.com", "a.b.wild.example.com", "nobody.example.com", "OPEN.example.com"]
)
def test_explain_says_which_certificate_is_shown(
    cluster: tuple[Cluster, LbProcess], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, lb = cluster
    monkeypatch.chdir(made.path.parent)
    with made.client(name).connect(ssl._create_unverified_context()) as connected:
        shown = connected.getpeercert(binary_form=True)
    url = f"https://{name}:{made.https}/verified"
    result = CliRunner().invoke(main, ["explain", url, str(made.path), *made.options(), "--json"])
    for told in (lb.get(f"/v1/explain?url={url}"), json.loads(result.stdout)):
        (certificate,) = told["tls"]["certificates"]
        first = WEB.chain if certificate["name"] else None
        assert (first is not None) == (ssl.PEM_cert_to_DER_cert(WEB.chain) == shown)


def test_a_changed_secret_is_served_and_connections_stay(cluster: tuple[Cluster, LbProcess]) -> None:
    made, _ = cluster
    new = PUBLIC.issue("web.example.com", "open.example.com", "*.wild.example.com", "bad.example.com")

    def shown() -> bytes | None:
        with made.client("open.example.com").connect() as connected:
            return connected.getpeercert(binary_form=True)

    with made.client("open.example.com").connect() as kept:
        assert shown() == ssl.PEM_cert_to_DER_cert(WEB.chain)
        made.web = new
        made.write()
        wait_until(lambda: shown() == ssl.PEM_cert_to_DER_cert(new.chain), "the new certificate")
        made.web = Pair(new.chain, WEB.key)  # which do not belong together
        made.write()
        made.web = WEB
        assert shown() == ssl.PEM_cert_to_DER_cert(new.chain)
        assert ask(kept, "open.example.com", "/verified").status == 200
    made.write()
    wait_until(lambda: shown() == ssl.PEM_cert_to_DER_cert(WEB.chain), "the old certificate again")


def test_the_systems_authorities(tmp_path: Path) -> None:
    """Where OpenSSL finds them: SSL_CERT_FILE stands for /etc/ssl/certs."""
    endpoint = TlsServer(tmp_path, INTERNAL.issue("by-the-system.shop.svc"))
    made = Cluster(tmp_path / "export.json", endpoint)
    made.write()
    (tmp_path / "system.pem").write_text(INTERNAL.pem)
    environment = {"SSL_CERT_FILE": str(tmp_path / "system.pem")}
    with (
        LbProcess([made.path], tmp_path / "lb", *made.options(), environment=environment),
        made.client("open.example.com").connect() as connected,
    ):
        assert ask(connected, "open.example.com", "/by-the-system").status == 200
    endpoint.shutdown()


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
def test_curl_with_a_certificate(cluster: tuple[Cluster, LbProcess], protocol: str, tmp_path: Path) -> None:
    made, _ = cluster
    pair = CLIENTS.issue("curl.example.com")
    for name, text in (("ca", PUBLIC.pem), ("crt", pair.chain), ("key", pair.key)):
        (tmp_path / name).write_text(text)
    url = f"https://web.example.com:{made.https}/verified"
    command = ["curl", "-sS", protocol, "--cacert", "ca", "--resolve", f"web.example.com:{made.https}:127.0.0.1", url]

    def curl(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )

    assert "ssl-client-subject-dn: CN=curl.example.com\n" in curl("--cert", "crt", "--key", "key").stdout
    assert curl().returncode != 0


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("kind", ["-new", "-reuse"])
def test_s_time(cluster: tuple[Cluster, LbProcess], version: str, kind: str) -> None:
    """As many handshakes as one client makes in a second, new ones and resumed ones."""
    made, lb = cluster
    resumed = lb.metric("lb_tls_handshakes_resumed_total")
    command = ["openssl", "s_time", "-connect", f"127.0.0.1:{made.https}", kind, version, "-time", "1", "-www", "/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    (connections,) = re.findall(r"^(\d+) connections in \d+ real seconds", done.stdout, re.MULTILINE)
    assert int(connections) > 10
    assert (lb.metric("lb_tls_handshakes_resumed_total") - resumed >= int(connections)) == (kind == "-reuse")
