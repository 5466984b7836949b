# SPDX-License-Identifier: GPL-2.0-only
"""docker_dns's programs against a model, and what they make of a packet against scapy.

For a longer run: ZFW_DIFFERENTIAL_COMPARISONS=1000000, and ZFW_DIFFERENTIAL_SEED=N
to repeat one that failed.
"""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import ExitStack
from ipaddress import IPv4Address
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet import UDP as UdpHeader
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.docker_dns.support.container import container, opened
from tests.docker_dns.support.packets import (
    Build,
    fragments,
    is_rewritten,
    random_style,
    whole,
)
from tests.docker_dns.support.programs import (
    CHECKSUM_COMPLETE,
    DROP,
    LEAVE,
    REDIRECT,
    RESOLVER,
    SERVER,
    SOURCE,
    Answer,
    AnswerKey,
    Fragment,
    FragmentKey,
    Programs,
    Query,
    QueryKey,
    Settings,
    Truncated,
    coarse_now,
)
from tests.docker_dns.support.reference import (
    NOW,
    SECOND,
    TCP,
    UDP,
    Ends,
    Expected,
    LocalSocket,
    Model,
)
from tests.support.seeds import new_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SEEDS = range(10)
PACKETS_PER_SEED = 1500
PACKETS_PER_MODEL = 150

VERDICTS = {LEAVE: "leave", DROP: "drop", REDIRECT: "redirect"}
LOCALHOST, OTHER_SERVER = IPv4Address("127.0.0.1"), IPv4Address("10.9.0.3")
SOURCES = (LOCALHOST, LOCALHOST, IPv4Address("127.0.0.2"), RESOLVER, SOURCE)
SOURCE_PORTS = (0, 1024, 5353, 40000, 40001, 40002, 40003, 65535)
DAEMON, NEXT_DAEMON, NO_DAEMON = 41552, 41553, 41554
# Seconds since a flow was used; of the future: another CPU's clock ticked first.
AGES = (-2, 0, 0, 1, 10, 20, 40, 100, 200, 400, 4000)
SUFFIXES = ("example", "corp.example", "a.b.c.test", "x", "")
NAMES = ("example", "www.Example", "a.corp.example", "other.test", "b.c.test", "z.a.b.c.test", "")


# Program, verdict, outcome.
Seen = tuple[str, str, str | None]
USUAL = (("query", "redirect", "query"), ("answer", "redirect", "answer"))


@pytest.fixture(scope="module")
def programs(_private_bpffs: None) -> Iterator[Programs]:
    with Programs() as made:
        yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_programs_and_model_agree(programs: Programs, seed: int) -> None:
    seen = _compare(programs, seed, PACKETS_PER_SEED)
    # It was about something.
    assert min(seen[each] for each in USUAL) > PACKETS_PER_SEED / 50


@pytest.mark.timeout(0)
def test_programs_and_model_agree_on_a_new_seed(programs: Programs) -> None:
    for seed, comparisons in new_seeds(PACKETS_PER_SEED):
        _compare(programs, seed, comparisons)


# --- what there is ---------------------------------------------------------------------------


def _random_model(rng: Random) -> Model:
    settings = Settings(
        server_port=rng.choice((53, 53, 5353)),
        first_port=rng.choice((20000, 65000)),
        port_count=rng.choice((0, 1, 3, 20, 60, 60, 500, 500, 500)),
        has_domains=rng.random() < 0.5,
        redirects_tcp=rng.random() < 0.7,
        is_watched=rng.random() < 0.9,
    )
    daemon = {
        protocol: rng.choice((0, DAEMON, DAEMON, DAEMON, NO_DAEMON)) for protocol in (UDP, TCP)
    }
    suffixes = set(rng.sample(SUFFIXES, rng.randrange(4))) if settings.has_domains else set()
    return Model(settings, daemon, suffixes, _random_sockets(rng, settings))


