# SPDX-License-Identifier: GPL-2.0-only
"""Many rules: how fast they are loaded and listed, and what they weigh in the kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.installation import Installation
from tests.bench.installation import run as run_command
from tests.bench.report import Section, Target, number, progress
from tests.support.netns import Network
from zfw_py import Firewall
from zfw_py.firewall import layout
from zfw_py.firewall.codec import from_u32
from zfw_py.firewall.maps import STORE
from zfw_py.kernel import bpf_maps
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY, MOST = 100_000, 1_000_000
RULES_A_SECOND, LIST_SECONDS, EMPTY_MEGABYTES = 50_000, 2, 16
_MB = 1_000_000
_MEMORY = "memory in the kernel, MB"


def _write_lines(file: Path, count: int, verb: str) -> None:
    with file.open("w") as out:
        for n in range(count):
            address = f"{11 + (n >> 23)}.{n >> 15 & 255}.{n >> 7 & 255}.{(n >> 1 & 63) * 4}"
            protocol = "udp" if n & 1 else "tcp"
            out.write(f"{verb} -c {address} -m 32 -p {protocol} -l 443 -h 443 -t 43321\n")


def _descriptors(directory: str) -> Iterator[int]:
    """Every map and program that is pinned there, and the maps inside maps."""
    for pin in Path(directory).iterdir():
        if pin.name.startswith("link_"):
            continue
        fd = bpf_maps.open_pin(str(pin))
        try:
            yield fd
        finally:
            os.close(fd)
        if pin.name in layout.INNER_MAPS:
            for _, inner in bpf_maps.open_map(str(pin)).items():
                opened = bpf_maps.open_map_by_id(from_u32(inner))
                yield opened.fd


def kernel_memory() -> int:
    """Bytes of all maps and programs of the caller's firewall, as the kernel accounts them."""
    return sum(map(memory_of, _descriptors(STORE.directory(netns_cookie()))))


def memory_of(fd: int) -> int:
    """Bytes of a map or program, as the kernel accounts them."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    raise AssertionError("neither a map nor a program")


def run(installation: Installation, work: Path, *, quick: bool) -> Section:
    """Load, list and flush, a hundred thousand several times and a million once.

    Quick: without the million.
    """
    loads = {MANY: 3} if quick else {MANY: 7, MOST: 1}
    rounds = ", ".join(f"{times} rounds of {count:,} rules" for count, times in loads.items())
    section = Section(
        "rules: seconds from fork to exit",
        [
            "zfw batch FILE, a line a rule, /32 prefixes of tcp and udp in turn;"
            f" medians of {rounds}",
            "classic: the lines are in the classic grammar, zfw -I",
            "memory in the kernel: memlock of all maps, inner maps and programs",
        ],
        ["WHAT", "RULES", "SECONDS", "OF CPU", "RULES/s", "PEAK MB OF THE PROCESS"],
    )
    with Network() as network, network.gateway.entered():
        firewall = Firewall()
        firewall.attach("gw0", "ingress")
        section.add(f"{_MEMORY}; 0", kernel_memory() / _MB)
        for count, times in loads.items():
            for number_of_round in range(times):
                progress(f"rules: {count:,}, round {number_of_round + 1} of {times}")
                _measure(section, installation.zfw, work, count)
        firewall.detach_all()
    _fill(section, list(loads))
    return section


def _measure(section: Section, zfw: str, work: Path, count: int) -> None:
    lines, listing = work / "lines", work / "listing"

    def timed(name: str, *arguments: str, output: Path | None = None) -> None:
        done = run_command(zfw, *arguments, output=output)
        section.add(f"{name}; {count}", done.seconds)
        section.add(f"{name}, CPU; {count}", done.cpu_seconds)
        if done.peak_bytes is not None:
            section.add(f"{name}, peak MB; {count}", done.peak_bytes / _MB)

    _write_lines(lines, count, "zfw insert")
    timed("zfw batch", "batch", str(lines))
    section.add(f"{_MEMORY}; {count}", kernel_memory() / _MB)
    timed("zfw list --json", "list", "--json", output=listing)
    with listing.open() as file:
        listed = sum(line.startswith("{") for line in file)
    if listed != count:
        raise AssertionError(f"{listed} rules are listed, not {count}")
    timed("zfw list", "list")
    timed("zfw flush", "flush", "--yes")
    _write_lines(lines, count, "zfw -I")
    timed("zfw batch, classic", "batch", str(lines))
    run_command(zfw, "flush", "--yes")


def _fill(section: Section, loads: list[int]) -> None:
    for count in loads:
        for name in ("zfw batch", "zfw batch, classic", "zfw list --json", "zfw list", "zfw flush"):
            seconds = section.median(f"{name}; {count}")
            peak = f"{name}, peak MB; {count}"
            megabytes = number(section.median(peak)) if peak in section.rounds else "-"
            cpu = number(section.median(f"{name}, CPU; {count}"))
            row = (name, f"{count:,}", number(seconds), cpu, number(count / seconds), megabytes)
            section.rows.append(row)
        speed = count / section.median(f"zfw batch; {count}")
        name = f"zfw batch of {count:,} rules"
        section.targets.append(Target(name, speed, RULES_A_SECOND, "rules/s", is_least=True))
    for count in (0, *loads):
        megabytes = number(section.median(f"{_MEMORY}; {count}"))
        section.rows.append((f"memory in the kernel: {megabytes} MB", f"{count:,}", *"----"))
    seconds = section.median(f"zfw list --json; {MANY}")
    empty = section.median(f"{_MEMORY}; 0")
    section.targets += [
        Target(f"zfw list --json of {MANY:,} rules", seconds, LIST_SECONDS, "s"),
        Target("kernel memory of an empty firewall", empty, EMPTY_MEGABYTES, "MB"),
    ]
