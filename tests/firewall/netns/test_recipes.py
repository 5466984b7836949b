# SPDX-License-Identifier: GPL-2.0-only
"""The recipes of docs/RECIPES.md, with the daemons that they are for.

The commands and configurations are read from the page. The client is in the LAN, the server behind
the gateway's other interface.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import remove_firewall
from tests.firewall.support.listeners import tcp_listener, udp_listener
from tests.firewall.support.recipes import (
    configuration,
    fetched,
    follow,
    is_listening,
    web_server,
)
from tests.support.daemons import running
from tests.support.netns import RoutedNetwork
from tests.support.waiting import wait_until
from zfw_py import Firewall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

CLIENT = {4: RoutedNetwork.client_ipv4, 6: RoutedNetwork.client_ipv6}
SERVER = {4: RoutedNetwork.server_ipv4, 6: RoutedNetwork.server_ipv6}
GATEWAY_OUTSIDE = {4: "10.8.0.1", 6: "fd08::1"}
URL = {4: f"http://{SERVER[4]}/", 6: f"http://[{SERVER[6]}]/"}
PROXY_PORT = 43321
# Seconds within which a packet that passes has long arrived.
SILENCE = 1.0
# Seconds; the machine may be busy.
PATIENCE = 20.0


@pytest.fixture
def lan(_private_bpffs: None) -> Iterator[RoutedNetwork]:
    """The page's network, with a firewall on both sides of the gateway; the test runs in that.

    The kernel checks sources strictly and forwards nothing: the recipes need neither.
    """
    with RoutedNetwork() as made, made.gateway.entered():
        made.gateway.sysctl(1, "ipv4/conf/all/rp_filter")
        made.gateway.sysctl(0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        follow(made.gateway, "start")
        yield made
        remove_firewall()


def proxied(lan: RoutedNetwork, source: dict[int, str]) -> None:
    """Assert that the server is asked by these addresses, and only through the interception."""
    with web_server(lan.server):
        for family in (4, 6):
            assert fetched(lan.client, URL[family]) == f"{source[family]} asked {SERVER[family]}"
    assert [rule.packets for rule in Firewall().rules()] == [1, 1]


# Proxies that connect to the original destination


@contextmanager
def haproxy(lan: RoutedNetwork, directory: Path, more: str = "") -> Iterator[None]:
    file = configuration("haproxy.cfg", directory, after=more)
    command = ("/usr/sbin/haproxy", "-db", "-f", file)
    with running(lan.gateway, directory / "haproxy.log", *command):
        assert is_listening(lan.gateway, PROXY_PORT)
        yield


@contextmanager
def squid(lan: RoutedNetwork, directory: Path, *, keeps_client: bool = False) -> Iterator[None]:
    """Squid with a shared memory and log files of its own."""
    ours = "shutdown_lifetime 0 seconds\npid_filename none\ncache_log /dev/null\naccess_log none\n"
    file = directory / "squid.conf"
    configuration("squid.conf", directory, before=ours)
    if keeps_client:
        file.write_text(file.read_text().replace("spoof_client_ip deny all\n", ""))
    start = 'mount -t tmpfs tmpfs /dev/shm && exec /usr/sbin/squid -N -f "$0"'
    command = ("/usr/bin/unshare", "--mount", "/bin/sh", "-c", start, str(file))
    with running(lan.gateway, directory / "squid.log", *command):
        assert is_listening(lan.gateway, PROXY_PORT)
        yield


def test_haproxy_connects_to_the_original_destination(lan: RoutedNetwork, tmp_path: Path) -> None:
    follow(lan.gateway, "forward")
    with haproxy(lan, tmp_path):
        proxied(lan, GATEWAY_OUTSIDE)


def test_haproxy_connects_from_the_clients_address(lan: RoutedNetwork, tmp_path: Path) -> None:
    follow(lan.gateway, "forward")
    follow(lan.gateway, "return")
    configuration("haproxy-source.cfg", tmp_path)
    with haproxy(lan, tmp_path, more=(tmp_path / "haproxy-source.cfg").read_text()):
        proxied(lan, CLIENT)


def test_squid_connects_to_the_original_destination(lan: RoutedNetwork, tmp_path: Path) -> None:
    follow(lan.gateway, "forward")
    with squid(lan, tmp_path):
        proxied(lan, GATEWAY_OUTSIDE)


def test_squid_connects_from_the_clients_address(lan: RoutedNetwork, tmp_path: Path) -> None:
    follow(lan.gateway, "forward")
    follow(lan.gateway, "return")
    with squid(lan, tmp_path, keeps_client=True):
        proxied(lan, CLIENT)


def test_connections_of_the_gateways_users_are_intercepted_and_the_proxys_are_not(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    follow(lan.gateway, "gateway")
    with haproxy(lan, tmp_path), web_server(lan.server):
        for as_user, packets in ((), 0), (nobody, 1):
            for family in (4, 6):
                text = fetched(lan.gateway, URL[family], as_user=as_user)
                assert text == f"{GATEWAY_OUTSIDE[family]} asked {SERVER[family]}"
            assert [rule.packets for rule in Firewall().rules()] == [packets, packets]


def test_nginx_connects_from_the_clients_address_to_a_server_that_it_knows(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    follow(lan.gateway, "return")
    follow(lan.gateway, "nginx")
    file = configuration(
        "nginx.conf",
        tmp_path,
        before=f"daemon off; pid {tmp_path}/nginx.pid; error_log stderr;\n",
    )
    command = ("/usr/sbin/nginx", "-p", "/usr/share/nginx", "-c", file)
    with (
        running(lan.gateway, tmp_path / "nginx.log", *command),
        web_server(lan.server),
    ):
        assert is_listening(lan.gateway, PROXY_PORT)
        assert fetched(lan.client, "http://100.72.0.4/") == f"{CLIENT[4]} asked {SERVER[4]}"


def test_a_redirected_connection_reaches_a_proxy_that_asks_for_the_original_destination(
    lan: RoutedNetwork,
) -> None:
    so_original_dst = 80  # include/uapi/linux/netfilter_ipv4.h
    follow(lan.gateway, "redirect")
    with (
        socket.create_server(("", PROXY_PORT)) as proxy,
        client_socket(lan.client, socket.SOCK_STREAM, SERVER[4]) as client,
    ):
        client.connect((SERVER[4], 80))
        connection, _ = proxy.accept()
        with connection:
            original = connection.getsockopt(socket.SOL_IP, so_original_dst, 16)
            assert socket.inet_ntoa(original[4:8]) == SERVER[4]
            connection.sendall(b"answer")
            assert client.recv(100) == b"answer"
        with client_socket(lan.client, socket.SOCK_STREAM, "10.9.0.1") as direct:
            direct.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                direct.connect(("10.9.0.1", PROXY_PORT))


# Without a proxy's help


def client_socket(namespace: Namespace, kind: socket.SocketKind, address: str) -> socket.socket:
    """A socket in a namespace, of the address's family, with a time-out."""
    with namespace.entered():
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    client.settimeout(PATIENCE)
    return client


