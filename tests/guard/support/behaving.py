# SPDX-License-Identifier: GPL-2.0-only
"""A DNS server that behaves as the name in the question says.

``ANY.BEHAVIOUR.b.example`` is answered as BEHAVIOUR, one of ``BEHAVIOURS``; other names do not
exist. So one server serves all cases at once, and each client has names of its own, which nobody
has asked before.
"""

from __future__ import annotations

import asyncio
import socket
from struct import pack
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype

from tests.guard.support.resolving import response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Message = dns.message.Message
    # For a query and "udp" or "tcp": the replies, each with the seconds to wait before it. None:
    # the connection is closed.
    Behaviour = Callable[[Message, str], Sequence[tuple[float, Message | None]]]

DOMAIN = "b.example"
ADDRESS, ADDRESS6 = "10.9.0.10", "fd09::10"
_SO_RCVBUFFORCE = 33
_SOA = f"{DOMAIN}. 60 SOA a.{DOMAIN}. b.{DOMAIN}. 1 2 3 4 60"
_SIGNATURE = "8 2 60 20300101000000 20200101000000 1 b.example. AAAA"


def _name(query: Message) -> str:
    return query.question[0].name.to_text()


def _type(query: Message) -> str:
    return dns.rdatatype.to_text(query.question[0].rdtype)


def _records(query: Message, ttl: int = 60, name: str | None = None) -> str:
    """One record of the type of the question: an address, or a text."""
    value = {"A": ADDRESS, "AAAA": ADDRESS6, "TXT": "hello"}.get(_type(query))
    return "" if value is None else f"{name or _name(query)} {ttl} {_type(query)} {value}"


def _good(query: Message, records: str | None = None, **more: object) -> Message:
    text = _records(query) if records is None else records
    more.setdefault("authority", "" if text else _SOA)
    return response(query, text, **more)  # type: ignore[arg-type]


def _code(rcode: dns.rcode.Rcode) -> Behaviour:
    return lambda query, _: [(0, response(query, rcode=rcode))]


def _many(query: Message) -> str:
    if _type(query) == "A":
        return "\n".join(f"{_name(query)} 60 A 10.9.1.{n}" for n in range(50))
    return _records(query)


def _huge(query: Message) -> str:
    if _type(query) == "A":
        return "\n".join(f"{_name(query)} 60 A 10.9.1.{n}" for n in range(200))
    return _records(query)


def _without_edns(query: Message, _: str) -> list[tuple[float, Message]]:
    if query.edns < 0:
        return [(0, _good(query))]
    plain = dns.message.make_query(query.question[0].name, query.question[0].rdtype)
    plain.id = query.id
    return [(0, response(plain, rcode=dns.rcode.FORMERR))]


def _ignoring_edns(query: Message, _: str) -> list[tuple[float, Message]]:
    plain = dns.message.make_query(query.question[0].name, query.question[0].rdtype)
    plain.id = query.id
    return [(0, _good(plain, _records(query)))]


def _truncating(query: Message, transport: str) -> list[tuple[float, Message]]:
    if transport == "udp":
        return [(0, response(query, flags=dns.flags.TC))]
    return [(0, _good(query, _huge(query)))]


def _cut(query: Message, transport: str) -> list[tuple[float, Message | None]]:
    """A part of the answer by UDP, and no service by TCP: many home routers."""
    if transport == "tcp":
        return [(0, None)]
    return [(0, _good(query, flags=dns.flags.TC))]


def _disordered(query: Message, transport: str) -> list[tuple[float, Message]]:
    """The answer to another question first; and the first question is answered last."""
    if transport == "tcp":
        return [(0, _good(query))]
    other = _good(query)
    other.id ^= 1
    return [(0, other), (0.2 if _type(query) == "A" else 0, _good(query))]


def _chain(query: Message, _: str) -> list[tuple[float, Message]]:
    head = f"{_name(query)} 60 CNAME one.cdn.test.\none.cdn.test. 50 CNAME two.cdn.test.\n"
    return [(0, _good(query, head + _records(query, 40, "two.cdn.test.")))]


def _chain_to_nothing(query: Message, _: str) -> list[tuple[float, Message]]:
    head = f"{_name(query)} 60 CNAME one.cdn.test."
    soa = _SOA.replace(DOMAIN, "cdn.test")
    return [(0, response(query, head, authority=soa, rcode=dns.rcode.NXDOMAIN))]


def _signed(query: Message, _: str) -> list[tuple[float, Message]]:
    text = _records(query)
    if text and query.ednsflags & dns.flags.DO:
        text += f"\n{_name(query)} 60 RRSIG {_type(query)} {_SIGNATURE}"
    wants = query.ednsflags & dns.flags.DO or query.flags & dns.flags.AD
    return [(0, _good(query, text, flags=dns.flags.AD if wants else 0))]


