"""Certificates through a running lb: files that change, expiry, shared ticket keys, and keys that stay secret."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.harness.certificates import Authority, Pair, make_key, pem
from tests.harness.native import respond
from tests.harness.nginx import Nginx
from tests.harness.ocsp import response_for
from tests.harness.ports import free_port
from tests.harness.process import ROOT, LbProcess
from tests.harness.tls_client import TlsClient, ask
from tests.harness.waiting import wait_until

AUTHORITY = Authority()


@dataclass
class Site:
    """A native file with a listener that takes its names from a directory of certificates."""

    directory: Path
    port: int

    @property
    def path(self) -> Path:
        return self.directory / "lb.yaml"

    def write(self, **more: object) -> None:
        tls = {"certificates": ["site"]}
        content = {
            "apiVersion": "lb/v1",
            "kind": "Config",
            "certificates": {"site": {"directory": "certs"}},
            "listeners": {"https": {"address": "127.0.0.1", "port": self.port, "protocol": "https", "tls": tls}},
            "hosts": {"default": {"*": [respond("all", 200, "ok")]}},
            **more,
        }
        self.path.write_text(yaml.dump(content, sort_keys=False))

    def put(self, name: str, pair: Pair) -> None:
        certs = self.directory / "certs"
        certs.mkdir(exist_ok=True)
        for suffix, text in ((".key", pair.key), (".crt", pair.chain)):
            half = certs / f".{name}{suffix}"
            half.write_text(text)
            half.replace(certs / f"{name}{suffix}")

    def client(self, name: str, **options: object) -> TlsClient:
        return TlsClient(("127.0.0.1", self.port), AUTHORITY.pem, name, **options)  # type: ignore[arg-type]

    def served(self, name: str = "shop.example.com") -> bytes:
        """The leaf that clients are shown, DER, whoever signed it."""
        context = ssl._create_unverified_context()
        with self.client(name).connect(context) as client:
            return client.getpeercert(binary_form=True) or b""

    def run(self, name: str = "lb", *options: str) -> LbProcess:
        return LbProcess([self.path], self.directory / name, *options)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.chain.split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path, free_port())
    made.put("shop", AUTHORITY.issue("shop.example.com"))
    made.write()
    return made


def test_renewals_of_files_fail_no_handshake(site: Site) -> None:
    """One after the other under load: each client is shown a whole certificate that its authority has signed."""
    pairs = [AUTHORITY.issue("shop.example.com") for _ in range(6)]
    seen: set[bytes] = set()
    failures: list[BaseException] = []
    over = threading.Event()

    def handshake() -> None:
        context = site.client("shop.example.com").context()
        while not over.is_set():
            try:
                with site.client("shop.example.com").connect(context) as client:
                    assert ask(client, "shop.example.com").status == 200
                    seen.add(client.getpeercert(binary_form=True) or b"")
            except BaseException as error:
                failures.append(error)
                return

    def http2() -> None:
        """Eight connections at a time, which h2load opens by ALPN and gives three streams each."""
        command = ["h2load", "-n24", "-c8", "-m3", f"https://shop.example.com:{site.port}/"]
        while not over.is_set():
            done = subprocess.run(
                [*command, f"--connect-to=127.0.0.1:{site.port}"], capture_output=True, text=True, check=False
            )
            if "24 succeeded, 0 failed, 0 errored" not in done.stdout or "protocol: h2\n" not in done.stdout:
                failures.append(AssertionError(done.stdout + done.stderr))
                return

    with site.run() as lb:
        threads = [threading.Thread(target=one) for one in (handshake, handshake, handshake, http2)]
        for thread in threads:
            thread.start()
        try:
            for pair in pairs:
                site.put("shop", pair)
                wait_until(lambda pair=pair: der(pair) in seen or failures, "the renewed certificate is served")  # type: ignore[misc]
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not failures
        assert lb.metric("lb_tls_handshakes_failed_total") == 0
        lb.assert_at_rest()


def test_what_turns_bad_stays_as_it_was_and_new_names_come(site: Site) -> None:
    with site.run() as lb:
        before = site.served()
        (site.directory / "certs/shop.key").write_text(pem(make_key(), "secret"))
        wait_until(lambda: lb.get("/v1/problems?severity=error")["total"], "the problem is told")
        (problem,) = lb.get("/v1/problems?severity=error")["items"]
        assert (problem["code"], problem["place"]) == ("LB1008", f"{site.path}:{_line(site.path, 'site:')}")
        assert "encrypted" in problem["what"]
        assert site.served() == before
        api = AUTHORITY.issue("api.example.com", "*.api.example.com")
        site.put("api", api)
        wait_until(lambda: site.served("api.example.com") == der(api), "a new certificate")
        assert site.served("v1.api.example.com") == der(api)
        assert site.served("shop.example.com") == before
        nobody = site.served("other.example.com")
        assert nobody not in (before, der(api))
        assert b"lb default certificate" in nobody


def _line(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_first_table_has_its_certificates(site: Site) -> None:
    """From the first connection on that is accepted: never the default in between."""
    for start in range(3):
        shown: list[bytes] = []
        lb = LbProcess([site.path], site.directory / f"lb{start}", wait=False)
        with lb:

            def first(shown: list[bytes] = shown) -> bool:
                try:
                    shown.append(site.served())
                except OSError:
                    return False
                return True

            wait_until(first, "the first handshake")
            lb.wait_ready()
            assert b"lb default certificate" not in shown[0]


def test_sighup_reads_files_again_whatever_their_dates_say(site: Site) -> None:
    """As after a copy that keeps dates, on a file system that tells nobody of changes."""
    chain, key = site.directory / "certs/shop.crt", site.directory / "certs/shop.key"
    new = AUTHORITY.issue("shop.example.com")
    with site.run() as lb:
        chain.write_text(new.chain)
        key.write_text(new.key)
        lb.signal(signal.SIGHUP)
        wait_until(lambda: site.served() == der(new), "the new certificate")


def test_stapled_response(site: Site) -> None:
    pair = AUTHORITY.issue("shop.example.com")
    site.put("shop", pair)
    (site.directory / "certs/shop.ocsp").write_bytes(response_for(AUTHORITY, pair))

    def status() -> str:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", "-servername", "shop.example.com"]
        done = subprocess.run([*command, "-status"], input="", capture_output=True, text=True, timeout=20, check=False)
        return done.stdout

    with site.run() as lb:
        assert "OCSP Response Status: successful" in status()
        (one,) = lb.get("/v1/certificates")["items"]
        assert one["stapled"] is True
        until = datetime.now(UTC) + timedelta(seconds=2)
        _replace(site.directory / "certs/shop.ocsp", response_for(AUTHORITY, pair, until))
        wait_until(lambda: "no response sent" in status(), "nothing is stapled whose time is over")
        assert datetime.now(UTC) >= until - timedelta(seconds=1), "OCSP counts in seconds"
        _replace(site.directory / "certs/shop.ocsp", response_for(AUTHORITY, pair))
        wait_until(lambda: "OCSP Response Status: successful" in status(), "a new one")
        (site.directory / "certs/shop.ocsp").unlink()
        wait_until(lambda: "no response sent" in status(), "nothing is stapled any more")


def _replace(path: Path, content: bytes) -> None:
    half = path.with_name(f".{path.name}")
    half.write_bytes(content)
    half.replace(path)


def test_expiry_is_told_everywhere_and_the_certificate_served(site: Site) -> None:
    site.put("shop", AUTHORITY.issue("shop.example.com", days=-2))
    site.put("api", AUTHORITY.issue("api.example.com", days=5))
    site.put("fine", AUTHORITY.issue("fine.example.com", days=90))
    codes = ["LB6002", "LB6003"]
    with site.run() as lb:
        items = lb.get("/v1/problems")["items"]
        assert sorted(one["code"] for one in items) == codes
        assert lb.get("/v1/status")["problems"] == {"error": 0, "warning": 2, "note": 0}
        assert "LB6003" in lb.ctl("problems")
        rows = lb.ctl("certificates").splitlines()
        assert [row.split()[0] for row in rows] == ["CERTIFICATE", "site/shop", "site/api", "site/fine"]
        assert "EXPIRED" in rows[1]
        assert "https shop.example.com" in rows[1]
        fingerprint = hashlib.sha256(site.served()).hexdigest()
        assert fingerprint in rows[1]
        shop = next(one for one in lb.get("/v1/certificates")["items"] if one["name"] == "site/shop")
        assert lb.metric("lb_certificate_expiry_timestamp_seconds", certificate="site/shop") == shop["not_after"]
        wait_until(lambda: all(code in lb.stderr for code in codes), "the log tells it")
        assert lb.stderr.count("LB6003") == 1
        lb.ctl("reload")
        assert lb.stderr.count("LB6003") == 1, "once a day, not at every build"
    result = _lb("check", str(site.path), "-o", "json")
    assert result.returncode == 0, "it is served all the same: a reload of the rest must not wait for it"
    assert sorted(one["code"] for one in json.loads(result.stdout)["problems"]) == codes
    site.put("shop", AUTHORITY.issue("shop.example.com"))
    assert _lb("check", str(site.path)).returncode == 0
    assert _lb("check", str(site.path), "--strict").returncode == 1


def _lb(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lb", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


# Ticket keys


def _session(site: Site, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession, bool]:
    """(a session to resume, whether this one was)"""
    client = site.client("shop.example.com", version=ssl.TLSVersion.TLSv1_2, session=session)
    context = _CONTEXTS.setdefault(site.port, client.context())
    with client.connect(context) as connection:
        assert connection.session is not None
        return connection.session, bool(connection.session_reused)


_CONTEXTS: dict[int, ssl.SSLContext] = {}
"""Python resumes a session only within the context that it was made in."""


def _settings(site: Site, **tickets: object) -> None:
    site.write(settings={"session_tickets": tickets})


@pytest.fixture
def shared(site: Site) -> Iterator[Site]:
    yield site
    _CONTEXTS.pop(site.port, None)


@pytest.mark.parametrize("size", [80, 48])
def test_sessions_survive_a_restart_with_shared_keys(shared: Site, size: int) -> None:
    (shared.directory / "current.key").write_bytes(os.urandom(size))
    _settings(shared, files=[str(shared.directory / "current.key")])
    options = ("-c", str(shared.path))
    with shared.run("one", *options):
        session, _ = _session(shared, None)
        assert _session(shared, session)[1]
    with shared.run("two", *options):
        assert _session(shared, session)[1], "another lb with the same key"
    (shared.directory / "current.key").write_bytes(os.urandom(size))
    with shared.run("three", *options):
        assert not _session(shared, session)[1], "another key"


def test_keys_of_a_secret_are_followed(shared: Site) -> None:
    keys = [os.urandom(80) for _ in range(2)]
    path = shared.directory / "tickets.yaml"

    def write(*values: bytes) -> None:
        data = {f"{number}.key": base64.b64encode(value).decode() for number, value in enumerate(values)}
        metadata = {"name": "tickets", "namespace": "lb"}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
        path.with_suffix(".new").write_text(yaml.dump(secret))
        path.with_suffix(".new").replace(path)

    write(keys[0])
    _settings(shared, secret="lb/tickets")
    with LbProcess([shared.path, path], shared.directory / "lb", "-c", str(shared.path)) as lb:
        session, _ = _session(shared, None)
        assert _session(shared, session)[1]
        write(keys[1], keys[0])
        wait_until(lambda: lb.stderr.count("session ticket keys taken over") == 2, "the new keys")
        session, resumed = _session(shared, session)
        assert resumed, "the old key still opens tickets"
        write(keys[1])
        wait_until(lambda: lb.stderr.count("session ticket keys taken over") == 3, "without the old key")
        write(b"short")
        wait_until(lambda: "has 5 bytes" in lb.stderr, "the log tells it")
        fresh, _ = _session(shared, None)
        assert _session(shared, fresh)[1], "what was there before is used"
        for key in keys:
            assert base64.b64encode(key).decode() not in lb.stderr


def _ticket(port: int, directory: Path, *options: str) -> bytes:
    """A session ticket of TLS 1.2, as the server has sealed it."""
    path = directory / f"session-{port}.pem"
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "shop.example.com", "-tls1_2"]
    done = subprocess.run(
        [*command, "-sess_out", str(path), *options], input="", capture_output=True, text=True, timeout=20, check=False
    )
    assert "Verify return code" in done.stdout, done.stderr
    shown = subprocess.run(
        ["openssl", "sess_id", "-in", str(path), "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    lines = re.findall(r"^    [0-9a-f]{4} - ((?:[0-9a-f]{2}[ -]?){1,16})", shown, re.MULTILINE)
    return bytes.fromhex("".join(lines).replace("-", " "))


def _opened(ticket: bytes, key: bytes) -> bytes:
    """What a ticket holds, by nginx's layout of the key file (ngx_ssl_session_ticket_keys) and RFC 5077 4."""
    if len(key) == 48:
        name, aes, mac = key[:16], key[16:32], key[32:]
    else:
        name, mac, aes = key[:16], key[16:48], key[48:]
    assert ticket[:16] == name
    assert hmac.digest(mac, ticket[:-32], "sha256") == ticket[-32:]
    plain = Cipher(algorithms.AES(aes), modes.CBC(ticket[16:32])).decryptor()
    return plain.update(ticket[32:-32]) + plain.finalize()


