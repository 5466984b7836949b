# SPDX-License-Identifier: GPL-2.0-only
"""What a guarded program may do by its sockets, against the reference model.

The hooks cannot be run by BPF_PROG_TEST_RUN: a process in a guarded cgroup makes the
calls. What counts is whether a call fails with EPERM, and what each program that was
met has counted. Random policies, and destinations at their edges; for a longer run
ZFW_DIFFERENTIAL_COMPARISONS=100000, and ZFW_DIFFERENTIAL_SEED=N to repeat one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.packets import icmp, ipv4, ipv6, tcp, udp
from tests.firewall.support.reference import ETHERTYPE_IPV4, ETHERTYPE_IPV6
from tests.firewall.support.tracked import ICMP, ICMPV6, TCP, UDP
from tests.guard.support.installed import installed
from tests.guard.support.packets import Leaving, random_packet
from tests.guard.support.reference import (
    DNS,
    End,
    Rules,
    Socket,
    decide_named,
    decide_packet,
    end,
)
from tests.guard.support.rules import (
    edge,
    policy_of,
    proxy_of,
    random_rules,
    write_resolved,
)
from tests.support.cgroups import enter
from tests.support.children import in_child
from tests.support.netns import Network
from zfw_py.guard.codec import Proxy
from zfw_py.guard.listeners import Listeners
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.firewall.support.reference import Address
    from zfw_py.guard.maps import Maps

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SEEDS = range(4)
CALLS_PER_SEED = 3000
POLICIES_PER_SEED = 10
SHOWN_MISMATCHES = 3
NAMING = ("connect4", "connect6", "sendmsg4", "sendmsg6")
NAMED = ("dns", "proxy", "prefix", "name", "default", "not_allowed", "blocked", "no_proxy")
JUDGED = (
    *("proxy", "prefix", "name", "socket", "default", "not_allowed", "blocked"),
    *("dns_direct", "source_route", "martian", "malformed", "foreign_source"),
)
OUTSIDE = "eth0"
# Where raw packets are routed to: by OUTSIDE, or by loopback.
GATEWAYS = {4: Network.gateway_ipv4, 6: Network.gateway_ipv6}
LOOPBACKS = {4: "127.0.0.1", 6: "::1"}
MTU = 1400

_IP_OPTIONS, _IP_FREEBIND, _IP_TRANSPARENT = 4, 15, 19
_IPV6_RTHDR, _IPV6_TRANSPARENT, _IPV6_FREEBIND = 57, 75, 78
_MPTCP = 262
_UNSPECIFIED = {4: ip_address("0.0.0.0"), 6: ip_address("::")}

# Decisions by hook and reason, and whether the call failed with EPERM.
Outcome = tuple[dict[tuple[str, str], int], bool]


@pytest.fixture
def network(_private_bpffs: None) -> Iterator[Network]:
    """Nobody is asked for a hardware address: each packet leaves at once, to nobody."""
    with Network() as made:
        made.client.run("ip", "link", "set", OUTSIDE, "arp", "off")
        with made.client.entered():
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
            yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_calls_and_model_agree(network: Network, seed: int) -> None:
    seen = _compare(seed, CALLS_PER_SEED)
    assert seen >= {
        *(f"{hook} {reason}" for hook in NAMING for reason in NAMED),
        *(f"egress {reason}" for reason in JUDGED),
        "setsockopt foreign_source",
    }
    assert any(each.endswith(" expired") for each in seen)


@pytest.mark.timeout(0)
def test_calls_and_model_agree_on_a_new_seed(network: Network) -> None:
    seed = int(os.environ.get("ZFW_DIFFERENTIAL_SEED", time.time_ns() // 1000))
    comparisons = int(os.environ.get("ZFW_DIFFERENTIAL_COMPARISONS", CALLS_PER_SEED))
    print(f"ZFW_DIFFERENTIAL_SEED={seed}")
    while comparisons > 0:
        _compare(seed, min(comparisons, CALLS_PER_SEED))
        comparisons -= CALLS_PER_SEED
        seed += 1


def _compare(seed: int, count: int) -> set[str]:
    """Random policies, and a share of the calls under each; hooks and reasons that were met."""
    rng = Random(seed)
    seen: set[str] = set()
    for _ in range(POLICIES_PER_SEED):
        rules = random_rules(rng)
        with _guarded(rng, rules) as (place, maps):
            calls = max(count // POLICIES_PER_SEED, 1)
            mismatches, met = in_child(partial(_called, place, rng, rules, maps, calls))
        seen.update(met)
        if mismatches:
            shown = "\n".join(mismatches[:SHOWN_MISMATCHES])
            pytest.fail(
                f"ZFW_DIFFERENTIAL_SEED={seed}: {len(mismatches)} differ\n{rules}\n{shown}",
                pytrace=False,
            )
    return seen


def _called(
    place: Path, rng: Random, rules: Rules, maps: Maps, count: int
) -> tuple[list[str], list[str]]:
    """In a process of its own: what differs, and hooks and reasons that were met."""
    enter(place)
    program = _Program(rng, rules, maps)
    return program.run(count), sorted(program.met)


@contextmanager
def _guarded(rng: Random, rules: Rules) -> Iterator[tuple[Path, Maps]]:
    """A cgroup with a guard that nobody keeps."""
    policy = policy_of(rng, rules)
    own = netns_cookie()
    key = rng.choice((own, own, 0, own + 1))
    proxies = {key: proxy_of(rules)}
    if key == own and rng.random() < 0.5:
        proxies[0] = proxy_of(Rules())
    if key == own + 1:
        rules.proxy = {}  # in another namespace
    with installed(policy, proxies) as (place, maps), _listeners(proxies.get(own)) as opened:
        if key == own:
            maps.write_listeners(opened)
        write_resolved(maps.map("learnt"), rules)
        yield place, maps


@contextmanager
def _listeners(proxy: Proxy | None) -> Iterator[Listeners]:
    """Sockets at the ends of a proxy. Those of TCP take no connection: their queues are full."""
    proxy = proxy or Proxy()
    with ExitStack() as opened:
        made = Listeners(netns_cookie(), [], [], proxy)
        for family, address, ports in (
            (socket.AF_INET, "127.0.0.1", proxy.ipv4_ports),
            (socket.AF_INET6, "::1", proxy.ipv6_ports),
        ):
            for port in ports:
                datagram = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                datagram.bind((address, port))
                made.udp.append(datagram)
            for port in ports[:1]:
                stream = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                stream.bind((address, port))
                stream.listen(0)
                opened.enter_context(socket.create_connection((address, port)))
                made.tcp.append(stream)
        yield made


class _Used:
    """A socket, and what the model knows of it.

    ``style`` is "ipv4", "mapped" (an AF_INET6 socket that speaks IPv4) or "ipv6".
    """

    def __init__(self, made: socket.socket, style: str, *, is_bound: bool = False) -> None:
        self.made = made
        self.style = style
        self.is_bound = is_bound
        self.known = Socket("raw" if made.type == socket.SOCK_RAW else "guarded")
        self.remote: End | None = None
        made.setblocking(False)
        if is_bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, OUTSIDE.encode())

    @property
    def version(self) -> int:
        """Of what it sends."""
        return 6 if self.style == "ipv6" else 4

    @property
    def connect_hook(self) -> str:
        return "connect4" if self.style == "ipv4" else "connect6"

    @property
    def sendmsg_hook(self) -> str:
        """Of a mapped destination it is IPv4's."""
        return f"sendmsg{self.version}"

    def named(self, address: Address, port: int) -> tuple[str, int]:
        """As the socket takes it."""
        return (f"::ffff:{address}" if self.style == "mapped" else str(address)), port


