# SPDX-License-Identifier: GPL-2.0-only
"""Redirects made, changed, removed, left behind; a daemon that is started again; what is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Any

import dns.message
import pytest

from tests.docker_dns.support.world import (
    ANY_ANSWER,
    BUILTIN_ANSWER,
    CONTAINER,
    PATIENCE,
    RESOLVER,
    SERVER,
    DockerNetwork,
    dnsmasq,
    docker_world,
)
from tests.support.killed import killed_at
from tests.support.tcx import skip_without_tcx, tcx_programs
from tests.support.waiting import wait_until
from zfw_py import Firewall
from zfw_py.docker_dns import layout
from zfw_py.docker_dns.codec import DaemonPorts
from zfw_py.docker_dns.maps import STORE
from zfw_py.docker_dns.model import Redirect
from zfw_py.docker_dns.programs import SYSTEM
from zfw_py.docker_dns.service import DnsRedirect, RedirectOptions
from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError
from zfw_py.kernel import bpf_links, bpf_maps, bpffs, tc
from zfw_py.kernel.libbpf import BpfObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.docker_dns.support.world import World
    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

OTHER_SERVER, OTHER_ANSWER = "10.77.0.54", "198.51.100.54"
MODES = ("tcx", "clsact")


# The daemon


def test_the_daemon_is_started_again(docker: World) -> None:
    docker.redirect()
    for _ in range(3):
        docker.daemon.restart()
        for options in ((), ("+tcp",)):
            assert docker.addresses("www.example", *options) == [ANY_ANSWER]
        (status,) = DnsRedirect.all()
        assert status.daemon == docker.daemon.ports
    assert [asked for asked in docker.daemon.asked if asked[1]] == []


def test_while_the_daemon_is_down(docker: World) -> None:
    docker.redirect()
    docker.daemon.close()
    try:
        for options in ((), ("+tcp",)):
            assert docker.addresses("www.example", *options) == [ANY_ANSWER]
    finally:
        docker.daemon.start()


def test_a_daemon_that_comes_later(docker: World) -> None:
    """At first nobody has the resolver's address: there is only its own port to go by."""
    docker.daemon.close()
    try:
        docker.redirect()
        (status,) = DnsRedirect.all()
        assert status.daemon == (0, 0)
    finally:
        docker.daemon.start()
    for options in ((), ("+tcp",)):
        assert docker.addresses("www.example", *options) == [ANY_ANSWER]


def test_a_port_beside_a_daemon_that_is_there_is_not_its(docker: World) -> None:
    """A program's own service on the resolver's address keeps what it is sent."""
    docker.redirect()
    with docker.container.entered(), ExitStack() as stack:
        service = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        service.bind((RESOLVER, 0))
        service.settimeout(PATIENCE)
        message = dns.message.make_query("www.example", "A").to_wire()
        sender.sendto(message, service.getsockname())
        assert service.recv(512) == message
    assert docker.outcomes() == {}


def test_the_daemon_s_ports_among_others(docker: World) -> None:
    """What NAT makes of the resolver's port is asked for, and not guessed."""
    with docker.container.entered(), ExitStack() as stack:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM) * 2:
            other = stack.enter_context(socket.socket(socket.AF_INET, kind))
            other.bind((RESOLVER, 0))
            if kind == socket.SOCK_STREAM:
                other.listen()
        docker.redirect()
        (status,) = DnsRedirect.all()
        assert status.daemon == docker.daemon.ports
        for options in ((), ("+tcp",)):
            assert docker.addresses("www.example", *options) == [ANY_ANSWER]


def test_a_socket_on_the_resolver_s_address_that_no_query_comes_to(docker: World) -> None:
    """No NAT there: the resolver itself has its port, and another port is another service's."""
    docker.daemon.close()
    docker.daemon.remove_rules()
    # Connection tracking goes on without a rule of NAT's.
    tracking = ("-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW")
    docker.container.run(docker.daemon.backend, *tracking)
    try:
        with docker.container.entered(), ExitStack() as stack:
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.bind((RESOLVER, 0))
            docker.redirect()
        (status,) = DnsRedirect.all()
        assert status.daemon == (0, 0)
        assert docker.addresses("www.example") == [ANY_ANSWER]
    finally:
        docker.daemon.start()


# Another server, and no more


