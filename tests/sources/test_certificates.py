"""Certificate files that native files name: real files, swapped and half-written as others do it."""

from __future__ import annotations

import base64
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import yaml

from lb.objects.view import Changes, NativeConfig
from lb.problems import Problem
from lb.sources import certificates
from lb.sources.files import FileSource, read_paths
from lb.sources.paths import signature_at
from lb.sources.store import Store
from lb.translate.translation import Options, Translation, translate
from tests.harness.certificates import Authority, Pair, make_key, pem
from tests.harness.ocsp import response_for
from tests.harness.waiting import wait_until
from tests.sources.test_watch import watching

AUTHORITY = Authority()
OTHER = Authority("Other Root")
FIRST = AUTHORITY.issue("shop.example.com")
SECOND = AUTHORITY.issue("shop.example.com")
API = AUTHORITY.issue("api.example.com", "*.api.example.com", "192.0.2.7")


def write_native(directory: Path, **content: object) -> Path:
    path = directory / "lb.yaml"
    path.write_text(yaml.dump({"apiVersion": "lb/v1", "kind": "Config", **content}, sort_keys=False))
    return path


def write_pair(pair: Pair, chain: Path, key: Path) -> None:
    chain.parent.mkdir(parents=True, exist_ok=True)
    chain.write_text(pair.chain)
    key.write_text(pair.key)


def content_of(store: Store) -> Mapping[str, Any]:
    (stored,) = store.all("NativeConfig").values()
    return cast(NativeConfig, stored.object).content


def chains(store: Store) -> dict[str, str]:
    """What each certificate holds, of those that could be read."""
    entries = content_of(store)["certificates"]
    return {name: one["chain"] for name, one in entries.items() if "chain" in one}


class Source:
    """Files, the store they are read into, and what is made of it."""

    def __init__(self, path: Path) -> None:
        self.store = Store()
        self.files = FileSource([path], self.store)
        self.translation: Translation | None = None
        self.read()

    def read(self, force: bool = False) -> bool:
        is_news = self.files.read(force)
        self.translation = translate(self.store, Options(), self.store.take_changes(), self.translation)
        return is_news

    def problems(self) -> list[Problem]:
        assert self.translation is not None
        return [*self.store.problems(), *self.translation.problems]

    def codes(self) -> list[str]:
        return [problem.code for problem in self.problems()]

    def served(self) -> dict[str, str]:
        assert self.translation is not None
        return {name: one.chain for name, one in self.translation.config.certificates.items()}


SHOP = {"shop": {"cert_file": "tls/shop.crt", "key_file": "tls/shop.key"}}


def test_files_relative_to_the_native_file(tmp_path: Path) -> None:
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    write_pair(API, tmp_path / "api.crt", tmp_path / "api.key")
    both = {**SHOP, "api": {"cert_file": str(tmp_path / "api.crt"), "key_file": "api.key"}}
    source = Source(write_native(tmp_path, certificates=both))
    assert source.problems() == []
    assert source.served() == {"shop": FIRST.chain, "api": API.chain}
    wait_until(lambda: not source.read(), "nothing is read again that has kept still")


