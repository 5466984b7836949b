# SPDX-License-Identifier: GPL-2.0-only
"""Many processes at once: as thirty-two routers' hooks, cron and people run them.

The processes are real ones, through the installed command.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.compat.support.fake_router import CommandLine
from tests.firewall.support import frames
from tests.support.waiting import wait_until
from zfw_py import Busy, Firewall, Prefix, Rule, RuleKey
from zfw_py.firewall.maps import Maps
from zfw_py.kernel import lock
from zfw_py.lifecycle.store import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.firewall.support.frames import Gateway
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel


MANY = 64
# On one prefix: every insert changes the same element.
SELECTOR = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-o", "0.0.0.0", "-n", "0")


def insert(port: int) -> tuple[str, ...]:
    return (
        "-I",
        *SELECTOR,
        "-l",
        str(port),
        "-h",
        str(port),
        "-t",
        "33381",
        "-s",
        f"service-{port}",
    )


def delete(port: int) -> tuple[str, ...]:
    return ("-D", *SELECTOR, "-l", str(port), "-h", str(port))


def all_at_once(zfw: CommandLine, commands: Iterable[tuple[str, ...]]) -> None:
    """Start every command, then wait for all; each succeeds and complains of nothing."""
    started = [(words, zfw.start(*words)) for words in commands]
    for words, process in started:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, ""), (words, output)


def ports(firewall: Firewall) -> list[int]:
    return [rule.key.low_port for rule in firewall.rules()]


def derived_tables() -> list[object]:
    """What follows from the rules: it is as at the start when they are gone."""
    with Maps(is_writer=False) as maps:
        return [
            sorted(maps.map(name).items(64))
            for name in ("length_counts", "ports_medium", "ports_large", "routes")
        ] + [maps.state().in_progress]


def test_case_24_as_many_inserts_at_once_are_all_there(gateway: Gateway) -> None:
    """The existing command loses up to half of them."""
    zfw = CommandLine(gateway.gateway)
    start = derived_tables()
    wanted = list(range(1000, 1000 + MANY))
    all_at_once(zfw, map(insert, wanted))
    assert sorted(ports(gateway.firewall)) == wanted
    assert {rule.service_id for rule in gateway.firewall.rules()} == {
        f"service-{port}" for port in wanted
    }
    for port in wanted:
        packet = bytes(gateway.framed(frames.syn("10.0.0.20", port)))
        assert gateway.firewall.explain(packet, gateway.interface).reason == "no_listener"
    all_at_once(zfw, map(delete, wanted))
    assert ports(gateway.firewall) == []
    assert derived_tables() == start


def test_case_24_inserts_and_deletes_of_disjoint_keys_make_the_exact_set(
    gateway: Gateway,
) -> None:
    zfw = CommandLine(gateway.gateway)
    old, new = range(2000, 2000 + MANY // 2), range(3000, 3000 + MANY // 2)
    all_at_once(zfw, map(insert, old))
    mixed = [
        command for pair in zip(map(delete, old), map(insert, new), strict=True) for command in pair
    ]
    all_at_once(zfw, mixed)
    assert sorted(ports(gateway.firewall)) == list(new)


def test_the_same_insert_many_times_at_once_is_one_rule(gateway: Gateway) -> None:
    all_at_once(CommandLine(gateway.gateway), [insert(80)] * 32)
    assert ports(gateway.firewall) == [80]


def test_an_interface_more_from_each_is_the_union_of_all(gateway: Gateway) -> None:
    """-N twice is a union; sixteen at once as well."""
    names = [f"{side}{i}" for i in range(8) for side in "xy"]
    for i in range(8):
        gateway.gateway.add_veth(f"x{i}", f"y{i}")
    # Otherwise each command warns that its rule counts on this interface too.
    gateway.firewall.set([gateway.interface], "per_interface_rules", True)
    all_at_once(CommandLine(gateway.gateway), [(*insert(80), "-N", name) for name in names])
    (rule,) = gateway.firewall.rules()
    assert rule.interfaces == tuple(sorted(names))
    all_at_once(CommandLine(gateway.gateway), [(*delete(80), "-N", name) for name in names[1:]])
    (rule,) = gateway.firewall.rules()
    assert rule.interfaces == (names[0],)
    for i in range(8):
        gateway.gateway.run("ip", "link", "del", f"x{i}")


def test_routes_of_many_at_once_are_counted(gateway: Gateway) -> None:
    zfw = CommandLine(gateway.gateway)
    wanted = range(4000, 4005)
    key = ("-c", "172.31.9.9", "-m", "32", "-p", "tcp")

    def is_local() -> bool:
        shown = gateway.gateway.run("ip", "-json", "address", "show", "dev", "lo").stdout
        (lo,) = json.loads(shown)
        return "172.31.9.9" in [info["local"] for info in lo["addr_info"]]

    all_at_once(zfw, [("-I", *key, "-l", str(p), "-h", str(p), "-t", "0", "-r") for p in wanted])
    assert is_local()
    all_at_once(zfw, [("-D", *key, "-l", str(p), "-r") for p in wanted[1:]])
    assert is_local()
    all_at_once(zfw, [("-D", *key, "-l", str(wanted[0]), "-r")])
    assert not is_local()


def test_readers_see_whole_rules_while_writers_write(gateway: Gateway) -> None:
    """A listing in the middle of 64 inserts has some of them, each as it was asked for."""
    zfw = CommandLine(gateway.gateway)
    writers = [zfw.start(*insert(port)) for port in range(1000, 1000 + MANY)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        listed = zfw("list", "--json")
        assert (listed.returncode, listed.stderr) == (0, "")
        seen.append([(rule["low_port"], rule["service_id"]) for rule in json.loads(listed.stdout)])
        cron = zfw("-L", "-E")
        assert (cron.returncode, cron.stderr) == (0, "")
    for writer in writers:
        assert writer.wait() == 0
        writer.communicate()
    assert seen
    for some, more in pairwise(seen):
        assert set(some) <= set(more)
        assert all(service_id == f"service-{port}" for port, service_id in some)
    assert len(ports(gateway.firewall)) == MANY


def test_readers_that_never_pause_do_not_keep_a_writer_out(gateway: Gateway) -> None:
    """They share the lock; a writer's turn comes all the same."""
    is_over = threading.Event()
    reads = [0, 0, 0]

    def read(number: int) -> None:
        with gateway.gateway.entered():
            while not is_over.is_set():
                Firewall().rules()
                reads[number] += 1

    readers = [threading.Thread(target=read, args=(number,)) for number in range(len(reads))]
    for reader in readers:
        reader.start()
    try:
        for port in range(10):
            gateway.firewall.insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", port)))
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert all(reads)
    assert len(gateway.firewall.rules()) == 10


