# SPDX-License-Identifier: GPL-2.0-only
"""Programs that know nothing of a guard: what they may reach they reach, and the rest fails.

Each asks in its own way, with its own sockets. That they fail soon, and do not wait for
what will never come, is seen to by the patience of ``World.run``.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.guard.support.world import UPSTREAM, UPSTREAM6
from tests.guard.support.world import world as make_world
from zfw_py.guard.service import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guard.support.world import Arrived, World

pytestmark = pytest.mark.kernel

SOURCES = Path(__file__).resolve().parents[1] / "support/clients"
BOTH = ("10.9.0.10", "fd09::10")
OTHER = ("10.9.0.13", "fd09::13")


@pytest.fixture(scope="module")
def outside(_private_bpffs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One world for all: what each program leaves behind goes with its guard."""
    with make_world(tmp_path_factory.mktemp("clients")) as made:
        yield made
        Guard.detach_all()


def _program(path: str) -> str:
    """The file of a program that scripts/setup installs."""
    found = shutil.which(path)
    assert found, f"no {path}: scripts/setup test"
    return found


# Clients, each as the command of a host and a port


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the clients are that have to be compiled."""
    folder = tmp_path_factory.mktemp("built")
    for command in (
        ("musl-gcc", "-static", "-O2", "-o", "fetch-musl", str(SOURCES / "fetch.c")),
        ("mcs", "-out:fetch.exe", str(SOURCES / "fetch.cs")),
    ):
        subprocess.run([_program(command[0]), *command[1:]], cwd=folder, check=True, timeout=100)
    runtime = {
        "framework": {"name": "Microsoft.NETCore.App", "version": "3.1.0"},
        # It has no need of libicu.
        "configProperties": {"System.Globalization.Invariant": True},
    }
    (folder / "fetch.runtimeconfig.json").write_text(json.dumps({"runtimeOptions": runtime}))
    return folder


def _dotnet() -> str:
    found = find_spec("dotnetcore2")
    if found is None or found.origin is None:
        pytest.skip("there is no .NET runtime for this machine")
    return str(Path(found.origin).parent / "bin/dotnet")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


Command = "Callable[[Path, str, int], list[str]]"


def _curl(*options: str) -> Command:
    return lambda _, host, port: [_program("curl"), "-sS", *options, _url(host, port)]


def _python(way: str) -> Command:
    script = str(SOURCES / "fetch.py")
    return lambda _, host, port: [sys.executable, script, way, host, str(port)]


def _node(way: str) -> Command:
    script = str(SOURCES / "fetch.js")
    return lambda _, host, port: [_program("node"), script, way, host, str(port)]


def _cs(runtime: Callable[[], str], way: str) -> Command:
    return lambda built, host, port: [runtime(), str(built / "fetch.exe"), way, host, str(port)]


def _mono() -> str:
    return _program("mono")


CLIENTS: dict[str, Command] = {
    "curl": _curl(),
    "curl, IPv4": _curl("-4"),
    "curl, IPv6": _curl("-6"),
    "busybox": lambda _, host, port: [
        *(_program("busybox"), "wget", "-q", "-O", "-", _url(host, port))
    ],
    "musl": lambda built, host, port: [str(built / "fetch-musl"), host, str(port)],
    "Python, urllib": _python("urllib"),
    "Python, create_connection": _python("create_connection"),
    "Python, asyncio": _python("asyncio"),
    "Python, dual-stack socket": _python("dual_stack_socket"),
    "Node.js, http": _node("get"),
    "Node.js, both families": _node("autoselect"),
    "Node.js, IPv4": _node("ipv4"),
    "Node.js, IPv6": _node("ipv6"),
    "Node.js, fetch": _node("fetch"),
    ".NET, WebClient": _cs(_dotnet, "web"),
    ".NET, TcpClient": _cs(_dotnet, "client"),
    ".NET, dual-stack socket": _cs(_dotnet, "socket"),
    "Mono, WebClient": _cs(_mono, "web"),
    "Mono, TcpClient": _cs(_mono, "client"),
    "Mono, dual-stack socket": _cs(_mono, "socket"),
}


# One of each kind that tries all addresses of a host, for what does not depend on how it is asked.
OF_EACH_KIND = [
    "curl",
    "musl",
    "Python, create_connection",
    "Python, asyncio",
    "Python, dual-stack socket",
    "Node.js, both families",
    ".NET, WebClient",
    ".NET, dual-stack socket",
    "Mono, dual-stack socket",
]


class Done(NamedTuple):
    """What became of a client, and what of it got outside, DNS of the guard's own left out."""

    code: int
    out: str
    err: str
    arrived: list[Arrived]

    @property
    def destinations(self) -> set[str]:
        return {one.destination for one in self.arrived}