def _random_sockets(rng: Random, settings: Settings) -> list[LocalSocket]:
    sockets = [
        LocalSocket(protocol, RESOLVER, port)
        for protocol in (UDP, TCP)
        for port in (DAEMON, NEXT_DAEMON)
        if rng.random() < 0.6
    ]
    sockets += [LocalSocket(protocol, None, NO_DAEMON) for protocol in (UDP, TCP)]
    ports = range(settings.first_port, settings.first_port + settings.port_count)
    for port in rng.sample(ports, min(len(ports), rng.randrange(12))):
        address = rng.choice((None, SOURCE, LOCALHOST))
        sockets.append(LocalSocket(rng.choice((UDP, TCP)), address, port))
        if address == SOURCE and rng.random() < 0.5:
            peer = (rng.choice((SERVER, OTHER_SERVER)), settings.server_port)
            sockets[-1] = LocalSocket(UDP, address, port, peer)
    return sockets


def _fill(rng: Random, model: Model) -> None:
    """Flows, whole and in halves as the tables forget them, and first fragments."""
    settings, now = model.settings, coarse_now()
    for _ in range(rng.randrange(60)):
        key = _random_key(rng, model)
        port = settings.first_port + rng.randrange(settings.port_count or 1)
        server = rng.choice((settings.server, settings.server, settings.server, OTHER_SERVER))
        query = Query(_ago(rng, now), server, settings.server_port, port)
        answer_key = AnswerKey(server, settings.server_port, port, key.protocol)
        if rng.random() < 0.9:
            model.queries[key] = query
        if rng.random() < 0.9:
            model.answers[answer_key] = Answer(_ago(rng, now), key)
    for _ in range(rng.randrange(20)):
        fragment = FragmentKey(SERVER, rng.randrange(8), rng.choice((UDP, TCP)))
        model.fragments[fragment] = Fragment(_ago(rng, now), RESOLVER, rng.choice(SOURCES))
    for client in rng.sample(sorted(set(SOURCES)), rng.randrange(4)):
        last = now - rng.choice((0, 0, 1, 9)) * SECOND
        model.truncated[client] = Truncated(last, rng.randrange(4))


def _ago(rng: Random, now: int) -> int:
    return now - rng.choice(AGES) * SECOND


def _random_key(rng: Random, model: Model) -> QueryKey:
    protocol = rng.choice((UDP, UDP, TCP))
    ports = (model.daemon[protocol],) * 12 + (DAEMON, NEXT_DAEMON, NO_DAEMON, 53, 0)
    destination = rng.choice((RESOLVER,) * 20 + (IPv4Address("127.0.0.12"), SERVER))
    return QueryKey(
        rng.choice(SOURCES), destination, rng.choice(SOURCE_PORTS), rng.choice(ports), protocol
    )


def _write(programs: Programs, model: Model) -> None:
    programs.clear()
    programs.configure(model.settings)
    programs.set_daemon(model.daemon[UDP], model.daemon[TCP])
    programs.set_domains(model.suffixes)
    for query_key, query in model.queries.items():
        programs.write_query(query_key, query)
    for answer_key, answer in model.answers.items():
        programs.write_answer(answer_key, answer)
    for fragment_key, fragment in model.fragments.items():
        programs.write_fragment(fragment_key, fragment)
    for client, truncated in model.truncated.items():
        programs.write_truncated(client, truncated)


# --- packets ---------------------------------------------------------------------------------


class Sent(NamedTuple):
    """A frame; and with what ends scapy would build it, unless it was spoilt."""

    frame: bytes
    build: Build | None