def asking(namespace: Namespace, address: str, port: int) -> socket.socket:
    """A UDP socket that has sent a datagram."""
    client = client_socket(namespace, socket.SOCK_DGRAM, address)
    client.connect((address, port))
    client.send(b"question")
    return client


def test_a_udp_proxy_answers_from_the_original_destination(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    follow(lan.gateway, "udp")
    file = configuration("udp_proxy.py", tmp_path)
    with running(lan.gateway, tmp_path / "proxy.log", "/usr/bin/python3", file):
        assert is_listening(lan.gateway, PROXY_PORT, "udp")
        for address in (SERVER[4], "10.8.0.99"):
            with asking(lan.client, address, 5000) as client:
                for _ in range(3):
                    assert client.recv(100) == b"answer to question"
                    client.send(b"question")


def test_a_pass_rule_keeps_the_gateways_own_services_from_a_wide_rule(lan: RoutedNetwork) -> None:
    follow(lan.gateway, "own")
    with udp_listener(port=PROXY_PORT):
        # The second one comes later.
        for own in ("10.9.0.1", "10.9.0.7"):
            lan.gateway.run("ip", "address", "replace", f"{own}/24", "dev", "lan0")
            Firewall().refresh()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
                dns.settimeout(PATIENCE)
                dns.bind((own, 53))
                with asking(lan.client, own, 53) as client:
                    data, address = dns.recvfrom(100)
                    dns.sendto(b"answer to " + data, address)
                    assert client.recv(100) == b"answer to question"


# Beside netfilter

INPUT_CHAIN = """table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}"""
INPUT_RULES = """for iptables in iptables ip6tables; do
  $iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
  $iptables -A INPUT -p ipv6-icmp -j ACCEPT
  $iptables -P INPUT DROP
done"""


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("command", "recipe"),
    [
        (("nft", INPUT_CHAIN), "nft-socket"),
        (("/bin/sh", "-eu", "-c", INPUT_RULES), "iptables-socket"),
    ],
    ids=["nft", "iptables"],
)
def test_an_input_chain_that_drops_needs_a_rule_for_transparent_sockets(
    lan: RoutedNetwork, command: tuple[str, ...], recipe: str, family: int
) -> None:
    follow(lan.gateway, "forward")
    lan.gateway.run(*command)
    with (
        tcp_listener(family, PROXY_PORT) as listener,
        client_socket(lan.client, socket.SOCK_STREAM, SERVER[family]) as client,
    ):
        client.setblocking(False)
        client.connect_ex((SERVER[family], 80))
        listener.socket.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            listener.accept()
        assert Firewall().status().reasons["rule_intercept"][0] >= 1
        follow(lan.gateway, recipe)
        # The kernel sends the SYN again.
        listener.socket.settimeout(PATIENCE)
        with listener.accept() as connection:
            connection.sendall(b"answer")
            client.settimeout(PATIENCE)
            assert client.recv(100) == b"answer"