def _run(world: World, policy: list[str], *command: str) -> Done:
    with world.capture() as arrived:
        done = world.guarded(["-q", *policy], *command)
    # What the guard's process asks is asked for an allowed name, and of the server it is told.
    own = [one for one in arrived if one.destination == UPSTREAM and one.port == 53]
    link = [one for one in arrived if one.destination.startswith(("ff02::", "fe80::"))]
    left = [one for one in arrived if one not in own and one not in link]
    return Done(done.returncode, done.stdout, done.stderr, left)


def _addresses(client: str) -> tuple[str, ...]:
    """Where a client may connect to both.example."""
    if "IPv4" in client:
        return BOTH[:1]
    return BOTH[1:] if "IPv6" in client else BOTH


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_what_it_may_have(outside: World, built: Path, client: str) -> None:
    command = CLIENTS[client](built, "both.example", 80)
    done = _run(outside, ["--allow", "both.example:80"], *command)
    assert (done.code, done.err) == (0, "")
    assert done.out in ("::ffff:10.9.0.2\n", "fd09::2\n")
    assert done.destinations
    assert done.destinations <= set(_addresses(client))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_no_name_that_is_not_allowed(
    outside: World, built: Path, client: str
) -> None:
    command = CLIENTS[client](built, "other.example", 80)
    done = _run(outside, ["--allow", "both.example"], *command)
    assert done.code != 0
    assert (done.out, done.arrived) == ("", [])


@pytest.mark.parametrize("client", OF_EACH_KIND)
def test_a_client_gets_nothing_of_another_port(outside: World, built: Path, client: str) -> None:
    command = CLIENTS[client](built, "both.example", 443)
    done = _run(outside, ["--allow", "both.example:80"], *command)
    assert done.code != 0
    assert (done.out, done.arrived) == ("", [])


@pytest.mark.parametrize("address", OTHER)
@pytest.mark.parametrize("client", OF_EACH_KIND)
def test_a_client_gets_nothing_of_an_address_that_it_knows(
    outside: World, built: Path, client: str, address: str
) -> None:
    done = _run(outside, ["--allow", "both.example"], *CLIENTS[client](built, address, 80))
    assert done.code != 0
    assert (done.out, done.arrived) == ("", [])


@pytest.mark.parametrize(
    ("blocked", "source"), [("fd09::/64", "::ffff:10.9.0.2\n"), ("10.9.0.0/24", "fd09::2\n")]
)
@pytest.mark.parametrize("client", OF_EACH_KIND)
def test_a_client_that_is_kept_from_one_family_uses_the_other(
    outside: World, built: Path, client: str, blocked: str, source: str
) -> None:
    """The refusal comes at once, so whoever has another address tries it."""
    command = CLIENTS[client](built, "both.example", 80)
    done = _run(outside, ["--allow", "both.example", "--block", blocked], *command)
    assert (done.code, done.out) == (0, source)


# Resolvers


def _dig(outside: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return outside.guarded(["-q", "--allow", "both.example"], _program("dig"), *arguments)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("+tcp",),
        ("+notcp", "+bufsize=512"),
        ("+noedns",),
        ("@10.9.0.1",),
        ("@fd09::1",),
        ("@192.0.2.53",),
        ("@2001:db8::53",),
        ("@2001:db8::53", "+tcp"),
        ("-b", "10.9.0.2", "@10.9.0.1"),
        ("-b", "fd09::2", "@fd09::1"),
    ],
)
def test_dig(outside: World, options: tuple[str, ...]) -> None:
    for rdtype, address in zip(("A", "AAAA"), BOTH, strict=True):
        done = _dig(outside, "both.example", rdtype, *options)
        assert "status: NOERROR" in done.stdout
        assert re.search(rf"^both\.example\.\s+\d+\s+IN\s+{rdtype}\s+{address}$", done.stdout, re.M)
        servers = [each[1:] for each in options if each.startswith("@")] or [UPSTREAM, UPSTREAM6]
        asked = re.search(r"^;; SERVER: (.*)#53\(", done.stdout, re.M)
        assert asked is not None
        assert asked[1] in servers


def test_dig_is_refused(outside: World) -> None:
    for options in ((), ("+tcp",), ("@192.0.2.53",), ("@2001:db8::53", "+tcp")):
        with outside.capture() as arrived:
            done = _dig(outside, "other.example", *options)
        assert "status: NXDOMAIN" in done.stdout
        assert "EDE: 18 (Prohibited)" in done.stdout
        assert [one for one in arrived if b"\5other" in one.data] == []


