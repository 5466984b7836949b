# SPDX-License-Identifier: GPL-2.0-only
"""DNS from a container: redirected, as Docker's own rules have it, and by other ways."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from tests.bench.chart import Bar
from tests.bench.guard_bed import DOMAINS
from tests.bench.guard_dns import AT_A_TIME, dnsmasq
from tests.bench.packets import run_time, run_time_statistics
from tests.bench.path import build
from tests.bench.report import Section, number, progress
from tests.docker_dns.support.world import RESOLVER, SERVER, DockerNetwork, nft_rules
from zfw_py.docker_dns import layout
from zfw_py.docker_dns.maps import STORE
from zfw_py.docker_dns.model import Redirect
from zfw_py.docker_dns.service import DnsRedirect
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zfw_py.docker_dns.maps import Manifest

DIRECT, DOCKER, OUTWARD = "asked directly", "Docker's DNAT, server on lo", "DNAT out, masqueraded"
REDIRECT = "redirected"
DAEMON_PORT = 41552
NAMES = 1000
RATE, ALONE = "answers/s", "us, one at a time"
NEW = ", new sockets"
# By the name of a figure: questions at a time, and whether each has a socket of its own.
LOADS = {
    RATE: (AT_A_TIME, False),
    ALONE: (1, False),
    RATE + NEW: (AT_A_TIME, True),
    ALONE + NEW: (1, True),
}
NS = "program ns"
LOST = "questions without an answer"

# What it takes to have rules of NAT's alone do the same.
_OUTWARD_RULES = f"""
table ip outward {{
    chain output {{
        type nat hook output priority -100; policy accept;
        ip daddr {RESOLVER} udp dport 53 dnat to {SERVER}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip daddr {SERVER} masquerade
    }}
}}
"""


def _suffixes(count: int) -> list[str]:
    """The last one is that of the names that are asked for."""
    return [*(f"d{n}.example" for n in range(count - 1)), DOMAINS[0]]


# By way the suffixes of --only-domain.
REDIRECTS = {
    REDIRECT: [],
    f"{REDIRECT}, 1 suffix": _suffixes(1),
    f"{REDIRECT}, {layout.DOMAINS:,} suffixes": _suffixes(layout.DOMAINS),
}
WAYS = (DIRECT, DOCKER, OUTWARD, *REDIRECTS)
COMPARED = (
    *((REDIRECT, way) for way in (DIRECT, DOCKER, OUTWARD)),
    *((way, REDIRECT) for way in REDIRECTS if way != REDIRECT),
)


class Answers(NamedTuple):
    """What tests/bench/questions.c says."""

    rate: float
    microseconds: float
    lost: float
    all_: float


class Bed:
    """A container with Docker's rules and a server on lo, and another server outside."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        self.network = stack.enter_context(DockerNetwork())
        self._program = str(work / "questions")
        container = self.network.container
        container.run("nft", "-f", "-", input=nft_rules(DAEMON_PORT, DAEMON_PORT))
        stack.enter_context(dnsmasq(container, work, RESOLVER, DAEMON_PORT))
        stack.enter_context(dnsmasq(self.network.server, work, SERVER))

    def send_outward(self) -> None:
        """NAT takes queries to the server outside instead."""
        container = self.network.container
        container.run("nft", "-f", "-", input=f"delete table ip docker-dns\n{_OUTWARD_RULES}")
        container.sysctl(1, "ipv4/conf/eth0/route_localnet")

    def redirect(self, suffixes: Sequence[str]) -> Manifest:
        """Ours does."""
        asked = Redirect.parse(SERVER, domains=suffixes)
        return DnsRedirect(self.network.path).create(asked)

    def ask(self, address: str, seconds: float, at_a_time: int, *, is_new: bool) -> Answers:
        """Ask from within the container for so long."""
        numbers = map(str, (seconds, at_a_time, NAMES))
        options = ("new",) if is_new else ()
        done = self.network.container.run(self._program, address, *numbers, *options)
        return Answers(*map(float, done.stdout.split()))


