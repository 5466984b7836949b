# SPDX-License-Identifier: GPL-2.0-only
"""A router and its boot scripts: their own command lines, on real traffic.

The numbers are those of the cases that the callers of the classic command
depend on; tests/cli/classic/test_cases.py knows which of them are tested, and where
to look for the reason if one is not.
"""

from __future__ import annotations

import errno
import json
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.compat.support.fake_router import (
    SERVICE_ID,
    CommandLine,
    DiverterFailed,
    Router,
    Service,
    UdpConversation,
    multipath_listener,
)
from tests.firewall.support.frames import exchange
from tests.firewall.support.listeners import Listener, tcp_listener
from tests.support.command import ZFW
from tests.support.netns import Network
from tests.support.sockets import retransmissions
from tests.support.waiting import PATIENCE
from zfw_py import Firewall, __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

NOT_ENABLED = "Not enough privileges or ebpf not enabled!"
INGRESS_OBJECT = "/opt/openziti/bin/zfw_tc_ingress.o"
EGRESS_OBJECT = "/opt/openziti/bin/zfw_tc_outbound_track.o"
NOBODY = 65534

SELECTOR = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-o", "0.0.0.0", "-n", "0")
INSERT = ("-I", *SELECTOR, "-l", "22", "-h", "22", "-t", "33381", "-s", SERVICE_ID)
DELETE = ("-D", *SELECTOR, "-l", "22", "-h", "22")


