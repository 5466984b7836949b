# SPDX-License-Identifier: GPL-2.0-only
"""The guard's judge of packets against the reference model: random policies and packets.

For a longer run: ZFW_DIFFERENTIAL_COMPARISONS=1000000, and ZFW_DIFFERENTIAL_SEED=N
to repeat one that failed.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.firewall.support.packets import ethernet, is_testable
from tests.firewall.support.reference import ETHERTYPE_IPV6
from tests.firewall.support.tracked import TCP
from tests.guard.support.packets import Leaving, random_packet
from tests.guard.support.reference import DENIALS, Decision, Rules, Socket, decide_packet
from tests.guard.support.rules import packed, policy_of, proxy_of, random_rules, write_resolved
from tests.support.seeds import new_seeds
from zfw_py.guard import layout
from zfw_py.guard.codec import DENIALS as CODEC_DENIALS
from zfw_py.guard.codec import Event, client_key
from zfw_py.guard.maps import STORE, Maps
from zfw_py.guard.programs import SYSTEM
from zfw_py.kernel import bpf_maps, bpf_run, cgroup
from zfw_py.kernel.libbpf import BpfObject, RingBuffer
from zfw_py.lifecycle.programs import make_root
from zfw_py.lifecycle.store import remove_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Network

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SEEDS = range(10)
PACKETS_PER_SEED = 2400
POLICIES_PER_SEED = 12
SHOWN_MISMATCHES = 3
# The models of the other reasons are of hooks.
REASONS = {
    *("proxy", "prefix", "name", "socket", "default", "not_allowed", "blocked"),
    *("dns_direct", "source_route", "martian", "malformed", "foreign_source", "expired"),
}

# struct __sk_buff
_CONTEXT_SIZE, _IFINDEX = 192, 40
_LOOPBACK = 1
_NO_ADDRESS = bytes(16)


class Told(NamedTuple):
    """What counts of an event."""

    verdict: str
    reason: str
    destination: bytes
    port: int
    protocol: int
    is_log_only: bool


class Answer(NamedTuple):
    """What came of the runs of one packet by one socket."""

    reasons: Counter[str]
    is_passed: bool
    told: list[Told]
    is_client_known: bool


def test_program_and_model_know_the_same_reasons() -> None:
    of_proxy = {"chain_blocked", "unsupported", "internal_error"}
    assert REASONS | of_proxy | {"dns", "no_proxy"} == set(layout.REASONS)
    assert set(CODEC_DENIALS) - of_proxy == DENIALS


@pytest.mark.parametrize("seed", SEEDS)
def test_program_and_model_agree(network: Network, seed: int) -> None:
    seen = _compare(network, seed, PACKETS_PER_SEED)
    assert set(seen) == REASONS


@pytest.mark.timeout(0)
def test_program_and_model_agree_on_a_new_seed(network: Network) -> None:
    for seed, comparisons in new_seeds(PACKETS_PER_SEED):
        _compare(network, seed, comparisons)


def _compare(network: Network, seed: int, count: int) -> Counter[str]:
    """Random policies, and a share of the packets for each; the reasons that were met."""
    rng = Random(seed)
    outside = socket.if_nametoindex(network.interface)
    seen: Counter[str] = Counter()
    for _ in range(POLICIES_PER_SEED):
        rules = random_rules(rng)
        mismatches = []
        logs_all = rng.choice((True, True, False))
        with _judge(rng, rules, logs_all=logs_all) as judge:
            for _ in range(max(count // POLICIES_PER_SEED, 1)):
                leaving = random_packet(rng, rules)
                while not is_testable(ethernet(leaving.packet, leaving.ethertype)):
                    leaving = random_packet(rng, rules)
                # Packets to loopback leave by loopback, those that are no martians.
                ifindex = rng.choice((_LOOPBACK, _LOOPBACK, outside))
                repeat = rng.choice((1, 1, 2, 3))
                wanted, decisions = _expected(leaving, rules, ifindex, repeat, logs_all=logs_all)
                got = judge.ask(leaving, ifindex, repeat, decisions[0])
                seen.update(wanted.reasons)
                if got != wanted:
                    mismatches.append(
                        f"ifindex {ifindex}, {repeat} times {leaving.ethertype:#06x}"
                        f" {leaving.packet.hex()}\nmodel   {wanted}\n        {decisions[0]}"
                        f"\nprogram {got}"
                    )
        if mismatches:
            shown = "\n\n".join(mismatches[:SHOWN_MISMATCHES])
            pytest.fail(
                f"ZFW_DIFFERENTIAL_SEED={seed}: {len(mismatches)} differ\n{rules}\n{shown}",
                pytrace=False,
            )
    return seen


def _expected(
    leaving: Leaving, rules: Rules, ifindex: int, repeat: int, *, logs_all: bool
) -> tuple[Answer, list[Decision]]:
    used = Socket("older")  # for it was never made
    decisions = [
        decide_packet(
            leaving.packet, leaving.ethertype, rules, used, is_by_loopback=ifindex == _LOOPBACK
        )
        for _ in range(repeat)
    ]
    told: list[Told] = []
    for one in decisions:
        # What is allowed is told of once, and of a connection when it is begun.
        is_told = one.reason in DENIALS or (
            logs_all and one.reason not in ("proxy", "socket") and one.protocol != TCP
        )
        if not is_told or (told and told[-1].reason == one.reason):
            continue
        told.append(
            Told(
                verdict="deny" if one.reason in DENIALS else "allow",
                reason=one.reason,
                destination=packed(one.to.address) if one.to else _NO_ADDRESS,
                port=(one.to.port or 0) if one.to else 0,
                # Of what is no packet only so much as could be read of it.
                protocol=one.protocol,
                is_log_only=rules.is_log_only,
            )
        )
    answer = Answer(
        reasons=Counter(one.reason for one in decisions),
        is_passed=rules.lets(decisions[-1].reason),
        told=told,
        is_client_known=decisions[0].reason == "proxy",
    )
    return answer, decisions


class _Judge:
    """The program, loaded with a policy and attached to nothing."""

    def __init__(self, program: int, maps: Maps, ring: RingBuffer, events: list[Event]) -> None:
        self._program = program
        self._maps = maps
        self._ring = ring
        self._events = events
        self._seen: Counter[str] = Counter()
        self._cgroup = cgroup.identifier(cgroup.of_process(os.getpid()))

    def ask(self, leaving: Leaving, ifindex: int, repeat: int, model: Decision) -> Answer:
        """Run it so many times with one socket."""
        context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=I", context, _IFINDEX, ifindex)
        frame = ethernet(leaving.packet, leaving.ethertype)
        result = bpf_run.run(self._program, frame, bytes(context), repeat=repeat).returned
        counts = self._maps.decisions()
        assert set(counts) == {"egress"}
        reasons = Counter(counts["egress"]) - self._seen
        self._seen = Counter(counts["egress"])
        self._ring.consume()
        told = [self._told(event) for event in self._events]
        self._events.clear()
        is_known = self._is_client_known(model, is_ipv6=leaving.ethertype == ETHERTYPE_IPV6)
        return Answer(reasons, bool(result), told, is_known)

    def _told(self, event: Event) -> Told:
        # A test's socket was made by nobody, in the cgroup of who tests.
        assert (event.hook, event.pid, event.command) == ("egress", 0, "")
        assert (event.netns_cookie, event.cgroup) == (0, self._cgroup)
        assert (event.redirected, event.redirected_port) == (_NO_ADDRESS, 0)
        return Told(
            event.verdict,
            event.reason,
            event.destination,
            event.port,
            0 if event.reason == "malformed" else event.protocol,
            event.is_log_only,
        )

    def _is_client_known(self, model: Decision, *, is_ipv6: bool) -> bool:
        client = self._maps.client(0, model.source_port, model.protocol, is_ipv6=is_ipv6)
        if client is None:
            return False
        assert client.cgroup == self._cgroup
        # Another packet may have its source port.
        key = client_key(0, model.source_port, model.protocol, is_ipv6=is_ipv6)
        assert self._maps.map("askers").delete(key)
        return True


@contextmanager
def _judge(rng: Random, rules: Rules, *, logs_all: bool) -> Iterator[_Judge]:
    policy = policy_of(rng, rules)
    make_root(STORE)
    directory = STORE.new_directory()
    events: list[Event] = []
    try:
        with BpfObject(SYSTEM.object) as loaded:
            loaded.size_map("prefixes", max(1, len(policy.flatten())))
            loaded.load()
            for name, fd in loaded.maps().items():
                bpf_maps.pin(fd, f"{directory}/{name}")
            maps = Maps(directory)
            maps.write_prefixes(policy.flatten())
            flags = layout.LOG_ONLY * policy.is_log_only
            flags |= layout.DEFAULT_ALLOW * policy.is_allowed_by_default
            flags |= layout.TELL_ALL * logs_all
            maps.write_config(flags)
            maps.write_proxy(0, proxy_of(rules))
            write_resolved(maps.map("learnt"), rules)

            def take(data: bytes) -> None:
                events.append(Event.decode(data))

            with RingBuffer(maps.map("events").fd, take) as ring:
                yield _Judge(loaded.programs()["egress"], maps, ring, events)
            assert maps.lost() == 0
    finally:
        remove_directory(directory)