# DNS, and protocols that open further ports


def dnsmasq(namespace: Namespace, directory: Path, *options: str) -> AbstractContextManager[object]:
    """Dnsmasq without the machine's configuration."""
    return running(
        namespace,
        directory / "dnsmasq.log",
        "/usr/sbin/dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--no-resolv",
        "--no-hosts",
        "--log-facility=-",
        f"--pid-file={directory}/dnsmasq.pid",
        *options,
    )


def resolved(namespace: Namespace, server: str, *options: str) -> str:
    """What dig prints for wiki.example, of one try of 5 s."""
    command = ("dig", "+short", "+tries=1", "+time=5", f"@{server}", "wiki.example", *options)
    return namespace.run(*command, check=False).stdout.strip()


def test_the_gateways_dns_server_answers_queries_to_any_server(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    follow(lan.gateway, "dns")
    with dnsmasq(lan.gateway, tmp_path, "--address=/wiki.example/192.0.2.1"):
        assert is_listening(lan.gateway, 53, "udp")
        for server in ("10.9.0.1", SERVER[4], SERVER[6], "198.51.100.1"):
            for options in ((), ("+tcp",)):
                assert resolved(lan.client, server, *options) == "192.0.2.1", server


def test_a_tftp_server_answers_from_a_port_that_a_rule_passes(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    lan.gateway.sysctl(1, "ipv4/ip_forward")
    (tmp_path / "file").write_text("contents")
    tftp = ("--port=0", "--enable-tftp", f"--tftp-root={tmp_path}")
    url = f"tftp://{SERVER[4]}/file"
    with dnsmasq(lan.server, tmp_path, *tftp):
        assert is_listening(lan.server, 69, "udp")
        assert not fetched(lan.client, url, patience=SILENCE)
        follow(lan.gateway, "tftp")
        assert fetched(lan.client, url) == "contents"


# Routing

BIRD = """
log stderr all;
router id {router_id};
protocol device {{ }}
protocol direct {{ ipv4; ipv6; interface "lo"; }}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
protocol kernel {{ ipv6 {{ import none; export all; }}; }}
protocol bfd {{ interface "*" {{ interval 300 ms; }}; }}
protocol ospf v2 two {{
  ipv4 {{ import all; export where source = RTS_DEVICE; }};
  area 0 {{ interface "{interface}" {{ hello 1; dead 4; bfd; }}; }};
}}
protocol ospf v3 three {{
  ipv6 {{ import all; export where source = RTS_DEVICE; }};
  area 0 {{ interface "{interface}" {{ hello 1; dead 4; bfd; }}; }};
}}
protocol bgp session {{
  local as 65000;
  neighbor {neighbour} as 65000;
  direct;
  {passive}
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 2;
  ipv4 {{ import all; export none; }};
}}
"""


@contextmanager
def bird(
    namespace: Namespace, directory: Path, interface: str, addresses: tuple[str, str], number: int
) -> Iterator[str]:
    """BIRD with a stub network on lo; the path of its control socket.

    Only the server's end opens the BGP session, so that it needs a rule.
    """
    own, neighbour = addresses
    namespace.add_addresses("lo", f"192.0.2.{number}/32", f"2001:db8::{number}/128")
    file, control = directory / f"bird{number}.conf", f"{directory}/{number}.ctl"
    passive = "passive;" if interface == "wan0" else ""
    file.write_text(
        BIRD.format(router_id=own, interface=interface, neighbour=neighbour, passive=passive)
    )
    command = ("/usr/sbin/bird", "-f", "-c", str(file), "-s", control)
    with running(namespace, directory / f"bird{number}.log", *command):
        yield control


def test_ospf_bfd_and_bgp_come_up(lan: RoutedNetwork, tmp_path: Path) -> None:
    outside = (GATEWAY_OUTSIDE[4], SERVER[4])

    def shown(*words: str) -> str:
        return lan.gateway.run("birdc", "-s", control, "show", *words, check=False).stdout

    def learnt() -> bool:
        return all(
            f"{prefix}::2" in lan.gateway.run("ip", "-6", "route").stdout
            if ":" in prefix
            else f"{prefix}.2 " in lan.gateway.run("ip", "route").stdout
            for prefix in ("192.0.2", "2001:db8")
        )

    with (
        bird(lan.gateway, tmp_path, "wan0", outside, 1) as control,
        bird(lan.server, tmp_path, "eth0", outside[::-1], 2),
    ):
        assert wait_until(lambda: Firewall().status().reasons["protocol"][0] >= 4)
        assert not learnt()
        follow(lan.gateway, "routing")
        assert wait_until(learnt), shown("protocols")
        assert wait_until(lambda: "Established" in shown("protocols")), shown("protocols")
        # One session of each family.
        assert wait_until(lambda: shown("bfd", "sessions").count(" Up ") == 2), shown(
            "bfd", "sessions"
        )


KEEPALIVED = """
vrrp_instance LAN {{
  state BACKUP
  interface {interface}
  virtual_router_id 9
  priority {priority}
  advert_int 1
  virtual_ipaddress {{ 10.9.0.254/24 }}
}}
"""


@contextmanager
def keepalived(
    namespace: Namespace, directory: Path, interface: str, priority: int
) -> Iterator[None]:
    file = directory / f"keepalived-{interface}.conf"
    file.write_text(KEEPALIVED.format(interface=interface, priority=priority))
    pids = [f"--{name}={directory}/{name}-{interface}" for name in ("pid", "vrrp_pid")]
    command = ("/usr/sbin/keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file")
    log = directory / f"keepalived-{interface}.log"
    with running(namespace, log, *command, str(file), *pids):
        yield


def test_of_two_routers_with_vrrp_one_has_the_virtual_address(
    lan: RoutedNetwork, tmp_path: Path
) -> None:
    def holders() -> list[str]:
        ends = (("gateway", lan.gateway), ("other", lan.client))
        return [name for name, end in ends if " 10.9.0.254/" in end.run("ip", "-o", "addr").stdout]

    with (
        keepalived(lan.gateway, tmp_path, "lan0", 100),
        keepalived(lan.client, tmp_path, "eth0", 150),
    ):
        assert wait_until(lambda: holders() == ["gateway", "other"])
        follow(lan.gateway, "vrrp")
        assert wait_until(lambda: holders() == ["other"])


# Bridges


def test_a_bridge_intercepts_for_its_ports_and_leaves_them_to_each_other(
    lan: RoutedNetwork,
) -> None:
    web, app = lan.add(), lan.add()
    for number, namespace in ((2, web), (3, app)):
        lan.gateway.add_veth(f"veth{number}", "eth0", namespace)
        namespace.set_up("eth0", f"10.88.0.{number}/16")
        namespace.run("ip", "route", "add", "default", "via", "10.88.0.1")
    lan.gateway.add_bridge("br0", "veth2", "veth3")
    lan.gateway.add_addresses("br0", "10.88.0.1/16")
    follow(lan.gateway, "bridge")
    with tcp_listener(port=PROXY_PORT) as listener, web_server(web):
        with client_socket(app, socket.SOCK_STREAM, SERVER[4]) as client:
            client.connect((SERVER[4], 80))
            with listener.accept() as connection:
                assert connection.getsockname() == (SERVER[4], 80)
        assert fetched(app, "http://10.88.0.2/") == "10.88.0.3 asked 10.88.0.2"
