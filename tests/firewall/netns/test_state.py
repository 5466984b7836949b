# SPDX-License-Identifier: GPL-2.0-only
"""The maps after edits: batches, slots that are used again, counters, and network namespaces."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.contents import (
    HERE,
    INTERFACE,
    OTHER,
    Contents,
    check_datapath,
    crowd,
    fill,
    key,
    listing,
    rule,
)
from tests.support.netns import Namespace
from zfw_py import Delete, Deleted, Firewall, Insert, Inserted, Prefix, Rule, RuleKey, ZfwError
from zfw_py.firewall.codec import u32
from zfw_py.firewall.maps import ZERO, Maps
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ctypes import Array, c_char

    from tests.firewall.support.frames import Gateway

pytestmark = pytest.mark.kernel


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


# By network namespace


def test_each_network_namespace_has_its_own(gateway: Gateway) -> None:
    fill([rule(1)])
    gateway.firewall.set([INTERFACE], "icmp_echo", True)
    other = Namespace()
    with other.entered():
        assert not Firewall().is_installed()
        Firewall().attach("lo", "ingress")
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
    with Namespace() as alone, alone.entered():
        Firewall().attach("lo", "ingress")
        try:
            Firewall().apply([Insert(rule(1)), Delete(key(1))])
            Contents().check()
            fill([rule(2), rule(3)])
            Contents().check()
            assert Contents().state.next_slot == 2
            assert [each.packets for each in Firewall().rules()] == [0, 0]
        finally:
            Firewall().detach_all()


def test_a_state_left_in_progress_is_made_good_by_every_writer_of_rules(gateway: Gateway) -> None:
    fill(crowd(3))
    verbs: list[Callable[[], object]] = [
        partial(gateway.firewall.insert, rule(1)),
        partial(gateway.firewall.delete, key(1)),
        partial(gateway.firewall.flush, "egress"),
        gateway.firewall.flush,
    ]
    for verb in verbs:
        with Maps(is_writer=True) as maps:
            state = maps.state()
            state.in_progress, state.free_slot, state.next_slot = 1, 12345, 0
            maps.map("state").update(ZERO, state.encode())
            maps.map("length_counts").update(b"\0\x60\x60\0", u32(99))
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
