# SPDX-License-Identifier: GPL-2.0-only
"""The guard's proxy on sockets of this machine's loopback, with a server that does what we say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from struct import pack
from typing import TYPE_CHECKING

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype
import pytest

from tests.guard.support.resolving import (
    FakeServer,
    Policy,
    Running,
    bound_pair,
    framed,
    read_frames,
    response,
)
from tests.support.waiting import wait_until
from zfw_py.guard.dns import listening, proxy, upstream
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Message = dns.message.Message

WWW = "www.test."
ADDRESS = b"\0" * 10 + b"\xff\xff\xc0\0\2\1"
RECORD = f"{WWW} 60 A 192.0.2.1"


@contextmanager
def proxied(
    *servers: FakeServer | Endpoint, policy: Policy | None = None, is_log_only: bool = False
) -> Iterator[tuple[Running, Policy]]:
    """A proxy that asks these servers."""
    policy = policy or Policy()
    upstreams = [each.server if isinstance(each, FakeServer) else each for each in servers]
    with Running(policy.proxy(is_log_only=is_log_only), upstreams) as running:
        yield running, policy


@pytest.fixture
def server(stack: ExitStack) -> FakeServer:
    """Answers every question with one record of its name, or what its script is made to be."""
    return stack.enter_context(FakeServer(lambda query, _: [a_record(query)]))


@pytest.fixture
def both(stack: ExitStack, server: FakeServer) -> tuple[Running, Policy]:
    """A proxy that asks that server."""
    return stack.enter_context(proxied(server))


@pytest.fixture
def running(both: tuple[Running, Policy]) -> Running:
    return both[0]


@pytest.fixture
def policy(both: tuple[Running, Policy]) -> Policy:
    return both[1]


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy waits for as long as a test does."""
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 60)
    monkeypatch.setattr(proxy, "PATIENCE", 60)


def a_record(query: Message, address: str = "192.0.2.1", ttl: int = 60) -> Message:
    return response(query, f"{query.question[0].name} {ttl} A {address}")


def always(content: str, **options: object) -> Callable[[Message, str], Iterable[Message]]:
    """A script with the same answer to everything."""
    return lambda query, _: [response(query, content, **options)]  # type: ignore[arg-type]


def addresses(message: Message) -> list[str]:
    return [rdata.address for rrset in message.answer for rdata in rrset if rrset.rdtype in (1, 28)]


def extended_errors(message: Message) -> list[int]:
    return [int(option.code) for option in message.extended_errors()]


def frame_of(name: str = WWW, rdtype: str = "A") -> bytes:
    return dns.message.make_query(name, rdtype).to_wire()


# What a name may


