"""What time does to certificates: problems ahead of their end and after it, told again every day.

No clock: the time is handed in. An expired certificate is served all the same: its clients decide, and those that do
not look go on working.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple, Protocol

from lb.certs.ocsp import holds_until
from lb.certs.pem import CertificateError, Pair, read_bundle, read_chain
from lb.problems import Origin, Problem

DAY_SECONDS = 86_400


class Served(Protocol):
    """A certificate as the model has it."""

    @property
    def name(self) -> str: ...
    @property
    def chain(self) -> str: ...
    @property
    def ocsp(self) -> str: ...
    @property
    def origin(self) -> Origin: ...


def judge(certificates: Iterable[Served], now: float, ahead_seconds: float) -> Iterator[Problem]:
    """What is wrong with certificates that serve. `now` in seconds since the epoch.

    The texts hold dates, never how long it is until then: a problem stays the same from day to day.
    """
    for one in certificates:
        try:
            pair = read_chain(one.chain)
        except CertificateError:  # what cannot be read never came to serve
            continue
        yield from _judge_leaf(one, pair, now, ahead_seconds)
        yield from _judge_chain(one, pair, now, ahead_seconds)
        until = holds_until(one.ocsp, one.chain) if one.ocsp else None
        if until is not None and until.timestamp() <= now:
            yield Problem(
                "LB6006",
                one.origin,
                f"the OCSP response for certificate {one.name} was good until {_date(until)}",
                "it is not stapled any more; clients that must have one refuse the certificate",
                "fetch a new one regularly, or take the file away",
            )


class Lists(NamedTuple):
    """Revocation lists that somebody is verified by."""

    whose: str
    """`clients of api.example.com on https`"""
    crl: str
    """PEM."""
    origin: Origin


def judge_lists(lists: Iterable[Lists], now: float) -> Iterator[Problem]:
    """Revocation lists whose time is over: OpenSSL verifies nobody by them (X509_V_ERR_CRL_HAS_EXPIRED)."""
    for one in lists:
        end = _first_end(one.crl)
        if end is not None and end.timestamp() <= now:
            yield Problem(
                "LB6009",
                one.origin,
                f"a revocation list for {one.whose} was good until {_date(end)}",
                "nobody whom its authority has signed is accepted until there is a newer one",
                "fetch the list regularly, well before its end",
            )


@lru_cache(maxsize=1_024)
def _first_end(crl: str) -> datetime | None:
    """When the first of some lists ends, if any does."""
    try:
        ends = [one.next_update_utc for one in read_bundle(crl).lists]
    except (CertificateError, ValueError):  # what cannot be read has its own problem
        return None
    return min((end for end in ends if end is not None), default=None)


def _judge_leaf(one: Served, pair: Pair, now: float, ahead_seconds: float) -> Iterator[Problem]:
    names = ", ".join(pair.names[:3]) + (", …" if len(pair.names) > 3 else "")
    about = f"certificate {one.name} ({names or pair.subject})"
    renew = "renew it; a new one is served as soon as it is there"
    if pair.not_after.timestamp() <= now:
        why = "it is served all the same; most clients refuse it"
        yield Problem("LB6003", one.origin, f"{about} expired on {_date(pair.not_after)}", why, renew)
    elif pair.not_after.timestamp() - now <= ahead_seconds:
        yield Problem("LB6002", one.origin, f"{about} expires on {_date(pair.not_after)}", "", renew)
    if pair.not_before.timestamp() > now:
        what = f"{about} is not valid before {_date(pair.not_before)}"
        why = "it is served all the same; most clients refuse it until then"
        yield Problem(
            "LB6004", one.origin, what, why, "check this host's clock, and whether it is the right certificate"
        )


def _judge_chain(one: Served, pair: Pair, now: float, ahead_seconds: float) -> Iterator[Problem]:
    if pair.disorder:
        yield Problem(
            "LB6005",
            one.origin,
            f"certificate {one.name}: {pair.disorder}",
            "some clients will not find the way to its root",
            "put the leaf first, then the certificate that signed it, and so on",
        )
    for number, end in enumerate(pair.ends[1:], 2):
        # One that ends after the leaf is told with the leaf, if it comes to that.
        if end < pair.not_after and end.timestamp() - now <= ahead_seconds:
            tense = "expired" if end.timestamp() <= now else "expires"
            yield Problem(
                "LB6005",
                one.origin,
                f"certificate {number} in the chain of {one.name} {tense} on {_date(end)}, before the leaf",
                "clients that know no other way to its root refuse it",
                "ask the authority for its present chain",
            )


def _date(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


class Expiry:
    """Looks at the certificates that serve, and tells what is wrong: at once, and again every day."""

    def __init__(self, ahead_seconds: float, tell: Callable[[Problem], None]) -> None:
        self.problems: tuple[Problem, ...] = ()
        """As of the last look."""
        self._ahead_seconds = ahead_seconds
        self._tell = tell
        self._told_at: dict[Problem, float] = {}

    def look(
        self, certificates: Mapping[str, Served], lists: Iterable[Lists], refused: Iterable[Problem], now: float
    ) -> None:
        """`refused` is what OpenSSL would not take; it is told with the rest."""
        found = [*refused, *judge(certificates.values(), now, self._ahead_seconds), *judge_lists(lists, now)]
        self.problems = tuple(dict.fromkeys(found))
        told = {problem: self._told_at.get(problem) for problem in self.problems}
        self._told_at = {problem: at for problem, at in told.items() if at is not None and now - at < DAY_SECONDS}
        for problem in self.problems:
            if problem not in self._told_at:
                self._told_at[problem] = now
                self._tell(problem)
