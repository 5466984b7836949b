# SPDX-License-Identifier: GPL-2.0-only
"""What a command costs as a process, beside the bare interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.installation import PYTHON, Installation
from tests.bench.installation import run as run_command
from tests.bench.report import Section, Target, number, progress
from tests.support.netns import Network
from zfw_py import Firewall, Insert, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Sequence

BARE = "python3 -I -c pass"
# As a multiple of the bare interpreter's start.
LIMITS = {"zfw -I": 2, "zfw insert": 7, "zfw status": 6}
EXPLAIN, EXPLAIN_MS = "zfw explain", 150
# A router's hook has 90 s to take its rules back at shutdown.
DELETES, DELETE_SECONDS = 2635, 90


def _classic(verb: str, address: str, *more: str) -> tuple[str, ...]:
    key = ("-c", address, "-m", "32", "-o", "0.0.0.0", "-n", "0", "-p", "tcp", "-l", "443")
    return (verb, *key, "-h", "443", *more)


def _commands(zfw: str, n: int) -> dict[str, Sequence[str]]:
    """Every command that is timed, in an order in which each has something to do."""
    address = f"100.73.{n // 250}.{n % 250 + 1}"
    modern = ("-c", address, "-p", "udp", "-l", "53")
    return {
        BARE: (PYTHON, "-I", "-c", "pass"),
        "zfw -V": (zfw, "-V"),
        "zfw -I": (zfw, *_classic("-I", address, "-t", "43321")),
        "zfw -L": (zfw, "-L"),
        "zfw -D": (zfw, *_classic("-D", address)),
        "zfw insert": (zfw, "insert", *modern, "-t", "43321"),
        "zfw list": (zfw, "list"),
        "zfw status": (zfw, "status"),
        EXPLAIN: (zfw, "explain", "-p", "tcp", "--from", "10.9.0.2", "--to", f"{address}:443"),
        "zfw delete": (zfw, "delete", *modern),
    }


def run(installation: Installation, *, quick: bool) -> Section:
    """Each command in turn, round by round; then deletes, one after the other."""
    rounds, deletes = (20, 200) if quick else (60, 1000)
    section = Section(
        "start-up: milliseconds from fork to exit",
        [
            f"{PYTHON}; zfw installed from its wheel, byte-compiled;"
            f" medians of {rounds} interleaved rounds",
        ],
        ["COMMAND", "MEDIAN", "LOWEST", "HIGHEST", "TO BARE"],
    )
    with Network() as network, network.gateway.entered():
        firewall = Firewall()
        firewall.attach("gw0", "ingress")
        for number_of_round in range(-2, rounds):  # two to warm up
            for name, command in _commands(installation.zfw, number_of_round + 2).items():
                taken = run_command(*command).seconds
                if number_of_round >= 0:
                    section.add(name, taken * 1000)
        progress(f"start-up: {deletes} x zfw -D")
        addresses = [f"100.74.{n // 250}.{n % 250 + 1}" for n in range(DELETES)]
        firewall.apply([Insert(_rule(address)) for address in addresses])
        taken = sum(
            run_command(installation.zfw, *_classic("-D", address)).seconds
            for address in addresses[:deletes]
        )
        firewall.detach_all()

    bare = section.median(BARE)
    for name, values in section.rounds.items():
        middle = section.median(name)
        row = (name, number(middle), number(min(values)), number(max(values)))
        section.rows.append((*row, number(middle / bare)))
    for name, limit in LIMITS.items():
        ratio = section.median(name) / bare
        section.targets.append(Target(f"{name} to {BARE}", ratio, limit, "x"))
    section.targets.append(Target(EXPLAIN, section.median(EXPLAIN), EXPLAIN_MS, "ms"))
    fit = DELETE_SECONDS * deletes / taken
    section.add(f"zfw -D, one after the other, in {DELETE_SECONDS} s", fit)
    section.rows.append((f"zfw -D that fit {DELETE_SECONDS} s", number(fit), "-", "-", "-"))
    section.targets.append(
        Target(f"zfw -D that fit {DELETE_SECONDS} s", fit, DELETES, "", is_least=True)
    )
    return section


def _rule(address: str) -> Rule:
    return Rule(RuleKey(Prefix.parse(address), "tcp", 443), tproxy_port=43321)
