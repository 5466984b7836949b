# SPDX-License-Identifier: GPL-2.0-only
"""A client gets the same result of the DNS proxy as of the servers behind it.

Each case is asked twice by the same resolver: of the scripted servers, and of the proxy that asks
them. All names are allowed, but for those of a search list.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.resolver
import pytest

from tests.guard.support.resolving import FakeServer, Policy, Running, response
from zfw_py.guard.dns import upstream
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.guard.support.resolving import Script

    Message = dns.message.Message

pytestmark = pytest.mark.slow  # servers that are silent

# For a question as a whole; of servers that are silent nothing comes by then.
LIFETIME = 3.0
SOA = "test. 60 SOA a.test. b.test. 1 2 3 4 60"
SIGNATURE = "A 8 2 60 20300101000000 20200101000000 1 test. AAAA"


def always(content: str = "", **options: object) -> Callable[[], Script]:
    return lambda: lambda query, _: [response(query, content, **options)]  # type: ignore[arg-type]


def silent() -> Script:
    return lambda *_: []


def without_edns() -> Script:
    """Of a server from before EDNS."""

    def script(query: Message, _: str) -> Iterator[Message]:
        if query.edns >= 0:
            plain = dns.message.make_query(query.question[0].name, query.question[0].rdtype)
            plain.id = query.id
            yield response(plain, rcode=dns.rcode.FORMERR)
        else:
            yield response(query, "www.test. 60 A 192.0.2.1")

    return script


def truncating() -> Script:
    many = "\n".join(f"www.test. 60 A 192.0.2.{n}" for n in range(1, 200))
    return lambda query, transport: [
        response(query, many) if transport == "tcp" else response(query, flags=dns.flags.TC)
    ]


def slow() -> Script:
    def script(query: Message, _: str) -> Iterator[Message]:
        time.sleep(1.0)
        yield response(query, "www.test. 60 A 192.0.2.1")

    return script


def disordered() -> Script:
    """Answers to other questions come first."""

    def script(query: Message, _: str) -> Iterator[Message]:
        good = response(query, "www.test. 60 A 192.0.2.1")
        late = response(query, "www.test. 60 A 192.0.2.66")
        late.id ^= 1
        yield from (late, good)

    return script


def signed() -> Script:
    def script(query: Message, _: str) -> Iterable[Message]:
        records = "www.test. 60 A 192.0.2.1"
        if query.ednsflags & dns.flags.DO:
            records += f"\nwww.test. 60 RRSIG {SIGNATURE}"
        return [response(query, records, flags=dns.flags.AD)]

    return script


BEHAVIOURS: dict[str, Callable[[], Script]] = {
    "an address": always("www.test. 60 A 192.0.2.1"),
    "a time to live of 0": always("www.test. 0 A 192.0.2.1"),
    "50 addresses": always("\n".join(f"www.test. 9 A 192.0.2.{n}" for n in range(50))),
    "a chain": always("www.test. 60 CNAME a.cdn.\na.cdn. 50 CNAME b.cdn.\nb.cdn. 40 A 192.0.2.1"),
    "a loop": always("www.test. 60 CNAME a.cdn.\na.cdn. 50 CNAME www.test."),
    "no such name": always(authority=SOA, rcode=dns.rcode.NXDOMAIN),
    "no such name, without SOA": always(rcode=dns.rcode.NXDOMAIN),
    "a chain to no name": always(
        "www.test. 60 CNAME a.test.", authority=SOA, rcode=dns.rcode.NXDOMAIN
    ),
    "no such type": always(authority=SOA),
    "SERVFAIL": always(rcode=dns.rcode.SERVFAIL),
    "REFUSED": always(rcode=dns.rcode.REFUSED),
    "FORMERR": always(rcode=dns.rcode.FORMERR),
    "NOTIMP": always(rcode=dns.rcode.NOTIMP),
    "silent": silent,
    "without EDNS": without_edns,
    "truncating": truncating,
    "slow": slow,
    "out of order": disordered,
    "signed": signed,
}
# Of one resolver: what it sends with its questions.
QUESTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "EDNS": {"edns": 0, "payload": 1232},
    "DO": {"edns": 0, "ednsflags": dns.flags.DO, "payload": 4096},
}
_FLAGS = dns.flags.AD | dns.flags.CD | dns.flags.RA | dns.flags.RD | dns.flags.TC


def result(
    servers: list[Endpoint], name: str, options: dict[str, object], **more: object
) -> object:
    """What a program sees: the addresses and the name at the end of the chain, or the error."""
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = [
        dns.nameserver.Do53Nameserver(each.address, each.port) for each in servers
    ]
    resolver.lifetime = LIFETIME
    resolver.timeout = 2.0
    if options:
        resolver.use_edns(**options)  # type: ignore[arg-type]
    resolver.search = [dns.name.from_text(each) for each in more.get("search", [])]  # type: ignore[attr-defined]
    resolver.ndots = more.get("ndots")  # type: ignore[assignment]
    try:
        answer = resolver.resolve(name, "A", search=bool(resolver.search))
    except dns.resolver.NoNameservers:
        return "no server"
    except dns.resolver.NXDOMAIN as error:
        return "NXDOMAIN", [each.to_text() for each in error.qnames()]
    except dns.exception.DNSException as error:
        return type(error).__name__
    assert answer.rrset is not None
    return (
        answer.canonical_name.to_text(),
        sorted(each.to_text() for each in answer.rrset),
        sorted((each.name.to_text(), each.rdtype, each.ttl) for each in answer.response.answer),
        int(answer.response.flags) & _FLAGS,
    )


@pytest.fixture
def compared(stack: ExitStack) -> Callable[..., tuple[object, object]]:
    """The results of scripted servers: of themselves, and of a proxy before them."""

    def compare(
        *scripts: Script, name: str = "www.test.", options: dict[str, object], **more: object
    ) -> tuple[object, object]:
        servers = [stack.enter_context(FakeServer(each)).server for each in scripts]
        proxy = stack.enter_context(Running(Policy().proxy(), servers))
        direct = result(servers, name, options, **more)
        return direct, result([Endpoint(proxy.address, proxy.port)], name, options, **more)

    return compare


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_one_server(
    compared: Callable[..., tuple[object, object]], behaviour: str, question: str
) -> None:
    direct, proxied = compared(BEHAVIOURS[behaviour](), options=QUESTIONS[question])
    if question != "DO" and behaviour == "signed":
        # RFC 6840, section 5.8: without DO or AD in the question, there is no AD in the answer.
        direct = (*direct[:3], direct[3] & ~dns.flags.AD)  # type: ignore[index]
    if behaviour == "without EDNS" and question != "plain":
        # The proxy asks such a server again without EDNS, as most resolvers do.
        assert (direct, proxied[1]) == ("no server", ["192.0.2.1"])  # type: ignore[index]
    elif behaviour == "a loop":
        assert (type(direct), type(proxied)) == (str, str)  # both fail, each in its words
    else:
        assert proxied == direct


@pytest.mark.parametrize(
    "first", ["SERVFAIL", "REFUSED", "silent", "no such name", "slow", "out of order", "a chain"]
)
def test_two_servers(
    compared: Callable[..., tuple[object, object]], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The second one has another address."""
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 1.5)
    second = always("www.test. 60 A 192.0.2.2")
    direct, proxied = compared(BEHAVIOURS[first](), second(), options={})
    assert proxied == direct


@pytest.mark.parametrize("ndots", [1, 5])
@pytest.mark.parametrize("name", ["www.test", "www"])
def test_a_search_list(
    compared: Callable[..., tuple[object, object]], name: str, ndots: int
) -> None:
    """Its names are not allowed: they do not exist, as they do not upstream."""

    def script(query: Message, _: str) -> Iterable[Message]:
        if query.question[0].name == dns.name.from_text("www.test."):
            return [response(query, "www.test. 60 A 192.0.2.1")]
        return [response(query, rcode=dns.rcode.NXDOMAIN)]

    search = ["ns.svc.cluster.local.", "cluster.local.", "test."]
    direct, proxied = compared(script, name=name, options={}, search=search, ndots=ndots)
    assert proxied == direct
    assert direct[0] == "www.test."  # type: ignore[index]
