# SPDX-License-Identifier: GPL-2.0-only
"""A guard changes nothing for an allowed name: each client sees with a guard what it sees without.

Clients x behaviours of the server x resolv.conf. Every client asks for all names at once, with and
without a guard at the same time, and has names of its own: no answer is from a cache.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.guard.support.behaving import ADDRESS, BEHAVIOURS, DOMAIN, serve
from tests.guard.support.world import world as make_world
from tests.support.children import child
from tests.support.netns import Network
from zfw_py.guard.service import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

SOURCES = Path(__file__).resolve().parents[1] / "support/clients"
SERVER, SECOND = "10.9.0.31", "10.9.0.32"
REFUSING, SILENT = "10.9.0.33", "10.9.0.34"
# One more second than a question upstream takes until it is asked again.
EXTRA = 10.0  # seconds, on a busy machine


def _each(command: str) -> Callable[[Path], list[str]]:
    """A command for one name, $1, run for all names at once; its lines are one line."""
    script = f"""
for name; do
  ( set -- "$name"; found=$({command}); printf '%s %s\\n' "$1" "$(echo "$found" | tr '\\n' '|')" ) &
done
wait
"""
    return lambda _: ["bash", "-c", script, "bash"]


_DIG = "dig +time=3 +tries=2 +noall +comments +answer"
# Without ids, servers, what was lost on the way, and EDNS, which concerns one hop (RFC 6891).
_LINES = (
    "| sed -E 's/, id: .*//; s/, ADDITIONAL: .*//; s/[ \\t]+/ /g;"
    " /ID mismatch|communications error|Truncated, retrying|^Server|^Address:.*53$/d;"
    " /COOKIE|^$|Got answer|EDE: |PSEUDO|; EDNS: |DiG|^Non-authoritative/d'"
)

# Each as the beginning of a command whose further arguments are names.
CLIENTS: dict[str, Callable[[Path], list[str]]] = {
    "glibc": lambda built: [str(built / "resolve-glibc")],
    "musl": lambda built: [str(built / "resolve-musl")],
    "c-ares": lambda _: ["node", str(SOURCES / "resolve.js")],
    "dnspython": lambda _: [sys.executable, str(SOURCES / "resolve.py")],
    "busybox": _each(f"busybox nslookup $1 2>&1 {_LINES}"),
    "host": _each(f"host -W 3 -R 1 $1 2>&1 {_LINES}"),
    "dig": _each(f"{_DIG} $1 A {_LINES}"),
    "dig, DO": _each(f"{_DIG} +dnssec $1 A {_LINES}"),
    "dig, CD": _each(f"{_DIG} +cdflag $1 A {_LINES}"),
    "dig, no EDNS": _each(f"{_DIG} +noedns $1 A {_LINES}"),
    "dig, TCP": _each(f"{_DIG} +tcp $1 A {_LINES}"),
}
# These follow all of resolv.conf.
FOLLOWING = ("glibc", "musl", "c-ares", "dnspython")
# So many at once, each twice: more would wait for each other on a machine with two processors.
AT_ONCE = 4
OPTIONS = "options timeout:3 attempts:2\n"
FILES = {
    "the first refuses packets": f"nameserver {REFUSING}\nnameserver {SERVER}\n{OPTIONS}",
    "the first is silent": f"nameserver {SILENT}\nnameserver {SERVER}\n{OPTIONS}",
    "the second is silent": f"nameserver {SERVER}\nnameserver {SILENT}\n{OPTIONS}",
    "over TCP": f"nameserver {SERVER}\n{OPTIONS}options use-vc edns0 trust-ad\n",
    "one question a time": f"nameserver {SERVER}\n{OPTIONS}options single-request-reopen rotate\n",
    "a search list": (
        f"nameserver {SERVER}\nsearch ns.svc.cluster.local {DOMAIN} cluster.local\n"
        f"{OPTIONS}options ndots:5\n"
    ),
}
FEW = ["good", "nxdomain", "nodata", "chain", "v4-else-nxdomain", "servfail", "refused"]
# What is better with a guard: which clients, and which behaviours.
BETTER = {
    # These have no answer of a server that cuts it and does not serve TCP.
    *((client, "cut") for client in CLIENTS if client not in ("musl", "busybox")),
    # These do not ask again by TCP, and the proxy does.
    ("musl", "truncating"),
    ("busybox", "truncating"),
    ("musl", "fifty"),
    ("busybox", "fifty"),
    # The proxy asks again without EDNS.
    *(
        (client, "without-edns")
        for client in ("dnspython", "dig", "dig, DO", "dig, CD", "dig, TCP")
    ),
}


class Seen(NamedTuple):
    """What a client printed, by name without the client's own label, and how long it took."""

    lines: dict[str, list[str]]
    seconds: float