def _random_ends(rng: Random, model: Model, program: str) -> tuple[int, Ends]:
    key = _random_key(rng, model)
    if program == "query":
        if model.queries and rng.random() < 0.4:
            key = rng.choice(list(model.queries))
        return key.protocol, Ends(*key[:4])
    answer = AnswerKey(
        rng.choice((SERVER, SERVER, SERVER, OTHER_SERVER)),
        rng.choice((model.settings.server_port, 53)),
        model.settings.first_port + rng.randrange(model.settings.port_count + 2),
        key.protocol,
    )
    if model.answers and rng.random() < 0.9:
        answer = rng.choice(list(model.answers))
    destination = rng.choice((SOURCE,) * 19 + (OTHER_SERVER,))
    return answer.protocol, Ends(answer.server, destination, answer.server_port, answer.port)


def _random_payload(rng: Random, protocol: int) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(rng.choice((0, 1, 12, 13, 40, 511, 1400, 3000)))
    question = DNSQR(qname=rng.choice(NAMES), qtype="AAAA")
    is_answer, is_truncated = rng.random() < 0.1, rng.random() < 0.2
    header = DNS(id=rng.randrange(65536), qr=is_answer, tc=is_truncated, qd=question)
    message = bytes(header)
    message += bytes(rng.choice((0, 0, 11, 1200)))
    return message if protocol == UDP else struct.pack("!H", len(message)) + message


def _random_frame(rng: Random, model: Model, program: str) -> Sent:
    protocol, ends = _random_ends(rng, model, program)
    style = random_style(rng)
    payload = _random_payload(rng, protocol)
    kind = rng.random()
    if kind < 0.06:
        return Sent(_other(rng, ends, payload), None)
    if kind < (0.12 if program == "query" else 0.4):
        if rng.random() < 0.7:
            style.ip["id"] = rng.randrange(8)
        most = (len(payload) + 8) // 8
        cuts = sorted(rng.sample(range(1, max(most, 5)), min(rng.randrange(1, 4), most)))
        pieces = fragments(protocol, payload, ends, cuts, style)
        build = rng.choice(pieces)
    else:
        build = whole(protocol, payload, style)
    frame = build(ends)
    if rng.random() < 0.15:
        return Sent(_spoilt(rng, frame), None)
    if program == "answer" and rng.random() < 0.04:
        # For somebody else on the wire.
        return Sent(rng.choice((b"\2\0\0\0\0\5", b"\xff" * 6, b"\1\0\x5e\0\0\1")) + frame[6:], None)
    return Sent(frame, build)


def _other(rng: Random, ends: Ends, payload: bytes) -> bytes:
    """What is not DNS over IPv4."""
    ip = IP(src=str(ends.source), dst=str(ends.destination))
    udp = UdpHeader(sport=ends.source_port, dport=ends.destination_port) / payload
    ethernet = Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00")
    return bytes(
        ethernet
        / rng.choice(
            (
                ARP(psrc=str(ends.source), pdst=str(ends.destination)),
                IPv6(src="::1", dst="::1") / udp,
                IPv6(src="::ffff:10.9.0.1", dst="::ffff:10.9.0.2") / udp,
                Dot1Q(vlan=5) / ip / udp,
                # A tag that looks like the header of an IPv4 packet with an option.
                Dot1Q(prio=2, vlan=0x600) / ip / udp,
                ip / ICMP() / payload,
                ip.__class__(src=ip.src, dst=ip.dst, proto=136) / bytes(udp),
                ip.__class__(src=ip.src, dst=ip.dst, proto=4) / ip / udp,
            )
        )
    )


