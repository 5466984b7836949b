# SPDX-License-Identifier: GPL-2.0-only
"""Redirects made, changed, removed, left behind; a daemon that is started again; what is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import pytest

from tests.support.docker_net import (
    ANY_ANSWER,
    BUILTIN_ANSWER,
    CONTAINER,
    PATIENCE,
    RESOLVER,
    SERVER,
    DockerNetwork,
    dnsmasq,
)
from tests.support.tcx import skip_without_tcx, tcx_programs
from zfw_py import Firewall
from zfw_py.abi.docker_dns_codec import Daemon as Ports
from zfw_py.docker_dns import attach as attachment
from zfw_py.docker_dns import redirect as redirects
from zfw_py.docker_dns.attach import OBJECT
from zfw_py.docker_dns.tables import ROOT
from zfw_py.errors import Conflict, NotFound, UsageError, ZfwError
from zfw_py.kernel import bpf, bpffs, netlink
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.model.dns_redirect import parse_redirect

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.docker_net import World
    from tests.support.netns import Namespace

pytestmark = [
    pytest.mark.kernel,
    # Python 3.12 and later: the daemon's thread uses nothing of what a child does after a fork.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

OTHER_SERVER, OTHER_ANSWER = "10.77.0.54", "198.51.100.54"
MODES = ("tcx", "clsact")


# The daemon


def test_the_daemon_is_started_again(docker: World) -> None:
    docker.redirect()
    for _ in range(3):
        docker.daemon.restart()
        for options in ((), ("+tcp",)):
            assert docker.addresses("www.example", *options) == [ANY_ANSWER]
        (status,) = redirects.redirects()
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
        (status,) = redirects.redirects()
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
        (status,) = redirects.redirects()
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
        (status,) = redirects.redirects()
        assert status.daemon == (0, 0)
        assert docker.addresses("www.example") == [ANY_ANSWER]
    finally:
        docker.daemon.start()


# Another server, and no more


def test_one_redirect_a_namespace(docker: World) -> None:
    about = docker.redirect()
    with pytest.raises(Conflict, match=f"^its queries are redirected already, to {SERVER}:53$"):
        docker.redirect(to=OTHER_SERVER)
    assert docker.addresses("www.example") == [ANY_ANSWER]
    redirects.remove(about.id)
    with pytest.raises(NotFound, match=f"^no such redirect: {about.id}$"):
        redirects.remove(about.id)


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
            redirects.remove(about.id)
            assert BUILTIN_ANSWER in ask()


def state_names() -> list[str]:
    """What there is of redirects, finished or not."""
    return sorted(path.name for path in Path(ROOT).glob("*"))


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
        if bpf.supports_tcx(1):
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


@pytest.mark.parametrize("mode", MODES)
def test_removal_restores_the_first_state(docker: World, mode: str) -> None:
    before = state_of(docker.container)
    about = docker.redirect("corp.example", mode=mode)
    assert docker.addresses("www.corp.example") == [ANY_ANSWER]
    changed = state_of(docker.container)
    assert {name for name in before if before[name] != changed[name]} == (
        {"programs"} if mode == "tcx" else {"qdiscs", "filters", "other filters"}
    )
    redirects.remove(about.id)
    assert state_of(docker.container) == before
    assert state_names() == []
    assert docker.addresses("www.corp.example") == [BUILTIN_ANSWER]


def others_programs(docker: World, mode: str) -> None:
    """Somebody else's programs where ours go; they see packets, and say nothing to them."""
    with BpfObject(OBJECT) as loaded:
        loaded.load()
        for number, (name, fd) in enumerate(loaded.programs().items()):
            with docker.container.entered():
                for ifindex in (1, socket.if_nametoindex("eth0")):
                    for direction in ("ingress", "egress"):
                        if mode == "clsact":
                            netlink.attach_clsact(ifindex, direction, fd, name, 1 + number)
                        else:
                            kind = bpf.TCX_INGRESS if direction == "ingress" else bpf.TCX_EGRESS
                            link = bpf.create_link(fd, ifindex, kind)
                            bpf.pin(link, f"{bpffs.MOUNT_POINT}/{name}_{direction}_{ifindex}")
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
        redirects.remove(about.id)
        assert state_of(docker.container) == before
    finally:
        for pin in Path(bpffs.MOUNT_POINT).glob("*gress_*"):
            pin.unlink()


def test_beside_the_firewall(docker: World) -> None:
    """It tracks what leaves: the answer is let in to where it goes on to lo."""
    with docker.container.entered():
        firewall = Firewall()
        try:
            for mode in MODES if bpf.supports_tcx(1) else MODES[1:]:
                firewall.attach("eth0", "both", mode=mode)
                about = docker.redirect(mode=mode)
                for options in ((), ("+tcp",)):
                    assert docker.addresses("www.example", *options) == [ANY_ANSWER]
                redirects.remove(about.id)
                (eth0,) = firewall.status().interfaces
                assert eth0.attachments["ingress"].mode == mode
        finally:
            firewall.detach_all()