def test_containers_are_told_apart(docker: World, tmp_path: Path) -> None:
    """Two with the same addresses; one goes its own way, and the other's is taken away."""
    folder = tmp_path / "other"
    folder.mkdir()
    with docker_world(folder) as other:
        ours, theirs = docker.redirect(), other.redirect("corp.example")
        assert [each.manifest.id for each in DnsRedirect.all()] == [ours.id, theirs.id]
        assert docker.addresses("www.example") == [ANY_ANSWER]
        assert other.addresses("www.example") == [BUILTIN_ANSWER]
        assert other.addresses("www.corp.example") == [ANY_ANSWER]
        counted = {
            each.manifest.id: {name: count for name, (count, _) in each.outcomes.items() if count}
            for each in DnsRedirect.all()
        }
        assert counted == {
            ours.id: {"query": 1, "answer": 1},
            theirs.id: {"query": 1, "answer": 1, "builtin_name": 1},
        }
        DnsRedirect.remove_id(theirs.id)
        assert other.addresses("www.corp.example") == [BUILTIN_ANSWER]
        assert docker.addresses("www.example") == [ANY_ANSWER]
        assert state_names() == [ours.id]


def test_one_redirect_a_namespace(docker: World) -> None:
    about = docker.redirect()
    with pytest.raises(Conflict, match=f"^its queries are redirected already, to {SERVER}:53$"):
        docker.redirect(to=OTHER_SERVER)
    assert docker.addresses("www.example") == [ANY_ANSWER]
    DnsRedirect.remove_id(about.id)
    with pytest.raises(NotFound, match=f"^no such redirect: {about.id}$"):
        DnsRedirect.remove_id(about.id)


def test_another_server(docker: World, tmp_path: Path) -> None:
    """Also for a program that asks from the same port as before."""
    docker.server.run("ip", "address", "add", f"{OTHER_SERVER}/24", "dev", "eth0")
    other = dnsmasq(docker.server, tmp_path, f"--address=/#/{OTHER_ANSWER}", address=OTHER_SERVER)
    with other, docker.container.entered(), ExitStack() as stack:
        one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        one.settimeout(PATIENCE)
        one.connect((RESOLVER, 53))

        def ask() -> str:
            one.send(dns.message.make_query("www.example", "A").to_wire())
            return dns.message.from_wire(one.recv(512)).to_text()

        assert BUILTIN_ANSWER in ask()
        for to, answer in ((SERVER, ANY_ANSWER), (OTHER_SERVER, OTHER_ANSWER)) * 2:
            about = docker.redirect(to=to)
            assert answer in ask()
            DnsRedirect.remove_id(about.id)
            assert BUILTIN_ANSWER in ask()


def state_names() -> list[str]:
    """What there is of redirects, finished or not."""
    return sorted(path.name for path in Path(STORE.root).glob("*"))


def state_of(namespace: Namespace) -> dict[str, Any]:
    """All that could have been changed in a namespace, as other tools see it."""
    tools = {
        "addresses": "ip address",
        "routes": "ip route show table all",
        "rules": "ip rule",
        "qdiscs": "tc -d qdisc",
        "filters": "tc filter show dev lo egress",
        "other filters": "tc filter show dev eth0 ingress",
        "nft": "nft -s list ruleset",
        "iptables": "iptables-legacy-save",
    }
    found: dict[str, Any] = {
        name: [
            line
            # The time and the counters are not of what is set.
            for line in namespace.run(*command.split(), check=False).stdout.splitlines()
            if not line.startswith((":", "#"))
        ]
        for name, command in tools.items()
    }
    with namespace.entered():
        if bpf_links.supports_tcx(1):
            found["programs"] = [
                tcx_programs(name, direction)
                for _, name in socket.if_nameindex()
                for direction in ("ingress", "egress")
            ]
        for place, _, files in os.walk("/proc/sys/net"):
            for file in files:
                path = Path(place, file)
                try:
                    found[str(path)] = path.read_text()
                except OSError:
                    pass  # written to only
    for counted in ("nf_conntrack_count", "fib_notify_on_flag_change"):
        found.pop(f"/proc/sys/net/netfilter/{counted}", None)
    return found


# enum bpf_cmd: what gives a descriptor of a program, a map or a link by its id
_BY_ID = {"prog_type:": 13, "map_type:": 14, "link_type:": 30}