class Gateway(Network):
    """A network whose gateway was set up by the router's boot script."""

    def __init__(self) -> None:
        super().__init__()
        self.zfw = CommandLine(self.gateway)
        with self.gateway.entered():
            attached = self.zfw("-X", self.interface, "-O", INGRESS_OBJECT, "-z", "ingress")
        assert attached.returncode == 0, attached.stderr

    def ok(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run zfw; it succeeds and complains of nothing."""
        done = self.zfw(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done

    def fails(self, *words: str, saying: str = "") -> subprocess.CompletedProcess[str]:
        """Run zfw; it fails with code 1 and a short text on stderr."""
        before = self.rules()
        done = self.zfw(*words)
        assert done.returncode == 1, done
        assert saying in done.stderr
        assert 1 <= len(done.stderr.splitlines()) <= 2
        assert self.rules() == before
        return done

    def rules(self) -> list[dict]:
        """What a listing shows, but for what is counted."""
        listed = json.loads(self.ok("list", "--json").stdout)
        return [{k: v for k, v in each.items() if k not in ("packets", "bytes")} for each in listed]

    def counted(self, reason: str) -> int:
        return Firewall().status().reasons[reason][0]

    def client_socket(self, port: int = 0) -> socket.socket:
        """A TCP socket of the client's."""
        with self.client.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(PATIENCE)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port:
            made.bind((self.client_ipv4, port))
        return made

    @contextmanager
    def connection(
        self, listener: Listener, address: str, port: int
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A connection of a client's that this listener accepts, its destination unchanged."""
        with self.client_socket() as client:
            client.connect((address, port))
            with listener.accept() as accepted:
                assert accepted.getsockname() == (address, port)
                yield client, accepted

    def reaches(self, listener: Listener, address: str, port: int) -> None:
        with self.connection(listener, address, port) as (client, accepted):
            exchange(client, accepted)

    def is_dropped(self, address: str, port: int, reason: str = "no_rule") -> None:
        """A SYN is, in silence."""
        before = self.counted(reason)
        with self.client_socket() as client:
            client.settimeout(0.15)
            with pytest.raises(TimeoutError):
                client.connect((address, port))
        assert self.counted(reason) > before


@pytest.fixture(scope="module")
def _gateway(_private_bpffs: None) -> Iterator[Gateway]:
    with Gateway() as made, made.gateway.entered():
        yield made
        Firewall().detach_all()


@pytest.fixture
def gateway(_gateway: Gateway) -> Iterator[Gateway]:
    """The test is inside the gateway; afterwards there is no rule, and lo as it was."""
    with _gateway.gateway.entered():
        yield _gateway
        Firewall().flush()
        for setting in ("per_interface_rules", "icmp_echo", "ipv6"):
            Firewall().set([_gateway.interface], setting, False)
        _gateway.gateway.run("ip", "link", "del", "eth1", check=False)
        _gateway.gateway.run("ip", "address", "flush", "dev", "lo", "scope", "host", check=False)
        _gateway.gateway.run("ip", "address", "replace", "127.0.0.1/8", "dev", "lo")


@pytest.fixture
def router(gateway: Gateway) -> Iterator[Router]:
    made = Router(gateway.gateway)
    yield made
    made.crash()


def ssh(**others: object) -> Service:
    return Service(("10.0.0.16/28",), ((22, 22),), **others)  # type: ignore[arg-type]


# The router


def test_case_01_version_needs_no_privilege_no_firewall_and_no_environment(
    namespace: Namespace,
) -> None:
    if namespace.run("test", "-x", str(ZFW), check=False, user=NOBODY, group=NOBODY).returncode:
        pytest.skip("the virtual environment is not readable for everybody")
    for word in ("-V", "--version"):
        done = CommandLine(namespace)(word, user=NOBODY, group=NOBODY, extra_groups=[])
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_case_02_help_is_no_failure_and_a_line_that_does_not_parse_is_64(
    namespace: Namespace,
) -> None:
    zfw = CommandLine(namespace)
    for word in ("--version", "-?", "--help", "--usage"):
        done = zfw(word)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
    for words in (("-Z",), ("-I", "extra"), ("-K",), ("--nosuch",), ("--i",), ("-I", "-c")):
        done = zfw(*words)
        assert (done.returncode, done.stdout) == (64, "")
        assert "usage" in done.stderr
        assert "Traceback" not in done.stderr


def test_case_03_a_service_is_intercepted(gateway: Gateway, router: Router) -> None:
    service = ssh()
    router.add(service)
    gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)
    gateway.is_dropped("10.0.0.20", 23)
    (rule,) = gateway.rules()
    assert (rule["destination"], rule["low_port"], rule["high_port"]) == ("10.0.0.16/28", 22, 22)
    assert rule["service_id"] == SERVICE_ID
    assert rule["tproxy_port"] == service.listeners["tcp"].port


def test_case_04_the_same_insert_again_changes_nothing(gateway: Gateway) -> None:
    gateway.ok(*INSERT)
    before = gateway.rules()
    gateway.ok(*INSERT)
    assert gateway.rules() == before
    assert len(before) == 1


def test_case_05_another_listener_gets_new_connections_and_the_old_ones_go_on(
    gateway: Gateway, router: Router
) -> None:
    service = ssh()
    router.add(service)
    with (
        gateway.connection(service.listeners["tcp"], "10.0.0.20", 22) as (client, accepted),
        tcp_listener() as other,
    ):
        exchange(client, accepted)
        gateway.ok("-I", *SELECTOR, "-l", "22", "-h", "22", "-t", str(other.port), "-s", SERVICE_ID)
        gateway.reaches(other, "10.0.0.20", 22)
        exchange(client, accepted)
    assert len(gateway.rules()) == 1


def test_case_06_another_high_port_changes_the_range(gateway: Gateway) -> None:
    gateway.ok(*INSERT)
    gateway.ok("-I", *SELECTOR, "-l", "22", "-h", "30", "-t", "33381", "-s", SERVICE_ID)
    (rule,) = gateway.rules()
    assert (rule["low_port"], rule["high_port"]) == (22, 30)


def test_case_07_after_a_delete_new_connections_are_dropped_and_the_old_ones_go_on(
    gateway: Gateway, router: Router
) -> None:
    service = ssh()
    router.add(service)
    with gateway.connection(service.listeners["tcp"], "10.0.0.20", 22) as (client, accepted):
        gateway.ok(*DELETE)
        exchange(client, accepted)
        gateway.is_dropped("10.0.0.20", 22)
        exchange(client, accepted)


def test_case_08_a_delete_of_what_is_not_there(gateway: Gateway) -> None:
    """1 where the prefix is unknown; 0 where only the port is, and it says so."""
    gateway.fails(*DELETE, saying="10.0.0.16/28")
    gateway.ok(*INSERT)
    before = gateway.rules()
    done = gateway.ok("-D", *SELECTOR, "-l", "23", "-h", "23")
    assert "mapping[23] does not exist" in done.stdout
    assert gateway.rules() == before
    gateway.ok(*DELETE)
    gateway.fails(*DELETE)


def test_case_09_the_high_port_of_a_delete_does_not_count(gateway: Gateway) -> None:
    gateway.ok(*INSERT)
    gateway.ok("-D", *SELECTOR, "-l", "22", "-h", "4444")
    assert gateway.rules() == []


def test_case_10_eight_rules_of_a_service_come_and_go(gateway: Gateway, router: Router) -> None:
    service = Service(
        ("10.0.0.16/28",),
        ((22, 22), (8000, 8080)),
        protocols=("tcp", "udp"),
        sources=("10.1.1.1/32", "0.0.0.0/0"),
    )
    router.add(service)
    assert len(gateway.rules()) == 8
    assert router.remove(service) == []
    assert gateway.rules() == []


def test_case_11_two_services_of_one_prefix(gateway: Gateway, router: Router) -> None:
    one, other = ssh(name="one"), Service(("10.0.0.16/28",), ((80, 80),), name="other")
    router.add(one)
    router.add(other)
    gateway.ok(*DELETE)
    gateway.reaches(other.listeners["tcp"], "10.0.0.20", 80)
    gateway.is_dropped("10.0.0.20", 22)


def test_case_13_host_bits_are_dropped_and_either_spelling_deletes(
    gateway: Gateway, router: Router
) -> None:
    service = Service(("11.1.2.3/8",), ((22, 22),))
    router.add(service)
    gateway.reaches(service.listeners["tcp"], "11.200.0.1", 22)
    assert [rule["destination"] for rule in gateway.rules()] == ["11.0.0.0/8"]
    for spelling in ("11.1.2.3", "11.0.0.0"):
        key = ("-c", spelling, "-m", "8", "-p", "tcp", "-l", "22", "-h", "22")
        gateway.ok("-D", *key)
        assert gateway.rules() == []
        gateway.ok("-I", "-c", "11.1.2.3", *key[2:], "-t", "1")


def test_case_14_the_default_route_matches_what_no_longer_prefix_does(
    gateway: Gateway, router: Router
) -> None:
    service = ssh()
    router.add(service)
    gateway.gateway.run("ip", "address", "add", "172.20.0.1/16", "dev", "lo", "scope", "host")
    with tcp_listener() as rest:
        key = ("-c", "0.0.0.0", "-m", "0", "-p", "tcp", "-o", "0.0.0.0", "-n", "0")
        gateway.ok("-I", *key, "-l", "1", "-h", "65535", "-t", str(rest.port))
        gateway.reaches(rest, "172.20.9.9", 22)
        gateway.reaches(rest, "10.0.0.20", 23)
        gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)


