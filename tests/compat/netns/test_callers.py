# SPDX-License-Identifier: GPL-2.0-only
"""The other callers of the classic command: resolver, tunneler, its wrapper, cron, people.

Their own command lines, on real traffic; the numbers are those of the callers' cases.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compat.support.fake_router import SERVICE_ID, CommandLine
from tests.firewall.support.listeners import Listener, tcp_listener, udp_listener
from tests.support.command import ZFW
from tests.support.netns import Network
from tests.support.waiting import PATIENCE
from zfw_py import Firewall
from zfw_py.firewall import layout
from zfw_py.firewall.maps import Maps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

ARRAY_OF_MAPS = 12  # enum bpf_map_type
NOT_ENABLED = "Not enough privileges or ebpf not enabled!"
OBJECTS = {
    "ingress": "/opt/openziti/bin/zfw_tc_ingress.o",
    "egress": "/opt/openziti/bin/zfw_tc_outbound_track.o",
}
NO_SERVICE = "0" * 22


class Gateway(Network):
    """A network, and what is done and seen at its gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.zfw = CommandLine(self.gateway)

    def ok(self, *words: str) -> str:
        """Run zfw; it succeeds and complains of nothing. What it printed."""
        done = self.zfw(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def fails(self, *words: str, saying: str) -> None:
        """Run zfw; it fails with code 1 and one line on stderr, and has done nothing."""
        before = self.rules()
        done = self.zfw(*words)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert saying in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert self.rules() == before

    def attach(self, *directions: str) -> None:
        for direction in directions:
            self.ok("-X", self.interface, "-O", OBJECTS[direction], "-z", direction)

    def rules(self) -> set[tuple[str, str, int, int, str]]:
        """Each rule's destination, protocol, ports and service."""
        return {
            (
                str(rule.key.destination),
                rule.key.protocol,
                rule.key.low_port,
                rule.high_port,
                rule.service_id,
            )
            for rule in Firewall().rules()
        }

    def local(self) -> set[str]:
        """The addresses of lo."""
        shown = self.gateway.run("ip", "-json", "address", "show", "dev", "lo").stdout
        return {
            f"{info['local']}/{info['prefixlen']}"
            for link in json.loads(shown)
            for info in link["addr_info"]
        }

    def connects(self, listener: Listener, address: str, port: int) -> None:
        """The client's connection is accepted by this listener, its destination unchanged."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.client.entered():
            client = socket.socket(family, socket.SOCK_STREAM)
        with client:
            client.settimeout(PATIENCE)
            client.connect((address, port))
            with listener.accept() as accepted:
                assert accepted.getsockname()[:2] == (address, port)
                client.sendall(b"question")
                assert accepted.recv(100) == b"question"

    def is_dropped(self, address: str, port: int) -> None:
        before = Firewall().status().reasons["no_rule"][0]
        with self.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with client:
            client.settimeout(0.15)
            with pytest.raises(TimeoutError):
                client.connect((address, port))
        assert Firewall().status().reasons["no_rule"][0] > before

    def hears(self, listener: Listener, address: str, port: int) -> None:
        """The client's datagram arrives there, its destination unchanged."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.client.entered():
            client = socket.socket(family, socket.SOCK_DGRAM)
        with client:
            client.sendto(b"question", (address, port))
        data, _, destination = listener.receive()
        assert (data, destination) == (b"question", (address, port))

    def is_pinged(self, address: str) -> None:
        """It answers the client's echo request."""
        with self.client.entered():
            if ":" in address:
                made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            else:
                made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with made:
            made.settimeout(PATIENCE)
            made.connect((address, 0))
            # Identifier and number 1; the kernel fills in the checksum of ICMPv6.
            made.send(bytes.fromhex("8000000000010001" if ":" in address else "0800f7fd00010001"))
            reply = b"\x81\x00" if ":" in address else b"\x00\x00"
            while True:
                data = made.recv(2048)
                # IPv4 has its header, of 20 bytes here, before it.
                if (data if ":" in address else data[20:])[:2] == reply:
                    return


@pytest.fixture
def gateway(_private_bpffs: None) -> Iterator[Gateway]:
    """The test is inside the gateway of a network; nothing is attached."""
    with Gateway() as made, made.gateway.entered():
        yield made
        if Firewall().is_installed():
            Firewall().detach_all()


# Boot scripts and cron


def test_case_42_a_resolver_on_the_host_and_one_on_an_address_of_its_own(gateway: Gateway) -> None:
    gateway.attach("ingress")
    own, ports = gateway.gateway_ipv4, ("-l", "53", "-h", "53", "-t", "0")
    for protocol in ("tcp", "udp"):
        gateway.ok("-I", "-c", own, "-m", "32", *ports, "-p", protocol)
    gateway.ok("-I", "-c", "100.127.255.254", "-m", "32", *ports, "-p", "udp", "-r")
    assert "100.127.255.254/32" in gateway.local()
    with tcp_listener(address=own, port=53) as tcp, udp_listener(address=own, port=53) as udp:
        gateway.connects(tcp, own, 53)
        gateway.hears(udp, own, 53)
    with udp_listener(address="100.127.255.254", port=53) as udp:
        gateway.hears(udp, "100.127.255.254", 53)
    gateway.ok("-F", "-z", "ingress", "-r")
    assert gateway.rules() == set()
    assert "100.127.255.254/32" not in gateway.local()


def test_case_52_ssh_follows_the_addresses_that_cron_s_listing_finds(gateway: Gateway) -> None:
    gateway.attach("ingress")
    change = ("ip", "address", "add", "10.77.0.1/24", "dev", gateway.interface)
    gateway.gateway.run(*change)
    with tcp_listener(address="10.77.0.1", port=22) as sshd:
        gateway.is_dropped("10.77.0.1", 22)
        gateway.ok("-L", "-E")
        gateway.connects(sshd, "10.77.0.1", 22)
        gateway.gateway.run(*("del" if word == "add" else word for word in change))
        gateway.gateway.run("ip", "address", "add", "10.77.0.1/32", "dev", "lo")
        gateway.ok("-L", "-E")
        gateway.is_dropped("10.77.0.1", 22)


def test_case_52_an_interface_that_is_gone_is_pruned(gateway: Gateway) -> None:
    gateway.gateway.add_veth("eth1", "eth2")
    gateway.attach("ingress")
    gateway.ok("-X", "eth1", "-O", OBJECTS["ingress"], "-z", "ingress")
    gateway.ok("-e", "eth1")
    index = socket.if_nametoindex("eth1")
    assert f"eth1: {index}\n" in gateway.ok("-L", "-E")
    gateway.gateway.run("ip", "link", "del", "eth1")
    assert "eth1" not in gateway.ok("-L", "-E")
    with Maps(is_writer=False) as maps:
        rows = {bytes(value[:4]) for _, value in maps.map("interfaces").items()}
    assert index.to_bytes(4, "little") not in rows


def test_case_52_cron_does_not_disturb_a_router_at_work(gateway: Gateway) -> None:
    gateway.attach("ingress")
    key = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-o", "0.0.0.0", "-n", "0")
    commands = [
        words
        for port in range(2000, 2016)
        for words in (
            ("-I", *key, "-l", str(port), "-h", str(port), "-t", "33381", "-s", SERVICE_ID),
            ("-L", "-E"),
            ("-L", "-G"),
        )
    ]
    running = [gateway.zfw.start(*words) for words in commands]
    assert {process.communicate()[1] for process in running} == {""}
    assert {process.returncode for process in running} == {0}
    assert {rule[2] for rule in gateway.rules()} == set(range(2000, 2016))


def test_cron_s_collection_of_sessions_prints_nothing(gateway: Gateway) -> None:
    gateway.attach("ingress", "egress")
    assert gateway.ok("-L", "-G") == ""


# The tunneler


def diverter_start(gateway: Gateway) -> None:
    """What it runs for each interface, but for -T, which is not there yet."""
    gateway.zfw("-Q")
    for direction in ("ingress", "egress"):
        gateway.attach(direction)
        for flag in ("-6", "-q"):
            gateway.ok(flag, gateway.interface)
    for prefix, length in (("0.0.0.0", "0"), ("::", "0")):
        for protocol in ("tcp", "udp"):
            everything = ("-c", prefix, "-m", length, "-l", "1", "-h", "65535", "-t", "0")
            gateway.ok("-I", *everything, "-p", protocol)


def test_case_54_a_diverter_that_starts_lets_everything_pass(gateway: Gateway) -> None:
    diverter_start(gateway)
    for own in (gateway.gateway_ipv4, gateway.gateway_ipv6):
        family = 6 if ":" in own else 4
        with (
            tcp_listener(family, address=own, port=8080) as tcp,
            udp_listener(family, address=own, port=8081) as udp,
        ):
            gateway.connects(tcp, own, 8080)
            gateway.hears(udp, own, 8081)
        gateway.is_pinged(own)
    # Once more, as after a crash, is the same.
    before = gateway.rules()
    diverter_start(gateway)
    assert gateway.rules() == before


def service(address: str, length: str, port: int, name: str) -> tuple[str, ...]:
    """What -I and -D of the tunneler have in common: all of it."""
    selector = ("-c", address, "-m", length, "-l", str(port), "-h", str(port + 1))
    return (*selector, "-t", "40000", "-p", "tcp", "-s", name)


def test_case_56_services_come_and_go_at_once_and_in_any_order(gateway: Gateway) -> None:
    diverter_start(gateway)
    everything = gateway.rules()
    old, new = [], []
    for number in range(6):
        for address, length in (("10.40.0.0", "24"), ("fd40::", "64")):
            old.append(service(address, length, 1000 + 10 * number, f"old{number}"))
            new.append(service(address, length, 1005 + 10 * number, f"new{number}"))
    for words in old:
        gateway.ok("-I", *words)
    commands = [("-D", *words) for words in old] + [("-I", *words) for words in new]
    running = [gateway.zfw.start(*words) for words in commands]
    assert {process.communicate()[1] for process in running} == {""}
    assert {process.returncode for process in running} == {0}
    assert gateway.rules() - everything == {
        (f"{words[1]}/{words[3]}", "tcp", int(words[5]), int(words[7]), words[-1]) for words in new
    }


@pytest.mark.parametrize(("address", "family"), [("10.40.0.9", 4), ("fd40::9", 6)])
def test_case_56_a_service_is_intercepted_where_everything_passes(
    gateway: Gateway, address: str, family: int
) -> None:
    diverter_start(gateway)
    length = "32" if family == 4 else "128"
    gateway.ok("-B", address, "-m", length)
    with tcp_listener(family) as listener, tcp_listener(family, 1002, address) as own:
        words = ("-c", address, "-m", length, "-l", "1000", "-h", "1001", "-p", "tcp", "-s", "-x")
        gateway.ok("-I", *words, "-t", str(listener.port))
        gateway.connects(listener, address, 1001)
        gateway.connects(own, address, 1002)
        gateway.ok("-D", *words, "-t", str(listener.port))


@pytest.mark.parametrize("prefix", ["172.30.1.1/32", "172.30.0.0/16", "fd30::1/128"])
def test_case_57_bound_addresses_are_counted_and_an_exit_removes_them(
    gateway: Gateway, prefix: str
) -> None:
    diverter_start(gateway)
    before = gateway.local()
    address, _, length = prefix.partition("/")
    words = (address, "-m", length)
    assert gateway.ok("-B", *words) == f"binding route {prefix} to loopback\n"
    assert gateway.ok("-B", *words) == "Key already exists: total add count=2\n"
    assert gateway.local() - before == {prefix}
    assert gateway.ok("-J", *words) == "add count decremented to: 1\n"
    assert gateway.local() - before == {prefix}
    assert gateway.ok("-J", *words) == f"unbinding route {prefix} from loopback\n"
    assert gateway.local() == before
    assert gateway.ok("-J", *words) == f"bind prefix does not exist: {prefix}\n"
    rules = gateway.rules()
    gateway.ok("-B", *words)
    gateway.ok("-B", "10.31.0.1", "-m", "32")
    assert gateway.ok("-F", "-j") == ""
    assert gateway.local() == before
    assert gateway.rules() == rules
    gateway.ok("-B", *words)
    gateway.ok("-Q")
    assert gateway.local() == before


def test_case_57_the_exit_of_a_tunneler_that_shares_the_firewall(gateway: Gateway) -> None:
    """-F -j, then -F -z ingress: settings, attachments and egress rules stay."""
    gateway.attach("ingress", "egress")
    key = ("-p", "tcp", "-l", "1", "-h", "1", "-t", "0")
    gateway.ok("-I", "-c", "10.3.0.0", "-m", "16", *key, "-z", "egress")
    gateway.ok("-I", "-c", "10.4.0.0", "-m", "16", *key)
    gateway.ok("-B", "172.30.1.1", "-m", "32")
    gateway.ok("-F", "-j")
    gateway.ok("-F", "-z", "ingress")
    assert gateway.local() == {"127.0.0.1/8", "::1/128"}
    assert gateway.rules() == {("10.3.0.0/16", "tcp", 1, 1, "")}


def test_case_57_a_bind_that_makes_no_sense(gateway: Gateway) -> None:
    gateway.attach("ingress")
    before = gateway.local()
    for flag, name in (("-B", "bind-saddr-add"), ("-J", "bind-saddr-delete")):
        gateway.fails(flag, "172.30.1.1", saying=f"-m, --dprefix-len: missing, {flag}, --{name}")
        gateway.fails(flag, "172.30.1.1", "-m", "33", saying=f"{flag}, --{name}")
        gateway.fails(flag, "host.example", "-m", "32", saying=f"{flag}, --{name}")
    gateway.fails("-B", "10.9.0.0", "-m", "24", saying="shares addresses with the subnet")
    assert gateway.local() == before


def test_case_57_without_a_firewall_nothing_is_bound(namespace: Namespace) -> None:
    """The count has to live somewhere; a tunneler attaches before it binds."""
    zfw = CommandLine(namespace)
    for words in (("-B", "10.0.0.1", "-m", "32"), ("-J", "10.0.0.1", "-m", "32"), ("-F", "-j")):
        done = zfw(*words)
        assert done.returncode == 1
        assert done.stdout.startswith(NOT_ENABLED)
    assert "10.0.0.1" not in namespace.run("ip", "address", "show", "dev", "lo").stdout


# The wrapper


def test_case_58_the_wrapper_s_lines_by_the_path_that_it_has(
    gateway: Gateway, tmp_path: Path
) -> None:
    link = tmp_path / "zfw"
    link.symlink_to(ZFW)

    def run(*words: str) -> int:
        done = gateway.gateway.run(
            str(link), *words, check=False, env={}, cwd="/", stdin=subprocess.DEVNULL
        )
        return done.returncode

    assert run("-L", "-E") == 1
    gateway.attach("ingress")
    assert run("-L", "-E") == 0
    named = service("10.50.0.1", "32", 80, SERVICE_ID)
    resolver = service("100.64.0.2", "32", 53, NO_SERVICE)
    assert run("-I", *named) == run("-I", *resolver) == 0
    assert gateway.rules() == {
        ("10.50.0.1/32", "tcp", 80, 81, SERVICE_ID),
        ("100.64.0.2/32", "tcp", 53, 54, NO_SERVICE),
    }
    assert run("-D", *resolver) == run("-D", *named) == 0
    assert gateway.rules() == set()


# People


def test_case_60_listings_and_their_filters(gateway: Gateway) -> None:
    gateway.attach("ingress", "egress")
    ports = ("-l", "80", "-h", "81")
    for words in (
        ("-c", "10.1.2.0", "-m", "24", *ports, "-p", "tcp", "-t", "5022", "-s", SERVICE_ID),
        ("-c", "10.1.2.0", "-m", "24", *ports, "-p", "udp", "-t", "5023"),
        ("-c", "10.1.3.0", "-m", "24", *ports, "-p", "tcp", "-t", "0", "-N", "gw0"),
        ("-c", "10.1.4.0", "-m", "24", *ports, "-p", "tcp", "-t", "0", "-d"),
        (
            "-c",
            "10.1.2.0",
            "-m",
            "24",
            *ports,
            "-p",
            "tcp",
            "-t",
            "9",
            "-o",
            "10.2.0.0",
            "-n",
            "16",
        ),
        ("-c", "fd00::", "-m", "64", *ports, "-p", "tcp", "-t", "5024"),
        ("-c", "10.9.9.0", "-m", "24", *ports, "-p", "tcp", "-t", "0", "-z", "egress"),
    ):
        gateway.ok("-I", *words)

    def listed(*words: str) -> list[tuple[str, str, str]]:
        """Protocol, source and destination of each rule listed."""
        heading, columns, _, *rules, count, tuples = gateway.ok("-L", *words).splitlines()
        assert heading == ("EGRESS" if "egress" in words else "INGRESS") + " FILTERS:"
        assert [word for word in columns.split("\t") if word] == [
            f"type   {'service id':22}",
            "proto",
            f"{'origin':20}",
            f"{'destination':32}{'mapping:':24}",
            f"{'interface list':31}",
        ]
        assert count.startswith(f"Rule Count: {len(rules)} / ")
        found = [tuple(cell.strip() for cell in rule.split("\t")) for rule in rules]
        prefixes = {(cells[1], cells[2], cells[3].split()[0]) for cells in found}
        assert tuples.startswith(f"prefix_tuple_count: {len(prefixes)} / ")
        return sorted((cells[1], cells[2], cells[3].split()[0]) for cells in found)

    first = ("tcp", "0.0.0.0/0", "10.1.2.0/24")
    datagrams = ("udp", "0.0.0.0/0", "10.1.2.0/24")
    sourced = ("tcp", "10.2.0.0/16", "10.1.2.0/24")
    passed = ("tcp", "0.0.0.0/0", "10.1.3.0/24")
    denied = ("tcp", "0.0.0.0/0", "10.1.4.0/24")
    assert listed() == sorted([first, datagrams, sourced, passed, denied])
    assert listed("-i") == sorted([first, datagrams, sourced])
    assert listed("-f") == sorted([passed, denied])
    destination = ("-c", "10.1.2.77", "-m", "24")
    assert listed(*destination) == sorted([first, datagrams, sourced])
    assert listed(*destination, "-p", "udp") == [datagrams]
    assert listed(*destination, "-p", "tcp", "-o", "0.0.0.0", "-n", "0") == [first]
    assert listed(*destination, "-o", "10.2.0.0", "-n", "16") == [sourced]
    assert listed("-c", "10.1.9.0", "-m", "24") == []
    assert listed("-6", "all") == [("tcp", "::/0", "fd00::/64")]
    assert listed("-z", "egress") == [("tcp", "0.0.0.0/0", "10.9.9.0/24")]
    text = gateway.ok("-L")
    assert f"accept {SERVICE_ID}\ttcp\t" in text
    assert "dpts=80:81       \tTPROXY redirect 127.0.0.1:5022  []\n" in text
    assert f"accept {NO_SERVICE}\ttcp\t" in text
    assert "\tPASSTHRU to 10.1.3.0/24         [gw0]\n" in text
    assert f"deny   {NO_SERVICE}\ttcp\t" in text


def test_case_61_settings_are_listed_by_interface(gateway: Gateway) -> None:
    gateway.attach("ingress")
    gateway.ok("-e", gateway.interface)
    gateway.ok("-x", gateway.interface)
    first, rule, *flags, last, empty = gateway.ok("-L", "-E").splitlines()
    assert first == f"gw0: {socket.if_nametoindex('gw0')}"
    assert (set(rule), last, empty) == ({"-"}, rule, "")
    values = dict(line.split(":") for line in flags)
    assert len(flags) == 14
    assert {name.strip() for name, value in values.items() if value == "1"} == {
        "icmp echo",
        "ssh disable",
        "tc ingress filter",
    }


def test_case_61_what_does_not_go_together_is_refused(gateway: Gateway) -> None:
    gateway.attach("ingress")
    gateway.ok("-I", *service("10.50.0.1", "32", 80, SERVICE_ID))
    for line, saying in (
        ("-L -F", "-L, --list"),
        ("-L -s x", "-s, --service-id"),
        ("-F -s x", "-s, --service-id"),
        ("-L -N gw0", "-N, --interface"),
        ("-i", "-i, --intercepts"),
        ("-F -f", "-f, --passthrough"),
        ("-L -r", "-r, --route"),
        ("-E", "-E, --list-diag"),
        ("-G", "-G, --list-gc-sessions"),
    ):
        gateway.fails(*line.split(), saying=f"{saying}: ")


def test_the_monitor_says_that_it_is_not_there_yet(gateway: Gateway, tmp_path: Path) -> None:
    log = tmp_path / "log"
    gateway.attach("ingress")
    for words in (("-M", "all"), ("-M", "gw0", "-W", str(log)), ("-W", str(log), "-M", "all")):
        gateway.fails(*words, saying=": not in this version of zfw")
    gateway.fails("-W", str(log), saying="-W, --write-log: only together with -M")
    assert not log.exists()


def contents() -> dict[str, list[tuple[bytes, bytes]]]:
    """All that is in the maps, but for what packets count, or set: the kernel may send some."""
    with Maps(is_writer=False) as maps:
        found = {
            name: sorted(maps.map(name).items(64))
            for name, spec in layout.MAPS.items()
            if spec[0] != ARRAY_OF_MAPS
            and name not in ("reasons", "added_reasons", "cpus", "listeners")
        }
        for place, (key, value) in enumerate(found["interfaces"]):
            *fields, flags = struct.unpack(layout.INTERFACE, value)
            value = struct.pack(layout.INTERFACE, *fields, flags & ~layout.LINK_ATTACHED)
            found["interfaces"][place] = key, value
        found["prefixes"] = sorted(maps.prefixes.items())
        for name in ("rule_records", "rule_counters"):
            inner = maps.inner(name)
            found[name] = sorted(inner.items()) if inner else []
    return found


def test_case_62_both_grammars_write_the_same_bytes(gateway: Gateway) -> None:
    gateway.gateway.run("ip", "address", "add", "100.64.0.1/10", "dev", "lo", "scope", "host")
    words = ("-c", "100.72.0.4", "-m", "32", "-p", "tcp", "-l", "22", "-h", "22")
    found = []
    with tcp_listener() as listener:
        for verb in ("-I", "insert"):
            gateway.attach("ingress")
            gateway.ok(verb, *words, "-t", str(listener.port))
            found.append(contents())
            gateway.connects(listener, "100.72.0.4", 22)
            gateway.ok("-Q")
    assert found[0] == found[1]
    assert len(found[0]["prefixes"]) == 1