@pytest.mark.parametrize("size", [80, 48])
def test_tickets_are_sealed_as_nginx_seals_them(shared: Site, size: int) -> None:
    """With the same file. What is inside stays each one's own: the session's context is part of it, which for both
    is made of what the host asks of its clients, so that either makes a whole handshake of the other's ticket.
    """
    key = os.urandom(size)
    path = shared.directory / "current.key"
    path.write_bytes(key)
    _settings(shared, files=[str(path)])
    chain, private = shared.directory / "certs/shop.crt", shared.directory / "certs/shop.key"
    port = free_port()
    server = f"""
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {chain};
        ssl_certificate_key {private};
        ssl_session_ticket_key {path};
    }}
    """
    with Nginx(shared.directory / "nginx", more=server), shared.run("lb", "-c", str(shared.path)):
        theirs, ours = (_ticket(one, shared.directory) for one in (port, shared.port))
        for ticket in (theirs, ours):
            assert _opened(ticket, key).startswith(b"\x30"), "a session in ASN.1"
        assert len(_ticket(shared.port, shared.directory, "-sess_in", str(shared.directory / f"session-{port}.pem")))


# Secrecy


def test_no_output_holds_a_key(tmp_path: Path) -> None:
    """Of Secrets, of files, inline, good and bad: every line of every key is searched for, and its base64."""
    good, bad, inline = (AUTHORITY.issue(f"{name}.example.com") for name in ("good", "bad", "inline"))
    secret_pair = AUTHORITY.issue("secret.example.com")
    spoilt = secret_pair.key.replace("\n", "\n ", 2)[:-40]
    site = Site(tmp_path, free_port())
    site.put("good", good)
    (tmp_path / "certs/bundle.pem").write_text(inline.chain + inline.key)
    site.put("bad", Pair(bad.chain, pem(make_key("RSA"))))
    bad_key = (tmp_path / "certs/bad.key").read_text()
    certificates = {
        "site": {"directory": "certs"},
        "inline": {"chain": inline.chain + inline.key, "key": inline.key},
        "mismatched": {"chain": good.chain, "key": bad.key},
        "wrong_place": {"chain": bad.key, "key": 5},
    }
    site.write(certificates=certificates)
    objects = tmp_path / "objects.yaml"
    objects.write_text(
        "\n---\n".join(
            yaml.dump(one) for one in (_secret("web-tls", secret_pair), _secret("bad-tls", Pair(bad.chain, spoilt)))
        )
        + "\n---\n"
        + INGRESS
    )
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"apiVersion: lb/v1\nkind: Config\ncertificates:\n  x:\n    key: |\n      {bad.key}\n  y: [\n")
    ticket = os.urandom(80)
    (tmp_path / "ticket.key").write_bytes(ticket)
    site.write(certificates=certificates, settings={"session_tickets": {"files": [str(tmp_path / "ticket.key")]}})
    paths = [str(site.path), str(objects), str(broken)]
    outputs: dict[str, str] = {}
    with LbProcess(
        [Path(one) for one in paths],
        tmp_path / "lb",
        "-c", str(site.path), "--publish", f"80=127.0.0.1:{free_port()}", "--publish", f"443=127.0.0.1:{free_port()}",
    ) as lb:  # fmt: skip
        site.served("good.example.com")
        (tmp_path / "certs/good.key").write_text(bad.key)
        wait_until(lambda: "good.crt" in lb.admin("/v1/problems")[1].decode(), "the mismatched pair is told")
        for operation in json.loads(lb.admin("/openapi.json")[1])["paths"]:
            path = operation.replace("{name}", "shop/web:80")
            outputs[f"GET {path}"] = lb.admin(f"{path}?url=https://good.example.com/&limit=1000")[1].decode()
        for verb in ("status", "problems", "certificates", "listeners", "routes", "upstreams"):
            outputs[f"ctl {verb}"] = lb.ctl(verb)
        lb.ctl("log-level", "debug")
        lb.ctl("reload")
        outputs["log"] = lb.stderr
    for arguments in (
        ("check", *paths),
        ("check", "-o", "json", *paths),
        ("render", *paths),
        ("explain", "https://good.example.com/", *paths),
        ("diff", str(site.path), str(objects)),
        ("diff", str(objects), str(site.path)),
    ):
        result = _lb(*arguments)
        assert "Traceback" not in result.stderr
        outputs[" ".join(arguments[:2])] = result.stdout + result.stderr
    assert "LB3011" in outputs[f"check {paths[0]}"]
    assert "LB1008" in outputs[f"check {paths[0]}"]
    keys = (good.key, bad.key, inline.key, secret_pair.key, spoilt, bad_key)
    needles = {line.strip() for key in keys for line in key.splitlines() if "-----" not in line and len(line) > 12}
    needles |= {base64.b64encode(ticket).decode()[:40], ticket.hex()[:40], repr(ticket)[2:42]}
    # Secrets hold PEM in base64: its own lines are at three offsets.
    needles |= {base64.b64encode(key.encode()).decode()[40:80] for key in keys}
    for name, text in outputs.items():
        found = [needle for needle in needles if needle in text]
        assert not found, f"{name} tells a key"
    shown = _lb("render", "--show-secrets", str(objects)).stdout
    assert all(line in shown for line in secret_pair.key.splitlines()), "shown when it is asked for"
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert re.search("nothing changes", _lb("diff", str(objects), str(again)).stdout)


def _secret(name: str, pair: Pair) -> dict[str, object]:
    data = {
        key: base64.b64encode(text.encode()).decode() for key, text in (("tls.crt", pair.chain), ("tls.key", pair.key))
    }
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}


INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec:
  tls:
  - {hosts: [secret.example.com], secretName: web-tls}
  - {hosts: [bad.example.com], secretName: bad-tls}
  rules:
  - host: secret.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
  - host: bad.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"""
