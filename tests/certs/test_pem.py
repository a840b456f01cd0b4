"""What PEM texts say, what is wrong with them, and that nothing of a key is ever told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from lb.certs.pem import (
    CertificateError,
    covers,
    expiry_of,
    has_key,
    only_certificates,
    read_bundle,
    read_chain,
    read_pair,
)
from tests.harness.certificates import Authority, Pair, make_key, pem

AUTHORITY = Authority()
MIDDLE = Authority("Test Intermediate", AUTHORITY)
PAIR = MIDDLE.issue("shop.example.com", "*.shop.example.com", "192.0.2.7", "2001:db8::7")


def test_a_pair_is_described() -> None:
    found = read_pair(PAIR.chain, PAIR.key)
    assert found.names == ("shop.example.com", "*.shop.example.com", "192.0.2.7", "2001:db8::7")
    assert (found.kind, found.subject, found.issuer) == ("EC", "CN=shop.example.com", "CN=Test Intermediate")
    assert found.not_before < found.not_after
    assert found.disorder == ""
    assert read_chain(PAIR.chain) == found


def test_serial_and_fingerprint_are_those_of_openssl(tmp_path: Path) -> None:
    (tmp_path / "a.crt").write_text(PAIR.chain)
    command = ["openssl", "x509", "-in", str(tmp_path / "a.crt"), "-noout", "-serial", "-fingerprint", "-sha256"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    found = read_pair(PAIR.chain, PAIR.key)
    serial, fingerprint = (line.rpartition("=")[2] for line in lines if "=" in line)
    assert found.serial.zfill(40) == serial.zfill(40)
    assert found.fingerprint == fingerprint.replace(":", "").lower()


def test_a_common_name_is_no_name() -> None:
    only_common_name = AUTHORITY.issue(subject="shop.example.com")
    assert read_pair(only_common_name.chain, only_common_name.key).names == ()


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_sec1_key_behind_its_parameters(curve: str, tmp_path: Path) -> None:
    """As `openssl ecparam -genkey` writes it."""
    made = subprocess.run(
        ["openssl", "ecparam", "-name", curve, "-genkey"], capture_output=True, text=True, check=True
    ).stdout
    assert made.startswith("-----BEGIN EC PARAMETERS-----")
    (tmp_path / "a.key").write_text(made)
    command = ["openssl", "req", "-x509", "-key", "a.key", "-subj", "/CN=a", "-addext", "subjectAltName=DNS:a.test"]
    chain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert read_pair(chain, made).names == ("a.test",)


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_forms_of_keys(kind: str, form: str) -> None:
    key = make_key(kind)
    issued = AUTHORITY.issue("a.test", key=key)
    assert read_pair(issued.chain, pem(key, form=form)).kind == kind


def test_ed25519() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    issued = AUTHORITY.issue("a.test", key=key)  # type: ignore[arg-type]
    assert read_pair(issued.chain, issued.key).kind == "Ed25519"


def test_windows_line_ends_indents_and_words_around_the_blocks() -> None:
    text = "subject=CN = a\r\n" + PAIR.chain.replace("\n", "\r\n") + "and so on"
    indented = "".join(f"    {line}\n" for line in PAIR.key.splitlines())
    assert read_pair(text, indented).names == read_chain(PAIR.chain).names


def test_certificate_and_key_in_one_text() -> None:
    both = PAIR.key + PAIR.chain
    assert read_pair(both, both) == read_chain(PAIR.chain)
    assert has_key(both)
    assert not has_key(PAIR.chain)
    assert only_certificates(both) == PAIR.chain


def test_expiry() -> None:
    assert expiry_of(PAIR.chain) == read_pair(PAIR.chain, PAIR.key).not_after.timestamp()


OTHER = AUTHORITY.issue("other.test")
WEAK = AUTHORITY.issue("weak.test", key=rsa.generate_private_key(65537, 1024))
STRANGE = AUTHORITY.issue("dsa.test", key=dsa.generate_private_key(2048))  # type: ignore[arg-type]
REVERSED = Pair("".join(reversed([f"{one}-----END CERTIFICATE-----\n" for one in
                PAIR.chain.split("-----END CERTIFICATE-----\n") if one])), PAIR.key)  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "what", "fix"),
    [
        (Pair("hello", PAIR.key), "it is no PEM", "leaf first"),
        (Pair("", PAIR.key), "it is no PEM", ""),
        (Pair(PAIR.key, PAIR.key), "no certificate in it", "leaf first"),
        (Pair(PAIR.chain, PAIR.chain), "no private key in it", "private key"),
        (Pair(PAIR.chain, "hello"), "it is no PEM", "private key"),
        (Pair(PAIR.chain, pem(make_key(), "secret")), "encrypted", "openssl pkey"),
        (Pair(PAIR.chain, pem(make_key("RSA"), "secret", "TraditionalOpenSSL")), "encrypted", "openssl pkey"),
        (Pair(PAIR.chain, OTHER.key), "does not belong", ""),
        (Pair(PAIR.chain, pem(make_key("RSA"))), "does not belong", ""),
        (REVERSED, "belongs to certificate 2 of the chain", "leaf first"),
        (WEAK, "1024 bits, which OpenSSL refuses", "2048"),
        (STRANGE, "neither EC, RSA nor Ed25519", ""),
        (Pair(PAIR.chain.replace("MII", "MIJ", 1), PAIR.key), "certificate 1 of it cannot be parsed", "whole"),
        (Pair(PAIR.chain, PAIR.key.replace("MIG", "MIH", 1)), "key cannot be parsed", "whole"),
        (Pair(PAIR.chain[:400], PAIR.key), "no certificate in it", ""),
        (Pair(PAIR.chain, PAIR.key[:120]), "no private key in it", ""),
    ],
)
def test_what_is_wrong_is_said_without_the_key(pair: Pair, what: str, fix: str) -> None:
    with pytest.raises(CertificateError) as caught:
        read_pair(pair.chain, pair.key)
    assert what in caught.value.what
    assert fix in caught.value.fix
    told = f"{caught.value} {caught.value.fix} {caught.value!r} {caught.value.__cause__!r}"
    assert not any(line in told for line in pair.key.splitlines() if len(line) > 20)


def test_a_chain_out_of_order_is_said() -> None:
    strange = PAIR.chain + OTHER.chain
    assert read_pair(strange, PAIR.key).disorder == "certificate 3 of the chain is not the issuer of certificate 2"
    assert read_pair(PAIR.chain + AUTHORITY.pem, PAIR.key).disorder == ""


def test_bundles() -> None:
    revoked = AUTHORITY.revoke(OTHER)
    bundle = read_bundle(f"# ours\n{AUTHORITY.pem}{revoked}{MIDDLE.pem}")
    assert (len(bundle.certificates), len(bundle.lists)) == (2, 1)
    assert read_bundle("") == ([], [])
    with pytest.raises(CertificateError, match="revocation list 1"):
        read_bundle(revoked.replace("MII", "MIJ", 1).replace("MIH", "MIJ", 1))


@pytest.mark.parametrize(
    ("names", "host", "covered"),
    [
        (("shop.example.com",), "shop.example.com", True),
        (("Shop.Example.com",), "shop.example.COM", True),
        (("shop.example.com",), "www.shop.example.com", False),
        (("*.example.com",), "shop.example.com", True),
        (("*.example.com",), "a.shop.example.com", False),
        (("*.example.com",), "example.com", False),
        (("*.example.com",), "*.example.com", True),
        (("shop.example.com",), "*.example.com", False),
        (("*.example.com",), "*.shop.example.com", False),
        (("*.0.2.7",), "192.0.2.7", False),
        (("192.0.2.7",), "192.0.2.7", True),
        (("2001:db8::7",), "2001:db8::7", True),
        (("*.",), "localhost", False),
        ((), "shop.example.com", False),
    ],
)
def test_covers(names: tuple[str, ...], host: str, covered: bool) -> None:
    assert covers(names, host) is covered


@pytest.mark.parametrize("line", ["-----BEGIN CERTIFICATE-----\n", "-----BEGIN A-----x\n", "-----END A-----\n"])
def test_hostile_texts_cost_no_more_than_others(line: str) -> None:
    """A search for each BEGIN's END would take hours here; what a hang breaks is the test's own limit of time."""
    with pytest.raises(CertificateError):
        read_pair(line * 200_000, line * 200_000)


def test_keys_of_other_curves_are_described() -> None:
    issued = AUTHORITY.issue("a.test", key=ec.generate_private_key(ec.SECP384R1()))
    assert read_pair(issued.chain, issued.key).kind == "EC"