def _bogus(query: Message, _: str) -> list[tuple[float, Message]]:
    """What a validating resolver answers to a name whose signatures are wrong."""
    if query.flags & dns.flags.CD:
        return [(0, _good(query))]
    return [(0, response(query, rcode=dns.rcode.SERVFAIL))]


def _only_ipv4(other: Behaviour) -> Behaviour:
    """Servers of old load balancers: good for A, and broken for all else."""
    return lambda query, transport: (
        [(0, _good(query))] if _type(query) == "A" else other(query, transport)
    )


def _good_after(seconds: float) -> Behaviour:
    return lambda query, _: [(seconds, _good(query))]


def _silent(*_: object) -> list[tuple[float, Message]]:
    return []


BEHAVIOURS: dict[str, Behaviour] = {
    "good": _good_after(0),
    "ttl0": lambda query, _: [(0, _good(query, _records(query, 0)))],
    "fifty": lambda query, _: [(0, _good(query, _many(query)))],
    "truncating": _truncating,
    "cut": _cut,
    "chain": _chain,
    "chain-to-nothing": _chain_to_nothing,
    "slow": _good_after(1.5),
    "disordered": _disordered,
    "signed": _signed,
    "bogus": _bogus,
    "nxdomain": lambda query, _: [(0, response(query, authority=_SOA, rcode=dns.rcode.NXDOMAIN))],
    "nxdomain-without-soa": _code(dns.rcode.NXDOMAIN),
    "nodata": lambda query, _: [(0, response(query, authority=_SOA))],
    "nodata-without-soa": _code(dns.rcode.NOERROR),
    "servfail": _code(dns.rcode.SERVFAIL),
    "refused": _code(dns.rcode.REFUSED),
    "formerr": _code(dns.rcode.FORMERR),
    "notimp": _code(dns.rcode.NOTIMP),
    "silent": _silent,
    "without-edns": _without_edns,
    "ignoring-edns": _ignoring_edns,
    "v4-else-nodata": _only_ipv4(_code(dns.rcode.NOERROR)),
    "v4-else-nxdomain": _only_ipv4(_code(dns.rcode.NXDOMAIN)),
    "v4-else-servfail": _only_ipv4(_code(dns.rcode.SERVFAIL)),
    "v4-else-notimp": _only_ipv4(_code(dns.rcode.NOTIMP)),
    "v4-else-silent": _only_ipv4(_silent),
}


def _replies(data: bytes, transport: str) -> list[tuple[float, bytes | None]]:
    query = dns.message.from_wire(data)
    labels = _name(query).lower().rstrip(".").split(".")
    if labels[-2:] != DOMAIN.split(".") or len(labels) < 3 or labels[-3] not in BEHAVIOURS:
        reply = response(query, authority=_SOA, rcode=dns.rcode.NXDOMAIN)
        return [(0, _wire(query, reply, transport))]
    return [
        (delay, None if each is None else _wire(query, each, transport))
        for delay, each in BEHAVIOURS[labels[-3]](query, transport)
    ]


def _wire(query: Message, reply: Message, transport: str) -> bytes:
    """A reply as bytes. The server copies CD (RFC 4035, 3.2.2), and cuts what has no room."""
    reply.flags |= query.flags & dns.flags.CD
    data = reply.to_wire(max_size=65535, want_shuffle=False)
    if transport == "udp" and len(data) > max(512, query.payload if query.edns >= 0 else 0):
        reply.answer = []
        reply.flags |= dns.flags.TC
        data = reply.to_wire()
    return data


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, client: object) -> None:
        loop = asyncio.get_running_loop()
        for delay, reply in _replies(data, "udp"):
            if reply is None:
                continue
            if delay:
                loop.call_later(delay, self._transport.sendto, reply, client)  # type: ignore[attr-defined]
            else:
                self._transport.sendto(reply, client)  # type: ignore[attr-defined]


async def _serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each query when it is due, also before earlier ones (RFC 7766, section 7)."""
    loop = asyncio.get_running_loop()
    try:
        while True:
            length = int.from_bytes(await reader.readexactly(2))
            for delay, reply in _replies(await reader.readexactly(length), "tcp"):
                if reply is None:
                    writer.close()
                    return
                loop.call_later(delay, writer.write, pack("!H", len(reply)) + reply)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(*addresses: str) -> None:
    """Answer on port 53 of these addresses in the caller's network namespace, for ever."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            udp = socket.socket(family, socket.SOCK_DGRAM)
            udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
            udp.setblocking(False)
            udp.bind((address, 53))
            await loop.create_datagram_endpoint(_Datagrams, sock=udp)
            await asyncio.start_server(_serve_stream, address, 53)
        await asyncio.Event().wait()

    asyncio.run(run())