def pinned_objects(identifier: str) -> list[tuple[str, int, int]]:
    """All that a redirect has in the kernel: a name, the command that finds it, its id."""
    found = []
    for pin in Path(STORE.directory(identifier)).iterdir():
        fd = bpf_maps.open_pin(str(pin))
        try:
            (command,) = (
                _BY_ID[line.split()[0]]
                for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
                if line.startswith(tuple(_BY_ID))
            )
            found.append((pin.name, command, bpf_maps.object_id(fd)))
        finally:
            os.close(fd)
    return found


def still_there(objects: list[tuple[str, int, int]]) -> list[str]:
    """Those that the kernel has, whoever may hold them."""
    names = []
    for name, command, number in objects:
        try:
            os.close(bpf_maps.bpf(command, bpf_maps.attribute(pack("=III", number, 0, 0))))
        except FileNotFoundError:
            continue
        names.append(name)
    return names


@pytest.mark.parametrize("mode", MODES)
def test_removal_restores_the_first_state(docker: World, mode: str) -> None:
    before = state_of(docker.container)
    about = docker.redirect("corp.example", mode=mode)
    objects = pinned_objects(about.id)
    assert len(still_there(objects)) == len(objects) >= len(layout.MAPS) + 2
    assert docker.addresses("www.corp.example") == [ANY_ANSWER]
    changed = state_of(docker.container)
    assert {name for name in before if before[name] != changed[name]} == (
        {"programs"} if mode == "tcx" else {"qdiscs", "filters", "other filters"}
    )
    DnsRedirect.remove_id(about.id)
    assert state_of(docker.container) == before
    assert state_names() == []
    assert docker.addresses("www.corp.example") == [BUILTIN_ANSWER]
    # The kernel lets go of them a grace period later.
    assert wait_until(lambda: not still_there(objects)), still_there(objects)


def others_programs(docker: World, mode: str) -> None:
    """Somebody else's programs where ours go; they see packets, and say nothing to them."""
    with BpfObject(SYSTEM.object) as loaded:
        loaded.load()
        for number, (name, fd) in enumerate(loaded.programs().items()):
            with docker.container.entered():
                for ifindex in (1, socket.if_nametoindex("eth0")):
                    for direction in ("ingress", "egress"):
                        if mode == "clsact":
                            tc.attach_clsact(ifindex, direction, fd, name, 1 + number)
                        else:
                            is_ingress = direction == "ingress"
                            kind = bpf_links.TCX_INGRESS if is_ingress else bpf_links.TCX_EGRESS
                            link = bpf_links.create_link(fd, ifindex, kind)
                            bpf_maps.pin(link, f"{bpffs.MOUNT_POINT}/{name}_{direction}_{ifindex}")
                            os.close(link)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("others", MODES)
def test_other_programs_stay(docker: World, mode: str, others: str) -> None:
    if "tcx" in (mode, others):
        skip_without_tcx()
    try:
        others_programs(docker, others)
        before = state_of(docker.container)
        about = docker.redirect(mode=mode)
        for options in ((), ("+tcp",)):
            assert docker.addresses("www.example", *options) == [ANY_ANSWER]
        DnsRedirect.remove_id(about.id)
        assert state_of(docker.container) == before
    finally:
        for pin in Path(bpffs.MOUNT_POINT).glob("*gress_*"):
            pin.unlink()


def test_beside_the_firewall(docker: World) -> None:
    """It tracks what leaves: the answer is let in to where it goes on to lo."""
    with docker.container.entered():
        firewall = Firewall()
        try:
            for mode in MODES if bpf_links.supports_tcx(1) else MODES[1:]:
                firewall.attach("eth0", "both", mode=mode)
                about = docker.redirect(mode=mode)
                for options in ((), ("+tcp",)):
                    assert docker.addresses("www.example", *options) == [ANY_ANSWER]
                DnsRedirect.remove_id(about.id)
                (eth0,) = firewall.status().interfaces
                assert eth0.attachments["ingress"].mode == mode
        finally:
            firewall.detach_all()


# Left behind


@pytest.mark.parametrize("mode", MODES)
def test_a_namespace_that_goes_is_collected(docker: World, mode: str, tmp_path: Path) -> None:
    if mode == "tcx":
        skip_without_tcx()
    with DockerNetwork() as gone:
        asked = Redirect.parse(SERVER)
        making = RedirectOptions(mode=mode, is_probed=False)
        about = DnsRedirect(gone.path).create(asked, making)
    gone_too = "its network namespace is gone"
    assert wait_until(lambda: DnsRedirect.all()[0].problem == gone_too)
    here = docker.redirect(mode=mode)
    assert state_names() == [here.id]
    with pytest.raises(NotFound):
        DnsRedirect.remove_id(about.id)


