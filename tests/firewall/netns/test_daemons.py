# SPDX-License-Identifier: GPL-2.0-only
"""DHCP, and Debian's SSH server, on a gateway that denies everything, in both directions."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.frames import SOCKET_FAMILY, families, is_silent
from tests.support.daemons import running
from tests.support.netns import Network
from tests.support.waiting import PATIENCE, wait_until
from zfw_py import Firewall, Prefix, Rule, RuleKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

GATEWAY = {4: Network.gateway_ipv4, 6: Network.gateway_ipv6}
INTERFACE = Network.interface
# A lease takes a few messages, each sent again after seconds.
LONG = 20.0
LEASES = {4: "10.9.0.5", 6: "fd09::5"}

# What dhclient calls: it knows the lease, this sets it. No file of the machine is touched.
SCRIPT = """#!/bin/sh
case "$reason" in
BOUND | RENEW | REBIND | REBOOT)
	ip address replace "$new_ip_address/24" dev "$interface" ;;
BOUND6 | RENEW6 | REBIND6)
	ip address replace "$new_ip6_address/64" dev "$interface" nodad ;;
esac
"""


@pytest.fixture
def denying(network: Network) -> Firewall:
    """A firewall that has no rule, in either direction; IPv6 is on."""
    firewall = Firewall()
    firewall.attach(INTERFACE, "both")
    for setting in ("ipv6", "outbound_filter"):
        firewall.set([INTERFACE], setting, True)
    return firewall


def counted(firewall: Firewall) -> dict[str, int]:
    """The reasons that have occurred."""
    reasons = firewall.status().reasons
    return {reason: packets for reason, (packets, _) in reasons.items() if packets}


def has_address(namespace: Namespace, address: str, interface: str = INTERFACE) -> bool:
    shown = namespace.run("ip", "-o", "address", "show", "dev", interface).stdout
    return f" {address}/" in shown


# DHCP


@contextmanager
def dhcp_server(
    namespace: Namespace, interface: str, directory: Path, *options: str
) -> Iterator[None]:
    """Dnsmasq on one side of the wire, for both families."""
    with running(
        namespace,
        directory / "dnsmasq.log",
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--port=0",
        f"--interface={interface}",
        "--bind-interfaces",
        "--log-facility=-",
        "--log-dhcp",
        "--no-ping",
        "--dhcp-authoritative",
        f"--pid-file={directory}/dnsmasq.pid",
        f"--dhcp-leasefile={directory}/dnsmasq.leases",
        f"--dhcp-range={LEASES[4]},{LEASES[4]},255.255.255.0,1h",
        f"--dhcp-range={LEASES[6]},{LEASES[6]},64,1h",
        *options,
    ):
        assert wait_until(
            lambda: all(port in namespace.run("ss", "-Huln").stdout for port in (":67 ", ":547 ")),
            LONG,
        ), (directory / "dnsmasq.log").read_text()
        yield


@contextmanager
def dhcp_client(
    namespace: Namespace, interface: str, directory: Path, family: int
) -> Iterator[None]:
    """Dhclient on one side, with files of its own, until the address is there."""
    script = directory / "dhclient-script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    configuration = directory / "dhclient.conf"
    configuration.write_text("timeout 60;\nretry 1;\nbackoff-cutoff 2;\ninitial-interval 1;\n")
    with running(
        namespace,
        directory / "dhclient.log",
        "/usr/sbin/dhclient",
        f"-{family}",
        "-d",
        "-v",
        "-cf",
        str(configuration),
        "-sf",
        str(script),
        "-lf",
        f"{directory}/dhclient.leases",
        "-pf",
        f"{directory}/dhclient.pid",
        interface,
    ):
        if not wait_until(lambda: has_address(namespace, LEASES[family], interface), LONG):
            logs = ((directory / name).read_text() for name in ("dhclient.log", "dnsmasq.log"))
            raise AssertionError("\n".join(("no lease", *logs)))
        yield


@families
def test_a_lease_is_got_where_everything_is_denied(
    network: Network, denying: Firewall, tmp_path: Path, family: int
) -> None:
    if family == 4:
        network.gateway.run("ip", "-4", "address", "flush", "dev", INTERFACE)
    denying.refresh()
    assert not has_address(network.gateway, LEASES[family])
    # A packet of IPv6's own may have come before IPv6 was on.
    before = counted(denying)
    with (
        dhcp_server(network.client, "eth0", tmp_path, "--dhcp-broadcast"),
        dhcp_client(network.gateway, INTERFACE, tmp_path, family),
    ):
        reasons = {
            reason: packets - before.get(reason, 0)
            for reason, packets in counted(denying).items()
            if packets != before.get(reason)
        }
        # Discover or solicit, offer, request, acknowledgment.
        assert reasons.pop("dhcp") >= 4
        for harmless in ("arp", "neighbour_discovery", "multicast_listener"):
            reasons.pop(harmless, None)
        assert reasons == {}


def test_a_lease_is_got_by_answers_to_the_address_that_is_offered(
    network: Network, denying: Firewall, tmp_path: Path
) -> None:
    """Not to all. The stack could not take them either: a client reads them from the wire."""
    network.gateway.run("ip", "-4", "address", "flush", "dev", INTERFACE)
    with (
        dhcp_server(network.client, "eth0", tmp_path),
        dhcp_client(network.gateway, INTERFACE, tmp_path, 4),
    ):
        reasons = counted(denying)
        assert reasons["dhcp"] >= 2
        assert reasons["no_rule"] >= 2
        assert "egress_no_rule" not in reasons


def test_a_lease_is_renewed_with_the_server_itself(
    network: Network, denying: Firewall, tmp_path: Path
) -> None:
    """Not to all, but from address to address (RFC 2131, section 4.4.5), once that is known."""
    network.gateway.run("ip", "-4", "address", "flush", "dev", INTERFACE)
    with (
        dhcp_server(network.client, "eth0", tmp_path),
        dhcp_client(network.gateway, INTERFACE, tmp_path, 4),
    ):
        pass
    denying.refresh()
    with (
        network.client.entered(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.settimeout(PATIENCE)
        server.bind(("", 67))
        with network.gateway.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.bind((LEASES[4], 68))
            before = counted(denying)["dhcp"]
            client.sendto(b"renew", (Network.client_ipv4, 67))
            assert server.recvfrom(100) == (b"renew", (LEASES[4], 68))
            server.sendto(b"ack", (LEASES[4], 68))
            assert client.recv(100) == b"ack"
            assert counted(denying)["dhcp"] == before + 2


@pytest.mark.parametrize(
    ("family", "options"), [(4, ()), (4, ("--dhcp-broadcast",)), (6, ())], ids=str
)
def test_a_server_behind_the_filter_gives_a_lease(
    network: Network, denying: Firewall, tmp_path: Path, family: int, options: tuple[str, ...]
) -> None:
    """Its answers go to a client without an address, or to all: they belong to no flow."""
    for destination, port in (("0.0.0.0/0", 67), ("ff02::1:2", 547)):
        denying.insert(Rule(RuleKey(Prefix.parse(destination), "udp", port)))
    if family == 4:
        network.client.run("ip", "-4", "address", "flush", "dev", "eth0")
    try:
        with (
            dhcp_server(network.gateway, INTERFACE, tmp_path, *options),
            dhcp_client(network.client, "eth0", tmp_path, family),
        ):
            assert counted(denying)["dhcp"] >= 2
            assert "egress_no_rule" not in counted(denying)
    finally:
        if family == 4:
            network.client.run("ip", "-4", "address", "flush", "dev", "eth0")
            network.client.run("ip", "address", "add", f"{Network.client_ipv4}/24", "dev", "eth0")


def test_another_port_is_no_dhcp(network: Network, denying: Firewall) -> None:
    for own, other in ((67, 69), (68, 69), (69, 67)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((GATEWAY[4], own))
            client.sendto(b"?", (Network.client_ipv4, other))
    assert counted(denying)["egress_no_rule"] == 3
    assert "dhcp" not in counted(denying)


# SSH


@contextmanager
def ssh_server(namespace: Namespace, directory: Path, port: int) -> Iterator[None]:
    """Debian's sshd with a key and a configuration of its own, and a /run of its own."""
    key = directory / "host_key"
    namespace.run("/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    configuration = directory / "sshd_config"
    configuration.write_text(
        f"Port {port}\nHostKey {key}\nPidFile none\nUsePAM no\nUseDNS no\nLogLevel VERBOSE\n"
        "AuthorizedKeysFile none\nPasswordAuthentication no\nStrictModes no\n"
    )
    # It insists on /run/sshd, which is the service's to make.
    start = (
        "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -m 755 /run/sshd &&"
        ' exec /usr/sbin/sshd -D -e -f "$0"'
    )
    command = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", start, str(configuration))
    with running(namespace, directory / "sshd.log", *command):
        assert wait_until(lambda: f":{port} " in namespace.run("ss", "-Hltn").stdout, LONG), (
            directory / "sshd.log"
        ).read_text()
        yield


def client_socket(network: Network, family: int) -> socket.socket:
    with network.client.entered():
        made = socket.socket(SOCKET_FAMILY[family], socket.SOCK_STREAM)
    made.settimeout(PATIENCE)
    return made


@families
def test_sshd_is_reached_while_everything_else_is_denied(
    network: Network, denying: Firewall, tmp_path: Path, family: int
) -> None:
    with ssh_server(network.gateway, tmp_path, 22):
        with client_socket(network, family) as client:
            client.connect((GATEWAY[family], 22))
            with client.makefile("rwb") as stream:
                assert stream.readline().startswith(b"SSH-2.0-")
                stream.write(b"SSH-2.0-zfw_test\r\n")
                stream.flush()
                # Its side of the key exchange: more than a segment.
                assert len(stream.read(500)) == 500
        reasons = counted(denying)
        assert reasons["ssh"] >= 6
        assert "no_rule" not in reasons
        assert "egress_no_rule" not in reasons
        denying.set([INTERFACE], "ssh", False)
        with client_socket(network, family) as client:
            client.setblocking(False)
            client.connect_ex((GATEWAY[family], 22))
            assert is_silent(client)
        assert counted(denying)["no_rule"] >= 1


@families
def test_sshd_on_another_port_needs_a_rule(
    network: Network, denying: Firewall, tmp_path: Path, family: int
) -> None:
    with ssh_server(network.gateway, tmp_path, 2222), client_socket(network, family) as client:
        client.setblocking(False)
        client.connect_ex((GATEWAY[family], 2222))
        assert is_silent(client)
        assert counted(denying)["no_rule"] >= 1


def test_no_daemon_is_left(network: Network, tmp_path: Path) -> None:
    """Also where a test fails."""
    pids = []

    def fail() -> None:
        with running(network.client, tmp_path / "log", "/bin/sleep", "1000") as daemon:
            pids.append(daemon.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