def test_case_15_ipv6_with_an_ipv4_source_of_any_is_taken_and_never_assigned_across(
    gateway: Gateway,
) -> None:
    key = ("-c", "fd00::1", "-m", "128", "-p", "tcp", "-o", "0.0.0.0", "-n", "0")
    with tcp_listener(4) as listener:
        gateway.ok("-I", *key, "-l", "443", "-h", "443", "-t", str(listener.port), "-s", SERVICE_ID)
        (rule,) = gateway.rules()
        assert (rule["family"], rule["source"]) == (6, "::/0")
        gateway.ok("-6", gateway.interface)
        gateway.gateway.run("ip", "-6", "route", "add", "local", "fd00::1", "dev", "lo")
        before = gateway.counted("no_listener")
        with gateway.client.entered():
            client = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with client:
            client.settimeout(0.15)
            with pytest.raises(TimeoutError):
                client.connect(("fd00::1", 443))
        assert gateway.counted("no_listener") > before
        gateway.gateway.run("ip", "-6", "route", "del", "local", "fd00::1", "dev", "lo")
        gateway.ok("-6", gateway.interface, "-d")
        gateway.ok("-D", *key, "-l", "443", "-h", "443")


def test_case_16_the_most_specific_source_wins(gateway: Gateway, router: Router) -> None:
    everybody = ssh(name="everybody")
    client = Service(
        ("10.0.0.16/28",), ((22, 22),), sources=(f"{gateway.client_ipv4}/32",), name="client"
    )
    router.add(everybody)
    router.add(client)
    assert len(gateway.rules()) == 2
    gateway.reaches(client.listeners["tcp"], "10.0.0.20", 22)
    key = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-l", "22", "-h", "22")
    gateway.ok("-D", *key, "-o", gateway.client_ipv4, "-n", "32")
    gateway.reaches(everybody.listeners["tcp"], "10.0.0.20", 22)
    gateway.ok("-D", *key, "-o", "0.0.0.0", "-n", "0")
    assert gateway.rules() == []


@pytest.mark.parametrize("source", ["myhost.example", "fd00::5", "10.1", "0x0a010101", ""])
def test_case_17_a_source_that_is_none_of_the_rule_s_family_is_refused(
    gateway: Gateway, source: str
) -> None:
    key = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-o", source, "-n", "32")
    done = gateway.fails("-I", *key, "-l", "22", "-h", "22", "-t", "1", saying="-o, --ocidr-block")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["-foo123", ".foo123", "x" * 64, "-", "--version", "-V"])