class _Program:
    """A guarded program that calls at random, and the model that foresees each call."""

    def __init__(self, rng: Random, rules: Rules, maps: Maps) -> None:
        self._rng = rng
        self._rules = rules
        self._maps = maps
        self._datagrams = [
            _Used(socket.socket(family, socket.SOCK_DGRAM), style, is_bound=is_bound)
            for family, style in (
                (socket.AF_INET, "ipv4"),
                (socket.AF_INET6, "mapped"),
                (socket.AF_INET6, "ipv6"),
            )
            for is_bound in (False, False, True)
        ]
        self._raw = {
            4: _Used(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW), "ipv4"),
            6: _Used(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW), "ipv6"),
        }
        self._echoes = {
            4: _Used(socket.socket(socket.AF_INET, socket.SOCK_DGRAM, ICMP), "ipv4"),
            6: _Used(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, ICMPV6), "ipv6"),
        }
        self._counts: Counter[tuple[str, str]] = Counter()
        self.met: set[str] = set()

    _CALLS = (
        *("_connect_stream", "_connect_stream", "_connect_stream", "_send_to", "_send_to"),
        *("_connect_datagram", "_send", "_send", "_send_raw", "_send_raw", "_echo"),
        *("_learn", "_by_route", "_set_option"),
    )

    def run(self, count: int) -> list[str]:
        """What differs of so many calls."""
        mismatches: list[str] = []
        while count:
            call: Callable[[], str | None] = getattr(self, self._rng.choice(self._CALLS))
            said = call()
            if said is not None:
                count -= 1
            if said:
                mismatches.append(said)
        return mismatches

    # Comparing

    def _met(self, call: Callable[[], object]) -> Outcome:
        """What a call came to."""
        is_denied = False
        try:
            call()
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EINPROGRESS, errno.ECONNREFUSED):
                raise
            is_denied = error.errno == errno.EPERM
        counts = Counter(
            {
                (hook, reason): number
                for hook, reasons in self._maps.decisions().items()
                for reason, number in reasons.items()
            }
        )
        met = dict(counts - self._counts)
        self.met.update(f"{hook} {reason}" for hook, reason in met)
        self._counts = counts
        return met, is_denied

    def _told(self, what: str, wanted: Outcome, got: Outcome) -> str:
        return "" if wanted == got else f"{what}\nmodel   {wanted}\nkernel  {got}"

    def _packet(self, used: _Used, to: End, protocol: int, options: bytes = b"") -> str:
        """Why a packet of a socket's is let out or not."""
        port = to.port or 0
        payload = {
            TCP: tcp(1024, port),
            UDP: udp(1024, port),
            ICMP: icmp(8),
            ICMPV6: icmp(128),
        }[protocol]
        source = ip_address(GATEWAYS[used.version])  # nobody looks at it
        if used.version == 4:
            packet = ipv4(source, to.address, protocol, payload, options=options)
            ethertype = ETHERTYPE_IPV4
        else:
            next_header = 43 if options else protocol
            packet = ipv6(source, to.address, next_header, options + payload)
            ethertype = ETHERTYPE_IPV6
        is_by_loopback = to.address.is_loopback and not used.is_bound
        return decide_packet(
            packet, ethertype, self._rules, used.known, is_by_loopback=is_by_loopback
        ).reason

    def _foreseen(
        self,
        used: _Used,
        hook: str,
        to: End,
        protocol: int,
        *,
        is_connect: bool = False,
        has_packet: bool = True,
        options: bytes = b"",
    ) -> tuple[Outcome, End]:
        """What is decided of a destination, then of the packet, and where it goes."""
        met: dict[tuple[str, str], int] = {}
        reason, to = decide_named(
            to,
            protocol,
            self._rules,
            used.known,
            is_connect=is_connect,
            is_bound=used.is_bound,
        )
        if reason is not None:
            met[hook, reason] = 1
            if not self._rules.lets(reason):
                return (met, True), to
        if not has_packet:
            return (met, False), to
        reason = self._packet(used, to, protocol, options)
        met["egress", reason] = 1
        # A connection's first packet that does not leave is a lost one.
        return (met, protocol != TCP and not self._rules.lets(reason)), to

    # Destinations

    def _destination(self, version: int) -> tuple[Address, int]:
        """One that the kernel sends to: no group's, no link's, not "this network"."""
        while True:
            address, port = edge(self._rng, self._rules)
            address = end(address).address
            draw = self._rng.random()
            if draw < 0.1:
                port = DNS
            is_this_network = address.version == 4 and address.packed[0] == 0
            if (
                address.version == version
                and not address.is_multicast
                and not address.is_link_local
                and not is_this_network
                and not address.is_unspecified
                and str(address) not in ("127.255.255.255", "255.255.255.255")
            ):
                return address, port

    def _style(self) -> tuple[socket.AddressFamily, str]:
        return self._rng.choice(
            (
                (socket.AF_INET, "ipv4"),
                (socket.AF_INET6, "mapped"),
                (socket.AF_INET6, "ipv6"),
            )
        )

    # Calls: each says what differs, or None where there is nothing to call

    def _connect_stream(self) -> str:
        rng = self._rng
        family, style = self._style()
        protocol = rng.choice((0, 0, 0, _MPTCP))
        with socket.socket(family, socket.SOCK_STREAM, protocol) as made:
            used = _Used(made, style, is_bound=rng.random() < 0.15)
            address, port = self._destination(used.version)
            if rng.random() < 0.05 and not used.is_bound:
                address = _UNSPECIFIED[used.version]
            is_fast = protocol == 0 and rng.random() < 0.15
            name = used.named(address, port)
            wanted, _ = self._foreseen(
                used, used.connect_hook, end(address, port), TCP, is_connect=True
            )

            def call() -> None:
                with made:  # closed before anything is counted: it sends no more
                    if is_fast:
                        made.sendto(b"x", socket.MSG_FASTOPEN, name)
                    else:
                        made.connect(name)

            met, is_denied = self._met(call)
            # Where the machine is slow it has sent again before that.
            got = dict.fromkeys(met.keys() - {("egress", "socket")}, 1), is_denied
        what = f"{'fast ' * is_fast}connect {style} {protocol} to {name}, bound: {used.is_bound}"
        return self._told(what, wanted, got)

    def _send_to(self) -> str | None:
        used = self._rng.choice(self._datagrams)
        address, port = self._destination(used.version)
        if used.remote is None:
            if self._rng.random() < 0.05 and not used.is_bound:
                address = _UNSPECIFIED[used.version]
        elif used.remote.address.is_loopback or address.is_loopback or port == DNS:
            return None  # its own address does not go with that
        name = used.named(address, port)
        self._clear(used)
        wanted, _ = self._foreseen(used, used.sendmsg_hook, end(address, port), UDP)
        got = self._met(lambda: used.made.sendto(b"x", name))
        return self._told(f"sendto {used.style} {name}, bound: {used.is_bound}", wanted, got)

    def _connect_datagram(self) -> str:
        used = self._rng.choice(self._datagrams)
        if used.remote is not None:
            got = self._met(lambda: _disconnect(used.made))
            # __udp_disconnect() forgets the interface as well.
            used.remote, used.is_bound = None, False
            return self._told("disconnect", ({}, False), got)
        address, port = self._destination(used.version)
        name = used.named(address, port)
        wanted, to = self._foreseen(
            used, used.connect_hook, end(address, port), UDP, is_connect=True, has_packet=False
        )
        if not wanted[1]:
            used.remote = to
        got = self._met(lambda: used.made.connect(name))
        return self._told(f"connect {used.style} udp {name}", wanted, got)

    def _send(self) -> str | None:
        connected = [used for used in self._datagrams if used.remote is not None]
        if not connected:
            return None
        used = self._rng.choice(connected)
        assert used.remote is not None
        self._clear(used)
        if used.style == "mapped":
            # The kernel names the destination once more.
            wanted, _ = self._foreseen(used, used.sendmsg_hook, used.remote, UDP)
        else:
            reason = self._packet(used, used.remote, UDP)
            wanted = ({("egress", reason): 1}, not self._rules.lets(reason))
        got = self._met(lambda: used.made.send(b"x"))
        return self._told(f"send {used.style} to {used.remote}", wanted, got)

    def _send_raw(self) -> str | None:
        leaving = random_packet(self._rng, self._rules)
        version = {ETHERTYPE_IPV4: 4, ETHERTYPE_IPV6: 6}.get(leaving.ethertype)
        if version is None:
            return None
        used = self._raw[version]
        written = _as_the_kernel_leaves_it(version, leaving)
        if written is None:
            return None
        is_by_loopback = self._rng.random() < 0.5
        route = (LOOPBACKS if is_by_loopback else GATEWAYS)[version]
        reason = decide_packet(
            written, leaving.ethertype, self._rules, used.known, is_by_loopback=is_by_loopback
        ).reason
        wanted = ({("egress", reason): 1}, not self._rules.lets(reason))
        got = self._met(lambda: used.made.sendto(leaving.packet, (route, 0)))
        return self._told(f"raw by {route} {written.hex()}", wanted, got)

    def _echo(self) -> str:
        version = self._rng.choice((4, 6))
        used = self._echoes[version]
        protocol = ICMP if version == 4 else ICMPV6
        address, _ = self._destination(version)
        request = icmp(8 if version == 4 else 128)
        reason = self._packet(used, end(address), protocol)
        # ping_v6_sendmsg() does not say what became of the packet.
        is_told = version == 4 and not self._rules.lets(reason)
        wanted = ({("egress", reason): 1}, is_told)
        got = self._met(lambda: used.made.sendto(request, (str(address), 0)))
        return self._told(f"echo to {address}", wanted, got)

    def _learn(self) -> str | None:
        """An address of a name is forgotten while sockets were let there, or known again."""
        if not self._rules.resolved:
            return None
        address, port = self._rng.choice(list(self._rules.resolved))
        is_current = not self._rules.resolved[address, port]
        self._rules.resolved[address, port] = is_current
        write_resolved(self._maps.map("learnt"), Rules(resolved={(address, port): is_current}))
        return ""

    def _by_route(self) -> str:
        """A datagram that says itself by which way it goes."""
        version = self._rng.choice((4, 6))
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        address, port = self._destination(version)
        hop, _ = self._destination(version)
        while hop.is_loopback != address.is_loopback:
            hop, _ = self._destination(version)
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            used = _Used(made, f"ipv{version}")
            if version == 4:
                options = b"\x83\x07\x04" + hop.packed + b"\0"
                made.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, options)
            else:
                # Type 4 (RFC 8754): one segment left, the list of them from the last on.
                options = struct.pack("!BBBBBBH", UDP, 4, 4, 1, 1, 0, 0)
                options += address.packed + hop.packed
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_RTHDR, options)
            wanted, _ = self._foreseen(
                used, used.sendmsg_hook, end(address, port), UDP, options=options
            )
            got = self._met(lambda: made.sendto(b"x", (str(address), port)))
        return self._told(f"sendto {address} {port} by {hop}", wanted, got)

    def _set_option(self) -> str:
        """One by which a socket has the source address of others, on or off; or another."""
        used = self._rng.choice(self._datagrams)
        options = [
            (socket.IPPROTO_IP, _IP_FREEBIND),
            (socket.IPPROTO_IP, _IP_TRANSPARENT),
            (socket.IPPROTO_IP, socket.IP_TTL),
        ]
        if used.style != "ipv4":
            options += [
                (socket.IPPROTO_IPV6, _IPV6_FREEBIND),
                (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT),
                (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
            ]
        level, option = self._rng.choice(options)
        value = 1 if option == socket.IP_TTL else self._rng.randrange(2)
        is_source = option not in (socket.IP_TTL, socket.IPV6_RECVPKTINFO)
        wanted: Outcome = ({}, False)
        if is_source and value:
            wanted = ({("setsockopt", "foreign_source"): 1}, not self._rules.is_log_only)
        got = self._met(lambda: used.made.setsockopt(level, option, value))
        return self._told(f"setsockopt {used.style} {level} {option} {value}", wanted, got)

    def _clear(self, used: _Used) -> None:
        """An answer that nobody is there would be told by the next call."""
        used.made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _as_the_kernel_leaves_it(version: int, leaving: Leaving) -> bytes | None:
    """A packet that a program wrote, with what the kernel fills in; None if it takes it not.

    raw_send_hdrinc(), rawv6_send_hdrinc()
    """
    packet = bytearray(leaving.packet)
    if not (20 if version == 4 else 40) <= len(packet) <= MTU:
        return None
    if version == 4:
        if not 20 <= (packet[0] & 15) * 4 <= len(packet):
            return None
        packet[2:4] = len(packet).to_bytes(2, "big")
    return bytes(packet)


def _disconnect(made: socket.socket) -> None:
    """connect(2) with AF_UNSPEC, which Python's does not know."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(made.fileno(), bytes(28), 28) != 0:
        raise OSError(ctypes.get_errno(), "disconnect")