def test_a_file_with_both_and_a_key_beside_an_inline_chain(tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_text(FIRST.key + FIRST.chain)
    (tmp_path / "api.key").write_text(API.key)
    certificates = {"shop": {"cert_file": "both.pem"}, "api": {"chain": API.chain, "key_file": "api.key"}}
    source = Source(write_native(tmp_path, certificates=certificates))
    assert source.problems() == []
    assert source.served() == {"shop": FIRST.chain, "api": API.chain}, "what may be shown holds no key"
    assert source.translation is not None
    assert {one.key for one in source.translation.config.certificates.values()} == {FIRST.key, API.key}


def test_a_pair_is_changed_when_both_files_are_there(tmp_path: Path) -> None:
    chain, key = tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key"
    write_pair(FIRST, chain, key)
    source = Source(write_native(tmp_path, certificates=SHOP))
    chain.write_text(SECOND.chain)
    source.read()
    assert source.served() == {"shop": FIRST.chain}
    (problem,) = source.problems()
    assert (problem.code, problem.field) == ("LB1008", "certificates.shop")
    assert "does not belong" in problem.what
    assert str(chain) in problem.what
    assert "stays in use" in problem.why
    key.write_text(SECOND.key)
    source.read()
    assert (source.served(), source.problems()) == ({"shop": SECOND.chain}, [])


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (lambda path: path.unlink(), "LB1001"),
        (lambda path: path.write_text(""), "LB1008"),
        (lambda path: path.write_text(FIRST.key[:100]), "LB1008"),
        (lambda path: path.write_text(pem(make_key(), "secret")), "LB1008"),
        (lambda path: (path.unlink(), path.mkdir()), "LB1008"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "LB1008"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "LB1008"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "LB1001"),
    ],
)
def test_what_is_broken_keeps_what_it_had_and_costs_only_itself(break_it: Any, code: str, tmp_path: Path) -> None:
    key = tmp_path / "tls/shop.key"
    write_pair(FIRST, tmp_path / "tls/shop.crt", key)
    write_pair(API, tmp_path / "api.crt", tmp_path / "api.key")
    certificates = {**SHOP, "api": {"cert_file": "api.crt", "key_file": "api.key"}}
    source = Source(write_native(tmp_path, certificates=certificates))
    break_it(key)
    source.read()
    assert source.codes() == [code]
    assert source.served() == {"shop": FIRST.chain, "api": API.chain}
    fresh = Source(tmp_path / "lb.yaml")
    assert fresh.codes() == [code]
    assert fresh.served() == {"api": API.chain}
    told = msgspec.json.encode([*source.problems(), *fresh.problems()]).decode()
    assert not any(line in told for line in FIRST.key.splitlines() if len(line) > 20)
    (problem,) = fresh.problems()
    line = (tmp_path / "lb.yaml").read_text().splitlines()[problem.origin.line - 1]
    assert "shop:" in line
    if key.is_dir():
        key.rmdir()
    else:
        key.unlink(missing_ok=True)
    key.write_text(FIRST.key)
    source.read()
    assert source.problems() == []