def test_case_18_service_ids_of_any_kind(gateway: Gateway, router: Router, name: str) -> None:
    router.add(ssh(name=name))
    assert [rule["service_id"] for rule in gateway.rules()] == [name]


def test_case_18_a_service_id_that_is_too_long_is_refused_not_cut(
    gateway: Gateway, router: Router
) -> None:
    with pytest.raises(DiverterFailed, match="service-id"):
        router.add(ssh(name="x" * 65))
    assert gateway.rules() == []


def test_case_19_interfaces_are_a_union_and_go_one_by_one(gateway: Gateway, router: Router) -> None:
    gateway.gateway.add_veth("eth1", "eth2")
    service = ssh(interfaces=(gateway.interface, "eth1"))
    router.add(service)
    assert [rule["interfaces"] for rule in gateway.rules()] == [["eth1", gateway.interface]]
    gateway.ok("-P", gateway.interface)
    gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)
    gateway.ok(*DELETE, "-N", gateway.interface)
    assert [rule["interfaces"] for rule in gateway.rules()] == [["eth1"]]
    gateway.is_dropped("10.0.0.20", 22)
    gateway.ok(*DELETE, "-N", "eth1")
    assert gateway.rules() == []
    gateway.ok("-P", gateway.interface, "-d")
    gateway.gateway.run("ip", "link", "del", "eth1")


def test_case_19_no_interface_at_all_is_no_call_at_all(gateway: Gateway, router: Router) -> None:
    router.add(ssh(interfaces=()))
    assert gateway.rules() == []


def test_case_20_an_interface_that_is_none(gateway: Gateway) -> None:
    gateway.fails(*INSERT, "-N", "nosuchif", saying="Interface not found: nosuchif")


def test_case_20_an_alternative_name_and_an_interface_that_is_made_anew(
    gateway: Gateway, router: Router
) -> None:
    gateway.gateway.add_veth("eth1", "eth2")
    gateway.gateway.run("ip", "link", "property", "add", "dev", "eth1", "altname", "wan")
    inserted = gateway.zfw(*INSERT, "-N", "wan")
    # The rule counts on all interfaces until they look at such names; a router turns that on later.
    assert inserted.returncode == 0
    assert "counts on gw0 too" in inserted.stderr
    gateway.ok("-P", "eth1")
    frame = bytes.fromhex("02000000000102000000000208004500002800000000400600000a0900020a000014")
    frame += bytes.fromhex("9c400016000003e8000000005002200000000000")
    firewall = Firewall()
    assert firewall.explain(frame, "eth1").reason == "no_listener"
    gateway.gateway.run("ip", "link", "del", "eth1")
    gateway.gateway.add_veth("eth1", "eth2")
    # Any writing command brings it up to date; cron runs this one every minute.
    gateway.ok("-L", "-E")
    assert firewall.explain(frame, "eth1").reason == "no_listener"
    gateway.ok("-P", "eth1", "-d")
    gateway.gateway.run("ip", "link", "del", "eth1")


@pytest.mark.parametrize(("low", "high"), [("0", "65535"), ("65535", "65535"), ("0", "0")])
def test_case_21_every_range_of_ports(gateway: Gateway, low: str, high: str) -> None:
    gateway.ok("-I", *SELECTOR, "-l", low, "-h", high, "-t", "33381")
    gateway.ok("-D", *SELECTOR, "-l", low, "-h", high)


@pytest.mark.parametrize(
    ("low", "high"),
    [("10", "5"), ("70000", "70000"), ("x", "22"), ("", "22"), ("22", ""), ("4294967318", "22")],
)
def test_case_21_a_range_that_is_none_is_refused(gateway: Gateway, low: str, high: str) -> None:
    gateway.fails("-I", *SELECTOR, "-l", low, "-h", high, "-t", "33381", saying="port")


def test_case_22_protocols(gateway: Gateway) -> None:
    key = ("-c", "10.0.0.16", "-m", "28", "-l", "22")
    for word in ("TCP", "UDP"):
        gateway.ok("-I", *key, "-h", "22", "-t", "1", "-p", word)
        gateway.ok("-D", *key, "-p", word.lower())
    for word in ("sctp", "6", ""):
        gateway.fails("-I", *key, "-h", "22", "-t", "1", "-p", word, saying="-p, --protocol")