def test_dig_on_a_port_of_its_own_is_nobody_that_is_redirected(outside: World) -> None:
    for options in (("-p", "5353"), ("-p", "853", "+tcp")):
        with outside.capture() as arrived:
            done = _dig(outside, "both.example", "@10.9.0.20", "+tries=1", "+time=1", *options)
        assert "status:" not in done.stdout
        assert [one for one in arrived if one.destination == "10.9.0.20"] == []


def test_dig_follows_a_truncated_answer_over_tcp(outside: World) -> None:
    done = outside.guarded(
        ["--allow", "big.example"], _program("dig"), "big.example", "TXT", "+bufsize=512"
    )
    assert "status: NOERROR" in done.stdout
    assert "Truncated, retrying in TCP mode" in done.stdout
    assert done.stdout.count("x" * 250) == 12


RESOLVERS: dict[str, tuple[Command, set[str]]] = {
    "getent, both": (lambda _, host, __: ["getent", "ahosts", host], set(BOTH)),
    "getent, IPv4": (lambda _, host, __: ["getent", "ahostsv4", host], {BOTH[0]}),
    "getent, IPv6": (lambda _, host, __: ["getent", "ahostsv6", host], {BOTH[1]}),
    "busybox": (lambda _, host, __: [_program("busybox"), "nslookup", host], set(BOTH)),
    "musl": (lambda built, host, _: [str(built / "fetch-musl"), host], set(BOTH)),
    "Node.js, getaddrinfo": (_node("lookup"), set(BOTH)),
    "Node.js, c-ares, IPv4": (_node("resolve4"), {BOTH[0]}),
    "Node.js, c-ares, IPv6": (_node("resolve6"), {BOTH[1]}),
    "Node.js, c-ares, other servers": (_node("resolver"), {BOTH[0]}),
    "c-ares": (
        lambda _, host, __: [sys.executable, str(SOURCES / "cares.py"), host],
        set(BOTH),
    ),
    ".NET": (_cs(_dotnet, "addresses"), set(BOTH)),
    "Mono": (_cs(_mono, "addresses"), set(BOTH)),
}


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_a_resolver_gets_addresses(outside: World, built: Path, resolver: str) -> None:
    command, addresses = RESOLVERS[resolver]
    done = _run(outside, ["--allow", "both.example"], *command(built, "both.example", 0))
    assert (done.code, done.err) == (0, "")
    found = set(re.findall(r"10\.9\.0\.\d+|fd09::[0-9a-f]+", done.out))
    # busybox tells of the server as well.
    assert found - {UPSTREAM, UPSTREAM6} == addresses


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_a_resolver_gets_no_addresses_of_other_names(
    outside: World, built: Path, resolver: str
) -> None:
    command, _ = RESOLVERS[resolver]
    done = _run(outside, ["--allow", "both.example"], *command(built, "other.example", 0))
    assert done.code != 0
    assert not {*re.findall(r"10\.9\.0\.\d+|fd09::[0-9a-f]+", done.out)} & set(OTHER)
    assert done.arrived == []


# These have the search list of resolv.conf.
SEARCHING = ["getent, both", "getent, IPv4", "musl", "Node.js, getaddrinfo", "c-ares", "Mono"]


@pytest.fixture
def search_list(outside: World) -> Iterator[None]:
    """What every Kubernetes pod has: a name of fewer than five dots is looked up in each domain."""
    file = outside.folder / "resolv.conf"
    before = file.read_text()
    file.write_text(f"{before}search ns.svc.cluster.local svc.cluster.local\noptions ndots:5\n")
    yield
    file.write_text(before)


@pytest.mark.usefixtures("search_list")
@pytest.mark.parametrize("resolver", SEARCHING)
def test_a_search_list_ends_at_the_allowed_name(outside: World, built: Path, resolver: str) -> None:
    """As without a guard: names that no entry allows do not exist, and are none to wait for."""
    command, addresses = RESOLVERS[resolver]
    started = time.monotonic()
    done = _run(outside, ["--allow", "both.example"], *command(built, "both.example", 0))
    assert (done.code, done.err) == (0, "")
    assert set(re.findall(r"10\.9\.0\.\d+|fd09::[0-9a-f]+", done.out)) == addresses
    # musl waits for 5 s where a server refuses; dnsmasq answers at once.
    assert time.monotonic() - started < 4