def _spoilt(rng: Random, frame: bytes) -> bytes:
    """Malformed; a kernel takes no test of less than the IPv4 header."""
    spoilt = bytearray(frame)
    transport = 14 + (frame[14] & 15) * 4
    kind = rng.randrange(7)
    if kind == 0:
        return frame[: rng.randrange(34, len(frame) + 1)]
    if kind == 1:
        for _ in range(rng.randrange(1, 4)):
            spoilt[rng.randrange(14, len(frame))] = rng.randrange(256)
    elif kind == 2:
        spoilt[14] = rng.choice((0x40 | rng.randrange(16), 0x65, 0x05))
    elif kind == 3:
        total = rng.choice((0, 19, 20, 27, 28, len(frame) - 15, len(frame) - 13, 65535))
        spoilt[16:18] = struct.pack("!H", total)
    elif kind == 4:
        spoilt[24:26] = rng.randbytes(2)
    elif transport + 8 <= len(frame):
        # UDP's length, or its checksum.
        place = transport + 2 * kind - 6
        near = struct.pack(
            "!H", (frame[place] << 8 | frame[place + 1]) + rng.randrange(-9, 2) & 0xFFFF
        )
        spoilt[place : place + 2] = rng.choice((rng.randbytes(2), b"\xff\xff", b"\0\x08", near))
    return bytes(spoilt)


# --- comparison ------------------------------------------------------------------------------


def _compare(programs: Programs, seed: int, packets: int) -> Counter[Seen]:
    rng = Random(seed)
    seen: Counter[Seen] = Counter()
    left = packets
    with container():
        while left > 0:
            model = _random_model(rng)
            _fill(rng, model)
            _write(programs, model)
            with ExitStack() as sockets:
                for described in model.sockets:
                    sockets.enter_context(opened(described))
                some = min(left, PACKETS_PER_MODEL)
                seen += _compare_some(programs, model, rng, some)
                left -= some
    return seen


def _compare_some(programs: Programs, model: Model, rng: Random, packets: int) -> Counter[Seen]:
    seen: Counter[Seen] = Counter()
    counted: Counter[str] = Counter()
    size: Counter[str] = Counter()
    flags = (0, CHECKSUM_COMPLETE) if programs.supports_checksum_complete() else (0,)
    for _ in range(packets):
        program = rng.choice(("query", "query", "answer"))
        sent = _random_frame(rng, model, program)
        begin = coarse_now()
        number, after = programs.run(program, sent.frame, rng.choice(flags))
        end = coarse_now()
        verdict = VERDICTS[number]
        shown = f"{program} {sent.frame.hex()}, {model.settings}"
        if program == "query":
            transport = 14 + (after[14] & 15) * 4
            port = int.from_bytes(after[transport : transport + 2], "big")
            expected = model.query(sent.frame, begin, None if verdict == "drop" else port)
        else:
            expected = model.answer(sent.frame, begin)
        assert verdict == expected.verdict, shown
        _check_packet(sent, after, expected, shown)
        assert programs.events() == ([expected.event] if expected.event else []), shown
        _check_tables(programs, model, begin, end, shown)
        seen[program, expected.verdict, expected.outcome] += 1
        if expected.outcome:
            counted[expected.outcome] += 1
            size[expected.outcome] += len(sent.frame)
    assert programs.counted() == {name: (counted[name], size[name]) for name in counted}
    assert programs.daemon() == (model.daemon[UDP], model.daemon[TCP])
    return seen


def _check_packet(sent: Sent, after: bytes, expected: Expected, shown: str) -> None:
    if expected.ends is None:
        assert after == sent.frame, shown
    elif sent.build is None:
        assert is_rewritten(sent.frame, after, expected.ends, expected.mss), shown
    else:
        assert after == sent.build(expected.ends, expected.mss), shown


def _check_tables(programs: Programs, model: Model, begin: int, end: int, shown: str) -> None:
    """They are as the model has them; times become what they are."""
    answers = programs.answers()
    for key in [key for key in model.answers if key not in answers]:
        assert model.may_have_gone(key, end), shown
        del model.answers[key]
    for actual, wanted in (
        (programs.queries(), model.queries),
        (answers, model.answers),
        (programs.fragments(), model.fragments),
        (programs.truncated(), model.truncated),
    ):
        assert actual.keys() == wanted.keys(), shown
        for key, value in actual.items():
            if wanted[key].last == NOW:
                assert begin <= value.last <= end, shown
                wanted[key] = wanted[key]._replace(last=value.last)
            assert value == wanted[key], shown
