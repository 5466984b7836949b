# SPDX-License-Identifier: GPL-2.0-only
"""Measure zfw: what a packet, a connection, a command and a million rules cost.

Everything happens in network namespaces, a mount namespace and a temporary
directory of its own; nothing of it outlives the process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bpf.build import BuildError, compile_bpf
from tests.bench import docker_dns, flows, guard, packets, path, report, rules, startup, steer
from tests.bench.chart import Bar, svg
from tests.bench.installation import Installation, installed
from tests.support.netns import use_private_bpffs
from zfw_py.cli import output
from zfw_py.errors import ZfwError

if TYPE_CHECKING:
    from tests.bench.report import Section


# Those that start commands come first: later this process is large.
PARTS = {
    "startup": "what a command costs as a process",
    "rules": "loading, listing and the memory of up to a million rules",
    "packets": "nanoseconds a packet in the ingress program",
    "path": "connections, datagrams and throughput, against nftables TPROXY",
    "flows": "what leaves and what is forwarded, against nftables ct state; a million flows",
    "guard": "what a guarded program's calls, packets and DNS cost it",
    "docker-dns": "a container's DNS redirected, against Docker's NAT rules",
    "steer": "steered connections, against a plain listener and nftables; take-over times",
}
_NEEDED = {
    "path": ("nft", "iperf3", "ip"),
    "flows": ("nft", "iperf3", "ip"),
    "guard": ("dnsmasq", "ip"),
    "docker-dns": ("dnsmasq", "nft", "ip"),
    "steer": ("nft", "ip"),
}


class _Bench:
    """The parts, and what some of them share."""

    def __init__(self, work: Path, stack: ExitStack, *, is_quick: bool) -> None:
        self._work = work
        self._stack = stack
        self._is_quick = is_quick
        self._installation: Installation | None = None

    def measure(self, part: str) -> Section:
        """Measure one part."""
        if part == "packets":
            compile_bpf(Path(__file__).with_name("empty.bpf.c"), self._work / "empty.bpf.o")
            return packets.run(self._work, quick=self._is_quick)
        if part == "path":
            return path.run(self._work, quick=self._is_quick)
        if part == "steer":
            return steer.run(self._work, quick=self._is_quick)
        if part == "flows":
            return flows.run(self._work, quick=self._is_quick)
        if part == "docker-dns":
            return docker_dns.run(self._work, quick=self._is_quick)
        if self._installation is None:
            self._installation = self._stack.enter_context(installed(self._work))
        if part == "startup":
            return startup.run(self._installation, quick=self._is_quick)
        if part == "guard":
            return guard.run(self._installation, self._work, quick=self._is_quick)
        return rules.run(self._installation, self._work, quick=self._is_quick)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog="parts: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()),
    )
    parser.add_argument("part", nargs="*", metavar="PART", help="which parts; all if none is named")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the main ones there")
    arguments = parser.parse_args()
    for part in arguments.part:
        if part not in PARTS:
            parser.error(f"no part {part!r}; there are {', '.join(PARTS)}")
    return arguments


def main() -> int:
    """0 if every target is met, 1 if one is not, 2 if it could not be measured."""
    arguments = _arguments()
    parts = arguments.part or list(PARTS)
    if os.geteuid() != 0:
        print("bench: needs root", file=sys.stderr)
        return 2
    for part in parts:
        if absent := path.missing(_NEEDED.get(part, ())):
            print(f"bench: for the part {part}: {absent}", file=sys.stderr)
            return 2
    # A plain kill takes the same way out as ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    started = time.monotonic()
    machine = report.machine()
    sections: dict[str, Section] = {}
    use_private_bpffs()
    try:
        with TemporaryDirectory(prefix="zfw-bench-") as directory, ExitStack() as stack:
            bench = _Bench(Path(directory), stack, is_quick=arguments.quick)
            for part in parts:
                sections[part] = bench.measure(part)
    except (BuildError, FileNotFoundError, subprocess.CalledProcessError, ZfwError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 2

    output.line(machine)
    for section in sections.values():
        section.show()
    is_met = report.show_targets(list(sections.values()))
    output.line("")
    load = os.getloadavg()[0]
    output.line(f"{time.monotonic() - started:.0f} s, load {load:.2f} at the end")
    if arguments.json:
        figures = {name: section.as_object() for name, section in sections.items()}
        text = json.dumps({"machine": machine, "parts": figures}, indent=2)
        arguments.json.write_text(text + "\n")
    if arguments.svg:
        arguments.svg.write_text(svg(_panels(sections)))
    return 0 if is_met else 1


def _panels(sections: dict[str, Section]) -> dict[str, list[Bar]]:
    panels = {}
    if "packets" in sections:
        section = sections["packets"]
        bars = []
        for load, limit in packets.LOADS.items():
            cost = section.median(f"{load}; 1 rule")
            bars.append(Bar(load, cost, f"{cost:.0f} ns", limit=limit))
        empty = section.median(f"{load}; 1 rule; empty")
        bars.append(Bar("an empty program, bulk", empty, f"{empty:.0f} ns", is_ours=False))
        panels["Ingress program, nanoseconds a packet, 1 rule (red: target)"] = bars
    if "path" in sections:
        section = sections["path"]
        for measure in (path.CONNECTIONS, path.DATAGRAMS, path.THROUGHPUT):
            bars = []
            for firewall, count in path.MODES:
                value = section.median(f"{measure}; {firewall}; {count}")
                label = f"{firewall}, {path.counted(count)}" if count else "no firewall"
                bars.append(Bar(label, value, report.number(value), is_ours=firewall == "zfw"))
            panels[measure] = bars
    if "guard" in sections:
        panels |= guard.panels(sections["guard"])
    if "docker-dns" in sections:
        panels |= docker_dns.panels(sections["docker-dns"])
    return panels


if __name__ == "__main__":
    sys.exit(main())