# Left behind


@pytest.mark.parametrize("mode", MODES)
def test_a_namespace_that_goes_is_collected(docker: World, mode: str, tmp_path: Path) -> None:
    if mode == "tcx":
        skip_without_tcx()
    gone = DockerNetwork()
    try:
        asked = parse_redirect(SERVER)
        making = redirects.Making(mode=mode, is_probed=False)
        about = redirects.redirect(redirects.of_path(gone.path), asked, making)
    finally:
        gone.close()
    deadline = time.monotonic() + PATIENCE
    while redirects.redirects()[0].problem != "its network namespace is gone":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    here = docker.redirect(mode=mode)
    assert state_names() == [here.id]
    with pytest.raises(NotFound):
        redirects.remove(about.id)


STAGES = {
    "a directory is made": (bpffs, "new_directory", 1),
    "maps are pinned": (bpf, "pin", 5),
    "settings are written": (attachment, "_attach", 1),
    "answer is attached": (bpf, "create_link", 1),
    "answer is pinned": (bpf, "pin", 13),
    "query is attached": (bpf, "create_link", 2),
    "query is pinned": (bpf, "pin", 14),
    "it is published": (bpffs, "publish", 1),
    "answer is filtered": (netlink, "attach_clsact", 1),
    "query is filtered": (netlink, "attach_clsact", 2),
}


def kill_after(module: object, name: str, count: int) -> None:
    """Have this process be killed as it returns from a function for the count-th time."""
    function = getattr(module, name)
    left = [count]

    def call(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, call)


def killed(action: Callable[[], object]) -> None:
    """Run an action in a process of its own, which is killed in the middle of it."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it came to its end"
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("stage", STAGES)
def test_killed_while_it_is_made(docker: World, stage: str) -> None:
    module, name, count = STAGES[stage]
    mode = "clsact" if name == "attach_clsact" else "tcx"
    if mode == "tcx":
        skip_without_tcx()

    def make() -> None:
        kill_after(module, name, count)
        docker.redirect(mode=mode)

    before = state_of(docker.container)
    killed(make)
    # Whatever is in force, somebody answers.
    assert docker.addresses("www.example") in ([ANY_ANSWER], [BUILTIN_ANSWER])
    redirects.remove_all()
    assert state_of(docker.container) == before
    assert state_names() == []
    # And another can be made, at once.
    docker.redirect(mode=mode)
    assert docker.addresses("www.example") == [ANY_ANSWER]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2])
def test_killed_while_it_is_removed(docker: World, mode: str, count: int) -> None:
    before = state_of(docker.container)
    docker.redirect(mode=mode)
    place = (bpf, "detach_link") if mode == "tcx" else (netlink, "delete_filter")

    def remove() -> None:
        kill_after(*place, count)
        redirects.remove_all()

    killed(remove)
    redirects.remove_all()
    assert state_of(docker.container) == before
    assert state_names() == []
    assert docker.addresses("www.example") == [BUILTIN_ANSWER]


# What cannot be


def refused(docker: World, kind: type[ZfwError], **options: Any) -> tuple[str, str | None]:
    """The line and the hint that a redirect is refused with; nothing is changed."""
    before = state_of(docker.container)
    path = options.pop("path", docker.network.path)
    making = redirects.Making(**options.pop("making", {}))
    with pytest.raises(kind) as caught:
        redirects.redirect(
            redirects.of_path(path), parse_redirect(options.pop("to", SERVER), **options), making
        )
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
    docker.container.run("ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1")
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
                    redirects.redirect(
                        redirects.of_path(docker.network.path),
                        parse_redirect(SERVER, "169.254.20.10"),
                    )
                done = docker.container.run(
                    *("dig", "@169.254.20.10", "+short", "www.example", *options)
                )
                assert done.stdout.split() == [answer]
            redirects.remove_all()


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
        redirects.of_process(ended.pid)
    with pytest.raises(UsageError):
        redirects.of_process(0)


def test_ports_that_the_kernel_has_all_of(docker: World) -> None:
    with docker.container.entered():
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535")
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
            docker.redirect(daemon=Ports(ports[0], 0))
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
        f"redirect(of_path({path!r}), parse_redirect({SERVER!r}))",
        "redirects()",
        "remove('1')",
        "remove_all()",
    ):
        code = (
            "import os; os.setuid(65534)\n"
            "from zfw_py.docker_dns.redirect import *\n"
            "from zfw_py.model.dns_redirect import parse_redirect\n"
            "from zfw_py.errors import PermissionDenied\n"
            f"try: {call}\n"
            "except PermissionDenied as error: print(error)\n"
        )
        done = docker.container.run(sys.executable, "-c", code)
        assert done.stderr == ""
        assert "needs root" in done.stdout
        assert done.stdout.count("\n") == 1
