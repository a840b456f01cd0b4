"""A small name server on loopback, with answers that a test can change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer(asyncio.DatagramProtocol):
    """Answers over UDP. Names are absolute and lower case (`db.example.com.`)."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        """(name, type) -> TTL in seconds and values. A name without records does not exist."""
        self.failures: dict[str, dns.rcode.Rcode] = {}
        """By type: what all questions of this type are answered with."""
        self.is_silent = False
        self.asked: Counter[tuple[str, str]] = Counter()
        self._transport: asyncio.DatagramTransport | None = None
        self.port = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        question = dns.message.from_wire(data)
        if self._transport is not None and not self.is_silent:
            self._transport.sendto(self._answer(question).to_wire(), address)

    def _answer(self, question: dns.message.Message) -> dns.message.Message:
        name, kind = question.question[0].name.to_text().lower(), dns.rdatatype.to_text(question.question[0].rdtype)
        self.asked[name, kind] += 1
        answer = dns.message.make_response(question, recursion_available=True)
        if kind in self.failures:
            answer.set_rcode(self.failures[kind])
            return answer
        while (name, "CNAME") in self.records:
            ttl, values = self.records[name, "CNAME"]
            answer.answer.append(dns.rrset.from_text(name, ttl, "IN", "CNAME", *values))
            name = values[0]
        if (name, kind) in self.records:
            ttl, values = self.records[name, kind]
            answer.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, *values))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if not answer.answer:
            soa = "ns.example.com. admin.example.com. 1 60 60 60 30"
            answer.authority.append(dns.rrset.from_text("example.com.", 30, "IN", "SOA", soa))
        return answer

    def resolver(self, *search: str) -> dns.asyncresolver.Resolver:
        """A resolver that asks only here."""
        found = dns.asyncresolver.Resolver(configure=False)
        found.nameservers = ["127.0.0.1"]
        found.port = self.port
        found.search = [dns.name.from_text(domain) for domain in search]
        found.timeout = found.lifetime = 2.0
        return found


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