class _Programs:
    """The two of a redirect."""

    def __init__(self, identifier: str, stack: ExitStack) -> None:
        self._opened = []
        for name in ("query", "answer"):
            program = bpf_maps.open_pin(f"{STORE.directory(identifier)}/program_{name}")
            stack.callback(os.close, program)
            self._opened.append(program)

    def nanoseconds(self) -> int:
        """What they have taken until now."""
        return sum(run_time(program)[0] for program in self._opened)


class _Measured:
    """All ways at once, each in a container of its own, but for the one that needs none."""

    def __init__(self, work: Path, stack: ExitStack) -> None:
        plain, outward = Bed(work, stack), Bed(work, stack)
        outward.send_outward()
        self._ways = {
            DIRECT: (plain, SERVER),
            DOCKER: (plain, RESOLVER),
            OUTWARD: (outward, RESOLVER),
        }
        self._programs = {}
        stack.callback(DnsRedirect.remove_all)
        for way, suffixes in REDIRECTS.items():
            bed = Bed(work, stack)
            self._programs[way] = _Programs(bed.redirect(suffixes).id, stack)
            self._ways[way] = (bed, RESOLVER)

    def measure(self, section: Section, seconds: float, order: int) -> None:
        """One round: each load, by each way."""
        for load, (at_a_time, is_new) in LOADS.items():
            for way in WAYS[::order]:
                bed, address = self._ways[way]
                told = bed.ask(address, seconds, at_a_time, is_new=is_new)
                section.add(f"{load}; {way}", told.microseconds if at_a_time == 1 else told.rate)
                section.add(LOST, told.lost)
        with run_time_statistics():
            for way, programs in self._programs.items():
                bed, address = self._ways[way]
                before = programs.nanoseconds()
                told = bed.ask(address, seconds / 2, AT_A_TIME, is_new=False)
                section.add(f"{NS}; {way}", (programs.nanoseconds() - before) / told.all_)


def run(work: Path, *, quick: bool) -> Section:
    """Rates and latencies of each way, and what the programs take of them."""
    rounds, seconds = (3, 0.12) if quick else (11, 0.12)
    section = Section(
        "docker-dns: a container's questions to its built-in resolver",
        [
            f"{AT_A_TIME} questions at a time for {NAMES:,} names, from one thread of C, to a"
            " dnsmasq; one socket for all, or a new one for each",
            "Docker's DNAT: its rules, to a server in the container; all others: to the same kind"
            " of server across a bridge and a router",
            "DNAT out: what rules can do instead, with route_localnet set",
            f"{ALONE}: median of one question at a time; {NS}: both programs, a question, by the"
            " kernel's run-time statistics",
            f"medians of {rounds} interleaved rounds of {seconds} s; ratios: median of each"
            " round's own",
        ],
        ["WAY", *LOADS, NS],
    )
    build(work, "questions")
    with ExitStack() as stack:
        measured = _Measured(work, stack)
        for number_of_round in range(rounds):
            progress(f"docker-dns: round {number_of_round + 1} of {rounds}")
            # There and back: what drifts meets all alike.
            measured.measure(section, seconds, -1 if number_of_round % 2 else 1)
    for way in WAYS:
        figures = [section.median(f"{load}; {way}") for load in LOADS]
        spent = number(section.median(f"{NS}; {way}")) if way in REDIRECTS else "-"
        section.rows.append((way, *map(number, figures), spent))
    for way, other in COMPARED:
        ratios = [number(_ratio(section, load, way, other)) for load in LOADS]
        spent = number(_ratio(section, NS, way, other)) if other in REDIRECTS else "-"
        section.rows.append((f"{way} to {other}", *ratios, spent))
    section.rows.append((LOST, f"{sum(section.rounds[LOST]):,.0f}", *["-"] * len(LOADS)))
    return section


def _ratio(section: Section, load: str, way: str, other: str) -> float:
    ours, theirs = (section.rounds[f"{load}; {each}"] for each in (way, other))
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def panels(section: Section) -> dict[str, list[Bar]]:
    """The main figures, to draw."""
    return {
        f"Docker DNS: {load}": [
            Bar(way, value, number(value), is_ours=way in REDIRECTS)
            for way in WAYS
            for value in [section.median(f"{load}; {way}")]
        ]
        for load in (RATE + NEW, ALONE + NEW)
    }
