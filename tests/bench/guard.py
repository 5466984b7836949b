# SPDX-License-Identifier: GPL-2.0-only
"""What a guard costs who is guarded: beside the same without one, in the same run."""

from __future__ import annotations

from contextlib import ExitStack
from operator import truediv
from statistics import median
from typing import TYPE_CHECKING

from tests.bench import guard_dns as dns
from tests.bench import guard_sockets as sockets
from tests.bench.chart import Bar
from tests.bench.guard_bed import MANY, UPSTREAM, Bed, detach, many_addresses
from tests.bench.report import Section, number, progress

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.installation import Installation

TRUE = "/usr/bin/true"
COMMAND, PLAIN, GUARDED = "a command that does nothing, ms", "true", "zfw guard run -- true"
ATTACHING, KERNEL, PROCESS = "s to attach", "MB in the kernel", "MB of the process"
ADMITTING = "us to admit an address"
EVENTS_LOST = "events that found no room"
# How the names of figures end that have nothing beside them.
_ALONE = (sockets.NS, ATTACHING, KERNEL, PROCESS, ADMITTING)
_MB = 1_000_000


def run(installation: Installation, work: Path, *, quick: bool) -> Section:
    """Calls, packets, DNS, whole commands, and guards with many prefixes."""
    rounds, seconds, attaches = (3, 0.15, 2) if quick else (9, 0.3, 5)
    section = Section(
        "guard: what is guarded, beside the same in a sibling cgroup without a guard",
        [
            f"calls: one thread of C; connections: {sockets.IN_PARALLEL} threads connect and reset,"
            f" {sockets.ACCEPTING} accept; packets: {sockets.PACKET_SIZE} bytes, sendmmsg, that"
            " the kernel took; bulk: sendall of 256 KiB",
            f"scattered, and ns a run of what is allowed: to {sockets.SENT_TO:,} of the {MANY:,}"
            " addresses in turn, of a raw socket; ns a run: run-time statistics of the kernel",
            f"DNS: dnsmasq asked directly, or by the guard's proxy; {dns.AT_A_TIME} questions at a"
            " time; 1 name and 1,000 names: from the proxy's cache",
            f"medians of {rounds} interleaved rounds, lowest and highest with a guard;"
            " x: median of each round's own",
        ],
        ["WHAT", "WITHOUT", "WITH", "x", "LOWEST", "HIGHEST"],
    )
    with ExitStack() as stack:
        bed = Bed(installation, work, stack)
        _measure_attaching(section, bed, attaches)
        measured = sockets.Sockets(bed, work, stack)
        few = measured.guards[sockets.FEW]
        server = stack.enter_context(dns.dnsmasq(bed.network.gateway, work, UPSTREAM))
        asked = dns.Dns(bed, few, server, work)
        for number_of_round in range(rounds):
            progress(f"guard: round {number_of_round + 1} of {rounds}")
            # There and back: what drifts meets all alike.
            order = -1 if number_of_round % 2 else 1
            measured.measure_calls(section, seconds / 2, order)
            measured.measure_rates(section, seconds, order)
            measured.measure_runs(section, seconds / 2)
            asked.measure(section, seconds * 2, order)
            _measure_commands(section, bed, order)
        section.add(ADMITTING, measured.admit_seconds / MANY * 1e6)
        section.add(EVENTS_LOST, measured.guards[sockets.LOGGED].maps.lost())
    _fill(section)
    return section


def counted(prefixes: int) -> str:
    """1 prefix, 100,000 prefixes."""
    return "1 prefix" if prefixes == 1 else f"{prefixes:,} prefixes"


def _measure_attaching(section: Section, bed: Bed, times: int) -> None:
    path = bed.cgroup("attached")
    for count, allow in ((1, ["10.0.0.0/8"]), (MANY, many_addresses())):
        for n in range(times):
            progress(f"guard: attaching with {counted(count)}, {n + 1} of {times}")
            made = bed.attach(path, allow)
            try:
                what = counted(count)
                section.add(f"{what}; {ATTACHING}", made.seconds)
                section.add(f"{what}; {KERNEL}", made.kernel_memory() / _MB)
                section.add(f"{what}; {PROCESS}", made.supervisor_memory() / _MB)
            finally:
                detach(made)


def _measure_commands(section: Section, bed: Bed, order: int) -> None:
    guarded = (bed.zfw, "guard", "run", "--allow", UPSTREAM, "--dns-upstream", UPSTREAM)
    for name, command in ((PLAIN, (TRUE,)), (GUARDED, (*guarded, "--", TRUE)))[::order]:
        section.add(f"{COMMAND}; {name}", bed.time(*command) * 1000)


def _fill(section: Section) -> None:
    command = (COMMAND, f"{COMMAND}; {PLAIN}", f"{COMMAND}; {GUARDED}")
    for what, without, guarded in (*sockets.COMPARED, *dns.COMPARED, command):
        plain, figures = section.rounds[without], section.rounds[guarded]
        middles = number(median(plain)), number(median(figures))
        ratio = number(median(map(truediv, figures, plain)))
        section.rows.append((what, *middles, ratio, number(min(figures)), number(max(figures))))
    for what, figures in section.rounds.items():
        if what.endswith(_ALONE):
            ends = number(min(figures)), number(max(figures))
            section.rows.append((what, "-", number(median(figures)), "-", *ends))
    for what in (dns.LOST, EVENTS_LOST):
        section.rows.append((what, "-", f"{sum(section.rounds[what]):,.0f}", *"---"))


def panels(section: Section) -> dict[str, list[Bar]]:
    """The main figures, to draw."""
    shown = (sockets.EMPTY, sockets.ADMITTED, *sockets.ALLOWED.values(), sockets.REFUSED)
    runs = [
        Bar(what.removeprefix("egress: "), cost, f"{number(cost)} ns", what != sockets.EMPTY)
        for what in shown
        for cost in [section.median(f"{what}{sockets.NS}")]
    ]
    left = []
    for rate, guards in sockets.RATES.items():
        plain = section.rounds[f"{rate}; {sockets.NONE}"]
        for guard in guards:
            share = median(map(truediv, section.rounds[f"{rate}; {guard}"], plain)) * 100
            left.append(Bar(f"{rate}; {guard}", share, f"{share:.0f} %"))
    answers = [
        Bar(f"{load}, {way}", rate, number(rate), is_ours=way == dns.PROXY)
        for load in dns.LOADS
        for way in (dns.DNSMASQ, dns.PROXY)
        for rate in [section.median(f"{load}; {dns.RATE}; {way}")]
    ]
    return {
        "Guard: its egress program, nanoseconds a run": runs,
        "Guard: rates with a guard, relative to none": left,
        "Guard: DNS answers/s": answers,
    }
