# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard redirect: DNS goes to a server of the user's, and nothing else is judged."""

from __future__ import annotations

import signal
from socket import IPPROTO_TCP, IPPROTO_UDP
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UNNAMED, UPSTREAM, UPSTREAM6
from tests.support.command import ZFW
from tests.support.dns_server import dnsmasq
from zfw_py.guard import listing
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

# Where the second server answers, and what it says of every name.
OURS, OURS6, PORT = "127.0.0.1", "::1", 5311
ANSWER, ANSWER6 = "10.9.0.99", "fd09::99"
TO4, TO6 = f"{OURS}:{PORT}", f"[{OURS6}]:{PORT}"


def second_dnsmasq(world: World, *listen: str) -> AbstractContextManager[Path]:
    answers = (f"--address=/#/{ANSWER}", f"--address=/#/{ANSWER6}")
    return dnsmasq(world.inside, world.folder / "second.log", listen, *answers, port=PORT)


def dig(world: World, service: Path, server: str, *more: str) -> str:
    """What a server answers to those in the cgroup; dig's status where it does not."""
    ask = ("dig", "+short", "+tries=1", "+time=5", f"@{server}", "both.example", *more)
    done = world.run("sh", "-c", f'echo 0 > {service}/cgroup.procs; exec "$@"', "sh", *ask)
    return done.stdout.strip() if done.returncode == 0 else f"status {done.returncode}"


def redirect(world: World, service: Path, *servers: str) -> str:
    options = [word for server in servers for word in ("--dns-to", server)]
    done = world.zfw("redirect", *options, "--cgroup", str(service))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_to_one_server_a_family(world: World, service: Path) -> None:
    before = cgroup.processes(str(world.cgroup))
    with second_dnsmasq(world, OURS, OURS6):
        identifier = redirect(world, service, TO4, TO6)
        # No process is left running.
        assert cgroup.processes(str(world.cgroup)) == before
        for more in ((), ("+tcp",)):
            assert dig(world, service, UPSTREAM, *more) == ANSWER
            assert dig(world, service, UPSTREAM6, *more) == ANSWER
        # Other ports are no DNS.
        assert dig(world, service, UPSTREAM, "-p", "5353") != ANSWER
        assert world.zfw("detach", identifier).stdout == f"detached {identifier}\n"
        assert dig(world, service, UPSTREAM) == "10.9.0.10"
    assert world.left() == [str(service)]


@pytest.mark.parametrize(
    ("to", "asked", "other"), [(TO4, UPSTREAM, UPSTREAM6), (TO6, UPSTREAM6, UPSTREAM)]
)
def test_a_family_without_a_server_has_no_dns(
    world: World, service: Path, to: str, asked: str, other: str
) -> None:
    with second_dnsmasq(world, OURS, OURS6):
        redirect(world, service, to)
        assert dig(world, service, asked) == ANSWER
        with world.capture() as arrived:
            assert dig(world, service, other).startswith("status ")
        assert [one for one in arrived if one.protocol in (IPPROTO_TCP, IPPROTO_UDP)] == []


def test_to_a_server_elsewhere_on_its_own_port(world: World, service: Path) -> None:
    """Port 53 is as good as any: what goes there is not redirected again."""
    redirect(world, service, UPSTREAM)
    with world.capture() as arrived:
        assert dig(world, service, "192.0.2.1") == "10.9.0.10"
    assert {(one.destination, one.port) for one in arrived if one.port == 53} == {(UPSTREAM, 53)}


def test_nothing_else_is_judged(world: World, service: Path) -> None:
    redirect(world, service, UPSTREAM, UPSTREAM6)
    for address in UNNAMED:
        url = f"http://[{address}]" if ":" in address else f"http://{address}"
        curl = ("curl", "--silent", "--max-time", "20", "--output", "/dev/null", url)
        entering = ("sh", "-c", f'echo 0 > {service}/cgroup.procs; exec "$@"', "sh")
        assert world.run(*entering, *curl).returncode == 0
    [status], _ = listing.guards()
    assert "egress" not in status.decisions


def test_in_the_foreground_it_tells_what_is_redirected(world: World, service: Path) -> None:
    arguments = ("--foreground", "--dns-to", UPSTREAM, "--cgroup", str(service))
    process = world.start(str(ZFW), "guard", "redirect", *arguments)
    assert process.stdout is not None
    identifier = process.stdout.readline().strip()
    [status], _ = listing.guards()
    assert (status.manifest.id, status.manifest.kind, status.supervisor_pid) == (
        identifier,
        "redirect",
        process.pid,
    )
    assert dig(world, service, "192.0.2.1") == "10.9.0.10"
    assert dig(world, service, "fd00::53").startswith("status ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = [line[13:] for line in out.splitlines()]
    assert any(
        line.endswith(f" redirected: udp 192.0.2.1:53 to {UPSTREAM}:53: dns") for line in lines
    )
    assert any(line.endswith(" denied: udp [fd00::53]:53: no proxy") for line in lines)
    assert world.left() == [str(service)]


def test_bad_servers_are_refused(world: World, service: Path) -> None:
    for servers, message in (
        (("10.0.0.1", "10.0.0.2:53"), "--dns-to: two servers of one family: 10.0.0.2:53"),
        (("[fd00::1]:53", "fd00::2"), "--dns-to: two servers of one family: [fd00::2]:53"),
        (("0.0.0.0",), "--dns-to: not the address of one server: '0.0.0.0'"),
        (("127.0.0.1:0",), "--dns-to: the port of '127.0.0.1:0' is not within 1 to 65535"),
        (("127.0.0.1:65536",), "--dns-to: the port of '127.0.0.1:65536' is not within 1 to 65535"),
        (("dns.example",), "--dns-to: not an IPv4 or IPv6 address: 'dns.example'"),
        (("",), "--dns-to: empty"),
    ):
        options = [word for server in servers for word in ("--dns-to", server)]
        done = world.zfw("redirect", *options, "--cgroup", str(service))
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"zfw: {message}\n")
    assert world.left() == [str(service)]