def killed(number: int, action: Callable[[], object]) -> str | None:
    """Before its n-th change, in a process of its own; None if it has not so many."""
    return killed_at(number, action, lambda: None, is_maker=True)


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_it_is_made(docker: World, mode: str) -> None:
    """Before each thing that it changes."""
    if mode == "tcx":
        skip_without_tcx()
    before = state_of(docker.container)
    number = 0
    while at := killed(number, partial(docker.redirect, "example", mode=mode)):
        # Whatever is in force, somebody answers.
        assert docker.addresses("www.example") in ([ANY_ANSWER], [BUILTIN_ANSWER]), at
        if number % 4 == 0:
            # Another can be made, at once.
            docker.redirect(mode=mode)
            assert docker.addresses("www.example") == [ANY_ANSWER], at
        DnsRedirect.remove_all()
        assert state_of(docker.container) == before, at
        assert state_names() == [], at
        number += 1
    assert number >= 25
    assert docker.addresses("www.example") == [ANY_ANSWER]


@pytest.mark.parametrize("mode", MODES)
def test_killed_while_it_is_removed(docker: World, mode: str) -> None:
    """Before each thing that it changes."""
    before = state_of(docker.container)
    number = 0
    while True:
        docker.redirect("example", mode=mode)
        if not (at := killed(number, DnsRedirect.remove_all)):
            break
        assert docker.addresses("www.example") in ([ANY_ANSWER], [BUILTIN_ANSWER]), at
        DnsRedirect.remove_all()
        assert state_of(docker.container) == before, at
        assert state_names() == [], at
        number += 1
    assert number >= 15
    assert state_of(docker.container) == before
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]


# What cannot be


def refused(docker: World, kind: type[ZfwError], **options: Any) -> tuple[str, str | None]:
    """The line and the hint that a redirect is refused with; nothing is changed."""
    before = state_of(docker.container)
    path = options.pop("path", docker.network.path)
    making = RedirectOptions(**options.pop("making", {}))
    with pytest.raises(kind) as caught:
        DnsRedirect(path).create(Redirect.parse(options.pop("to", SERVER), **options), making)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    assert state_of(docker.container) == before
    assert state_names() == []
    return caught.value.message, caught.value.hint


def test_an_uplink_that_is_none(docker: World) -> None:
    assert refused(docker, NotFound, interface="eth7") == (
        "no interface eth7 in the network namespace",
        "it has eth0, lo",
    )
    assert refused(docker, UsageError, interface="lo")[0].startswith("--interface: lo leads")
    docker.container.add_veth("other0", "other1")
    assert refused(docker, ZfwError, interface="other0")[0] == "interface other0 is down"
    docker.container.run("ip", "link", "set", "other0", "up")
    assert refused(docker, ZfwError, interface="other0")[0] == (
        "interface other0 has no IPv4 address"
    )
    docker.container.run("ip", "address", "add", "10.5.0.1/24", "dev", "other0")
    assert refused(docker, ZfwError, interface="other0") == (
        f"the route to {SERVER} is by eth0, not by other0",
        "--interface eth0",
    )


def test_a_server_that_cannot_be_reached(docker: World) -> None:
    assert refused(docker, UsageError, to=CONTAINER)[0] == (
        f"--to: {CONTAINER} is an address of the network namespace's own"
    )
    assert refused(docker, UsageError, to="172.18.255.255")[0] == (
        "--to: 172.18.255.255 is not the address of one host there"
    )
    assert refused(docker, ZfwError, to=f"{SERVER}:54") == (
        f"server {SERVER}:54 does not answer from there (Connection refused)",
        "--no-probe redirects to it all the same",
    )
    docker.server.run(*["ip", "address", "add", "10.77.0.99/24", "dev", "eth0"])
    with docker.server.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("10.77.0.99", 53))
        assert refused(docker, ZfwError, to="10.77.0.99")[0] == (
            "server 10.77.0.99:53 does not answer from there for 3 s"
        )
    docker.container.run("ip", "route", "delete", "default")
    message, _ = refused(docker, ZfwError)
    assert message == f"no route to {SERVER} from the network namespace"