def test_case_23_a_hundred_and_one_ranges_of_one_prefix(gateway: Gateway) -> None:
    lines = [
        " ".join(("-I", *SELECTOR, *_ports(port), "-t", "33381")) for port in range(1000, 1099)
    ]
    loaded = gateway.gateway.run(str(ZFW), "batch", "-", input="\n".join(lines))
    assert loaded.stderr == ""
    for port in (1099, 1100):
        gateway.ok("-I", *SELECTOR, *_ports(port), "-t", "33381")
    assert [rule["low_port"] for rule in gateway.rules()] == list(range(1000, 1101))


def _ports(port: int) -> tuple[str, ...]:
    return ("-l", str(port), "-h", str(port))


def test_case_25_a_killed_insert_leaves_a_whole_rule_or_none(gateway: Gateway) -> None:
    for i in range(20):
        words = (*SELECTOR, "-l", str(1000 + i), "-h", str(2000 + i), "-t", "33381", "-s", f"s{i}")
        process = gateway.zfw.start("-I", *words)
        # Somewhere between the start of the interpreter and its end.
        time.sleep(0.004 + 0.0012 * i)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    for rule in gateway.rules():
        number = rule["low_port"] - 1000
        assert (rule["high_port"], rule["service_id"]) == (2000 + number, f"s{number}")
    gateway.ok(*INSERT)
    gateway.ok(*DELETE)


def test_case_26_what_is_printed_breaks_no_log_line(gateway: Gateway) -> None:
    for words in (INSERT, INSERT, DELETE, DELETE, (*INSERT, "-N", "nosuchif"), ("-I", "-c", "x")):
        done = gateway.zfw(*words)
        text = done.stdout + done.stderr
        assert len(text.splitlines()) <= 3
        assert re.fullmatch(r"[\x20-\x7e\n]+", text), text


def test_case_26_not_even_what_was_given_breaks_it(gateway: Gateway) -> None:
    for bad in ("\x1b[31m", "a\nb", "\udcff\udcfe", "\u202e"):
        done = gateway.zfw("-I", *SELECTOR, "-l", bad, "-h", "22", "-t", "1")
        text = done.stdout + done.stderr
        assert done.returncode == 1
        assert "Traceback" not in text
        assert "\x1b" not in text
        assert len(text.splitlines()) == 1


def test_case_27_without_a_firewall_every_verb_says_so_on_stdout(namespace: Namespace) -> None:
    zfw = CommandLine(namespace)
    for words in (INSERT, DELETE, ("-F",), ("-F", "-z", "ingress", "-r"), ("-L",), ("-L", "-E")):
        done = zfw(*words)
        assert done.returncode == 1
        assert done.stdout.startswith(NOT_ENABLED)
        assert "Traceback" not in done.stderr


def test_case_27_nor_does_an_unprivileged_user_get_further(gateway: Gateway) -> None:
    if gateway.gateway.run("test", "-x", str(ZFW), check=False, user=NOBODY).returncode:
        pytest.skip("the virtual environment is not readable for everybody")
    for words in (INSERT, DELETE, ("-F",), ("-L",)):
        done = gateway.zfw(*words, user=NOBODY, group=NOBODY, extra_groups=[])
        assert done.returncode == 1
        assert done.stdout.startswith(NOT_ENABLED)


