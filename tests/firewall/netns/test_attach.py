# SPDX-License-Identifier: GPL-2.0-only
"""Attaching and detaching: on live traffic, beside others' programs, again, and when it fails.

What is attached is read from the kernel here, not from zfw.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Any

import pytest

from bpf.build import compile_bpf
from tests.firewall.support import frames
from tests.support.netns import CLONE_NEWNS, Network
from tests.support.tcx import tcx_programs
from zfw_py import (
    Conflict,
    Firewall,
    KernelError,
    LayoutMismatch,
    NotFound,
    NotInstalled,
    Prefix,
    Rule,
    RuleKey,
    UsageError,
    ZfwError,
)
from zfw_py.firewall import layout, programs
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import STORE, ZERO, Tables
from zfw_py.kernel import bpf_links, bpf_maps, bpffs
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.netns_cookie import netns_cookie
from zfw_py.lifecycle import programs as lifecycle
from zfw_py.lifecycle.attachment import PIN, Clsact, Tcx
from zfw_py.lifecycle.store import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

NOBODY = 65534
ALLOWED, DENIED = 5000, 5001
INTERFACE = Network.interface

# The maps of the firewall, and programs that let everything pass. It loads in a
# hundredth of the time, for tests that are not about what becomes of packets.
STAND_IN = """
#include <linux/pkt_cls.h>
#include "firewall/maps.h"
#define PROGRAM(name) SEC("tc") int name(struct __sk_buff *skb)
PROGRAM(ingress) { (void)skb; return TC_ACT_UNSPEC; }
PROGRAM(egress) { (void)skb; return TC_ACT_UNSPEC; }
PROGRAM(explain_ingress) { (void)skb; return 0; }
PROGRAM(explain_egress) { (void)skb; return 0; }
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="module")
def stand_in_object(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("object")
    source, output = directory / "stand_in.bpf.c", directory / "stand_in.bpf.o"
    source.write_text(STAND_IN)
    compile_bpf(source, output)
    return output


def use_object(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Another compiled object in the firewall's place."""
    monkeypatch.setattr(programs, "SYSTEM", programs.SYSTEM._replace(object=path))


@pytest.fixture
def stand_in(stand_in_object: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is attached is the stand-in, in this test."""
    use_object(monkeypatch, stand_in_object)


@pytest.fixture(scope="module")
def _machine(_private_bpffs: None) -> Iterator[Network]:
    """A network whose gateway has a firewall, attached to nothing."""
    made = Network()
    try:
        with made.gateway.entered():
            yield made
            Firewall().detach_all()
    finally:
        made.close()


@pytest.fixture
def machine(_machine: Network) -> Iterator[Network]:
    """That network, as every test finds it: no rule, no setting, no program, no clsact."""
    firewall = Firewall()
    if not firewall.is_installed():
        firewall.attach(INTERFACE)
        firewall.detach(INTERFACE)
    yield _machine
    firewall.flush()
    for direction in ("ingress", "egress"):
        try:
            firewall.detach(INTERFACE, direction)
        except NotFound:
            pass
    for setting in ("icmp_echo", "ipv6", "per_interface_rules", "pass_non_tuple"):
        firewall.set([INTERFACE], setting, False)
    _machine.gateway.run("tc", "qdisc", "del", "dev", INTERFACE, "clsact", check=False)
    assert frames.until(lambda: not attached(INTERFACE))


# What the kernel says


def clsact_programs(interface: str, direction: str) -> list[int]:
    """The ids of the programs of its BPF filters, 0 for one that is no eBPF."""
    return [
        entry["options"].get("prog", {}).get("id", 0)
        for entry in filters(interface, direction)
        if entry["kind"] == "bpf" and "handle" in entry.get("options", {})
    ]


def filters(interface: str, direction: str) -> list[dict]:
    shown = subprocess.run(
        ["tc", "-json", "filter", "show", "dev", interface, direction],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(shown.stdout or "[]")


def attached(interface: str) -> list[tuple[str, str, int]]:
    """Direction, mode and program of everything on an interface."""
    return [
        (direction, mode, program)
        for direction in ("ingress", "egress")
        for mode, programs in (("tcx", tcx_programs), ("clsact", clsact_programs))
        for program in programs(interface, direction)
    ]


def our_program(direction: str = "ingress") -> int:
    fd = bpf_maps.open_pin(f"{directory()}/{direction}")
    try:
        return bpf_maps.object_id(fd)
    finally:
        os.close(fd)


def directory() -> Path:
    """Where the state of this network namespace is pinned."""
    return Path(STORE.directory(netns_cookie()))


def names_in(path: Path | str) -> list[str]:
    return sorted(entry.name for entry in Path(path).iterdir())


# Traffic


class Stream:
    """Numbered datagrams from the client to two ports of the gateway, while a with block lasts.

    ``lost`` and ``leaked`` tell afterwards which numbers did not arrive at the
    port that a rule allows, and which did at the one that none does.
    """

    def __init__(self, network: Network) -> None:
        with network.client.entered():
            self._client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._address = network.gateway_ipv4
        self._sinks = {port: self._sink(port) for port in (ALLOWED, DENIED)}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.sent = 0
        self.arrived: dict[int, list[int]] = {}

    def _sink(self, port: int) -> socket.socket:
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # SO_RCVBUFFORCE: whatever is lost, it is not for want of room here.
        sink.setsockopt(socket.SOL_SOCKET, 33, 1 << 29)
        sink.bind((self._address, port))
        sink.setblocking(False)
        return sink

    def _send(self) -> None:
        while not self._is_over.is_set():
            # A few at a time: the queue between the two ends of a veth pair is finite.
            for _ in range(16):
                number = self.sent.to_bytes(4, "big")
                for port in self._sinks:
                    self._client.sendto(number, (self._address, port))
                self.sent += 1
            time.sleep(0.0001)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        time.sleep(0.05)
        for port, sink in self._sinks.items():
            self.arrived[port] = list(self._drain(sink))
            sink.close()
        self._client.close()

    @staticmethod
    def _drain(sink: socket.socket) -> Iterator[int]:
        while True:
            try:
                yield int.from_bytes(sink.recv(4), "big")
            except BlockingIOError:
                return

    def flows(self, milliseconds: int = 30) -> int:
        """Let it flow for a while; the number of the next datagram."""
        time.sleep(milliseconds / 1000)
        return self.sent

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - set(self.arrived[ALLOWED]))

    @property
    def leaked(self) -> list[int]:
        return self.arrived[DENIED]


def allow() -> None:
    Firewall().insert(Rule(RuleKey(Prefix.parse(Network.gateway_ipv4), "udp", ALLOWED)))


def frame(port: int, protocol: str = "udp", destination: str = Network.gateway_ipv4) -> bytes:
    """What a client might send."""
    packet = {"udp": frames.datagram, "tcp": frames.syn}[protocol](destination, port)
    header = b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0"
    return header + bytes(packet)


# Once, twice, off again


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_attach_puts_one_program_and_detach_takes_it_off(
    machine: Network, mode: str, direction: str
) -> None:
    firewall = Firewall()
    (made,) = firewall.attach(INTERFACE, direction, mode)
    assert attached(INTERFACE) == [(direction, mode, our_program(direction))]
    ifindex = socket.if_nametoindex(INTERFACE)
    assert made == (ifindex, direction, mode, our_program(direction))

    assert firewall.attach(INTERFACE, direction, mode) == [made], "a second time"
    assert attached(INTERFACE) == [(direction, mode, our_program(direction))]
    (row,) = firewall.status().interfaces
    assert row.attachments == {direction: made}

    assert firewall.detach(INTERFACE) == [made]
    assert frames.until(lambda: attached(INTERFACE) == [])
    with pytest.raises(NotFound, match=INTERFACE):
        firewall.detach(INTERFACE)


@pytest.mark.parametrize("mode", ["auto", "tcx", "clsact"])
def test_both_directions_at_once_and_off_one_by_one(machine: Network, mode: str) -> None:
    firewall = Firewall()
    assert [one.direction for one in firewall.attach(INTERFACE, "both", mode)] == [
        "ingress",
        "egress",
    ]
    assert len(attached(INTERFACE)) == 2
    firewall.detach(INTERFACE, "ingress")
    assert frames.until(lambda: [one[0] for one in attached(INTERFACE)] == ["egress"])
    firewall.detach(INTERFACE, "egress")
    assert frames.until(lambda: attached(INTERFACE) == [])


def test_auto_is_tcx_where_the_kernel_has_it(machine: Network) -> None:
    has_tcx = bpf_links.supports_tcx(socket.if_nametoindex(INTERFACE))
    (made,) = Firewall().attach(INTERFACE)
    assert made.mode == ("tcx" if has_tcx else "clsact")


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_auto_leaves_what_is_attached_as_it_is(machine: Network, mode: str) -> None:
    before = Firewall().attach(INTERFACE, mode=mode)
    assert Firewall().attach(INTERFACE) == before
    assert [one[1] for one in attached(INTERFACE)] == [mode]


def test_a_kernel_without_tcx_gets_clsact_and_refuses_tcx(
    machine: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_links, "supports_tcx", lambda ifindex: False)
    with pytest.raises(KernelError, match="TCX") as refused:
        Firewall().attach(INTERFACE, mode="tcx")
    assert refused.value.errno == errno.EOPNOTSUPP
    assert refused.value.hint
    assert attached(INTERFACE) == []
    (made,) = Firewall().attach(INTERFACE)
    assert made.mode == "clsact"


@pytest.mark.parametrize(
    ("direction", "mode"), [("inward", "auto"), ("", "auto"), ("ingress", "xdp"), ("ingress", "")]
)
def test_a_direction_or_mode_that_is_none_is_refused(
    machine: Network, direction: str, mode: str
) -> None:
    with pytest.raises(UsageError):
        Firewall().attach(INTERFACE, direction, mode)
    assert attached(INTERFACE) == []


def test_an_interface_that_is_none_is_not_found(machine: Network) -> None:
    firewall = Firewall()
    for verb in (
        lambda: firewall.attach("nosuchif"),
        lambda: firewall.detach("nosuchif"),
        lambda: firewall.set([INTERFACE, "nosuchif"], "icmp_echo", True),
    ):
        with pytest.raises(NotFound, match="Interface not found: nosuchif"):
            verb()
    with Tables(is_writer=False) as tables:
        names = [key.rstrip(b"\0").decode() for key, _ in tables.map("interface_names").items()]
    assert names == [INTERFACE]
    assert firewall.status().interfaces == []


def test_without_a_firewall_there_is_nothing_to_detach(namespace: Namespace) -> None:
    for verb in (lambda: Firewall().detach("lo"), Firewall().detach_all, Firewall().status):
        with pytest.raises(NotInstalled):
            verb()
    assert not Firewall().is_installed()


# Live traffic


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_attach_loses_nothing_that_a_rule_allows_and_then_passes_nothing_else(
    machine: Network, mode: str
) -> None:
    allow()
    with Stream(machine) as stream:
        stream.flows()
        Firewall().attach(INTERFACE, mode=mode)
        attached_at = stream.sent
        stream.flows()
    assert stream.lost == []
    # Before attach all passes, and once the first is dropped, all are.
    assert stream.leaked == list(range(len(stream.leaked)))
    # One may have been on its way while the number was read.
    assert 0 < len(stream.leaked) <= attached_at + 1
    assert stream.sent > attached_at + 100


def test_changing_the_mode_has_no_moment_without_a_program(machine: Network) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, mode="tcx")
    with Stream(machine) as stream:
        for _ in range(5):
            for mode in ("clsact", "tcx"):
                firewall.attach(INTERFACE, mode=mode)
                stream.flows(5)
    assert (stream.lost, stream.leaked) == ([], [])
    assert frames.until(lambda: attached(INTERFACE) == [("ingress", "tcx", our_program())])


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_attaching_again_disturbs_nothing(machine: Network, mode: str) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, mode=mode)
    with Stream(machine) as stream:
        for _ in range(10):
            firewall.attach(INTERFACE, mode=mode)
    assert (stream.lost, stream.leaked) == ([], [])
    assert stream.sent > 100


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_detach_loses_nothing(machine: Network, mode: str) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, mode=mode)
    with Stream(machine) as stream:
        stream.flows()
        firewall.detach(INTERFACE)
        assert frames.until(lambda: attached(INTERFACE) == [])
        detached_at = stream.flows(0)
        stream.flows()
    assert stream.lost == []
    # From the first that passes, all do.
    assert stream.leaked == list(range(stream.leaked[0], stream.sent))
    assert stream.leaked[0] <= detached_at + 1


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_rules_settings_and_addresses_are_there_before_the_program_is(
    machine: Network, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's answer at the last moment before it is attached."""
    allow()
    Firewall().set([INTERFACE], "icmp_echo", True)
    machine.gateway.run("ip", "address", "add", "10.99.0.1/24", "dev", INTERFACE)
    answers = []

    def attach(attachment: Tcx | Clsact, *rest: Any) -> None:
        tables = Tables(is_writer=False)  # the writer holds the lock
        for some in (frame(ALLOWED), frame(22, "tcp"), frame(22, "tcp", "10.99.0.1")):
            answers.append(explain(tables, some, attachment.ifindex).reason)
        original(attachment, *rest)

    original = lifecycle.attach
    monkeypatch.setattr(lifecycle, "attach", attach)
    Firewall().attach(INTERFACE, mode=mode)
    machine.gateway.run("ip", "address", "del", "10.99.0.1/24", "dev", INTERFACE)
    assert answers == ["rule_pass", "ssh", "ssh"]


# A newer build


@pytest.fixture
def newer_object(tmp_path: Path) -> Path:
    """The same programs from another build: a byte behind the end, which no loader reads."""
    path = tmp_path / "newer.bpf.o"
    path.write_bytes(programs.SYSTEM.object.read_bytes() + b"\0")
    return path


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_programs_of_another_build_are_exchanged_without_a_gap(
    machine: Network, mode: str, newer_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow()
    firewall = Firewall()
    firewall.attach(INTERFACE, "both", mode)
    firewall.set([INTERFACE], "icmp_echo", True)
    old = {direction: our_program(direction) for direction in ("ingress", "egress")}
    with Stream(machine) as stream:
        stream.flows()
        counted = firewall.rules()[0].packets
        with monkeypatch.context() as patched:
            use_object(patched, newer_object)
            made = firewall.attach(INTERFACE, "both", mode)
            stream.flows()
            assert not {one.program_id for one in made} & set(old.values())
            assert attached(INTERFACE) == [
                (direction, mode, our_program(direction)) for direction in ("ingress", "egress")
            ]
            assert firewall.attach(INTERFACE, "both", mode) == made, "once is enough"
    assert (stream.lost, stream.leaked) == ([], [])
    (rule,) = firewall.rules()
    assert rule.packets == stream.sent > counted > 0
    assert firewall.status().interfaces[0].settings["icmp_echo"]
    assert not [name for name in names_in(directory()) if "new" in name]


@pytest.mark.usefixtures("stand_in")
def test_an_upgrade_reaches_every_interface(
    network: Network, newer_object: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.gateway.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    firewall = Firewall()
    firewall.attach(INTERFACE, "both", "tcx")
    firewall.attach("up0", "both", "clsact")
    old = our_program()
    use_object(monkeypatch, newer_object)
    firewall.attach("up1")
    assert our_program() != old
    for interface, mode in ((INTERFACE, "tcx"), ("up0", "clsact")):
        assert attached(interface) == [
            (direction, mode, our_program(direction)) for direction in ("ingress", "egress")
        ]
    assert attached("up1") == [("ingress", "tcx", our_program())]


def test_an_upgrade_that_does_not_load_changes_nothing(
    machine: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bad.bpf.c"
    # Reads beyond the packet: no verifier lets this through.
    source.write_text(
        STAND_IN.replace("(void)skb; return TC_ACT_UNSPEC", "return *(int *)(long)skb->data", 1)
    )
    compile_bpf(source, tmp_path / "bad.bpf.o")
    allow()
    Firewall().attach(INTERFACE)
    before = attached(INTERFACE)
    with monkeypatch.context() as patched:
        use_object(patched, tmp_path / "bad.bpf.o")
        with pytest.raises(KernelError, match="ingress"):
            Firewall().attach(INTERFACE)
    assert attached(INTERFACE) == before
    assert Firewall().explain(frame(ALLOWED), INTERFACE).reason == "rule_pass"


def test_an_object_that_is_missing_is_told_of(
    machine: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_object(monkeypatch, tmp_path / "gone.bpf.o")
    with pytest.raises(ZfwError, match=r"gone\.bpf\.o is missing"):
        Firewall().attach(INTERFACE)
    assert attached(INTERFACE) == []


# Others' programs


@contextmanager
def foreign_link(stand_in_object: Path, interface: str, direction: str) -> Iterator[int]:
    """Somebody else's program on TCX; its id."""
    attach_type = {"ingress": bpf_links.TCX_INGRESS, "egress": bpf_links.TCX_EGRESS}[direction]
    with BpfObject(stand_in_object) as loaded:
        loaded.load()
        program = loaded.programs()[direction]
        link = bpf_links.create_link(program, socket.if_nametoindex(interface), attach_type)
        try:
            yield bpf_maps.object_id(program)
        finally:
            os.close(link)


def tc(machine: Network, *words: str) -> None:
    machine.gateway.run("tc", *words)


FOREIGN_BPF = ("protocol", "all", "bpf", "bytecode", "1,6 0 0 4294967295,")  # unspec: go on
FOREIGN_U32 = ("protocol", "ip", "u32", "match", "u32", "0", "0")


@pytest.mark.parametrize("detach_everything", [False, True])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.usefixtures("stand_in")
def test_others_tcx_programs_stay(
    network: Network,
    stand_in_object: Path,
    direction: str,
    detach_everything: bool,
) -> None:
    with foreign_link(stand_in_object, INTERFACE, direction) as foreign:
        Firewall().attach(INTERFACE, direction, "tcx")
        assert tcx_programs(INTERFACE, direction) == [foreign, our_program(direction)]
        if detach_everything:
            Firewall().detach_all()
        else:
            Firewall().detach(INTERFACE)
        assert frames.until(lambda: tcx_programs(INTERFACE, direction) == [foreign])


@pytest.mark.parametrize("detach_everything", [False, True])
@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.usefixtures("stand_in")
def test_others_filters_stay(network: Network, direction: str, detach_everything: bool) -> None:
    on = ("filter", "add", "dev", INTERFACE, direction)
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    # At our preference beside ours, and behind it, of our kind and of another.
    tc(network, *on, "pref", "1", "handle", "5", *FOREIGN_BPF)
    tc(network, *on, "pref", "2", "handle", "0x7a66", *FOREIGN_BPF)
    tc(network, *on, "pref", "3", *FOREIGN_U32)
    before = filters(INTERFACE, direction)
    Firewall().attach(INTERFACE, direction, "clsact")
    assert clsact_programs(INTERFACE, direction).count(our_program(direction)) == 1
    assert len(filters(INTERFACE, direction)) == len(before) + 1
    if detach_everything:
        Firewall().detach_all()
    else:
        Firewall().detach(INTERFACE)
    assert filters(INTERFACE, direction) == before


@pytest.mark.usefixtures("stand_in")
def test_a_clsact_that_others_use_on_the_other_side_stays(
    network: Network,
) -> None:
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(network, "filter", "add", "dev", INTERFACE, "egress", "pref", "7", *FOREIGN_U32)
    before = filters(INTERFACE, "egress")
    Firewall().attach(INTERFACE, "ingress", "clsact")
    Firewall().detach_all()
    assert filters(INTERFACE, "egress") == before


@pytest.mark.parametrize("direction", ["ingress", "egress", "both"])
def test_a_filter_of_another_kind_at_our_preference_is_a_conflict(
    machine: Network, direction: str
) -> None:
    """On egress: with "both", ingress must not be left behind."""
    foreign_on = "ingress" if direction == "ingress" else "egress"
    tc(machine, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(machine, "filter", "add", "dev", INTERFACE, foreign_on, "pref", "1", *FOREIGN_U32)
    before = filters(INTERFACE, foreign_on)
    with pytest.raises(Conflict, match="preference 1"):
        Firewall().attach(INTERFACE, direction, "clsact")
    assert filters(INTERFACE, foreign_on) == before
    assert attached(INTERFACE) == []


@pytest.mark.usefixtures("stand_in")
def test_a_first_attach_that_fails_leaves_no_firewall_behind(
    network: Network,
) -> None:
    tc(network, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(network, "filter", "add", "dev", INTERFACE, "ingress", "pref", "1", *FOREIGN_U32)
    with pytest.raises(Conflict):
        Firewall().attach(INTERFACE, mode="clsact")
    assert not Firewall().is_installed()


def test_a_conflict_when_the_mode_is_changed_leaves_the_old_mode(machine: Network) -> None:
    Firewall().attach(INTERFACE, mode="tcx")
    tc(machine, "qdisc", "add", "dev", INTERFACE, "clsact")
    tc(machine, "filter", "add", "dev", INTERFACE, "ingress", "pref", "1", *FOREIGN_U32)
    with pytest.raises(Conflict):
        Firewall().attach(INTERFACE, mode="clsact")
    assert attached(INTERFACE) == [("ingress", "tcx", our_program())]


def test_an_old_ingress_qdisc_serves_ingress_and_is_a_conflict_for_egress(
    machine: Network,
) -> None:
    """It has no egress: a filter meant for there would meet what comes in."""
    tc(machine, "qdisc", "add", "dev", INTERFACE, "ingress")
    try:
        Firewall().attach(INTERFACE, "ingress", "clsact")
        assert clsact_programs(INTERFACE, "ingress") == [our_program()]
        with pytest.raises(Conflict):
            Firewall().attach(INTERFACE, "egress", "clsact")
        assert clsact_programs(INTERFACE, "ingress") == [our_program()]
    finally:
        tc(machine, "qdisc", "del", "dev", INTERFACE, "ingress")


# Interfaces come, go, and have other names


@pytest.fixture
def pair(machine: Network) -> Iterator[Callable[[], None]]:
    """An interface it0 of a pair; called, it makes it, after it has removed what was there."""

    def make() -> None:
        machine.gateway.run("ip", "link", "del", "it0", check=False)
        machine.gateway.run("ip", "link", "add", "it0", "type", "veth", "peer", "name", "it1")
        machine.gateway.run("ip", "address", "add", "10.98.0.1/24", "dev", "it0")

    make()
    yield make
    make()
    for setting in ("icmp_echo", "per_interface_rules"):
        Firewall().set(["it0"], setting, False)
    machine.gateway.run("ip", "link", "del", "it0")


def test_rules_and_settings_follow_the_name_of_an_interface_that_is_made_anew(
    machine: Network, pair: Callable[[], None]
) -> None:
    firewall = Firewall()
    firewall.attach("it0", mode="tcx")
    firewall.set(["it0"], "per_interface_rules", True)
    firewall.set(["it0"], "icmp_echo", True)
    key = RuleKey(Prefix.parse("192.0.2.1"), "udp", 7)
    firewall.insert(Rule(key, interfaces=("it0",)))
    firewall.insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "udp", 8)))
    old = socket.if_nametoindex("it0")
    pair()
    new = socket.if_nametoindex("it0")
    assert new != old
    (attachment,) = firewall.attach("it0", mode="tcx")
    assert attachment.ifindex == new
    assert attached("it0") == [("ingress", "tcx", our_program())]

    def reason(port: int, protocol: str = "udp", destination: str = "192.0.2.1") -> str:
        return firewall.explain(frame(port, protocol, destination), "it0").reason

    assert (reason(7), reason(8)) == ("rule_pass", "no_rule")
    assert reason(22, "tcp", "10.98.0.1") == "ssh"
    assert firewall.rules(destination=key.destination)[0].interfaces == ("it0",)
    (row,) = [row for row in firewall.status().interfaces if row.name == "it0"]
    assert row.ifindex == new
    assert row.settings["icmp_echo"]
    assert row.settings["per_interface_rules"]
    assert row.addresses == ["10.98.0.1"]


def test_what_was_attached_to_an_interface_that_is_gone_is_gone(
    machine: Network, pair: Callable[[], None]
) -> None:
    Firewall().attach("it0", "both")
    machine.gateway.run("ip", "link", "del", "it0")
    pinned = names_in(directory())
    assert [row for row in Firewall().status().interfaces if row.attachments] == []
    assert names_in(directory()) == pinned, "a reader has removed something"
    Firewall().attach(INTERFACE)
    links = [name for name in names_in(directory()) if name.startswith(PIN)]
    assert links == [f"{PIN}ingress_{index()}"], "the writer removes pins of dead links"


def test_an_index_that_is_given_again_to_an_interface_of_another_kind(
    machine: Network, pair: Callable[[], None]
) -> None:
    """Frames of a tun start with the IP header; the index tells nothing of that."""
    Firewall().attach("it0")
    index = str(socket.if_nametoindex("it0"))
    machine.gateway.run("ip", "link", "del", "it0")
    machine.gateway.run("ip", "tuntap", "add", "dev", "other0", "mode", "tun")
    machine.gateway.run("ip", "link", "set", "dev", "other0", "name", "it0")
    made = socket.if_nametoindex("it0")
    if str(made) != index:
        # An index can be asked for, but not by ip tuntap: say that it was the same.
        with Tables(is_writer=True) as tables:
            rows = tables.map("interfaces")
            row = rows.lookup(pack("=I", int(index))) or b""
            rows.update(pack("=I", made), pack("=I", made) + row[4:])
            names = tables.map("interface_names")
            value = names.lookup(b"it0".ljust(16, b"\0")) or b""
            names.update(b"it0".ljust(16, b"\0"), value[:8] + pack("=I4x", made))
    Firewall().attach("it0")
    with Tables(is_writer=False) as tables:
        row = tables.map("interfaces").lookup(pack("=I", made)) or b""
    assert unpack_from("=I", row, 12) == (layout.LINK_NO_ETHERNET,)


def test_an_alternative_name_is_the_interface_s_own(
    machine: Network, pair: Callable[[], None]
) -> None:
    machine.gateway.run("ip", "link", "property", "add", "dev", "it0", "altname", "other")
    firewall = Firewall()
    firewall.attach("it0")
    assert len(firewall.attach("other")) == 1
    assert len(attached("it0")) == 1
    firewall.set(["it0"], "icmp_echo", True)
    firewall.set(["other"], "per_interface_rules", True)
    (row,) = [row for row in firewall.status().interfaces if row.ifindex]
    assert row.name == "it0"
    assert row.settings["icmp_echo"]
    assert row.settings["per_interface_rules"]

    key = RuleKey(Prefix.parse("192.0.2.1"), "udp", 7)
    firewall.insert(Rule(key, interfaces=("other",)))
    assert firewall.rules()[0].interfaces == ("it0",)
    some = frame(7, destination="192.0.2.1")
    assert firewall.explain(some, "other").reason == "rule_pass"
    firewall.delete(key, ("it0",))
    firewall.detach("other")
    assert frames.until(lambda: attached("it0") == [])


# Where state lies


@pytest.mark.usefixtures("stand_in")
def test_pins_are_root_s_alone(
    network: Network,
) -> None:
    old_mask = os.umask(0)
    try:
        Firewall().attach(INTERFACE, "both")
    finally:
        os.umask(old_mask)
    for path in (Path(ROOT), directory()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    pins = list(directory().iterdir())
    assert {*layout.MAPS, "ingress", "egress", "explain_ingress", "explain_egress"} < {
        pin.name for pin in pins
    }
    for pin in pins:
        assert stat.S_IMODE(pin.stat().st_mode) == 0o600, pin
        assert (pin.stat().st_uid, pin.stat().st_gid) == (0, 0)


@pytest.mark.usefixtures("stand_in")
def test_detach_all_removes_every_pin(
    network: Network,
) -> None:
    Firewall().attach(INTERFACE, "both")
    name = directory().name
    assert name in names_in(ROOT)
    Firewall().detach_all()
    assert name not in names_in(ROOT)
    assert frames.until(lambda: attached(INTERFACE) == [])


def in_child(action: Callable[[], object]) -> str:
    """What becomes of an action in a process of its own: "done", or the name of its error.

    An error that zfw does not expect comes with its traceback.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        told = "done"
        try:
            action()
        except ZfwError as error:
            told = type(error).__name__
        except BaseException:  # noqa: BLE001
            told = traceback.format_exc()
        os.write(write_end, told.encode()[-60000:])
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as report:
        told = report.read()
    os.waitpid(child, 0)
    return told


def as_nobody(action: Callable[[], object]) -> str:
    """The same, without any privilege."""

    def drop() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        action()

    return in_child(drop)


def without_bpffs(action: Callable[[], object]) -> str:
    """The same, in a mount namespace of its own where no bpffs is mounted."""

    def unmount() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        while bpffs.is_mounted():
            assert libc.umount2(bpffs.MOUNT_POINT.encode(), 2) == 0  # MNT_DETACH
        action()

    return in_child(unmount)


VERBS = {
    "attach": lambda: Firewall().attach("lo"),
    "detach": lambda: Firewall().detach("lo"),
    "detach_all": lambda: Firewall().detach_all(),
    "insert": allow,
    "delete": lambda: Firewall().delete(RuleKey(Prefix.parse("192.0.2.1"), "udp", 1)),
    "rules": lambda: Firewall().rules(),
    "flush": lambda: Firewall().flush(),
    "set": lambda: Firewall().set(["lo"], "icmp_echo", True),
    "refresh": lambda: Firewall().refresh(),
    "status": lambda: Firewall().status(),
    "explain": lambda: Firewall().explain(frame(1), "lo"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_needs_privilege_and_says_so(machine: Network, verb: str) -> None:
    allow()
    assert as_nobody(VERBS[verb]) == "PermissionDenied"
    assert [rule.key.low_port for rule in Firewall().rules()] == [ALLOWED]


def test_so_does_attach_where_bpffs_is_open_to_all_or_not_mounted(machine: Network) -> None:
    mount_point = Path(bpffs.MOUNT_POINT)
    mode = stat.S_IMODE(mount_point.stat().st_mode)
    mount_point.chmod(0o755)
    try:
        assert as_nobody(VERBS["attach"]) == "PermissionDenied"
    finally:
        mount_point.chmod(mode)

    def attach_as_nobody() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        Firewall().attach("lo")

    assert without_bpffs(attach_as_nobody) == "PermissionDenied"


def without_capabilities(action: Callable[[], object]) -> str:
    """The same as in a container: uid 0, and the files are ours, but bpf(2) is not."""

    def drop() -> None:
        # capset(2), version 3: no capability of any kind.
        header = pack("=Ii", 0x20080522, 0)
        assert ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) == 0
        action()

    return in_child(drop)


# The others may be done: the pins are root's, and the kernel asks no more for their maps.
@pytest.mark.parametrize("verb", ["attach", "insert", "delete", "rules", "flush", "status"])
def test_root_without_capabilities_is_told_the_same(machine: Network, verb: str) -> None:
    assert without_capabilities(VERBS[verb]) == "PermissionDenied"
    assert Firewall().is_installed()


@pytest.mark.usefixtures("stand_in")
def test_whoever_cannot_see_the_other_namespaces_does_not_take_them_for_gone(
    network: Network,
) -> None:
    """A first attach removes the state of namespaces that are gone, and only of those."""
    with network.client.entered():
        Firewall().attach("lo")
        Firewall().detach("lo")
    assert without_capabilities(VERBS["attach"]) == "PermissionDenied"
    with network.client.entered():
        assert Firewall().is_installed()
        Firewall().detach_all()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "attach"])
def test_without_bpffs_there_is_no_firewall(machine: Network, verb: str) -> None:
    assert without_bpffs(VERBS[verb]) == "NotInstalled"


@pytest.mark.usefixtures("stand_in")
def test_attach_mounts_bpffs_where_it_is_missing(
    network: Network,
) -> None:
    def attach() -> None:
        Firewall().attach(INTERFACE)
        assert bpffs.is_mounted()
        assert Path(bpffs.MOUNT_POINT).stat().st_mode & 0o777 == 0o700
        last = [
            line.split()
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4] == bpffs.MOUNT_POINT
        ][-1]
        assert {"nosuid", "nodev", "noexec"} <= set(last[5].split(","))
        assert attached(INTERFACE) == [("ingress", "tcx", our_program())]
        Firewall().detach_all()

    told = without_bpffs(attach)
    assert told == "done", told


@pytest.mark.usefixtures("stand_in")
def test_attach_says_so_where_bpffs_cannot_be_mounted(
    network: Network,
) -> None:
    def attach() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        assert libc.mount(b"none", b"/sys", b"tmpfs", 0, None) == 0
        Firewall().attach(INTERFACE)

    assert in_child(attach) == "KernelError"


# Pins that are not what they should be


@contextmanager
def in_place_of(name: str, put: Callable[[str], None]) -> Iterator[None]:
    """In the block something else is where a pin of ours was; ``put`` puts it there."""
    path = directory() / name
    fd = bpf_maps.open_pin(str(path))
    path.unlink()
    try:
        put(str(path))
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        bpf_maps.pin(fd, str(path))
        os.close(fd)


def put_map(*spec: int) -> Callable[[str], None]:
    def put(path: str) -> None:
        made = bpf_maps.create_map(spec, "other")  # type: ignore[arg-type]
        bpf_maps.pin(made.fd, path)

    return put


def put_program(path: str) -> None:
    fd = bpf_maps.open_pin(f"{directory()}/explain_ingress")
    bpf_maps.pin(fd, path)
    os.close(fd)


# Type 2 is an array, 1 a hash.
GARBAGE = {
    "another type": put_map(2, 4, 4, 16384, 0),
    "another size": put_map(1, 20, 8, 16384, 1),
    "fewer entries": put_map(1, 20, 4, 100, 1),
    "another flag": put_map(1, 20, 4, 16384, 0),
    "a program": put_program,
    "a directory": os.mkdir,
}


def snapshot() -> list[str]:
    return [repr((rule, rule.interfaces, rule.service_id)) for rule in Firewall().rules()]


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("verb", ["insert", "set", "refresh", "status", "attach"])
def test_a_map_that_is_not_as_compiled_is_refused_and_nothing_changed(
    machine: Network, verb: str, what: str
) -> None:
    """The table of addresses, which each of these verbs reads or writes."""
    firewall = Firewall()
    firewall.insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "udp", 1)))
    before = snapshot(), firewall.status()
    with in_place_of("addresses", GARBAGE[what]):
        action = VERBS[verb] if verb != "attach" else lambda: firewall.attach(INTERFACE)
        if verb == "set":
            action = lambda: firewall.set([INTERFACE], "icmp_echo", True)  # noqa: E731
        with pytest.raises(LayoutMismatch, match="addresses") as refused:
            action()
        assert refused.value.hint
    assert (snapshot(), firewall.status()) == before
    assert attached(INTERFACE) == []


@pytest.mark.parametrize("name", layout.MAPS)
def test_every_map_is_compared_with_the_compiled_layout(machine: Network, name: str) -> None:
    map_type, key_size, value_size, max_entries, flags = layout.MAPS[name]
    if map_type in (9, 12):
        # An LRU map, and one whose values are maps, take no other size so simply.
        other = put_map(1, key_size, value_size, max_entries, 1)
    else:
        other = put_map(map_type, key_size, value_size + 8, max_entries, flags)
    with (
        in_place_of(name, other),
        pytest.raises(LayoutMismatch, match=name),
        Tables(is_writer=False) as tables,
    ):
        tables.map(name)


@pytest.mark.parametrize("name", layout.INNER_MAPS)
def test_so_is_every_inner_map(
    machine: Network, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow()
    Firewall().attach(INTERFACE, "egress")  # there are no tables of flows before
    map_type, key_size, value_size, *rest = layout.INNER_MAPS[name]
    monkeypatch.setitem(layout.INNER_MAPS, name, (map_type, key_size, value_size + 8, *rest))
    with pytest.raises(LayoutMismatch, match=name), Tables(is_writer=False) as tables:
        tables.inner(name)


def test_a_state_of_another_version_is_refused_by_every_verb(machine: Network) -> None:
    allow()
    before = snapshot()
    states = bpf_maps.open_map(f"{directory()}/state")
    good = states.lookup(ZERO)
    assert good is not None
    for version in (0, layout.ABI_VERSION + 1):
        states.update(ZERO, pack("=I", version) + good[4:])
        try:
            for verb in VERBS.values():
                with pytest.raises(LayoutMismatch, match=f"version {version}") as refused:
                    verb()
                assert refused.value.hint
        finally:
            states.update(ZERO, good)
    assert snapshot() == before
    assert attached(INTERFACE) == attached("lo") == []


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_a_pin_that_is_no_program_is_refused(machine: Network, mode: str) -> None:
    with in_place_of("ingress", put_map(1, 4, 4, 1, 1)):
        with pytest.raises(LayoutMismatch, match="ingress"):
            Firewall().attach(INTERFACE, mode=mode)
        assert attached(INTERFACE) == []


@pytest.mark.parametrize("name", ["state", "addresses", "ingress"])
def test_a_pin_that_is_missing_is_an_expected_failure(machine: Network, name: str) -> None:
    with in_place_of(name, lambda path: None), pytest.raises(ZfwError):
        Firewall().attach(INTERFACE)
    assert attached(INTERFACE) == []


def index() -> str:
    return str(socket.if_nametoindex(INTERFACE))


if sys.version_info >= (3, 12):
    pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
