# SPDX-License-Identifier: GPL-2.0-only
"""Guarded processes in several network namespaces, which stand in for containers."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UPSTREAM
from tests.support.command import ZFW
from tests.support.waiting import wait_until
from zfw_py.guard.maps import STORE, Maps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.guard.support.world import Shell, World

pytestmark = pytest.mark.kernel


@pytest.fixture
def service(world: World) -> Path:
    """A cgroup, without a process."""
    made = world.cgroup / "service"
    made.mkdir()
    return made


@contextmanager
def container(world: World, service: Path) -> Iterator[Shell]:
    """A shell in the cgroup, with a network and mounts of its own."""
    script = f'echo 0 > {service}/cgroup.procs; exec unshare --net --mount "$@"'
    with world.shell("sh", "-c", script, "sh") as shell:
        assert shell.ask("ip link set lo up") == (0, "")
        yield shell


@contextmanager
def embedded_dns(
    world: World, shell: Shell, address: str, *records: str, port: int = 53
) -> Iterator[None]:
    """A DNS server in the container's network, by a process that is not guarded."""
    dnsmasq = shutil.which("dnsmasq", path="/usr/sbin")
    assert dnsmasq
    options = ("--no-resolv", "--no-hosts", "--bind-interfaces", "--local=/#/", "--user=root")
    process = world.start(
        *("nsenter", f"--net=/proc/{shell.process.pid}/ns/net"),
        *(
            dnsmasq,
            "--keep-in-foreground",
            "--pid-file=",
            f"--listen-address={address}",
            f"--port={port}",
            *options,
        ),
        *(f"--host-record={each}" for each in records),
        stdout=None,
        stderr=None,
    )
    world.bystanders.append(process.pid)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        world.bystanders.remove(process.pid)


def address_of(shell: Shell, name: str) -> str:
    """What a client finds by resolv.conf, or nothing. (The C library asks nothing without eth0.)"""
    return shell.ask(f"dig +short +tries=1 +time=5 {name}")[1].strip()


def attach(world: World, service: Path, *options: str, prefix: tuple[str, ...] = ()) -> str:
    done = world.run(*prefix, str(ZFW), "guard", "attach", "--cgroup", str(service), *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_a_container_keeps_the_names_of_its_siblings(world: World, service: Path) -> None:
    """Docker's own DNS, at 127.0.0.11 in each container, knows them; no other server does."""
    conf = world.folder / "container.conf"
    conf.write_text("nameserver 127.0.0.11\n")
    with ExitStack() as stack:
        first = stack.enter_context(container(world, service))
        records = ("db.internal,10.1.2.3", "both.example,10.9.9.9")
        stack.enter_context(embedded_dns(world, first, "127.0.0.11", *records))
        stack.enter_context(embedded_dns(world, first, "127.0.0.12", "db.internal,10.1.2.4"))
        assert first.ask(f"mount --bind {conf} /etc/resolv.conf") == (0, "")
        attach(world, service, "--allow", "internal", "--allow", "both.example")
        assert wait_until(lambda: address_of(first, "db.internal") == "10.1.2.3")
        assert address_of(first, "both.example") == "10.9.9.9"
        assert address_of(first, "not.allowed") == ""
        # A process in zfw's own namespace asks where it is, and gets no answer from the cache.
        enter = f'echo 0 > {service}/cgroup.procs; exec "$@"'
        own = stack.enter_context(world.shell("sh", "-c", enter, "sh"))
        assert wait_until(partial(has_names, own))
        assert address_of(own, "db.internal") == ""
        # One that starts later asks by its own file too.
        later = stack.enter_context(container(world, service))
        stack.enter_context(embedded_dns(world, later, "127.0.0.11", "db.internal,10.1.2.5"))
        assert later.ask(f"mount --bind {conf} /etc/resolv.conf") == (0, "")
        assert wait_until(lambda: address_of(later, "db.internal") == "10.1.2.5")
        conf.write_text("nameserver 127.0.0.12\n")
        assert wait_until(lambda: address_of(first, "db.internal") == "10.1.2.4")


def test_docker_s_dns_is_not_asked_past_the_proxy(world: World, service: Path) -> None:
    """It listens on a port of the engine's choice, to which nftables leads port 53."""
    ask = "dig +short +tries=1 +time=2 -p 40053 @127.0.0.11 data.attacker.example"

    def answer(*options: str) -> tuple[str, str]:
        with ExitStack() as stack:
            shell = stack.enter_context(container(world, service))
            record = "data.attacker.example,10.1.2.3"
            stack.enter_context(embedded_dns(world, shell, "127.0.0.11", record, port=40053))
            assert wait_until(lambda: shell.ask(f"{ask} 2>&1")[1].strip() == "10.1.2.3")
            identifier = attach(world, service, "--allow", "both.example", *options)
            found = [shell.ask(f"{ask} {kind}")[1].strip() for kind in ("", "+tcp")]
            assert world.zfw("detach", identifier).returncode == 0
            return found[0], found[1]

    for one in answer():
        assert "10.1.2.3" not in one
    assert answer("--allow", "127.0.0.11") == ("10.1.2.3", "10.1.2.3")


def has_names(shell: Shell) -> bool:
    return address_of(shell, "both.example") == "10.9.0.10"


def test_every_namespace_gets_names_and_none_is_kept(world: World, service: Path) -> None:
    """However many there are: here the process has descriptors for nine."""
    options = ("--allow", "both.example", "--dns-upstream", UPSTREAM)
    identifier = attach(world, service, *options, prefix=("prlimit", "--nofile=700"))
    proxies = Maps(STORE.directory(identifier)).map("proxies")
    own = [key for key, _ in proxies.items()]
    with ExitStack() as stack:
        for _ in range(14):
            shell = stack.enter_context(container(world, service))
            assert wait_until(partial(has_names, shell))
        assert len(list(proxies.items())) <= 9
        assert wait_until(partial(has_names, shell))
    # Nobody is there any more.
    assert wait_until(lambda: [key for key, _ in proxies.items()] == own, 60)