def test_case_27_a_failed_insert_is_in_the_journal(namespace: Namespace, tmp_path: Path) -> None:
    """The router hides the text. /dev/log is ours, in a mount namespace of the command's own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "log"))
        journal.settimeout(PATIENCE)
        failed = namespace.run(
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount --bind "$0" /dev && exec "$@"',
            str(tmp_path),
            str(ZFW),
            *INSERT,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        assert failed.returncode == 1
        assert failed.stdout.startswith(NOT_ENABLED)
        line = journal.recv(4096).decode()
    # Facility daemon, severity error: RFC 3164.
    assert line.startswith("<27>")
    assert "zfw[" in line
    assert "no firewall in this network namespace" in line
    assert " ".join(INSERT) in line


def test_case_29_the_socket_that_answers_udp_never_gets_a_datagram(
    gateway: Gateway, router: Router
) -> None:
    service = Service(("172.20.1.5",), ((5000, 5000),), protocols=("udp",))
    router.add(service)
    conversation = UdpConversation(service.listeners["udp"])
    with gateway.client.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(PATIENCE)
        client.connect(("172.20.1.5", 5000))
        for number in (b"one", b"two", b"three"):
            client.send(number)
            assert conversation.answer() == (number, ("172.20.1.5", 5000))
            assert client.recv(100) == b"answer to " + number
    (reply,) = conversation.reply_sockets.values()
    reply.setblocking(False)
    with pytest.raises(BlockingIOError):
        reply.recv(1)
    conversation.close()


def test_case_30_an_unrelated_udp_socket_on_every_address_gets_nothing(
    gateway: Gateway, router: Router
) -> None:
    service = Service(("172.20.1.5",), ((5000, 5000),), protocols=("udp",))
    router.add(service)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unrelated:
        unrelated.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        unrelated.bind(("0.0.0.0", 5000))
        with gateway.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with client:
            client.sendto(b"data", ("172.20.1.5", 5000))
        data, _, destination = service.listeners["udp"].receive()
        assert (data, destination) == (b"data", ("172.20.1.5", 5000))
        unrelated.setblocking(False)
        with pytest.raises(BlockingIOError):
            unrelated.recv(1)


def test_case_31_a_source_port_in_time_wait_makes_a_new_connection(
    gateway: Gateway, router: Router
) -> None:
    service = ssh()
    router.add(service)
    listener = service.listeners["tcp"]
    for _ in range(3):
        with gateway.client_socket(45678) as client:
            client.connect(("10.0.0.20", 22))
            # A TIME_WAIT answers the first SYN with an ACK, and the client sends it again.
            assert retransmissions(client) <= 1, "a SYN was lost"
            accepted = listener.accept()
            exchange(client, accepted)
            # Our end is closed first, so that it has the TIME_WAIT.
            accepted.close()
            assert client.recv(1) == b""
    states = gateway.gateway.run("ss", "-tan", "state", "time-wait").stdout
    assert ":45678" in states


def test_case_32_a_router_that_crashed_and_one_that_starts_again(
    gateway: Gateway, router: Router
) -> None:
    router.add(ssh())
    router.crash()
    gateway.is_dropped("10.0.0.20", 22, "no_listener")
    again = Router(gateway.gateway)
    service = ssh()
    again.add(service)
    assert len(gateway.rules()) == 1
    gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)
    again.stop()
    assert gateway.rules() == []


def test_case_33_a_destination_that_is_no_longer_local_is_not_forwarded(
    gateway: Gateway, router: Router
) -> None:
    """Another service took the address of lo with it. The kernel drops it, after the program."""
    service = ssh()
    router.add(service)
    gateway.gateway.sysctl(1, "ipv4/ip_forward")
    gateway.gateway.run("ip", "route", "add", "default", "via", "10.9.0.2")
    gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)
    gateway.gateway.run("ip", "address", "del", "10.0.0.16/28", "dev", "lo")
    gateway.is_dropped("10.0.0.20", 22, "rule_intercept")
    gateway.gateway.run("ip", "address", "add", "10.0.0.16/28", "dev", "lo", "scope", "host")
    gateway.reaches(service.listeners["tcp"], "10.0.0.20", 22)


def test_case_33_where_there_is_no_route_to_it_the_stack_refuses_it(
    gateway: Gateway, router: Router
) -> None:
    """Where it would be forwarded, the kernel drops it: it has a socket."""
    service = ssh()
    router.add(service)
    gateway.gateway.run("ip", "address", "del", "10.0.0.16/28", "dev", "lo")
    with gateway.client_socket() as client:
        client.settimeout(0.2)
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            client.connect(("10.0.0.20", 22))


def test_an_update_deletes_and_inserts_with_a_new_listener(
    gateway: Gateway, router: Router
) -> None:
    old, new = ssh(), Service(("10.0.0.16/28", "10.0.0.64/28"), ((22, 25),))
    router.add(old)
    with gateway.connection(old.listeners["tcp"], "10.0.0.20", 22) as (client, accepted):
        router.update(old, new)
        exchange(client, accepted)
    gateway.reaches(new.listeners["tcp"], "10.0.0.20", 25)
    gateway.reaches(new.listeners["tcp"], "10.0.0.70", 22)
    assert len(gateway.rules()) == 2


def test_a_listener_for_multipath_tcp_serves_as_well(gateway: Gateway, router: Router) -> None:
    """Go asks for one first."""
    service = ssh()
    router.add(service)
    try:
        listener = multipath_listener()
    except OSError as error:
        # It is not built in, or sysctl net.mptcp.enabled is 0.
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT):
            raise
        pytest.skip("no MPTCP in this kernel")
    with listener.socket:
        gateway.ok("-I", *SELECTOR, "-l", "22", "-h", "22", "-t", str(listener.port))
        gateway.reaches(listener, "10.0.0.20", 22)


# The boot scripts


def tc_lines(gateway: Network, direction: str, interface: str = Network.interface) -> list[str]:
    """What the scripts look at: any line means attached."""
    shown = gateway.gateway.run("tc", "filter", "show", "dev", interface, direction)
    return shown.stdout.splitlines()


def test_case_35_nothing_loaded_and_loaded(network: Network) -> None:
    zfw = CommandLine(network.gateway)
    for words in (("-L", "-E"), ("-Q",)):
        assert zfw(*words).returncode == 1
    assert zfw("-H", network.interface).returncode == 0
    for words in (("-L", "-E"), ("-Q",)):
        done = zfw(*words)
        assert (done.returncode, done.stderr) == (0, "")
    assert zfw("-L", "-E").returncode == 1
    assert tc_lines(network, "ingress") == tc_lines(network, "egress") == []


def test_case_36_and_37_attach_shows_in_tc_and_twice_is_once(gateway: Gateway) -> None:
    for direction, path in (("ingress", INGRESS_OBJECT), ("egress", EGRESS_OBJECT)):
        words = ("-X", gateway.interface, "-O", path, "-z", direction)
        gateway.ok(*words)
        before = tc_lines(gateway, direction)
        assert [line for line in before if "handle" in line]
        assert len([line for line in before if "handle" in line]) == 1
        gateway.ok(*words)
        assert tc_lines(gateway, direction) == before
    gateway.ok("-X", gateway.interface, "-z", "egress", "-d")
    assert tc_lines(gateway, "egress") == []


def test_case_36_shows_in_tc_where_it_was_attached_otherwise(network: Network) -> None:
    zfw = CommandLine(network.gateway)
    assert zfw("attach", network.interface).returncode == 0
    done = zfw("-X", network.interface, "-O", INGRESS_OBJECT, "-z", "ingress")
    assert (done.returncode, done.stderr) == (0, "")
    assert tc_lines(network, "ingress")
    (interface,) = Firewall().status().interfaces
    assert interface.attachments["ingress"].mode == "clsact"


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (("-X", "gw0", "-O", "/missing.o", "-z", "ingress"), "/missing.o"),
        (("-X", "gw0", "-O", INGRESS_OBJECT), "-z, --direction"),
        (("-X", "gw0", "-z", "ingress"), "-O, --object-file"),
        (("-X", "nosuch", "-O", INGRESS_OBJECT, "-z", "ingress"), "Interface not found: nosuch"),
        (("-X", "gw0", "-O", INGRESS_OBJECT, "-z", "sideways"), "-z, --direction"),
    ],
)
def test_case_38_an_attach_that_makes_no_sense(
    gateway: Gateway, words: tuple[str, ...], saying: str
) -> None:
    before = tc_lines(gateway, "ingress")
    gateway.fails(*words, saying=saying)
    assert tc_lines(gateway, "ingress") == before


def test_case_38_detach_by_direction_and_again(gateway: Gateway) -> None:
    def is_filtered() -> bool:
        found = {each.name: each.settings for each in Firewall().status().interfaces}
        return found.get(gateway.interface, {}).get("outbound_filter", False)

    gateway.ok("-X", gateway.interface, "-O", EGRESS_OBJECT, "-z", "egress")
    for _ in range(2):
        gateway.ok("-X", gateway.interface, "-z", "ingress", "-d")
        assert tc_lines(gateway, "ingress") == []
        assert tc_lines(gateway, "egress")
    gateway.ok("--outbound-filter", gateway.interface)
    assert is_filtered()
    gateway.ok("-X", gateway.interface, "-z", "egress", "-d")
    assert not is_filtered()
    gateway.ok("-X", gateway.interface, "-O", INGRESS_OBJECT, "-z", "ingress")


def test_case_39_per_interface_rules_on_and_off(gateway: Gateway) -> None:
    gateway.gateway.add_veth("eth1", "eth2")
    for words, is_on in ((("-P", "eth1"), True), (("-P", "eth1", "-d"), False)):
        gateway.ok(*words)
        rows = {row.name: row for row in Firewall().status().interfaces}
        assert ("eth1" in rows and rows["eth1"].settings["per_interface_rules"]) == is_on
    gateway.gateway.run("ip", "link", "del", "eth1")


def test_case_40_flush_of_ingress_with_addresses(gateway: Gateway, router: Router) -> None:
    service = ssh()
    router.add(service)
    gateway.ok("-I", "-c", "172.31.9.9", "-m", "32", "-p", "tcp", "-l", "1", "-h", "1", "-t", "0")
    gateway.ok(
        *("-I", "-c", "172.31.9.8", "-m", "32", "-p", "tcp", "-l", "1", "-h", "1", "-t", "0", "-r")
    )
    gateway.ok("-I", "-c", "fd00::1", "-m", "128", "-p", "tcp", "-l", "1", "-h", "1", "-t", "0")
    egress = ("-c", "10.3.0.0", "-m", "16", "-p", "tcp", "-l", "1", "-h", "1", "-t", "0")
    gateway.ok("-I", *egress, "-z", "egress")
    gateway.ok("-e", gateway.interface)

    def addresses() -> str:
        return gateway.gateway.run("ip", "address", "show", "dev", "lo").stdout

    assert "172.31.9.8/32" in addresses()
    with gateway.connection(service.listeners["tcp"], "10.0.0.20", 22) as (client, accepted):
        gateway.ok("-F", "-z", "ingress", "-r")
        exchange(client, accepted)
    assert [rule["direction"] for rule in gateway.rules()] == ["egress"]
    assert "172.31.9.8/32" not in addresses()
    # The router's own; no rule of ours brought it.
    assert "10.0.0.16/28" in addresses()
    assert Firewall().status().interfaces[0].settings["icmp_echo"]
    gateway.ok("-e", gateway.interface, "-d")


def test_case_40_flush_without_r_leaves_the_addresses(gateway: Gateway) -> None:
    gateway.ok(
        *("-I", "-c", "172.31.9.8", "-m", "32", "-p", "tcp", "-l", "1", "-h", "1", "-t", "0", "-r")
    )
    gateway.ok("-F", "-z", "ingress")
    assert gateway.rules() == []
    shown = gateway.gateway.run("ip", "address", "show", "dev", "lo").stdout
    assert "172.31.9.8/32" in shown
    gateway.ok("-F", "-r")
    shown = gateway.gateway.run("ip", "address", "show", "dev", "lo").stdout
    assert "172.31.9.8/32" not in shown


def test_case_40_flush_of_both_directions_and_of_an_egress_that_is_none(gateway: Gateway) -> None:
    gateway.fails("-F", "-z", "egress", saying="No egress maps exist")
    gateway.ok(*INSERT)
    gateway.ok("-I", *SELECTOR, "-l", "1", "-h", "1", "-t", "0", "-z", "egress")
    assert len(gateway.rules()) == 2
    gateway.ok("-F")
    assert gateway.rules() == []
    gateway.ok("-X", gateway.interface, "-O", EGRESS_OBJECT, "-z", "egress")
    gateway.ok("-F", "-z", "egress")
    gateway.ok("-X", gateway.interface, "-z", "egress", "-d")


def test_case_41_the_router_s_own_ports_pass(gateway: Gateway) -> None:
    """As the script puts it together and a shell takes it apart, with two blanks."""
    line = f"{ZFW} -I -c {gateway.gateway_ipv4} -m 32 -l 3022 -h 3022 -t 0  -p tcp"
    assert gateway.gateway.run("sh", "-c", line, env={}, cwd="/").stderr == ""
    with tcp_listener(address=gateway.gateway_ipv4, port=3022) as edge:
        gateway.reaches(edge, gateway.gateway_ipv4, 3022)
    (rule,) = gateway.rules()
    assert rule["action"] == "pass"
    everywhere = f"{ZFW} -I -c 0.0.0.0 -m 0 -l 6262 -h 6262 -t 0  -p tcp"
    assert gateway.gateway.run("sh", "-c", everywhere, env={}, cwd="/").stderr == ""
    with tcp_listener(address=gateway.gateway_ipv4, port=6262) as link:
        gateway.reaches(link, gateway.gateway_ipv4, 6262)


def test_case_52_cron_s_listing_brings_addresses_up_to_date_and_no_other_namespace_s(
    gateway: Gateway,
) -> None:
    """PEERS, defect 21: run elsewhere it destroyed the firewall."""
    gateway.gateway.run("ip", "address", "add", "10.77.0.1/24", "dev", gateway.interface)
    gateway.ok("-L", "-E")
    before = Firewall().status().interfaces
    assert "10.77.0.1" in before[0].addresses
    with gateway.client.entered():
        elsewhere = CommandLine(gateway.client)("-L", "-E")
    assert elsewhere.returncode == 1
    assert Firewall().status().interfaces == before
    gateway.gateway.run("ip", "address", "del", "10.77.0.1/24", "dev", gateway.interface)
    gateway.ok("-L", "-E")
    assert "10.77.0.1" not in Firewall().status().interfaces[0].addresses