def test_an_allowed_name_is_resolved_and_admitted_before_it_is_answered(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    policy.ports["www.test"] = frozenset({443, 80})
    answer = running.ask("WWW.test.")
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.question[0].name.to_text() == "WWW.test."
    assert addresses(answer) == ["192.0.2.1"]
    assert policy.admitted == [((ADDRESS,), frozenset({443, 80}), 61)]
    (event,) = policy.events
    assert event.client[0] == "127.0.0.1"
    assert event[1:] == ("udp", "www.test", "A", "allow", "allowed", (ADDRESS,), "NOERROR", False)
    assert [transport for _, transport in server.asked] == ["udp"]


def test_a_name_without_a_rule_is_refused_and_nobody_asked(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    plain = running.ask("www.example.")
    edns = running.ask("www.example.", use_edns=0)
    assert plain.rcode() == edns.rcode() == dns.rcode.NXDOMAIN
    assert plain.opt is None
    assert extended_errors(edns) == [18]
    assert plain.authority == edns.authority == []
    assert (server.asked, policy.admitted) == ([], [])
    assert [event[4:6] for event in policy.events] == [("deny", "not_allowed")] * 2
    assert policy.events[0].rcode == "NXDOMAIN"


def test_a_refusal_can_be_refused(stack: ExitStack, server: FakeServer) -> None:
    policy = Policy()
    policy.blocked.add("bad.test")
    made = policy.proxy(refusal=dns.rcode.REFUSED)
    running = stack.enter_context(Running(made, [server.server]))
    for name, why in (("www.example.", 18), ("bad.test.", 15)):
        answer = running.ask(name, use_edns=0)
        assert (answer.rcode(), extended_errors(answer)) == (dns.rcode.REFUSED, [why])


def test_a_blocked_name_says_so(running: Running, policy: Policy, server: FakeServer) -> None:
    policy.blocked.add("bad.test")
    answer = running.ask("x.bad.test.", use_edns=0)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert extended_errors(answer) == [15]
    assert (server.asked, policy.events[0].reason) == ([], "blocked")


def test_a_dot_in_a_label_is_no_way_into_a_rule(running: Running, server: FakeServer) -> None:
    assert running.ask("evil\\.test.").rcode() == dns.rcode.NXDOMAIN
    assert running.ask("a.b\\.c.test.").rcode() == dns.rcode.NXDOMAIN
    assert server.asked == []


def test_a_blocked_name_in_the_chain_is_refused_also_from_the_cache(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    server.script = always(f"{WWW} 60 CNAME x.tracker.example.\nx.tracker.example. 60 A 192.0.2.1")
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]  # not allowed, but not blocked either
    policy.blocked.add("tracker.example")
    answer = running.ask(WWW, use_edns=0)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert answer.answer == []
    assert extended_errors(answer) == [15]
    assert len(policy.admitted) == 1
    assert policy.events[1][4:] == ("deny", "chain_blocked", (), "NXDOMAIN", False)
    policy.blocked.clear()
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert len(server.asked) == 1


def test_a_blocked_name_behind_a_service_is_refused(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    policy.blocked.add("tracker.example")
    server.script = always(f"{WWW} 60 HTTPS 1 tracker.example. ipv4hint=192.0.2.1")
    assert running.ask(WWW, "HTTPS").rcode() == dns.rcode.NXDOMAIN
    assert policy.admitted == []


def test_addresses_that_the_kernel_does_not_take_are_not_handed_out(
    running: Running, policy: Policy
) -> None:
    policy.is_full = True
    answer = running.ask(WWW, use_edns=0)
    assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
    assert extended_errors(answer) == [0]
    assert policy.events[0][4:] == ("allow", "not_admitted", (), "SERVFAIL", False)
    policy.is_full = False
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_all_kinds_of_addresses_are_admitted(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    server.script = always(f"{WWW} 60 AAAA 2001:db8::1\n{WWW} 60 AAAA ::ffff:192.0.2.9")
    running.ask(WWW, "AAAA")
    server.script = always(f"{WWW} 60 HTTPS 1 . ipv4hint=192.0.2.1 ipv6hint=2001:db8::2")
    running.ask(WWW, "HTTPS")
    server.script = always(f"{WWW} 60 TXT 192.0.2.5")
    running.ask(WWW, "TXT")
    first, second = ([address.hex()[-4:] for address in each[0]] for each in policy.admitted)
    assert first == ["0001", "0209"]
    assert second == ["0201", "0002"]


@pytest.mark.parametrize(("ttl", "lifetime"), [(0, 5), (3, 5), (4, 5), (5, 6), (300, 301)])
def test_an_address_outlives_its_answer_and_a_slow_connect(
    running: Running, policy: Policy, server: FakeServer, ttl: int, lifetime: int
) -> None:
    server.script = lambda query, _: [a_record(query, ttl=ttl)]
    assert running.ask(WWW).answer[0].ttl == ttl
    assert policy.admitted[0][2] == lifetime


# Log only


def test_log_only_resolves_all_and_tells_what_would_have_been(server: FakeServer) -> None:
    policy = Policy()
    policy.blocked |= {"bad.test", "tracker.example"}
    with proxied(server, policy=policy, is_log_only=True) as (running, _):
        for name in ("www.example.", "bad.test.", "evil\\.test."):
            assert addresses(running.ask(name)) == ["192.0.2.1"]
        assert policy.admitted == []
        assert addresses(running.ask("a.test.")) == ["192.0.2.1"]
        server.script = always(f"{WWW} 9 CNAME tracker.example.\ntracker.example. 9 A 192.0.2.1")
        assert addresses(running.ask(WWW)) == ["192.0.2.1"]
        assert len(policy.admitted) == 1
        policy.is_full = True
        assert addresses(running.ask("a.test.")) == ["192.0.2.1"]
    assert [event[4:7] for event in policy.events] == [
        ("deny", "not_allowed", (ADDRESS,)),
        ("deny", "blocked", (ADDRESS,)),
        ("deny", "not_allowed", (ADDRESS,)),
        ("allow", "allowed", (ADDRESS,)),
        ("deny", "chain_blocked", (ADDRESS,)),
        ("allow", "not_admitted", (ADDRESS,)),
    ]


def test_log_only_tells_of_the_policy_also_when_upstream_fails(server: FakeServer) -> None:
    server.script = always("", rcode=dns.rcode.SERVFAIL)
    with proxied(server, is_log_only=True) as (running, policy):
        assert running.ask("www.example.").rcode() == dns.rcode.SERVFAIL
        assert policy.events[0][4:6] == ("deny", "not_allowed")


# What is no question for others


def test_what_is_malformed_is_told_so_or_ignored(running: Running, policy: Policy) -> None:
    query = frame_of()
    assert running.raw(query[:20])[:4] == query[:2] + b"\x81\x01"  # FORMERR
    with running.udp() as udp:
        for silent in (b"", b"x", query[:11], query[:2] + b"\x80" + query[3:]):
            udp.send(silent)
        udp.send(query)
        assert dns.message.from_wire(udp.recv(4096)).id == dns.message.from_wire(query).id
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(1)
    assert len(policy.events) == 1


@pytest.mark.parametrize(("rdtype", "rdclass"), [("AXFR", "IN"), ("IXFR", "IN"), ("TXT", "CH")])
def test_transfers_and_other_classes_are_refused(
    running: Running, policy: Policy, server: FakeServer, rdtype: str, rdclass: str
) -> None:
    query = dns.message.make_query(WWW, rdtype, rdclass)
    query.authority.clear()  # an IXFR has a SOA record there
    assert dns.message.from_wire(running.raw(query.to_wire())).rcode() == dns.rcode.REFUSED
    assert server.asked == []
    assert policy.events[0][4:6] == ("deny", "unsupported")


def test_any_is_answered_here(running: Running, policy: Policy, server: FakeServer) -> None:
    assert "RFC8482" in running.ask(WWW, "ANY").answer[0].to_text()
    assert running.ask("www.example.", "ANY").rcode() == dns.rcode.NXDOMAIN
    assert server.asked == []
    assert [event.verdict for event in policy.events] == ["allow", "deny"]


def test_a_later_edns_gets_badvers(running: Running) -> None:
    assert running.ask(WWW, use_edns=1).rcode() == dns.rcode.BADVERS


# Upstream


def test_what_does_not_match_is_waited_past(running: Running, server: FakeServer) -> None:
    """Another id, another question, no answer at all, and garbage: each says 192.0.2.66."""

    def script(query: Message, _: str) -> Iterator[Message | bytes]:
        wrong = a_record(query, "192.0.2.66").to_wire()
        yield bytes([wrong[0] ^ 1]) + wrong[1:]
        yield wrong[:2] + bytes([wrong[2] & 0x7F]) + wrong[3:]
        yield wrong.replace(b"\3www", b"\3wwx")
        yield wrong.replace(b"\4test\0\0\1", b"\4test\0\0\x1c", 1)
        yield wrong[:30][:-19]
        yield b"garbage"
        yield b""
        yield a_record(query)

    server.script = script
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert len(server.asked) == 1


def test_the_first_answer_counts(running: Running, server: FakeServer) -> None:
    server.script = lambda query, _: [a_record(query), a_record(query, "192.0.2.66")]
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert addresses(running.ask("other.test.")) == ["192.0.2.1"]


def test_each_question_has_another_port_and_id(running: Running, server: FakeServer) -> None:
    for number in range(20):
        running.ask(f"n{number}.test.")
    assert len(set(server.clients)) > 15
    assert len({query.id for query, _ in server.asked}) > 15


def test_a_slow_answer_counts(
    running: Running, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without a guard waits for it: five seconds, most of them."""
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 0.2)

    def script(query: Message, _: str) -> Iterator[Message]:
        time.sleep(1.0 if len(server.asked) == 1 else 0)
        yield a_record(query, f"192.0.2.{len(server.asked)}")

    server.script = script
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_what_is_truncated_is_asked_for_over_tcp(running: Running, server: FakeServer) -> None:
    def script(query: Message, transport: str) -> list[Message]:
        if transport == "udp":
            return [response(query, f"{WWW} 60 A 192.0.2.66", flags=dns.flags.TC)]
        wrong = a_record(query, "192.0.2.67")
        wrong.id ^= 1
        return [wrong, a_record(query)]

    server.script = script
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert [transport for _, transport in server.asked] == ["udp", "tcp"]


def test_over_tcp_nothing_is_cut(running: Running, server: FakeServer) -> None:
    texts = "\n".join(f'{WWW} 60 TXT "{number:03}{"x" * 240}"' for number in range(200))

    def script(query: Message, transport: str) -> list[Message]:
        if transport == "tcp":
            return [response(query, texts)]
        return [response(query, flags=dns.flags.TC)]

    server.script = script
    assert len(running.ask(WWW, "TXT", is_tcp=True).answer[0]) == 200
    over_udp = running.ask(WWW, "TXT", use_edns=0, payload=1232)
    assert over_udp.flags & dns.flags.TC
    assert len(over_udp.answer[0]) == 4
    assert len(over_udp.to_wire()) <= 1232


# Split DNS: the first server knows names that the second one denies.


def denying(query: Message, _: str) -> list[Message]:
    return [response(query, rcode=dns.rcode.NXDOMAIN)]


@pytest.fixture
def public(stack: ExitStack) -> FakeServer:
    """Knows no name."""
    return stack.enter_context(FakeServer(denying))


def test_a_lost_packet_is_sent_again_to_the_same_server(
    server: FakeServer, public: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 0.5)
    server.script = lambda query, _: [a_record(query)] if len(server.asked) > 1 else []
    with proxied(server, public) as (running, _):
        assert addresses(running.ask(WWW)) == ["192.0.2.1"]
        assert addresses(running.ask("other.test.")) == ["192.0.2.1"]
    assert server.names() == [WWW, WWW, "other.test."]
    assert public.asked == []


def test_a_server_that_is_not_there_is_passed_over_for_one_question(
    server: FakeServer, public: FakeServer, stack: ExitStack
) -> None:
    """Its process may be starting again: the next question is for it."""
    udp, tcp = bound_pair()
    port = udp.getsockname()[1]
    udp.close()
    tcp.close()
    running, _ = stack.enter_context(proxied(Endpoint("127.0.0.1", port), public))
    assert running.ask(WWW).rcode() == dns.rcode.NXDOMAIN
    stack.enter_context(FakeServer(lambda query, _: [a_record(query)], port=port))
    assert addresses(running.ask("other.test.")) == ["192.0.2.1"]
    assert public.names() == [WWW]


def test_a_silent_server_is_asked_last_for_a_while(
    server: FakeServer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 0.2)
    monkeypatch.setattr(upstream, "PENALTY", 3.0)
    silent = stack.enter_context(FakeServer(lambda *_: []))
    running, _ = stack.enter_context(proxied(silent, server))
    for number in range(4):
        assert addresses(running.ask(f"n{number}.test.")) == ["192.0.2.1"]
    # Each of its questions twice. Once silent may be chance; after the second time it comes last.
    assert sorted({*silent.names()}) == ["n0.test.", "n1.test."]
    silent.script = lambda query, _: [a_record(query, "192.0.2.2")]
    time.sleep(3.1)
    assert addresses(running.ask("n4.test.")) == ["192.0.2.2"]


def test_servers_that_have_changed_are_asked_and_the_old_answers_forgotten(
    server: FakeServer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "LOOK_INTERVAL", 0.0)
    other = stack.enter_context(FakeServer(lambda query, _: [a_record(query, "192.0.2.2")]))
    servers = [server.server]
    made = upstream.Upstream(lambda: servers)
    running = stack.enter_context(Running(Policy().proxy(), made))
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    servers = [other.server]
    assert addresses(running.ask(WWW)) == ["192.0.2.2"]
    servers = []
    assert running.ask(WWW).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize(
    "rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.FORMERR, dns.rcode.NOTIMP]
)
def test_so_is_one_that_fails(stack: ExitStack, server: FakeServer, rcode: dns.rcode.Rcode) -> None:
    failing = stack.enter_context(FakeServer(always("", rcode=rcode)))
    running, _ = stack.enter_context(proxied(failing, server))
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_so_is_one_whose_records_cannot_be_read(stack: ExitStack, server: FakeServer) -> None:
    broken = stack.enter_context(
        FakeServer(
            lambda query, _: [a_record(query).to_wire().replace(b"\0\4\xc0\0\2\1", b"\0\4\1")]
        )
    )
    running, _ = stack.enter_context(proxied(broken, server))
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert len(broken.asked) == 1


def test_no_server_is_a_failure_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 0.05)
    monkeypatch.setattr(proxy, "PATIENCE", 0.5)
    with FakeServer(lambda *_: []) as silent, proxied(silent) as (running, policy):
        answer = running.ask(WWW, is_tcp=True, use_edns=0)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert extended_errors(answer) == [22]
        assert len({query.id for query, _ in silent.asked}) == 2
        assert policy.events[0][4:] == ("allow", "upstream_failed", (), "SERVFAIL", False)


def test_all_attempts_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "PATIENCE", 0.05)
    with FakeServer(lambda *_: []) as silent, proxied(silent, silent, silent) as (running, _):
        assert running.ask(WWW, is_tcp=True).rcode() == dns.rcode.SERVFAIL
        assert len(silent.asked) == 1


def test_where_no_server_answers_a_client_gets_no_answer_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own time-out is what it reports without a guard."""
    monkeypatch.setattr(proxy, "PATIENCE", 0.05)
    with (
        FakeServer(lambda *_: []) as silent,
        proxied(silent) as (running, policy),
        running.udp() as udp,
    ):
        udp.send(frame_of(WWW))
        assert wait_until(lambda: policy.events)
        assert policy.events[0][4:] == ("allow", "upstream_failed", (), "SERVFAIL", False)
        assert select.select([udp], [], [], 0.2)[0] == []
    # A closed port is an answer: an ICMP error.
    with proxied(silent) as (running, _):
        assert running.ask(WWW).rcode() == dns.rcode.SERVFAIL


@pytest.mark.parametrize(
    ("rcodes", "expected"),
    [
        ((dns.rcode.REFUSED,), dns.rcode.REFUSED),
        ((dns.rcode.NOTIMP,), dns.rcode.NOTIMP),
        ((dns.rcode.FORMERR,), dns.rcode.FORMERR),
        ((dns.rcode.SERVFAIL, dns.rcode.REFUSED), dns.rcode.REFUSED),
        ((dns.rcode.REFUSED, dns.rcode.SERVFAIL), dns.rcode.SERVFAIL),
        ((dns.rcode.REFUSED, None), dns.rcode.REFUSED),
        ((None, dns.rcode.REFUSED), dns.rcode.REFUSED),
        ((dns.rcode.NOTAUTH,), dns.rcode.SERVFAIL),
    ],
)
def test_the_error_of_the_last_server_is_handed_on(
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    rcodes: tuple[dns.rcode.Rcode | None, ...],
    expected: dns.rcode.Rcode,
) -> None:
    """A resolver reports each of them in its own words. It does not wait for one that is silent."""
    monkeypatch.setattr(upstream, "UDP_TIMEOUT", 0.05)
    servers = [
        stack.enter_context(
            FakeServer((lambda *_: []) if rcode is None else always("", rcode=rcode))
        )
        for rcode in rcodes
    ]
    running, _ = stack.enter_context(proxied(*servers))
    assert running.ask(WWW).rcode() == expected


def test_why_upstream_fails_is_handed_on(running: Running, server: FakeServer) -> None:
    bogus = dns.edns.EDEOption(6, "bogus")
    server.script = always("", rcode=dns.rcode.SERVFAIL, options=[bogus])
    answer = running.ask(WWW, use_edns=0)
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert [option.to_text() for option in answer.extended_errors()] == [bogus.to_text()]
    assert len(server.asked) == 1  # it said so: it is not asked twice
    server.script = always("", rcode=dns.rcode.REFUSED)
    assert extended_errors(running.ask(WWW, use_edns=0)) == [23]


def test_a_server_without_edns_is_asked_without(running: Running, server: FakeServer) -> None:
    def script(query: Message, _: str) -> list[Message | bytes]:
        if query.edns < 0:
            return [a_record(query)]
        return [query.to_wire()[:2] + b"\x81\x81" + b"\0" * 8]  # FORMERR, the header alone

    server.script = script
    assert addresses(running.ask(WWW, use_edns=0, want_dnssec=True)) == ["192.0.2.1"]
    assert [query.edns for query, _ in server.asked] == [0, -1]


def test_a_truncated_answer_counts_where_the_server_does_not_serve_tcp(stack: ExitStack) -> None:
    cut = stack.enter_context(
        FakeServer(always(f"{WWW} 60 A 192.0.2.1", flags=dns.flags.TC), has_tcp=False)
    )
    running, policy = stack.enter_context(proxied(cut))
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]
    assert policy.admitted == [((ADDRESS,), frozenset(), 61)]
    cut.script = always("", flags=dns.flags.TC)
    assert running.ask("a.test.").rcode() == dns.rcode.SERVFAIL


def test_the_end_of_a_chain_that_upstream_left_out_is_asked_for(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    contents = {
        "www.test.": "www.test. 60 CNAME a.example.\na.example. 60 CNAME b.example.",
        "b.example.": "b.example. 60 CNAME c.example.",
        "c.example.": "c.example. 60 A 192.0.2.1",
    }
    server.script = lambda query, _: [response(query, contents[str(query.question[0].name)])]
    answer = running.ask(WWW)
    assert [rrset.rdtype.name for rrset in answer.answer] == ["CNAME", "CNAME", "CNAME", "A"]
    assert server.names() == ["www.test.", "b.example.", "c.example."]
    assert policy.admitted == [((ADDRESS,), frozenset(), 61)]


def test_a_chain_in_too_many_pieces_fails(running: Running, server: FakeServer) -> None:
    def script(query: Message, _: str) -> list[Message]:
        name = str(query.question[0].name)
        return [response(query, f"{name} 60 CNAME x{name}")]

    server.script = script
    assert running.ask(WWW).rcode() == dns.rcode.SERVFAIL
    assert len(server.asked) == 8


def test_a_loop_fails(running: Running, policy: Policy, server: FakeServer) -> None:
    server.script = always(f"{WWW} 60 CNAME a.test.\na.test. 60 CNAME {WWW}")
    assert running.ask(WWW, use_edns=0).rcode() == dns.rcode.SERVFAIL
    assert policy.events[0][4:6] == ("allow", "upstream_failed")


def test_only_what_was_asked_for_is_handed_out(running: Running, server: FakeServer) -> None:
    server.script = always(
        f"{RECORD}\nbank.test. 60 A 192.0.2.66",
        authority="test. 60 NS ns.test.",
        additional="ns.test. 60 A 192.0.2.66",
    )
    answer = running.ask(WWW, use_edns=0)
    assert [rrset.to_text() for rrset in answer.answer] == [f"{WWW} 60 IN A 192.0.2.1"]
    assert (answer.authority, answer.additional) == ([], [])


# EDNS


def test_edns_is_for_who_speaks_it(running: Running) -> None:
    assert running.ask(WWW).opt is None
    answer = running.ask(WWW, use_edns=0, want_dnssec=True)
    assert (answer.edns, answer.payload, answer.ednsflags) == (0, 1232, dns.flags.DO)


@pytest.mark.parametrize(
    ("edns", "records"),
    [
        ({}, 30),
        ({"use_edns": 0, "payload": 512}, 29),
        ({"use_edns": 0, "payload": 100}, 29),
        ({"use_edns": 0, "payload": 1232}, 60),
    ],
    ids=["none", "512", "100", "1232"],
)
def test_answers_are_as_long_as_a_client_takes_them(
    running: Running, server: FakeServer, edns: dict[str, int], records: int
) -> None:
    server.script = always("\n".join(f"{WWW} 60 A 192.0.2.{number}" for number in range(60)))
    answer = running.ask(WWW, **edns)
    assert len(addresses(answer)) == records
    assert bool(answer.flags & dns.flags.TC) == (records < 60)
    assert len(addresses(running.ask(WWW, is_tcp=True, **edns))) == 60


def test_no_datagram_is_longer_than_4096(running: Running, server: FakeServer) -> None:
    """A client may take more, the way to it not."""
    texts = "\n".join(f'{WWW} 60 TXT "{number:03}{"x" * 240}"' for number in range(20))

    def script(query: Message, transport: str) -> list[Message]:
        return [response(query, texts, flags=0 if transport == "tcp" else dns.flags.TC)]

    server.script = script
    answer = running.ask(WWW, "TXT", use_edns=0, payload=65535)
    assert answer.flags & dns.flags.TC
    assert 3800 < len(answer.to_wire()) <= 4096


def test_a_client_s_subnet_goes_both_ways_and_is_not_kept(
    running: Running, server: FakeServer
) -> None:
    def script(query: Message, _: str) -> list[Message]:
        (option,) = query.options
        scoped = dns.edns.ECSOption(option.address, option.srclen, option.srclen)
        return [response(query, RECORD, options=[scoped])]

    server.script = script
    cookie = dns.edns.CookieOption(b"12345678", b"")
    for _ in range(2):
        options = [dns.edns.ECSOption("192.0.2.0", 24), cookie]
        answer = running.ask(WWW, use_edns=0, options=options)
        assert [option.to_text() for option in answer.options] == ["ECS 192.0.2.0/24 scope/24"]
    assert len(server.asked) == 2


# The cache


def test_an_answer_is_asked_for_once_and_grows_older(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    assert running.ask(WWW).answer[0].ttl == 60
    policy.now += 20.7
    answer = running.ask("WWW.test.", use_edns=0)
    assert answer.answer[0].ttl == 40
    assert answer.answer[0].name.to_text() == "WWW.test."
    assert len(server.asked) == 1
    policy.now += 39.2
    assert running.ask(WWW).answer[0].ttl == 1
    policy.now += 0.2
    assert running.ask(WWW).answer[0].ttl == 60
    assert len(server.asked) == 2
    assert [event.is_cached for event in policy.events] == [False, True, True, False]


def test_an_address_from_the_cache_is_admitted_for_what_is_left(
    running: Running, policy: Policy
) -> None:
    for wait in (0, 20.5, 39):
        policy.now += wait
        running.ask(WWW)
    lifetimes = [lifetime for *_, lifetime in policy.admitted]
    assert lifetimes == pytest.approx([61, 40.5, 5])


def test_what_is_not_there_is_kept_as_long_as_its_zone_says(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    soa = "test. 3600 SOA ns.test. admin.test. 1 2 3 4 30"
    server.script = always("", rcode=dns.rcode.NXDOMAIN, authority=soa)
    for wait in (0, 29):
        policy.now += wait
        answer = running.ask("no.test.")
        assert answer.rcode() == dns.rcode.NXDOMAIN
        assert answer.authority[0].ttl == 3600 - wait
    assert len(server.asked) == 1
    policy.now += 1
    running.ask("no.test.")
    assert len(server.asked) == 2
    server.script = always("", authority=soa)
    running.ask("no.test.", "TXT")
    assert running.ask("no.test.", "TXT").rcode() == dns.rcode.NOERROR
    assert len(server.asked) == 3


def test_failures_are_not_kept(running: Running, server: FakeServer) -> None:
    server.script = always("", rcode=dns.rcode.SERVFAIL)
    assert running.ask(WWW).rcode() == dns.rcode.SERVFAIL
    server.script = always(RECORD)
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_dnssec_and_checking_disabled_are_kept_apart(running: Running, server: FakeServer) -> None:
    for _ in range(2):
        running.ask(WWW)
        running.ask(WWW, use_edns=0, want_dnssec=True)
        running.ask(WWW, flags=dns.flags.RD | dns.flags.CD)
    assert [(query.ednsflags, int(query.flags)) for query, _ in server.asked] == [
        (0, 0x0100),
        (0x8000, 0x0100),
        (0, 0x0110),
    ]


# Many at a time


@pytest.mark.usefixtures("patience")
def test_the_same_question_is_asked_once_however_many_wait(
    running: Running, policy: Policy, server: FakeServer
) -> None:
    go_on = threading.Event()

    def script(query: Message, _: str) -> list[Message]:
        assert go_on.wait(30)
        return [a_record(query)]

    server.script = script
    with ExitStack() as clients:
        sockets = [clients.enter_context(running.udp()) for _ in range(20)]
        for number, udp in enumerate(sockets):
            query = dns.message.make_query(WWW if number % 2 else "wWw.test.", "A", id=number)
            udp.send(query.to_wire())
        # All have been taken: this one, which is answered at once, came after them.
        assert running.ask("www.example.").rcode() == dns.rcode.NXDOMAIN
        go_on.set()
        for number, udp in enumerate(sockets):
            answer = dns.message.from_wire(udp.recv(4096))
            assert answer.id == number
            assert answer.question[0].name.to_text() == (WWW if number % 2 else "wWw.test.")
            assert addresses(answer) == ["192.0.2.1"]
    assert len(server.asked) == 1
    assert len(policy.admitted) == 20


@pytest.mark.usefixtures("patience")
def test_too_many_questions_fail_at_once(
    running: Running, policy: Policy, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "MOST_ASKED", 3)
    monkeypatch.setattr(proxy, "MOST_WAITING", 5)
    go_on = threading.Event()

    def script(query: Message, _: str) -> list[Message]:
        assert go_on.wait(30)
        return [a_record(query)]

    server.script = script
    with running.udp() as udp:
        for number in range(3):
            udp.send(frame_of(f"n{number}.test."))
        answer = running.ask("n3.test.", use_edns=0)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert policy.events[-1].reason == "busy"
        for _ in range(2):
            udp.send(frame_of("n0.test."))
        assert running.ask("n0.test.").rcode() == dns.rcode.SERVFAIL
        go_on.set()
        for _ in range(5):
            assert dns.message.from_wire(udp.recv(4096)).rcode() == dns.rcode.NOERROR
    assert addresses(running.ask("n3.test.")) == ["192.0.2.1"]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """This process can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_a_descriptor_a_question_fails_and_a_connection_waits(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_PAUSE", 0.05)
    with running.udp() as udp, socket.socket() as tcp:
        tcp.settimeout(30)
        with no_descriptor_left():
            tcp.connect((running.address, running.port))
            tcp.sendall(framed(frame_of()))
            udp.send(frame_of())
            assert dns.message.from_wire(udp.recv(4096)).rcode() == dns.rcode.SERVFAIL
        (answer,) = read_frames(tcp, 1)
        assert addresses(dns.message.from_wire(answer)) == ["192.0.2.1"]


# TCP


def test_a_connection_takes_many_questions_at_once_and_in_pieces(
    running: Running, policy: Policy
) -> None:
    queries = [dns.message.make_query(f"n{number}.test.", "A", id=number) for number in range(40)]
    data = framed(*(query.to_wire() for query in queries))
    with running.tcp() as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), 7):
            tcp.sendall(data[start : start + 7])
        answers = {answer.id: answer for answer in map(dns.message.from_wire, read_frames(tcp, 40))}
    assert sorted(answers) == list(range(40))
    for query in queries:
        assert answers[query.id].question == query.question
        assert addresses(answers[query.id]) == ["192.0.2.1"]
    assert {event.transport for event in policy.events} == {"tcp"}


@pytest.mark.usefixtures("patience")
def test_answers_do_not_wait_for_slower_ones(running: Running, server: FakeServer) -> None:
    go_on = threading.Event()

    def script(query: Message, _: str) -> list[Message]:
        assert go_on.wait(30)
        return [a_record(query)]

    assert addresses(running.ask("quick.test.")) == ["192.0.2.1"]
    server.script = script
    with running.tcp() as tcp:
        tcp.sendall(framed(frame_of("slow.test."), frame_of("quick.test.")))
        (first,) = read_frames(tcp, 1)
        assert dns.message.from_wire(first).question[0].name.to_text() == "quick.test."
        go_on.set()
        (second,) = read_frames(tcp, 1)
        assert dns.message.from_wire(second).question[0].name.to_text() == "slow.test."


def test_who_has_asked_all_still_gets_all_answers(running: Running) -> None:
    with running.tcp() as tcp:
        tcp.sendall(framed(*(frame_of(f"n{number}.test.") for number in range(5))))
        tcp.shutdown(socket.SHUT_WR)
        assert len(read_frames(tcp, 6)) == 5  # and then the end


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff" + b"x" * 1000,
        framed(b""),
        framed(b"x"),
        framed(frame_of()[:2] + b"\x80" + frame_of()[3:]),
    ],
    ids=["huge", "empty", "short", "an answer"],
)
def test_what_is_no_question_ends_the_connection(running: Running, data: bytes) -> None:
    with running.tcp() as tcp:
        tcp.sendall(data)
        try:
            assert read_frames(tcp, 1) == []
        except ConnectionResetError:
            pass  # it had sent more than was read
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_what_cannot_be_read_is_told_so_and_the_connection_goes_on(running: Running) -> None:
    with running.tcp() as tcp:
        tcp.sendall(framed(frame_of()[:20], frame_of()))
        first, second = map(dns.message.from_wire, read_frames(tcp, 2))
    rcodes = {first.rcode(), second.rcode()}
    assert rcodes == {dns.rcode.FORMERR, dns.rcode.NOERROR}


def test_a_silent_connection_is_closed(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IDLE", 0.1)
    for sent in (b"", b"\0", framed(frame_of())[:-1]):
        with running.tcp() as tcp:
            tcp.sendall(sent)
            assert read_frames(tcp, 1) == []


def test_a_client_that_goes_away_is_forgotten(running: Running, server: FakeServer) -> None:
    server.script = lambda query, _: [
        response(query, "\n".join(f"{query.question[0].name} 0 A 192.0.2.{n}" for n in range(250)))
    ]
    for _ in range(3):
        tcp = running.tcp()
        tcp.sendall(framed(*(frame_of(f"n{number}.test.") for number in range(10))))
        read_frames(tcp, 1)
        tcp.close()  # resets it: there is more to read
    assert len(addresses(running.ask(WWW, is_tcp=True))) == 250
    assert wait_until(lambda: not running.proxy._connections._open)


def test_too_many_connections_cost_the_one_that_was_silent_longest(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
    with running.tcp() as first, running.tcp() as second:
        for tcp in (first, second, first):
            tcp.sendall(framed(frame_of()))
            assert len(read_frames(tcp, 1)) == 1
        with running.tcp() as third:
            assert read_frames(second, 1) == []
            for tcp in (first, third):
                tcp.sendall(framed(frame_of()))
                assert len(read_frames(tcp, 1)) == 1
    assert wait_until(lambda: not running.proxy._connections._open)
    assert addresses(running.ask(WWW, is_tcp=True)) == ["192.0.2.1"]


def test_strangers_get_no_answer_and_take_no_room(
    server: FakeServer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
    known: set[int] = set()
    running = stack.enter_context(
        Running(Policy().proxy(), [server.server], is_client=lambda client, _: client[1] in known)
    )
    strangers = [stack.enter_context(running.tcp()) for _ in range(20)]
    with running.udp() as stranger, running.udp() as client:
        known.add(client.getsockname()[1])
        stranger.send(frame_of())
        client.send(frame_of())
        assert dns.message.from_wire(client.recv(4096)).answer
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(4096)
    with socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        known.add(client.getsockname()[1])
        client.connect((running.address, running.port))
        client.sendall(framed(frame_of()))
        assert len(read_frames(client, 1)) == 1
    assert all(read_frames(each, 1) == [] for each in strangers)


# Sockets, and the end


def test_other_sockets_can_come_later(running: Running, policy: Policy) -> None:
    udp, tcp = bound_pair("::1")
    address = udp.getsockname()
    running.serve(udp, tcp)
    query = dns.message.make_query(WWW, "A")
    assert wait_until(lambda: bool(dns.query.udp(query, "::1", 30, address[1]).answer))
    assert dns.query.tcp(query, "::1", 30, address[1]).answer
    assert policy.events[0].client[0] == "::1"
    assert addresses(running.ask(WWW)) == ["192.0.2.1"]


def test_all_sockets_are_closed_at_the_end(server: FakeServer) -> None:
    """Also with questions that wait, and connections that are open."""
    server.script = lambda *_: []
    with proxied(server) as (running, _):
        tcp = running.tcp()
        tcp.sendall(framed(frame_of("a.test.")))
        with running.udp() as udp:
            udp.send(frame_of("b.test."))
            assert wait_until(lambda: len(server.asked) == 2)
        running.stop()
        with contextlib.suppress(ConnectionResetError):
            assert read_frames(tcp, 1) == []
        tcp.close()
        assert [each.fileno() for each in running.sockets] == [-1, -1]


class _BugError(Exception):
    pass


@pytest.mark.parametrize(
    "where", ["_ports_of_name", "_is_blocked_name", "_admit", "_report", "_follow"]
)
@pytest.mark.parametrize("is_tcp", [False, True])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_bug_costs_the_question_that_met_it(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, where: str, is_tcp: bool, is_cached: bool
) -> None:
    def broken(*_: object) -> None:
        raise _BugError(where)

    server.script = always(f"{WWW} 60 CNAME b.test.\nb.test. 60 A 192.0.2.1")
    policy = Policy()
    made = policy.proxy()
    with Running(made, [server.server]) as running:
        if is_cached:
            running.ask(WWW)
        with monkeypatch.context() as patched:
            patched.setattr(made, where, broken)
            rcode = running.ask(WWW, is_tcp=is_tcp).rcode()
        is_answered = where == "_report" or (where == "_follow" and is_cached)
        assert rcode == (dns.rcode.NOERROR if is_answered else dns.rcode.SERVFAIL)
        assert bool(policy.bugs) == (where != "_follow" or not is_cached)
        assert all(isinstance(bug, _BugError) for bug in policy.bugs)
        if policy.bugs and where != "_report":
            assert policy.events[-1].reason == "internal_error"
        assert addresses(running.ask(WWW, is_tcp=is_tcp)) == ["192.0.2.1"]


def additional(name: bytes, rdtype: int, rdclass: int, data: bytes) -> bytes:
    """A query for www.test with one additional record."""
    record = name + pack("!HHIH", rdtype, rdclass, 0, len(data)) + data
    return frame_of()[:10] + b"\0\1" + frame_of()[12:] + record


@pytest.mark.parametrize("rdtype", [1, 2, 5, 6, 28, 64, 65, 46, 65280])
def test_a_record_of_another_class_in_a_question_spoils_no_answer(
    running: Running, policy: Policy, server: FakeServer, rdtype: int
) -> None:
    """Not of any class, and whatever type was answered before: only OPT is read of a question."""
    kind = dns.rdatatype.to_text(rdtype)
    for rdclass in (255, 254, 3, 1):
        data = b"\300\14\300\14" + b"\0" * 20
        answer = dns.message.from_wire(running.raw(additional(b"\0", rdtype, rdclass, data)))
        assert answer.rcode() == dns.rcode.FORMERR
    texts = {
        "A": "192.0.2.1",
        "AAAA": "2001:db8::1",
        "NS": "b.test.",
        "CNAME": "b.test.",
        "SOA": "a. b. 1 2 3 4 5",
        "HTTPS": "1 . ipv4hint=192.0.2.1",
        "SVCB": "1 b.test.",
        "RRSIG": "A 8 2 60 20300101000000 20200101000000 1 test. AAAA",
        "TYPE65280": "\\# 2 0102",
    }
    server.script = always(f"{WWW} 60 {kind} {texts[kind]}")
    answer = running.ask(WWW, kind)
    assert [rrset.rdtype for rrset in answer.answer] == [rdtype]
    assert policy.bugs == []


def test_unseen_classes_and_types_leave_nothing_behind(
    running: Running, server: FakeServer
) -> None:
    """Not those of a question, of an additional record, or of an answer's records."""
    running.ask(WWW, use_edns=0)
    before = len(dns.rdata._rdata_classes)  # type: ignore[attr-defined]

    def strange(query: Message, _: str) -> list[bytes]:
        made = bytearray(a_record(query).to_wire())
        for number in range(50):
            made += b"\300\14" + pack("!HHIH", 3000 + number, 7000 + number, 0, 2) + b"ab"
        made[10:12] = pack("!H", 51)
        return [bytes(made)]

    server.script = strange
    for number in range(50):
        head = frame_of()[:-4]
        running.raw(head + pack("!HH", 1000 + number, 300 + number))
        running.raw(additional(b"\0", 2000 + number, 5000 + number, b"ab"))
        # The class of an OPT record is the client's payload size.
        assert running.ask(f"n{number}.test.", use_edns=0, payload=600 + number).answer
    assert len(dns.rdata._rdata_classes) == before  # type: ignore[attr-defined]


def test_run_ends_with_its_task(server: FakeServer) -> None:
    """Cancelled, as whoever runs it may do, it closes what it has all the same."""

    async def run() -> None:
        udp, tcp = bound_pair()
        made = Policy().proxy()
        made.serve(upstream.Upstream(lambda: [server.server]), lambda *_: True, udp, tcp)
        before = asyncio.get_running_loop().get_exception_handler()
        task = asyncio.create_task(made.run(asyncio.Event()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (udp.fileno(), tcp.fileno()) == (-1, -1)
        assert asyncio.get_running_loop().get_exception_handler() is before

    asyncio.run(run())