def test_a_packet_meets_a_rule_at_every_moment_of_its_changes(gateway: Gateway) -> None:
    """Replaced again and again, grown and shrunk: it always passes, since it always may."""
    packet = bytes(gateway.framed(frames.datagram("192.0.2.1", 80)))
    key = RuleKey(Prefix.parse("192.0.2.1"), "udp", 80)
    gateway.firewall.insert(Rule(key))
    sent = 0
    is_over = threading.Event()

    def send() -> None:
        nonlocal sent
        while not is_over.is_set():
            gateway.send(packet)
            sent += 1

    before = gateway.firewall.status().reasons
    sender = threading.Thread(target=send)
    sender.start()
    try:
        end = time.monotonic() + 1
        turn = 0
        while time.monotonic() < end:
            turn += 1
            gateway.firewall.insert(Rule(key, 80 + turn % 7, service_id=str(turn)))
            others = [RuleKey(key.destination, "udp", 1000 + i) for i in range(6)]
            # From inline to medium and back; other lengths come and go.
            for other in others:
                gateway.firewall.insert(Rule(other))
            gateway.firewall.insert(Rule(RuleKey(Prefix.parse("10.0.0.0", turn % 32), "udp", 1)))
            for other in others:
                gateway.firewall.delete(other)
            gateway.firewall.delete(RuleKey(Prefix.parse("10.0.0.0", turn % 32), "udp", 1))
    finally:
        is_over.set()
        sender.join()
    after = gateway.firewall.status().reasons
    counted = {
        name: after[name][0] - before[name][0] for name in after if after[name] != before[name]
    }
    assert counted.pop("rule_pass") == sent > 100
    # Such a packet is dropped, and counted; here it is worth knowing how often.
    assert counted == {}


@pytest.mark.parametrize("words", [("-H",), ("attach",)], ids=["classic", "modern"])
def test_many_attach_the_same_interface_at_once_and_each_program_is_there_once(
    network: Network, words: tuple[str, ...]
) -> None:
    """The first of them makes the firewall. PEERS, defect 20: two at once, every program twice."""
    zfw = CommandLine(network.gateway)
    started = [zfw.start(*words, network.interface) for _ in range(4)]
    for process in started:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors + output
    (interface,) = Firewall().status().interfaces
    assert set(interface.attachments) == {"ingress", "egress"}
    for direction in ("ingress", "egress"):
        listed = network.gateway.run("tc", "filter", "show", "dev", network.interface, direction)
        expected = 1 if words == ("-H",) else 0
        assert listed.stdout.count("handle") == expected, listed.stdout
    # A program that is attached twice counts twice.
    with network.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"one", (network.gateway_ipv4, 5000))
    assert wait_until(lambda: Firewall().status().reasons["no_rule"][0] > 0)
    assert Firewall().status().reasons["no_rule"][0] == 1


def test_attach_and_uninstall_at_once_end_in_one_or_the_other(network: Network) -> None:
    zfw = CommandLine(network.gateway)
    attach = ("-H", network.interface)
    Firewall().attach(network.interface, "ingress")
    started = [zfw.start(*words) for words in (attach, ("-Q",), attach)]
    for process in started:
        output, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 1), errors
        assert "Traceback" not in errors, errors
        if process.returncode == 1:
            assert "Not enough privileges or ebpf not enabled!" in output
    if Firewall().is_installed():
        assert Firewall().rules() == []


def test_one_who_holds_the_lock_for_too_long_is_told_of(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE", 0.05)
    with lock.Lock(ROOT, is_exclusive=False, top=ROOT):
        assert gateway.firewall.rules() == [], "readers share it"
        with pytest.raises(Busy):
            gateway.firewall.flush()
    with lock.Lock(ROOT, is_exclusive=True, top=ROOT), pytest.raises(Busy):
        gateway.firewall.rules()
    assert gateway.firewall.flush() == 0