def test_a_server_that_does_not_answer_yet(docker: World) -> None:
    docker.redirect(to=f"{SERVER}:54", is_probed=False)
    assert docker.dig("www.example", "+tries=1", "+time=1").returncode != 0
    assert docker.outcomes() == {"query": 1}


def test_a_resolver_elsewhere(docker: World) -> None:
    assert refused(docker, UsageError, resolver="172.18.0.1")[0] == (
        "--from: 172.18.0.1 is outside of the network namespace: its queries do not go over lo"
    )


def test_another_resolver_of_the_namespace_s(docker: World, tmp_path: Path) -> None:
    """Not Docker's: on an address of its own, with the port that is asked, and no NAT."""
    docker.container.run(*["ip", "address", "add", "169.254.20.10/32", "dev", "lo"])
    local = dnsmasq(
        docker.container, tmp_path, f"--address=/#/{OTHER_ANSWER}", address="169.254.20.10"
    )
    with local:
        for options in ((), ("+tcp",)):
            for is_redirected, answer in ((False, OTHER_ANSWER), (True, ANY_ANSWER)):
                if is_redirected:
                    asked = Redirect.parse(SERVER, "169.254.20.10")
                    DnsRedirect(docker.network.path).create(asked)
                done = docker.container.run(
                    *("dig", "@169.254.20.10", "+short", "www.example", *options)
                )
                assert done.stdout.split() == [answer]
            DnsRedirect.remove_all()


def test_what_is_no_network_namespace(docker: World, tmp_path: Path) -> None:
    missing = str(tmp_path / "nosuch")
    assert refused(docker, NotFound, path=missing)[0] == f"no such network namespace: {missing}"
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo", "."):
        path = str(tmp_path if name == "." else tmp_path / name)
        assert refused(docker, UsageError, path=path)[0] == f"{path}: not a network namespace"
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    with pytest.raises(NotFound, match=f"^no such process: {ended.pid}$"):
        DnsRedirect.of_process(ended.pid)
    with pytest.raises(UsageError):
        DnsRedirect.of_process(0)


def test_ports_that_the_kernel_has_all_of(docker: World) -> None:
    docker.container.sysctl("1024 65535", "ipv4/ip_local_port_range")
    assert refused(docker, Conflict)[0] == (
        "net.ipv4.ip_local_port_range of the network namespace, 1024 to 65535,"
        " leaves no 1024 ports for redirected queries"
    )


def test_a_daemon_that_cannot_be_told_from_others(docker: World) -> None:
    docker.daemon.close()
    docker.daemon.remove_rules()
    try:
        with docker.container.entered(), ExitStack() as stack:
            ports = []
            for _ in range(2):
                other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                other.bind((RESOLVER, 0))
                ports.append(other.getsockname()[1])
            listed = ", ".join(map(str, sorted(ports)))
            assert refused(docker, Conflict) == (
                f"2 UDP sockets on {RESOLVER}, ports {listed}: one of them is the daemon's",
                "--daemon-ports UDP,TCP says which",
            )
            docker.redirect(daemon=DaemonPorts(ports[0], 0))
    finally:
        docker.daemon.start()


def test_queries_that_nat_sends_elsewhere(docker: World) -> None:
    rule = f"-I OUTPUT -d {RESOLVER} -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:5353"
    docker.daemon.iptables(*rule.split())
    assert refused(docker, Conflict)[0] == (
        f"queries to {RESOLVER}:53 are sent on to 127.0.0.1:5353 in the namespace itself"
    )


def test_who_is_not_root(docker: World) -> None:
    docker.redirect()
    path = f"/proc/{os.getpid()}/ns/net"
    for call in (
        f"DnsRedirect({path!r}).create(Redirect.parse({SERVER!r}))",
        "DnsRedirect.all()",
        "DnsRedirect.remove_id('1')",
        "DnsRedirect.remove_all()",
    ):
        code = (
            "import os; os.setuid(65534)\n"
            "from zfw_py.docker_dns.service import DnsRedirect\n"
            "from zfw_py.docker_dns.model import Redirect\n"
            "from zfw_py.errors import PermissionDenied\n"
            f"try: {call}\n"
            "except PermissionDenied as error: print(error)\n"
        )
        done = docker.container.run(sys.executable, "-c", code)
        assert done.stderr == ""
        assert "needs root" in done.stdout
        assert done.stdout.count("\n") == 1