def test_a_certificate_that_no_descriptor_was_left_for_is_read_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key"
    write_pair(FIRST, chain, key)
    path = write_native(tmp_path, certificates=SHOP)
    for one in (chain, key, path):
        os.utime(one, (0, 0))

    def refuse(name: str, *_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    with monkeypatch.context() as patch:
        patch.setattr("lb.sources.paths.os.open", refuse)  # the native file itself is read in another way
        source = Source(path)
    assert source.codes() == ["LB1001"]
    assert not source.files.is_settled, "it is looked at again soon"
    source.read()
    assert (source.codes(), source.served()) == ([], {"shop": FIRST.chain})
    assert source.files.is_settled


def test_a_certificate_that_is_missing_is_told_once_where_it_is_named(tmp_path: Path) -> None:
    listeners = {"https": {"port": 443, "protocol": "https", "tls": {"hosts": {"shop.example.com": "shop"}}}}
    source = Source(write_native(tmp_path, certificates=SHOP, listeners=listeners))
    assert source.codes() == ["LB1001"]
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    source.read()
    assert (source.codes(), source.served()) == ([], {"shop": FIRST.chain})


def test_an_inline_pair_that_turns_bad_keeps_its_certificate(tmp_path: Path) -> None:
    def native(pair: Pair) -> Path:
        return write_native(tmp_path, certificates={"shop": {"chain": pair.chain, "key": pair.key}})

    source = Source(native(FIRST))
    native(Pair(SECOND.chain, FIRST.key))
    source.read()
    assert (source.codes(), source.served()) == (["LB5003"], {"shop": FIRST.chain})
    native(SECOND)
    source.read()
    assert (source.codes(), source.served()) == ([], {"shop": SECOND.chain})


# Directories


def test_a_directory_of_every_usual_shape(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    pairs = {name: AUTHORITY.issue(f"{name}.example.com") for name in ("flat", "both", "haproxy", "mounted", "certbot")}
    write_pair(pairs["flat"], certs / "flat.crt", certs / "flat.key")
    (certs / "both.pem").write_text(pairs["both"].chain + pairs["both"].key)
    write_pair(pairs["haproxy"], certs / "haproxy.pem", certs / "haproxy.pem.key")
    write_pair(pairs["mounted"], certs / "mounted/tls.crt", certs / "mounted/tls.key")
    write_pair(pairs["certbot"], certs / "certbot/fullchain.pem", certs / "certbot/privkey.pem")
    (certs / "certbot/cert.pem").write_text(pairs["certbot"].chain)
    (certs / "README").write_text("about certificates")
    (certs / ".hidden.crt").write_text("no certificate")
    (certs / "empty").mkdir()
    source = Source(write_native(tmp_path, certificates={"site": {"directory": "certs"}}))
    assert source.problems() == []
    assert source.served() == {f"site/{name}": pair.chain for name, pair in pairs.items()}
    assert source.translation is not None
    origin = source.translation.config.certificates["site/flat"].origin
    assert origin.file == str(certs / "flat.crt")


def test_a_directory_that_is_one_certificate(tmp_path: Path) -> None:
    write_pair(FIRST, tmp_path / "shop/tls.crt", tmp_path / "shop/tls.key")
    (tmp_path / "shop/ca.crt").write_text(AUTHORITY.pem)
    source = Source(write_native(tmp_path, certificates={"site": {"directory": "shop/"}}))
    assert (source.codes(), source.served()) == ([], {"site/shop": FIRST.chain})


def test_names_of_a_directory_come_and_go(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    write_pair(FIRST, certs / "shop.crt", certs / "shop.key")
    source = Source(write_native(tmp_path, certificates={"site": {"directory": "certs"}}))
    write_pair(API, certs / "api/tls.crt", certs / "api/tls.key")
    source.read()
    assert source.served().keys() == {"site/shop", "site/api"}
    (certs / "shop.key").unlink()
    source.read()
    assert source.served().keys() == {"site/shop", "site/api"}
    (problem,) = source.problems()
    assert problem.code == "LB1008"
    assert "shop.key" in problem.what
    (certs / "shop.crt").unlink()
    source.read()
    assert (source.codes(), source.served().keys()) == ([], {"site/api"})
    shutil.rmtree(certs)
    source.read()
    assert (source.codes(), source.served().keys()) == (["LB1001"], {"site/api"}), "an unmounted share takes nothing"


def test_hosts_of_a_listener_from_the_names_of_its_certificates(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    rsa = AUTHORITY.issue("shop.example.com", kind="RSA")
    for name, pair in (("shop", FIRST), ("shop-rsa", rsa), ("api", API)):
        write_pair(pair, certs / f"{name}.crt", certs / f"{name}.key")
    tls = {"certificates": "site", "hosts": {"api.example.com": "site/shop"}}
    listeners = {"https": {"port": 443, "protocol": "https", "tls": tls}}
    source = Source(write_native(tmp_path, certificates={"site": {"directory": "certs"}}, listeners=listeners))
    assert source.problems() == []
    assert source.translation is not None
    served = source.translation.config.listeners["https"].tls
    assert served is not None
    assert {name: sorted(host.certificates) for name, host in served.hosts.items()} == {
        "shop.example.com": ["site/shop", "site/shop-rsa"],
        "*.api.example.com": ["site/api"],
        "api.example.com": ["site/shop"],
    }


# Authorities and revocation lists


def native_with_authorities(directory: Path) -> Path:
    clients = {"mode": "required", "ca_file": "ca.pem", "crl_file": "crl.pem"}
    tls = {"hosts": {"shop.example.com": {"certificates": [], "clients": clients}}}
    return write_native(
        directory,
        listeners={"https": {"port": 443, "protocol": "https", "tls": tls}},
        upstreams={"web": {"endpoints": ["127.0.0.1:1"], "tls": {"server_name": "web", "ca_file": "ca.pem"}}},
    )


def authorities(source: Source) -> tuple[str, str, str]:
    """(ca and crl of the listener, ca of the upstream)"""
    assert source.translation is not None
    config = source.translation.config
    listener, upstream = config.listeners["https"].tls, config.upstreams["web"].tls
    assert listener is not None
    assert upstream is not None
    clients = listener.hosts["shop.example.com"].clients
    return clients.ca, clients.crl, upstream.ca


def test_authorities_and_lists_from_files(tmp_path: Path) -> None:
    revoked, later = AUTHORITY.revoke(FIRST), AUTHORITY.revoke(FIRST, SECOND)
    (tmp_path / "ca.pem").write_text(AUTHORITY.pem)
    (tmp_path / "crl.pem").write_text(revoked)
    source = Source(native_with_authorities(tmp_path))
    assert source.problems() == []
    assert authorities(source) == (AUTHORITY.pem, revoked, AUTHORITY.pem)
    (tmp_path / "crl.pem").write_text(later)
    source.read()
    assert authorities(source) == (AUTHORITY.pem, later, AUTHORITY.pem)
    (tmp_path / "ca.pem").write_text(OTHER.pem[:300])
    (tmp_path / "crl.pem").unlink()
    source.read()
    assert sorted(source.codes()) == ["LB1001", "LB1008", "LB1008"]
    assert authorities(source) == (AUTHORITY.pem, later, AUTHORITY.pem)


def test_authorities_that_never_could_be_read_let_nobody_in(tmp_path: Path) -> None:
    """An empty bundle would mean the system's authorities: everybody's."""
    source = Source(native_with_authorities(tmp_path))
    assert source.translation is not None
    assert "https" not in source.translation.config.listeners
    assert not source.translation.config.upstreams
    assert "LB1001" in source.codes()


# OCSP


def test_ocsp_response_of_this_certificate_only(tmp_path: Path) -> None:
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    first, second = response_for(AUTHORITY, FIRST), response_for(AUTHORITY, SECOND)
    (tmp_path / "shop.ocsp").write_bytes(first)
    source = Source(write_native(tmp_path, certificates={"shop": {**SHOP["shop"], "ocsp_file": "shop.ocsp"}}))

    def stapled() -> bytes:
        assert source.translation is not None
        return base64.b64decode(source.translation.config.certificates["shop"].ocsp)

    assert (source.codes(), stapled()) == ([], first)
    write_pair(SECOND, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    source.read()
    assert (source.codes(), source.served(), stapled()) == (["LB1008"], {"shop": SECOND.chain}, b"")
    assert "another certificate" in source.problems()[0].what
    (tmp_path / "shop.ocsp").write_bytes(second)
    source.read()
    assert (source.codes(), stapled()) == ([], second)
    (tmp_path / "shop.ocsp").write_bytes(b"half a response")
    source.read()
    assert (source.codes(), stapled()) == (["LB1008"], second)


# Watching


async def test_changes_are_noticed_in_every_way_of_swapping(tmp_path: Path) -> None:
    """Written in place, renamed over, and behind links as certbot and Kubernetes change them."""
    plain, live, mount = tmp_path / "plain", tmp_path / "live", tmp_path / "mount"
    write_pair(FIRST, plain / "a.crt", plain / "a.key")
    for number, pair in ((1, FIRST), (2, SECOND)):
        write_pair(pair, tmp_path / f"archive/chain{number}.pem", tmp_path / f"archive/key{number}.pem")
        write_pair(pair, mount / f"..{number}/tls.crt", mount / f"..{number}/tls.key")
    live.mkdir()
    (live / "fullchain.pem").symlink_to("../archive/chain1.pem")
    (live / "privkey.pem").symlink_to("../archive/key1.pem")
    (mount / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (mount / name).symlink_to(f"..data/{name}")
    certificates = {
        "plain": {"cert_file": "plain/a.crt", "key_file": "plain/a.key"},
        "live": {"cert_file": "live/fullchain.pem", "key_file": "live/privkey.pem"},
        "site": {"directory": "mount"},
    }
    path = write_native(tmp_path, certificates=certificates)

    async with watching(path) as watched:
        assert set(chains(watched.store).values()) == {FIRST.chain}
        write_pair(SECOND, plain / "a.crt", plain / "a.key")
        await watched.until(lambda: chains(watched.store)["plain"] == SECOND.chain, "written in place")
        for name, target in (("fullchain.pem", "chain2.pem"), ("privkey.pem", "key2.pem")):
            (live / f".{name}").symlink_to(f"../archive/{target}")
            (live / f".{name}").replace(live / name)
        await watched.until(lambda: chains(watched.store)["live"] == SECOND.chain, "as certbot does it")
        (mount / "..data_tmp").symlink_to("..2")
        (mount / "..data_tmp").replace(mount / "..data")
        await watched.until(lambda: chains(watched.store)["site/mount"] == SECOND.chain, "as Kubernetes does it")
        write_pair(API, mount / "..3/tls.crt", mount / "..3/tls.key")
        (mount / "..data_tmp").symlink_to("..3")
        (mount / "..data_tmp").replace(mount / "..data")
        shutil.rmtree(mount / "..1")
        await watched.until(lambda: chains(watched.store)["site/mount"] == API.chain, "once more")


async def test_a_directory_that_comes_later_is_noticed(tmp_path: Path) -> None:
    path = write_native(tmp_path, certificates={"site": {"directory": "a/b"}, **SHOP})
    async with watching(path) as watched:
        assert chains(watched.store) == {}
        write_pair(FIRST, tmp_path / "new/b/x.crt", tmp_path / "new/b/x.key")
        (tmp_path / "new").rename(tmp_path / "a")
        await watched.until(lambda: chains(watched.store) == {"site/x": FIRST.chain}, "the directory")
        write_pair(API, tmp_path / "a/b/y.crt", tmp_path / "a/b/y.key")
        await watched.until(lambda: "site/y" in chains(watched.store), "a file in it")
        write_pair(SECOND, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
        await watched.until(lambda: "shop" in chains(watched.store), "a file named by itself")


def test_a_native_file_that_is_renamed_over_keeps_its_files(tmp_path: Path) -> None:
    """What is whole is taken in without waiting; it must not be taken in half."""
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    path = write_native(tmp_path, certificates=SHOP)
    store = Store()
    source = FileSource([path], store)
    source.read()
    (tmp_path / "new").mkdir()
    new = write_native(tmp_path / "new", certificates=SHOP, upstreams={"web": ["127.0.0.1:1"]})
    os.utime(new, (1, 1))
    new.replace(path)
    source.apply(source.load_whole())
    assert content_of(store)["upstreams"] == {"web": ["127.0.0.1:1"]}
    assert chains(store) == {"shop": FIRST.chain}


def test_what_was_written_within_a_tick_of_the_clock_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its date may be that of the content before."""
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    same = signature_at(str(tmp_path))
    monkeypatch.setattr(certificates, "signature_at", lambda path: same)
    monkeypatch.setattr(certificates, "is_settled", lambda signature, at_ns: False)
    source = Source(write_native(tmp_path, certificates=SHOP))
    monkeypatch.setattr(certificates, "is_settled", lambda signature, at_ns: True)
    write_pair(SECOND, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    assert not source.files.is_settled
    source.read()
    assert source.served() == {"shop": SECOND.chain}
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    source.read()
    assert source.served() == {"shop": SECOND.chain}, "what is settled and has its date is not read"


def test_a_forced_reading_takes_in_what_kept_its_dates(tmp_path: Path) -> None:
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    source = Source(write_native(tmp_path, certificates=SHOP))
    write_pair(SECOND, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    assert source.read(force=True)
    assert source.served() == {"shop": SECOND.chain}


def test_keys_stay_out_of_representations_and_quotes(tmp_path: Path) -> None:
    write_pair(FIRST, tmp_path / "tls/shop.crt", tmp_path / "tls/shop.key")
    store = read_paths([write_native(tmp_path, certificates=SHOP)])
    translation = translate(store, Options(), Changes(everything=True), None)
    secret = FIRST.key.splitlines()[1]
    assert secret not in repr(store.all("NativeConfig"))
    assert secret not in repr(translation)
    broken = tmp_path / "broken.yaml"
    broken.write_text(f"apiVersion: lb/v1\nkind: Config\ncertificates:\n  shop:\n    key: |\n      {FIRST.key}\n")
    (problem,) = read_paths([broken]).problems()
    assert problem.code in ("LB1002", "LB1006")
    assert not any(line in msgspec.json.encode(problem).decode() for line in FIRST.key.splitlines() if len(line) > 20)
