# SPDX-License-Identifier: GPL-2.0-only
"""The tables: whole after a kill at any moment and after every failure, and full at their limits.

What is in the maps is read and checked here by ``Consistency``, which knows the
layout and nothing of how it is written.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import time
from functools import partial
from ipaddress import ip_address
from itertools import combinations, islice
from pathlib import Path
from socket import if_nametoindex
from struct import Struct, unpack_from
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.firewall.support import frames
from tests.firewall.support.packets import ETHERTYPE_IPV4, ethernet, ipv4, udp
from tests.support.netns import Namespace
from zfw_py import (
    Delete,
    Deleted,
    Firewall,
    Insert,
    Inserted,
    KernelError,
    MapFull,
    NotFound,
    Prefix,
    Rule,
    RuleKey,
    RuleNotFound,
    ZfwError,
)
from zfw_py.firewall import layout
from zfw_py.firewall.codec import decode_lengths, decode_prefix_key, u32
from zfw_py.firewall.explain import explain
from zfw_py.firewall.maps import ZERO, Tables
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from ctypes import Array, c_char

    from tests.firewall.support.frames import Gateway

pytestmark = [
    pytest.mark.kernel,
    # Python 3.12 and later: the threads that make namespaces have ended when we fork.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

running, gateway = frames.running, frames.gateway

HERE = Prefix.parse("192.0.2.1")
OTHER = Prefix.parse("198.51.100.0/24")
INTERFACE = "gw0"
ARRAY_OF_MAPS = 12  # enum bpf_map_type


def key(port: int, destination: Prefix = HERE, **others: str) -> RuleKey:
    return RuleKey(destination, "udp", port, **others)  # type: ignore[arg-type]


def rule(low: int, high: int | None = None, destination: Prefix = HERE, **others: object) -> Rule:
    return Rule(key(low, destination), high, **others)  # type: ignore[arg-type]


def fill(rules: Iterable[Rule]) -> None:
    Firewall().apply([Insert(each) for each in rules])


# What is in the maps


class Entry(NamedTuple):
    """A rule as its prefix has it: struct fw_port_rule."""

    low: int
    high: int
    tproxy_port: int
    interface_set: int
    slot: int
    action: int
    flags: int


class Contents:
    """All that the maps hold, read without zfw's own reading of it."""

    def __init__(self) -> None:
        with Tables(is_writer=False) as tables:
            self.prefixes = dict(tables.prefixes.items())
            self.ports = {
                layout.SIZE_MEDIUM: dict(tables.map("ports_medium").items(64)),
                layout.SIZE_LARGE: dict(tables.map("ports_large").items(64)),
            }
            self.length_counts = {
                bytes(k[:3]): int.from_bytes(v, "little")
                for k, v in tables.map("length_counts").items()
            }
            self.lengths = [
                decode_lengths(tables.map("lengths").lookup(u32(table)) or b"")
                for table in range(layout.TABLES)
            ]
            self.state = tables.state()
            self.names = dict(tables.map("interface_names").items())
            self.sets = [value for _, value in tables.map("interface_sets").items()]
            self.routes = dict(tables.map("routes").items())
            # Those that have been used since the last flush.
            self.records = [
                value
                for segment in range(-(-self.state.next_slot // layout.SEGMENT_SLOTS))
                for inner in [tables.inner("rule_records", segment)]
                if inner
                for _, value in inner.items()
            ][: self.state.next_slot]

    def rules_of(self, prefix_key: bytes) -> list[Entry]:
        count, size_class = unpack_from("=HB", self.prefixes[prefix_key], 40)
        if size_class == layout.SIZE_INLINE:
            data, start = self.prefixes[prefix_key], 48
        else:
            data, start = self.ports[size_class][prefix_key], 48
            count = unpack_from("=H", data, 40)[0]
        form = Struct(layout.PORT_RULE)
        return [Entry(*form.unpack_from(data, start + 16 * i)) for i in range(count)]

    def check(self) -> None:
        """Everything that follows from the prefixes does follow from them."""
        counts: dict[bytes, int] = {}
        slots: list[int] = []
        expected_ports: dict[int, set[bytes]] = {size_class: set() for size_class in self.ports}
        for prefix_key, value in self.prefixes.items():
            assert value[:36] == prefix_key, "a prefix's element begins with its key"
            lengths = bytes([prefix_key[34], prefix_key[32], prefix_key[33]])
            counts[lengths] = counts.get(lengths, 0) + 1
            rules = self.rules_of(prefix_key)
            slots += [each.slot for each in rules]
            assert rules, "a prefix without a rule"
            assert len({each.low for each in rules}) == len(rules), "a key twice"
            size_class = value[42]
            if size_class != layout.SIZE_INLINE:
                expected_ports[size_class].add(prefix_key)
                self._check_index(prefix_key, size_class, rules)
        assert self.length_counts == counts
        for table, pairs in enumerate(self.lengths):
            expected = {(k[1], k[2]) for k in counts if k[0] == table}
            assert pairs == sorted(expected, reverse=True), "the lengths in use, longest first"
        assert {c: set(index) for c, index in self.ports.items()} == expected_ports
        assert len(set(slots)) == len(slots), "a slot of two rules"
        assert sorted([*slots, *self._free_slots()]) == list(range(self.state.next_slot))
        assert self.state.in_progress == 0

    def _check_index(self, prefix_key: bytes, size_class: int, rules: list[Entry]) -> None:
        data = self.ports[size_class][prefix_key]
        assert data[:36] == prefix_key
        most = {
            layout.SIZE_MEDIUM: layout.MEDIUM_RULES,
            layout.SIZE_LARGE: layout.LARGE_RULES,
        }[size_class]
        (count,) = unpack_from("=H", data, 42)
        form = Struct(layout.INTERVAL)
        intervals = [form.unpack_from(data, 48 + 16 * most + 8 * i) for i in range(count)]
        winners: dict[int, int] = {}
        for index, each in enumerate(rules):
            for port in range(each.low, each.high + 1):
                winners.setdefault(port, index)
        found: dict[int, int] = {}
        for low, high, index in intervals:
            for port in range(low, high + 1):
                found.setdefault(port, index)
        assert found == winners, "the intervals lead to the first rule of each port"

    def _free_slots(self) -> list[int]:
        free, slot = [], self.state.free_slot
        while slot != layout.NO_SLOT:
            free.append(slot)
            assert len(free) <= self.state.next_slot, "the free list goes round"
            slot = unpack_from("=I", self.records[slot], 64)[0]
        return free


def datagram(port: int, destination: Prefix = HERE) -> bytes:
    """A frame from the client to a port of the prefix's first address."""
    source = ip_address(frames.CLIENT[destination.family])
    to = ip_address(destination.address)
    return ethernet(ipv4(source, to, 17, udp(40000, port)), ETHERTYPE_IPV4)


def listing() -> list[tuple[object, ...]]:
    """All that is known of each rule but its counters."""
    return [
        (
            str(each.key),
            each.high_port,
            each.action,
            each.tproxy_port,
            each.service_id,
            each.interfaces,
            each.is_routed,
        )
        for each in Firewall().rules()
    ]


def check_datapath() -> None:
    """The program finds the rules that the listing has. The destinations here do not overlap."""
    contents = Contents()
    by_prefix: dict[Prefix, list[Entry]] = {}
    for prefix_key in contents.prefixes:
        by_prefix[decode_prefix_key(prefix_key)[2]] = contents.rules_of(prefix_key)
    listed: dict[Prefix, list[int]] = {}
    for each in Firewall().rules():
        listed.setdefault(each.key.destination, []).append(each.key.low_port)
    assert listed == {prefix: [e.low for e in entries] for prefix, entries in by_prefix.items()}
    ifindex = if_nametoindex(INTERFACE)
    with Tables(is_writer=False) as tables:
        for prefix in {HERE, OTHER, *by_prefix}:
            entries = by_prefix.get(prefix, [])
            edges = {edge for e in entries for edge in (e.low, e.high, e.high + 1)} | {0, 7, 65535}
            for port in sorted(edge for edge in edges if edge <= 65535)[:40]:
                hit = next((e for e in entries if e.low <= port <= e.high), None)
                decision = explain(tables, datagram(port, prefix), ifindex)
                assert decision.slot == (hit.slot if hit else None), (prefix, port, decision)


# Killed


def killed_after(seconds: float, action: Callable[[], None]) -> None:
    """Fork, and kill the child that does the action over and over."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                action()
        finally:
            # Not back into pytest, whatever happened.
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def one_by_one(seed: int) -> Callable[[], None]:
    """Inserts and deletes, at random, of few keys: every size class comes and goes."""
    rng = random.Random(seed)

    def step() -> None:
        firewall = Firewall()
        low = 100 * rng.randrange(8)
        destination = rng.choice((HERE, OTHER))
        try:
            if rng.random() < 0.6:
                high = low + rng.randrange(150)
                firewall.insert(rule(low, high, destination, service_id=f"{low}-{high}"))
            else:
                firewall.delete(key(low, destination))
        except RuleNotFound:
            pass

    return step


def by_batches(seed: int) -> Callable[[], None]:
    """Batches whose rules stand and fall together: one service id each, in two prefixes."""
    rng = random.Random(seed)

    def step() -> None:
        number = str(rng.randrange(1_000_000))
        lows = rng.sample(range(0, 4000, 10), rng.choice((3, 40, 200)))
        present = Firewall().rules()
        edits: list[Insert | Delete] = [Delete(each.key) for each in present]
        for destination in (HERE, OTHER):
            edits += [Insert(rule(p, p + 5, destination, service_id=number)) for p in lows]
        Firewall().apply(edits)

    return step


@pytest.mark.parametrize("seed", range(24))
def test_a_kill_at_any_moment_leaves_whole_rules(gateway: Gateway, seed: int) -> None:
    killed_after(random.Random(seed).uniform(0.001, 0.04), one_by_one(seed))
    for each in Firewall().rules():
        # The service id was written with the ports: they still belong together.
        assert each.service_id == f"{each.key.low_port}-{each.high_port}"
    check_datapath()
    gateway.firewall.insert(rule(7))
    Contents().check()
    check_datapath()


@pytest.mark.parametrize("seed", range(24))
def test_a_kill_in_a_batch_leaves_each_rule_whole_and_the_next_writer_repairs(
    gateway: Gateway, seed: int
) -> None:
    killed_after(random.Random(seed).uniform(0.002, 0.06), by_batches(seed))
    by_destination: dict[Prefix, set[str]] = {}
    for each in Firewall().rules():
        by_destination.setdefault(each.key.destination, set()).add(each.service_id)
    assert all(len(ids) == 1 for ids in by_destination.values()), "a prefix is of one batch"
    check_datapath()
    gateway.firewall.insert(rule(4321))
    Contents().check()
    check_datapath()


WRITES = ("update", "delete", "update_many", "delete_many")


def fail_at(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fails: Callable[[], None],
    concerns: Callable[[bpf_maps.Map], bool] = lambda written: True,
) -> list[int]:
    """Let the n-th write to a map, from 0, call ``fails`` before it is done.

    Returns a list of one number: how many writes are still to come before it.
    """
    left = [number]

    def wrapped(original: Callable[..., object]) -> Callable[..., object]:
        def write(self: bpf_maps.Map, *arguments: object) -> object:
            if concerns(self):
                left[0] -= 1
                if left[0] == -1:
                    fails()
            return original(self, *arguments)

        return write

    for name in WRITES:
        monkeypatch.setattr(bpf_maps.Map, name, wrapped(getattr(bpf_maps.Map, name)))
    return left


def crowd(count: int, start: int = 1000) -> list[Rule]:
    """So many rules of one prefix that do not touch."""
    return [rule(start + 10 * i, start + 10 * i + 4, service_id=f"crowd-{i}") for i in range(count)]


INLINE, MEDIUM = layout.INLINE_RULES, layout.MEDIUM_RULES

# What there is before, and what is then done to it.
OPERATIONS: dict[str, tuple[list[Rule], list[Insert | Delete]]] = {
    "first rule": ([], [Insert(rule(1, service_id="new"))]),
    "last rule": ([rule(1)], [Delete(key(1))]),
    "one more": (crowd(1), [Insert(rule(1))]),
    "other ports and action": ([rule(1, 5)], [Insert(rule(1, 9, deny=True))]),
    "other listener and service": (
        [rule(1, tproxy_port=1000, service_id="old")],
        [Insert(rule(1, 9, tproxy_port=2000, service_id="new"))],
    ),
    "inline to medium": (crowd(INLINE), [Insert(rule(1))]),
    "medium to inline": (crowd(INLINE + 1), [Delete(key(1000))]),
    "within medium": (crowd(INLINE + 2), [Insert(rule(1000, 1009, service_id="new"))]),
    "medium to large": (crowd(MEDIUM), [Insert(rule(1))]),
    "large to medium": (crowd(MEDIUM + 1), [Delete(key(1000))]),
    "inline to large": (crowd(1), [Insert(each) for each in crowd(MEDIUM + 1, 20000)]),
    "large to nothing": (crowd(MEDIUM + 1), [Delete(each.key) for each in crowd(MEDIUM + 1)]),
    "an interface": ([rule(1)], [Insert(rule(1, interfaces=(INTERFACE,)))]),
    "an interface less": (
        [rule(1, interfaces=(INTERFACE, "lo"))],
        [Delete(key(1), (INTERFACE,))],
    ),
    "the last interface": ([rule(1, interfaces=(INTERFACE,))], [Delete(key(1), (INTERFACE,))]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_before_any_write_leaves_the_old_or_the_new(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, edits = OPERATIONS[name]
    fill(before)
    old = listing()
    gateway.firewall.apply(edits)
    new = listing()
    for number in range(100):
        gateway.firewall.flush("ingress")
        fill(before)
        child = os.fork()
        if child == 0:
            try:
                fail_at(monkeypatch, number, lambda: os._exit(9))
                gateway.firewall.apply(edits)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        assert listing() in (old, new), f"killed before write {number}"
        check_datapath()
        # The next writer finds what is left and makes it good.
        gateway.firewall.insert(rule(5, destination=OTHER))
        gateway.firewall.delete(key(5, OTHER))
        assert listing() in (old, new), f"repaired after a kill before write {number}"
        Contents().check()
        check_datapath()
        if code == 0:
            assert number > 2, "nothing was written"
            return
    raise AssertionError("it never ends")


def test_a_kill_in_a_flush_leaves_the_next_writer_nothing_but_to_repair(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for direction in (None, "ingress"):
        for number in range(100):
            fill([*crowd(INLINE + 1), rule(1, destination=OTHER)])
            old = listing()
            child = os.fork()
            if child == 0:
                try:
                    fail_at(monkeypatch, number, lambda: os._exit(9))
                    gateway.firewall.flush(direction)
                    os._exit(0)
                finally:
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, 9)
            assert listing() in (old, [])
            check_datapath()
            gateway.firewall.insert(rule(5, destination=OTHER))
            gateway.firewall.delete(key(5, OTHER))
            Contents().check()
            if code == 0:
                break
        else:
            raise AssertionError("it never ends")


# Failing


def can_fail(written: bpf_maps.Map) -> bool:
    """An array's elements are there from the start: to write one takes no memory."""
    return written.type in (1, ARRAY_OF_MAPS)


@pytest.mark.parametrize("number_of_error", [errno.E2BIG, errno.ENOMEM])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_write_that_fails_is_told_of_and_all_is_as_before(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, name: str, number_of_error: int
) -> None:
    before, edits = OPERATIONS[name]

    def fails() -> None:
        raise OSError(number_of_error, os.strerror(number_of_error))

    fill(before)
    old = listing()
    gateway.firewall.apply(edits)
    new = listing()
    for number in range(100):
        gateway.firewall.flush("ingress")
        fill(before)
        with monkeypatch.context() as patched:
            left = fail_at(patched, number, fails, can_fail)
            try:
                gateway.firewall.apply(edits)
                is_raised = False
            except (MapFull, KernelError):
                is_raised = True
        if left[0] >= 0:
            assert not is_raised
            return
        # A full map of prefixes is exchanged for a larger one, and the write done again.
        assert listing() == (old if is_raised else new)
        assert is_raised or number_of_error == errno.E2BIG
        Contents().check()
        check_datapath()
    raise AssertionError("it never ends")


def test_an_edit_that_is_interrupted_from_the_keyboard_is_taken_back(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(crowd(INLINE))
    old = listing()

    def interrupt() -> None:
        raise KeyboardInterrupt

    # Write 0 is the state, which begins the edit.
    for number in range(1, 5):
        with monkeypatch.context() as patched:
            fail_at(patched, number, interrupt)
            with pytest.raises(KeyboardInterrupt):
                gateway.firewall.insert(rule(1))
        assert listing() == old
        Contents().check()


def test_a_batch_with_an_edit_that_cannot_be_done_does_nothing(gateway: Gateway) -> None:
    fill(crowd(3))
    old = listing()
    contents = Contents()
    edits = [Insert(rule(1)), Delete(key(1000)), Insert(rule(2, destination=OTHER))]
    for impossible in (
        Delete(key(4242)),
        Delete(key(1, Prefix.parse("203.0.113.1"))),
        Delete(key(1010), (INTERFACE,)),
        Insert(rule(9, interfaces=("nosuchif",))),
    ):
        with pytest.raises(NotFound):
            gateway.firewall.apply([*edits, impossible])
        assert listing() == old
        assert Contents().prefixes == contents.prefixes
        Contents().check()


# Many at once


def some_edits(rng: random.Random, present: set[tuple[Prefix, int]]) -> list[Insert | Delete]:
    """Edits of few keys that can all be done, after one another, where these are present.

    Most prefixes come with one rule, which the next edits replace, follow or delete.
    """
    present = set(present)
    edits: list[Insert | Delete] = []
    for _ in range(rng.choice((3, 10, 40))):
        destination = rng.choice([HERE, OTHER, *(Prefix.parse(f"192.0.2.{n}") for n in range(9))])
        low = 10 * rng.randrange(6)
        if (destination, low) in present and rng.random() < 0.4:
            present.remove((destination, low))
            edits.append(Delete(key(low, destination)))
        else:
            present.add((destination, low))
            service = rng.choice(("", "one", "two"))
            high = low + rng.randrange(40)
            edits.append(Insert(rule(low, high, destination, service_id=service)))
    return edits


def told(results: Sequence[Inserted | Deleted]) -> list[tuple[str, bool]]:
    return [
        (str(each.rule), each.is_replaced)
        if isinstance(each, Inserted)
        else (str(each.key), each.is_gone)
        for each in results
    ]


@pytest.mark.parametrize("seed", range(12))
def test_a_batch_does_what_its_edits_do_one_by_one(gateway: Gateway, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(4):
        before = [Insert(each) for each in gateway.firewall.rules()]
        edits = some_edits(rng, {(i.rule.key.destination, i.rule.key.low_port) for i in before})
        single = [gateway.firewall.apply([edit])[0] for edit in edits]
        expected = listing()
        gateway.firewall.flush()
        gateway.firewall.apply(before)
        results = gateway.firewall.apply(edits)
        assert listing() == expected
        assert told(results) == told(single)
        Contents().check()
        check_datapath()


def test_a_batch_tells_of_just_those_rules_that_can_never_match(gateway: Gateway) -> None:
    """They are told by the whole of the batch: a later rule may take an earlier one's cover."""
    gateway.firewall.insert(rule(1, 100, OTHER))
    edits: list[Insert | Delete] = [Insert(rule(5, 9, OTHER))]
    hidden = [True]
    for number in range(40):
        destination = Prefix.parse(f"203.0.113.{number}")
        edits += [Insert(rule(1, 100, destination)), Insert(rule(5, 9, destination))]
        hidden += [False, number % 2 == 0]
        if number % 2:
            edits.append(Insert(rule(1, 5, destination)))
            hidden.append(False)
    results = [each for each in gateway.firewall.apply(edits) if isinstance(each, Inserted)]
    assert [each.is_shadowed for each in results] == hidden
    assert [bool(each.warnings()) for each in results] == hidden


@pytest.mark.parametrize("number_of_error", [errno.E2BIG, errno.ENOMEM])
def test_a_batch_of_many_prefixes_that_fails_is_taken_back_wholly(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, number_of_error: int
) -> None:
    """New prefixes of one rule and of more, changed ones, and one that goes."""
    before = [rule(1, service_id="a"), rule(1, 5, OTHER), rule(1, 1, Prefix.parse("10.0.0.0/8"))]
    news = [Prefix.parse(f"203.0.113.{number}") for number in range(30)]
    edits: list[Insert | Delete] = [Insert(rule(port, 9, new)) for new in news for port in (1, 2)]
    edits += [Insert(rule(1, 1, Prefix.parse(f"198.51.{n}.0/24"))) for n in range(30)]
    edits += [Insert(rule(1, 9, service_id="b")), Insert(rule(7, 9, OTHER)), Delete(key(1))]
    edits += [Delete(key(1, Prefix.parse("10.0.0.0/8")))]

    def fails() -> None:
        raise OSError(number_of_error, os.strerror(number_of_error))

    fill(before)
    old = listing()
    gateway.firewall.apply(edits)
    new = listing()
    for number in range(100):
        gateway.firewall.flush("ingress")
        fill(before)
        with monkeypatch.context() as patched:
            left = fail_at(patched, number, fails, can_fail)
            try:
                gateway.firewall.apply(edits)
                is_raised = False
            except (MapFull, KernelError):
                is_raised = True
        if left[0] >= 0:
            assert not is_raised
            return
        assert listing() == (old if is_raised else new)
        assert is_raised or number_of_error == errno.E2BIG
        Contents().check()
        check_datapath()
    raise AssertionError("it never ends")


def test_a_kernel_without_batches_for_a_map_is_given_its_elements_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Maps of maps have them since 5.19; before, the kernel answers ENOTSUPP."""
    refused_commands = []
    original = bpf_maps.bpf

    def without(command: int, attribute: Array[c_char]) -> int:
        if command in (26, 27):  # BPF_MAP_UPDATE_BATCH, BPF_MAP_DELETE_BATCH
            refused_commands.append(command)
            raise OSError(524, "ENOTSUPP")
        return original(command, attribute)

    monkeypatch.setattr(bpf_maps, "bpf", without)
    some = bpf_maps.create_map((1, 4, 4, 16, 0), "some")
    numbers = [u32(n) for n in range(16)]
    some.update_many(numbers, numbers[::-1])
    assert dict(some.items()) == dict(zip(numbers, numbers[::-1], strict=True))
    some.delete_many(numbers[1:])
    assert list(some.items()) == [(numbers[0], numbers[15])]
    assert refused_commands == [26, 27]


def test_many_rules_do_not_need_as_many_descriptors(gateway: Gateway) -> None:
    """A process may have 1,024; each 4,096 rules have two maps."""
    count = 40 * layout.SEGMENT_SLOTS
    used = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Segments of one kind are open together while they are made; and all the other maps.
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40 + len(layout.MAPS) + 8, hard))
    try:
        fill([rule(1, 1, Prefix(4, n.to_bytes(4, "big"), 32)) for n in range(count)])
        assert len(gateway.firewall.rules()) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# As at the start


def test_inserted_and_deleted_leaves_the_maps_as_they_were(gateway: Gateway) -> None:
    """Case 10 of the router: two protocols, two ranges, two sources; and once more."""
    service = [
        Rule(
            RuleKey(HERE, protocol, low, source=Prefix.parse(source)),
            low + 10,
            tproxy_port=4000,
            service_id="5XzC8mf1RrFO2vmfHGG5GL",
        )
        for protocol in ("tcp", "udp")
        for low in (80, 440)
        for source in ("10.1.1.1/32", "0.0.0.0/0")
    ]
    start = Contents()
    after = []
    for _ in range(3):
        for each in service:
            gateway.firewall.insert(each)
        assert len(gateway.firewall.rules()) == 8
        for each in service:
            gateway.firewall.delete(each.key)
        after.append(Contents())
        after[-1].check()
    for contents in after:
        for what in ("prefixes", "ports", "length_counts", "lengths", "names", "sets", "routes"):
            assert getattr(contents, what) == getattr(start, what), what
        # Eight slots, used again each time; no service id stays behind.
        assert contents.state.next_slot <= max(start.state.next_slot, 8)
        assert not any(record[:64].strip(b"\0") for record in contents.records)


def test_slots_are_used_again_and_counters_start_anew(gateway: Gateway) -> None:
    fill([rule(1), rule(2), rule(3)])
    packet = bytes(gateway.framed(frames.datagram("192.0.2.1", 2)))
    with gateway.counts(rule_pass=2):
        gateway.send(packet, packet)
    assert [each.packets for each in gateway.firewall.rules()] == [0, 2, 0]
    used = Contents().state.next_slot
    gateway.firewall.delete(key(2))
    gateway.firewall.insert(rule(4))
    assert [each.packets for each in gateway.firewall.rules()] == [0, 0, 0]
    contents = Contents()
    contents.check()
    assert contents.state.next_slot == used


def test_counters_go_on_when_a_rule_is_changed(gateway: Gateway) -> None:
    fill([rule(2, service_id="old")])
    packet = bytes(gateway.framed(frames.datagram("192.0.2.1", 2)))
    with gateway.counts(rule_pass=1):
        gateway.send(packet)
    gateway.firewall.insert(rule(2, 9, service_id="new"))
    with gateway.counts(rule_pass=1):
        gateway.send(packet)
    (changed,) = gateway.firewall.rules()
    assert (changed.packets, changed.service_id, changed.high_port) == (2, "new", 9)


# Large and full


def test_a_hundred_thousand_rules_come_and_go(gateway: Gateway) -> None:
    """More than the first map of prefixes holds: a larger one takes its place, with all of them."""
    count = 100_000
    fill([rule(7, destination=HERE, service_id="first")])
    address = int.from_bytes(Prefix.parse("10.128.0.0").address, "big")
    many = [
        rule(i % 60000, destination=Prefix(4, (address + i).to_bytes(4, "big"), 32))
        for i in range(count)
    ]
    fill(many)
    rules = gateway.firewall.rules()
    assert len(rules) == count + 1
    assert rules[-1].service_id == "first"
    assert {str(each.key) for each in rules[:-1]} == {str(each.key) for each in many}
    Contents().check()
    for i in (0, 16383, 16384, 65535, count - 1):
        packet = datagram(i % 60000, many[i].key.destination)
        assert gateway.firewall.explain(packet, INTERFACE).reason == "rule_pass"
    assert gateway.firewall.flush() == count + 1
    contents = Contents()
    contents.check()
    assert contents.prefixes == {}
    packet = datagram(0, many[0].key.destination)
    assert gateway.firewall.explain(packet, INTERFACE).reason == "no_rule"


def refused(action: Callable[[], object], match: str) -> None:
    """A limit is reached: MapFull of one line, and nothing is changed.

    Names and sets that no rule mentions may have come: they go when room is needed.
    """
    old = listing()
    before = Contents()
    with pytest.raises(MapFull, match=match) as full:
        action()
    assert "\n" not in full.value.message
    assert listing() == old
    after = Contents()
    after.check()
    assert (after.prefixes, after.ports) == (before.prefixes, before.ports)


def test_a_prefix_takes_2040_ranges_and_not_one_more(gateway: Gateway) -> None:
    """Overlapping ones at that, which make the most intervals: 2N - 1."""
    assert layout.LARGE_RULES == 2040
    middle = 30000
    fill([rule(middle - i, middle + i) for i in range(2040)])
    contents = Contents()
    contents.check()
    (entries,) = [contents.rules_of(prefix_key) for prefix_key in contents.prefixes]
    for i in (0, 1, 1000, 2039):
        for port in (middle - i, middle + i):
            decision = gateway.firewall.explain(datagram(port), INTERFACE)
            assert decision.slot == entries[i].slot
    refused(lambda: gateway.firewall.insert(rule(1)), "2040")
    gateway.firewall.insert(rule(middle, service_id="changed"))
    gateway.firewall.delete(key(middle))
    gateway.firewall.insert(rule(1))


def test_every_pair_of_ipv4_lengths_may_be_in_use(gateway: Gateway) -> None:
    pairs = [(d, s) for d in range(33) for s in range(33)]
    assert len(pairs) == layout.MAX_LENGTHS == 1089
    fill(
        Rule(
            RuleKey(
                Prefix.parse("192.0.2.1", destination_length),
                "udp",
                destination_length * 33 + source_length,
                source=Prefix.parse(frames.CLIENT[4], source_length),
            )
        )
        for destination_length, source_length in pairs
    )
    contents = Contents()
    contents.check()
    assert len(contents.lengths[1]) == 1089
    # Each has a port of its own: the packet falls through all that are longer.
    for port in (0, 1, 33, 500, 1088):
        assert gateway.firewall.explain(datagram(port), INTERFACE).reason == "rule_pass"
    assert gateway.firewall.explain(datagram(1089), INTERFACE).reason == "no_rule"


def test_ipv6_has_more_pairs_than_a_table_takes(gateway: Gateway) -> None:
    pairs = list(islice(((d, s) for d in range(129) for s in range(129)), layout.MAX_LENGTHS + 1))
    fd = bytes.fromhex("fd") + bytes([255]) * 15
    edits = [
        Insert(Rule(RuleKey(Prefix(6, fd, d), "udp", 1, source=Prefix(6, fd, s)))) for d, s in pairs
    ]
    gateway.firewall.apply(edits[:-1])
    refused(lambda: gateway.firewall.apply(edits[-1:]), "1089")
    # Another table has pairs of its own, and one that is free again can be used.
    gateway.firewall.insert(rule(1))
    gateway.firewall.delete(edits[0].rule.key)
    gateway.firewall.apply(edits[-1:])
    Contents().check()


@pytest.fixture(scope="module")
def crowded(_private_bpffs: None) -> Iterator[tuple[Namespace, list[str]]]:
    """A namespace with more interfaces than names may be known; attached to lo."""
    made = Namespace()
    count = layout.MAX_INTERFACE_NAMES // 2 + 8
    lines = [f"link add x{i} type veth peer name y{i}" for i in range(count)]
    made.run("ip", "-batch", "-", input="\n".join(lines))
    with made.entered():
        Firewall().attach("lo")
    yield made, [f"{side}{i}" for i in range(count) for side in "xy"]
    with made.entered():
        Firewall().detach_all()
    made.close()


@pytest.fixture
def interfaces(crowded: tuple[Namespace, list[str]]) -> Iterator[list[str]]:
    """The test is there, with the interfaces' names; there is no rule."""
    namespace, names = crowded
    with namespace.entered():
        Firewall().flush()
        yield names


def test_1024_interface_names_may_be_known(
    crowded: tuple[Namespace, list[str]], interfaces: list[str]
) -> None:
    firewall = Firewall()
    namespace, _ = crowded
    free = layout.MAX_INTERFACE_NAMES - 1  # lo is attached
    fill(
        rule(port, interfaces=interfaces[port : min(port + 64, free - 1)])
        for port in range(0, free - 1, 64)
    )
    assert len(Contents().names) == layout.MAX_INTERFACE_NAMES - 1
    one, _, other = interfaces[free - 1 :][:3]
    refused(lambda: firewall.insert(rule(9000, interfaces=(one, other))), "1024")
    firewall.insert(rule(9000, interfaces=(one,)))
    refused(lambda: firewall.insert(rule(9001, interfaces=(other,))), other)
    refused(lambda: firewall.set([other], "icmp_echo", True), other)
    # A name that no rule mentions makes room when its interface is gone.
    firewall.delete(key(9000))
    namespace.run("ip", "link", "del", one)
    firewall.refresh()
    firewall.insert(rule(9001, interfaces=(other,)))
    assert listing()[-1][5] == (other,)


def all_sets(names: list[str]) -> list[tuple[str, ...]]:
    """The sets of ten names are as many as there can be: 2^10 - 1."""
    sets = [some for size in range(1, 11) for some in combinations(sorted(names[:10]), size)]
    assert len(sets) == layout.MAX_INTERFACE_SETS - 1
    return sets


def test_1023_sets_of_interfaces_may_be_in_use(interfaces: list[str]) -> None:
    sets = all_sets(interfaces)
    fill(rule(port, interfaces=some) for port, some in enumerate(sets))
    assert [row[5] for row in listing()] == sets
    refused(lambda: Firewall().insert(rule(5000, interfaces=interfaces[10:11])), "1023")
    # A set that is in use already takes no room.
    Firewall().insert(rule(5000, interfaces=sets[0]))


def test_sets_that_no_rule_has_any_more_are_collected(interfaces: list[str]) -> None:
    sets = all_sets(interfaces)
    fill(rule(port, interfaces=some) for port, some in enumerate(sets))
    for port in (100, 200):
        Firewall().delete(key(port))
    # One of the two sets again, and in the same batch a new one, for which room is made.
    new = tuple(interfaces[10:11])
    Firewall().apply([Insert(rule(5000, interfaces=sets[100])), Insert(rule(5001, interfaces=new))])
    rows = {row[0]: row[5] for row in listing()}
    assert rows[str(key(5000))] == sets[100]
    assert rows[str(key(5001))] == new
    for port in (0, 99, 101, 1022):
        assert rows[str(key(port))] == sets[port]


def test_one_port_takes_as_many_candidates_as_there_is_room_for(interfaces: list[str]) -> None:
    """Rules for one port that differ in their interfaces; each has its own first port.

    From each such port on there is a candidate more, and each candidate is an interval.
    """
    firewall = Firewall()
    most = max(n for n in range(1, 257) if n * (n + 1) // 2 <= layout.LARGE_INTERVALS)
    assert most < layout.MAX_CANDIDATES
    fill(rule(i, 300, interfaces=(name,)) for i, name in enumerate(interfaces[:most]))
    last, first_without = interfaces[most - 1], interfaces[most]
    refused(lambda: firewall.insert(rule(299, 300, interfaces=(first_without,))), "interfaces")
    # Where it names none that an earlier one does not name, it is no candidate.
    assert firewall.insert(rule(299, 300, interfaces=interfaces[:9])).is_shadowed

    for name in (last, first_without):
        firewall.set([name], "per_interface_rules", True)
    contents = Contents()
    (entries,) = [contents.rules_of(prefix_key) for prefix_key in contents.prefixes]
    assert firewall.explain(datagram(300), last).slot == entries[most - 1].slot
    assert firewall.explain(datagram(300), first_without).reason == "no_rule"
    for name in (last, first_without):
        firewall.set([name], "per_interface_rules", False)


# By network namespace


def test_each_network_namespace_has_its_own(gateway: Gateway) -> None:
    fill([rule(1)])
    gateway.firewall.set([INTERFACE], "icmp_echo", True)
    other = Namespace()
    with other.entered():
        assert not Firewall().is_installed()
        Firewall().attach("lo")
        assert Firewall().rules() == []
        assert not Firewall().status().interfaces[0].settings["icmp_echo"]
        fill([rule(2), rule(3)])
        assert Firewall().flush() == 2
        fill([rule(4)])
    assert [each.key.low_port for each in Firewall().rules()] == [1]
    assert gateway.firewall.status().interfaces[0].settings["icmp_echo"]
    with other.entered():
        Firewall().detach_all()
        assert not Firewall().is_installed()
    other.close()
    assert [each.key.low_port for each in Firewall().rules()] == [1]
    check_datapath()


def test_a_rule_that_comes_and_goes_in_one_batch_may_be_the_first_of_all() -> None:
    """Its slot is on the free list, in a segment that was made for nothing else."""
    alone = Namespace()
    with alone.entered():
        Firewall().attach("lo")
        try:
            Firewall().apply([Insert(rule(1)), Delete(key(1))])
            Contents().check()
            fill([rule(2), rule(3)])
            Contents().check()
            assert Contents().state.next_slot == 2
            assert [each.packets for each in Firewall().rules()] == [0, 0]
        finally:
            Firewall().detach_all()
    alone.close()


def test_a_state_left_in_progress_is_made_good_by_every_writer_of_rules(gateway: Gateway) -> None:
    fill(crowd(3))
    verbs: list[Callable[[], object]] = [
        partial(gateway.firewall.insert, rule(1)),
        partial(gateway.firewall.delete, key(1)),
        partial(gateway.firewall.flush, "egress"),
        gateway.firewall.flush,
    ]
    for verb in verbs:
        with Tables(is_writer=True) as tables:
            state = tables.state()
            state.in_progress, state.free_slot, state.next_slot = 1, 12345, 0
            tables.map("state").update(ZERO, state.encode())
            tables.map("length_counts").update(b"\0\x60\x60\0", u32(99))
        verb()
        Contents().check()


def test_a_verb_that_fails_raises_a_zfw_error_of_one_line(gateway: Gateway) -> None:
    for action in (
        lambda: gateway.firewall.delete(key(1)),
        lambda: gateway.firewall.insert(rule(1, interfaces=("nosuchif",))),
        lambda: gateway.firewall.set([INTERFACE], "nosuchsetting", True),
        lambda: gateway.firewall.explain(bytes(14), "nosuchif"),
    ):
        with pytest.raises(ZfwError) as raised:
            action()
        assert "\n" not in raised.value.message