@pytest.fixture(scope="module")
def outside(_private_bpffs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("same")
    with make_world(folder) as made:
        made.outside.add_addresses(
            Network.interface, *(f"{each}/32" for each in (SERVER, SECOND, REFUSING, SILENT))
        )
        made.outside.run("iptables", "-A", "INPUT", "-d", SILENT, "-j", "DROP")

        def start() -> None:
            def run() -> None:
                with made.outside.entered():
                    serve(SERVER, SECOND)

            threading.Thread(target=run, daemon=True).start()

        with child(start):
            yield made
        Guard.detach_all()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    source = str(SOURCES / "resolve.c")
    for command in (
        ("musl-gcc", "-static", "-O1", "-o", "resolve-musl", source),
        ("clang", "-O1", "-o", "resolve-glibc", source),
    ):
        subprocess.run(command, cwd=folder, check=True, timeout=100)
    return folder


def _seen(world: World, command: list[str], names: list[str], label: str, cgroup: Path) -> Seen:
    enter = ["sh", "-c", f'echo 0 > {cgroup}/cgroup.procs; exec "$@"', "sh"]
    started = time.monotonic()
    done = world.run(*enter, *command, *names)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.replace(f"{label}.", "").partition(" ")
        lines.setdefault(name, []).append(_ordered(rest))
    return Seen({name: sorted(found) for name, found in lines.items()}, took)


def _ordered(line: str) -> str:
    """Records have no order, and clients show them in one of the name, which differs."""
    return "|".join(sorted(line.split("|"))) if "|" in line else line


def _compared(
    world: World, clients: dict[str, list[str]], behaviours: list[str], domain: str
) -> dict[str, tuple[Seen, Seen]]:
    """What each client sees without and with a guard, all at the same time."""
    plain, guarded = world.new_cgroup(), world.new_cgroup()
    done = world.zfw("attach", "--cgroup", str(guarded), "--allow", DOMAIN)
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, bool], Seen] = {}

    def ask(number: int, client: str, *, is_guarded: bool) -> None:
        label = f"{'g' if is_guarded else 'p'}{number}"
        names = [f"{label}.{each}{domain and '.'}{domain}" for each in behaviours]
        place = guarded if is_guarded else plain
        found[client, is_guarded] = _seen(world, clients[client], names, label, place)

    threads = [
        threading.Thread(target=ask, args=[number, client], kwargs={"is_guarded": is_guarded})
        for number, client in enumerate(clients)
        for is_guarded in (False, True)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert world.zfw("detach", done.stdout.strip()).returncode == 0
    assert len(found) == 2 * len(clients)
    for each in found.values():
        assert len(each.lines) == len(behaviours)
    return {client: (found[client, False], found[client, True]) for client in clients}


def _differences(seen: dict[str, tuple[Seen, Seen]]) -> dict[str, list[str]]:
    """By client, what it sees otherwise with a guard."""
    found: dict[str, list[str]] = {}
    for client, (plain, guarded) in seen.items():
        print(f"{client}: {plain.seconds:.1f} s, with a guard {guarded.seconds:.1f} s")
        lines = found.setdefault(client, [])
        good = next(lines for name, lines in plain.lines.items() if name.startswith("good"))
        if not any(ADDRESS in line for line in good):
            lines.append(f"{client}: fails without a guard")
        if guarded.seconds > plain.seconds + EXTRA:
            lines.append(f"{client}: {guarded.seconds:.1f} s, without {plain.seconds:.1f} s")
        for name in sorted(plain.lines.keys() | guarded.lines.keys()):
            pair = plain.lines.get(name), guarded.lines.get(name)
            behaviour = name.split(".")[0]
            if pair[0] != pair[1] and (client, behaviour) not in BETTER:
                lines.append(f"{client}, {name}:\n  without {pair[0]}\n  with    {pair[1]}")
    return {client: lines for client, lines in found.items() if lines}


def _assert_the_same(
    world: World, clients: dict[str, list[str]], behaviours: list[str], domain: str
) -> None:
    """On a busy machine a client may run into its own time-out: a difference has to stay."""
    found: dict[str, list[str]] = {}
    for _ in range(3):
        found = _differences(_compared(world, clients, behaviours, domain))
        clients = {client: clients[client] for client in found}
        if not clients:
            return
    raise AssertionError("\n".join(line for lines in found.values() for line in lines))


GROUPS = [tuple(CLIENTS)[at : at + AT_ONCE] for at in range(0, len(CLIENTS), AT_ONCE)]


@pytest.mark.parametrize("group", GROUPS, ids=", ".join)
def test_each_client_sees_the_same(outside: World, built: Path, group: tuple[str, ...]) -> None:
    (outside.folder / "resolv.conf").write_text(f"nameserver {SERVER}\n{OPTIONS}")
    clients = {name: CLIENTS[name](built) for name in group}
    # Where the server closes a connection, c-ares loses its other queries on it.
    _assert_the_same(outside, clients, [each for each in BEHAVIOURS if each != "cut"], DOMAIN)
    _assert_the_same(outside, clients, ["good", "cut"], DOMAIN)


@pytest.mark.parametrize("file", FILES)
def test_each_file_means_the_same(outside: World, built: Path, file: str) -> None:
    (outside.folder / "resolv.conf").write_text(FILES[file])
    is_search = file == "a search list"
    # Node.js asks c-ares without it.
    following = [name for name in FOLLOWING if not is_search or name != "c-ares"]
    clients = {name: CLIENTS[name](built) for name in following}
    domain = "" if is_search else DOMAIN
    # A silent server takes 2 s until the next one is asked, and musl asks all at once.
    more = [] if SILENT in FILES[file] or REFUSING in FILES[file] else ["slow", "fifty", "signed"]
    _assert_the_same(outside, clients, FEW + more, domain)
