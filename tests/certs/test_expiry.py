"""What time does to certificates; the clock is the test's."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from lb.certs.expiry import DAY_SECONDS, Expiry, Lists, judge, judge_lists
from lb.certs.pem import read_bundle, read_chain
from lb.model.tls import Certificate
from lb.problems import Origin, Problem
from tests.harness.certificates import Authority, Pair
from tests.harness.ocsp import response_for

AUTHORITY = Authority()
MIDDLE = Authority("Test Intermediate", AUTHORITY)
PAIR = AUTHORITY.issue("shop.example.com", days=90)
END = read_chain(PAIR.chain).not_after.timestamp()
BEGIN = read_chain(PAIR.chain).not_before.timestamp()
AHEAD = 14 * DAY_SECONDS
ORIGIN = Origin("Secret", "shop", "web-tls", "shop.yaml", 3)


def certificate(pair: Pair = PAIR, name: str = "shop/web-tls", ocsp: bytes = b"") -> Certificate:
    return Certificate(name, pair.chain, pair.key, base64.b64encode(ocsp).decode(), ORIGIN)


@pytest.mark.parametrize(
    ("now", "codes"),
    [
        (BEGIN - 1, ["LB6004"]),
        (BEGIN, []),
        (END - AHEAD - 1, []),
        (END - AHEAD, ["LB6002"]),
        (END - 1, ["LB6002"]),
        (END, ["LB6003"]),
        (END + 400 * DAY_SECONDS, ["LB6003"]),
    ],
)
def test_before_and_after(now: float, codes: list[str]) -> None:
    found = list(judge([certificate()], now, AHEAD))
    assert [problem.code for problem in found] == codes
    assert all(problem.origin == ORIGIN and "shop/web-tls (shop.example.com)" in problem.what for problem in found)


def test_texts_stay_the_same_from_day_to_day() -> None:
    assert list(judge([certificate()], END - 5 * DAY_SECONDS, AHEAD)) == list(judge([certificate()], END - 9, AHEAD))


def test_chain_out_of_order_and_an_issuer_that_ends_first() -> None:
    leaf = MIDDLE.issue("shop.example.com", days=3_000)
    assert [problem.code for problem in judge([certificate(leaf)], END, AHEAD)] == []
    middle_end = x509.load_pem_x509_certificate(MIDDLE.pem.encode()).not_valid_after_utc.timestamp()
    (soon,) = judge([certificate(leaf)], middle_end - 5, AHEAD)
    assert (soon.code, "certificate 2 in the chain" in soon.what, "expires" in soon.what) == ("LB6005", True, True)
    (over,) = judge([certificate(leaf)], middle_end, AHEAD)
    assert "expired" in over.what
    mixed = Pair(leaf.chain + PAIR.chain, leaf.key)
    assert "certificate 3 of the chain" in next(judge([certificate(mixed)], END, 0)).what


def test_stapled_response_that_is_out_of_date() -> None:
    until = datetime.now(UTC) + timedelta(days=7)
    fresh = certificate(ocsp=response_for(AUTHORITY, PAIR, until))
    assert list(judge([fresh], until.timestamp() - 9, 0)) == []
    assert [problem.code for problem in judge([fresh], until.timestamp() + 9, 0)] == ["LB6006"]
    endless = certificate(ocsp=response_for(AUTHORITY, PAIR, None))
    assert list(judge([endless], until.timestamp() + 9, 0)) == []


def test_told_at_once_and_again_every_day() -> None:
    told: list[Problem] = []
    expiry = Expiry(AHEAD, told.append)
    served = {"shop/web-tls": certificate()}
    expiry.look(served, (), (), END - AHEAD - 1)
    assert (expiry.problems, told) == ((), [])
    for hours in range(26):
        expiry.look(served, (), (), END - AHEAD + hours * 3_600)
    assert [problem.code for problem in told] == ["LB6002", "LB6002"]
    expiry.look(served, (), (), END + 1)
    assert [problem.code for problem in told][2:] == ["LB6003"]
    renewed = {"shop/web-tls": certificate(AUTHORITY.issue("shop.example.com", days=900))}
    expiry.look(renewed, (), (), END + 2)
    assert expiry.problems == ()
    assert len(told) == 3


def test_what_openssl_refuses_is_told_with_the_rest() -> None:
    told: list[Problem] = []
    refused = Problem("LB6007", Origin(), "certificate shop/web-tls is refused by OpenSSL: ca md too weak")
    Expiry(0, told.append).look({"shop/web-tls": certificate()}, (), [refused], BEGIN)
    assert told == [refused]


def test_lists_whose_time_is_over() -> None:
    crl = AUTHORITY.revoke()
    (read,) = read_bundle(crl).lists
    assert read.next_update_utc is not None
    end = read.next_update_utc.timestamp()
    lists = [Lists("clients of api.example.com on https", crl, Origin(file="lb.yaml", line=7))]
    assert list(judge_lists(lists, end - 1)) == []
    (problem,) = judge_lists(lists, end)
    assert (problem.code, problem.origin.line) == ("LB6009", 7)
    assert "clients of api.example.com on https" in problem.what
    told: list[Problem] = []
    Expiry(0, told.append).look({}, lists, (), end)
    assert told == [problem]
    assert list(judge_lists([Lists("x", "nonsense", Origin())], end)) == [], "that has its own problem"
