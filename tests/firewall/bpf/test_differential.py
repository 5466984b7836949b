# SPDX-License-Identifier: GPL-2.0-only
"""The BPF programs against the reference model: random rules, flows and frames, one answer.

For a longer run: ZFW_DIFFERENTIAL_COMPARISONS=1000000, and ZFW_DIFFERENTIAL_SEED=N
to repeat one that failed.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import packets
from tests.firewall.support.flow_tables import clear_flows, programs, run, write_flow
from tests.firewall.support.listeners import Listener
from tests.firewall.support.packets import (
    Scene,
    is_testable,
    random_flow,
    random_frame,
    random_rules,
)
from tests.firewall.support.reference import (
    LOOPBACK,
    Decision,
    Flow,
    Fragments,
    Interface,
    RuleSet,
    Sockets,
    carry_out,
    decide,
    decide_egress,
    parse_frame,
    remember,
    rule,
    segment_of,
)
from tests.firewall.support.tracked import TrackedFlow, TrackedFlows
from tests.support.seeds import new_seeds
from tests.support.waiting import wait_until
from zfw_py import OWN4, OWN6, Delete, Firewall, Insert, Prefix, Rule, RuleKey
from zfw_py.firewall import tried
from zfw_py.firewall.codec import decode_prefix_key
from zfw_py.firewall.explain import Programs
from zfw_py.firewall.interfaces import Interfaces
from zfw_py.firewall.maps import Maps
from zfw_py.firewall.model import OwnAddresses
from zfw_py.firewall.question import Icmp, Question, frame
from zfw_py.firewall.rules.find import port_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.firewall.support import reference
    from tests.support.netns import Network

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SEEDS = range(10)
FRAMES_PER_SEED = 2400
# Of those that leave, in the same worlds.
LEAVING_PER_SEED = 1200
# Of packets that options describe, and their TCP flags.
QUESTIONS_PER_SEED = 2000
FLAGS = (2, 2, 2, 16, 18, 4, 17)
STAGES = 3
SHOWN_MISMATCHES = 3

# How many rules the prefixes of a world have: inline, medium and large port indexes.
SIZES = (
    (1, 1, 2, 3),
    (1, 2, 3, 4) * 6,
    (4, 5, 20, 60, 121, 122),
    (4, 123, 300),
    (1, 2, 3, 4, 5, 40, 122, 123, 250),
    # More pairs of lengths than the program looks up at a time.
    (1, 2, 4, 5) * 30,
)
TPROXY_PORTS = (40001, 40002, 40003, 40004, 40005)
LISTENERS = {
    *((family, protocol, 40001) for family in (4, 6) for protocol in ("tcp", "udp")),
    (4, "tcp", 40002),
    (6, "udp", 40002),
    (6, "tcp", 40003),
    (4, "udp", 40004),
}
# Own addresses, see _add_addresses().
OWN = {4: "100.72.0.1", 6: "fd00:1::1"}
EXTRA_INTERFACE, UNKNOWN_INTERFACE = "other0", "other1"
BROADCAST = b"\xff" * 6  # an Ethernet address
FLOWS = 60
UDP_IDLE = 300
# Seconds since the last packet of a flow: none gets near a limit while a stage is compared.
# The last one is before the machine's boot: the entry is then as old as the boot.
AGES = (0, 0, 0, 60, 200, 400, 4000, 10_000_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_program_and_model_agree(network: Network, seed: int) -> None:
    _compare(network, seed, FRAMES_PER_SEED)


@pytest.mark.timeout(0)
def test_program_and_model_agree_on_a_new_seed(network: Network) -> None:
    for seed, comparisons in new_seeds(FRAMES_PER_SEED):
        _compare(network, seed, comparisons)


def test_a_rule_behind_a_thousand_pairs_of_lengths_is_found(network: Network) -> None:
    last = rule("0.0.0.0/0", "tcp", 443)
    behind = [
        rule(f"100.72.0.4/{to}", "tcp", port, source=f"10.0.0.1/{from_}")
        for to in range(1, 33)
        for from_ in range(1, 33)
        # Five: in a port index, which costs the program a step of its own.
        for port in range(5)
    ]
    syn = packets.tcp(50000, 443)
    packet = packets.ipv4(ip_address("10.0.0.1"), ip_address("100.72.0.4"), 6, syn)
    firewall = Firewall()
    firewall.attach(network.interface, "ingress")
    firewall.apply([Insert(_rule(each)) for each in (last, *behind)])
    answer = firewall.explain(packets.ethernet(packet, 0x0800), network.interface)
    assert (answer.verdict, answer.reason) == ("pass", "rule_pass")


def _compare(network: Network, seed: int, frames: int) -> None:
    """One random firewall, changed twice; each time a share of the frames is compared."""
    rng = Random(seed)
    with _world(network, rng) as world:
        for stage in range(STAGES):
            if stage == 0:
                world.insert(_new_rules(rng))
            else:
                world.edit(rng)
            world.check_rules()
            world.fill_flows(rng)
            directions = ["ingress"] * (frames // STAGES)
            directions += ["egress"] * (frames * LEAVING_PER_SEED // FRAMES_PER_SEED // STAGES)
            rng.shuffle(directions)
            mismatches = [
                found
                for direction in directions
                if (found := world.compare_one(rng, direction)) is not None
            ]
            if mismatches:
                rules = "\n".join(f"  {each}" for each in world.model)
                shown = "\n\n".join(mismatches[:SHOWN_MISMATCHES])
                pytest.fail(
                    f"ZFW_DIFFERENTIAL_SEED={seed}, stage {stage}: {len(mismatches)} of"
                    f" {len(directions)} differ\nrules in order of entry:\n{rules}\n{shown}",
                    pytrace=False,
                )


def _new_rules(rng: Random) -> list[reference.Rule]:
    return random_rules(
        rng,
        rng.choice(SIZES),
        tproxy_ports=TPROXY_PORTS,
        interfaces=("lo", "gw0", EXTRA_INTERFACE, UNKNOWN_INTERFACE),
        egress=rng.choice((0.05, 0.4, 0.4)),
        own=OWN,
    )


@dataclass
class _World:
    """A firewall, and the model of it."""

    firewall: Firewall
    interfaces: list[Interface]
    sockets: Sockets
    model: RuleSet = field(default_factory=RuleSet)
    fragments: Fragments = field(default_factory=dict)
    flows: TrackedFlows = field(default_factory=partial(TrackedFlows, UDP_IDLE))
    first_fragments: list[reference.Packet] = field(default_factory=list)
    # What names the rule of a slot.
    keys: dict[int, tuple[object, ...]] = field(default_factory=dict)
    # A rule names it: then the program has a row for it.
    is_unknown_named: bool = False
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)

    def insert(self, rules: list[reference.Rule]) -> None:
        """Add rules to both."""
        self.firewall.apply([Insert(_rule(each)) for each in rules])
        for each in rules:
            self.model.insert(each)
            self.is_unknown_named |= UNKNOWN_INTERFACE in each.interfaces

    def edit(self, rng: Random) -> None:
        """Delete some rules, change some, add some, in one batch; then turn settings."""
        edits: list[Insert | Delete] = []
        for old in rng.sample(list(self.model), len(self.model) // 3):
            if rng.random() < 0.5:
                gone = tuple(sorted(old.interfaces))[: rng.randrange(2)]
                edits.append(Delete(_rule(old).key, gone))
                assert self.model.delete(old.key, gone)
                continue
            # The same key, whatever else.
            new = rng.choice(list(self.model))
            names = rng.choice((frozenset(), old.interfaces, new.interfaces))
            changed = replace(
                old,
                high=min(old.low + rng.choice((0, 1, 7, 300)), 65535),
                action=new.action if new.direction == old.direction else old.action,
                tproxy_port=new.tproxy_port if new.direction == old.direction else old.tproxy_port,
                interfaces=names,
                is_limited=bool(names) and rng.random() < 0.5,
            )
            edits.append(Insert(_rule(changed)))
            self.model.insert(changed)
        for new in random_rules(rng, (2, 3), tproxy_ports=TPROXY_PORTS, interfaces=("gw0",)):
            edits.append(Insert(_rule(new)))
            self.model.insert(new)
        self.firewall.apply(edits)
        self.interfaces = [_set_at_random(rng, self.firewall, each) for each in self.interfaces]

    def check_rules(self) -> None:
        """The kernel has the model's rules, those of a prefix in the same order; note the slots."""
        self.keys.clear()
        found: dict[tuple[object, ...], list[int]] = {}
        with Maps(is_writer=False) as maps:
            for prefix, _, rules in port_rules(maps):
                direction, protocol, destination, source = decode_prefix_key(prefix)
                for low, _, _, _, slot, *_ in rules:
                    assert slot not in self.keys
                    networks = _network(destination), _network(source)
                    self.keys[slot] = (direction, protocol, *networks, low)
                    found.setdefault(self.keys[slot][:-1], []).append(low)
        expected: dict[tuple[object, ...], list[int]] = {}
        for each in self.model:
            expected.setdefault(each.key[:-1], []).append(each.low)
        assert found == expected

        listed = {
            (
                *(*_listed_key(rule), rule.high_port, rule.action, rule.tproxy_port),
                *(rule.interfaces, rule.is_limited),
            )
            for rule in self.firewall.rules()
        }
        assert listed == {
            (
                *(*each.key, each.high, each.action, each.tproxy_port),
                *(tuple(sorted(each.interfaces)), each.is_limited),
            )
            for each in self.model
        }

    def fill_flows(self, rng: Random) -> None:
        """Other flows in the tables, of both; some are forgotten already."""
        clear_flows()
        self.flows.flows.clear()
        self.flows.questions.clear()
        # Of the fragments, what they say of a pair of hosts.
        self.fragments = {key: each for key, each in self.fragments.items() if key[0] != "pair"}
        self.flows.now = time.monotonic()
        scene = Scene(self.interfaces[0], list(self.model))
        with Maps(is_writer=True) as maps:
            for _ in range(FLOWS):
                flow = random_flow(rng, scene, self.flows.now, AGES)
                # The model would have it twice, the program once in each of its tables.
                if flow.key in self.flows.flows or flow.initiator == flow.responder:
                    continue
                flow.seen = max(flow.seen, 0)
                self.flows.put(flow)
                write_flow(maps, flow)

    def compare_one(self, rng: Random, direction: str) -> str | None:
        """Ask both about a frame; what is to be said if they differ."""
        # All leaves by loopback, and without settings there is no program on an interface.
        shares = (1, 1, 1, 1) if direction == "ingress" else (10, 10, 1, 0)
        interface = rng.choices(self.interfaces, shares)[0]
        came_by = rng.choice((None, EXTRA_INTERFACE)) if direction == "egress" else None
        tracked = list(self.flows.flows.values())
        rules = list(self.model)
        if rng.random() < 0.7:
            rules = [each for each in rules if each.direction == direction]
        scene = Scene(interface, rules, self.sockets, self.first_fragments, tracked)
        frame = random_frame(rng, scene)
        while not is_testable(frame):
            frame = random_frame(rng, scene)
        self.flows.now = time.monotonic()
        wanted = self._decide(frame, interface, direction, came_by)
        got = self.firewall.explain(frame, interface.name, direction, came_by)
        got_key = None if got.slot is None else self.keys[got.slot]
        wanted_key = wanted.rule.key if wanted.rule else None
        if (got.verdict, got.reason, got_key, got.track) == (
            *(wanted.verdict, wanted.reason, wanted_key),
            wanted.track,
        ):
            self.reasons[direction, wanted.reason] += 1
            if rng.random() < 0.2:
                self._note_first_fragment(frame, interface, wanted, direction, came_by)
            return None
        return (
            f"{direction} by {came_by} {interface}\nframe   {frame.hex()}\n"
            f"model   {wanted}\nprogram {got.verdict} {got.reason} {got_key} {got.track}\n"
            f"flow    {self._flow_of(frame)}"
        )

    def compare_question(
        self, asked: Question, maps: Maps, names: Interfaces, running: Programs
    ) -> None:
        """Ask the model and the program; and the search, where a rule decides."""
        assert asked.interface is not None
        interface = next(each for each in self.interfaces if each.name == asked.interface)
        made = frame(asked)
        ifindex = socket.if_nametoindex(interface.name)
        self.flows.now = time.monotonic()
        wanted = self._decide(made, interface, asked.direction, None)
        got = running.decide(made, ifindex, asked.direction)
        got_key = None if got.slot is None else self.keys[got.slot]
        found = (got.verdict, got.reason, got_key)
        assert found == (
            *(wanted.verdict, wanted.reason),
            wanted.rule.key if wanted.rule else None,
        ), asked
        if got.slot is None and got.reason not in ("no_rule", "egress_no_rule"):
            return
        searched = tried.search(
            *(maps, names, tried.place_of(maps, ifindex)),
            tried.Sought(
                *(asked.direction, asked.family, asked.protocol, *asked.mapped),
                asked.destination_port,
            ),
        )
        assert (searched.rule.slot if searched.rule else None) == got.slot, asked

    def _decide(
        self, frame: bytes, interface: Interface, direction: str, came_by: str | None
    ) -> Decision:
        if direction == "egress":
            return decide_egress(
                *(frame, interface, self.model, self.fragments, self.flows),
                sockets=self.sockets,
                is_forwarded=came_by is not None,
            )
        return decide(
            *(frame, interface, self.model, self.sockets, self.fragments, self.flows),
            is_tracking=(interface.name != UNKNOWN_INTERFACE or self.is_unknown_named)
            and any(each.outbound_filter for each in self.interfaces),
        )

    def _flow_of(self, frame: bytes) -> TrackedFlow | None:
        try:
            segment = segment_of(parse_frame(frame))
        except Exception:  # noqa: BLE001 - not a packet, whatever it is
            return None
        return segment and self.flows.find(segment)

    def _note_first_fragment(
        self,
        frame: bytes,
        interface: Interface,
        wanted: Decision,
        direction: str,
        came_by: str | None,
    ) -> None:
        """Let both see a first fragment pass by, that later ones may follow it."""
        try:
            packet = parse_frame(frame)
        except Exception:  # noqa: BLE001 - not a packet, whatever it is
            return
        # What has no whole header is malformed, and on loopback nothing that leaves is read.
        if packet.fragment != "first" or (wanted.reason == "loopback" and direction == "egress"):
            return
        # The program that runs on the wire: explain has no effect. It drops an intercepted frame
        # that has the MAC address of another host.
        with programs() as running:
            run(running[direction], BROADCAST + frame[6:], interface.name, came_by)
        remember(frame, interface, wanted, self.fragments, direction)
        carry_out(frame, wanted, direction, self.flows, self.model, interface, self.fragments)
        self.first_fragments.append(packet)
        del self.first_fragments[:-20]


@contextmanager
def _world(network: Network, rng: Random) -> Iterator[_World]:
    """A firewall with some interfaces and sockets, without a rule."""
    _add_addresses(network)
    firewall = Firewall()
    firewall.attach(network.interface, "both")
    firewall.set_flow_limits(udp_idle=UDP_IDLE)
    try:
        with ExitStack() as stack:
            interfaces = [
                _set_at_random(rng, firewall, Interface(name, _addresses(network, name)))
                for name in (network.interface, EXTRA_INTERFACE)
            ]
            lo = Interface("lo", _addresses(network, "lo"), is_loopback=True)
            interfaces.append(_set_at_random(rng, firewall, lo))
            # Not attached, never set, without an address.
            interfaces.append(Interface(UNKNOWN_INTERFACE))
            names = ("lo", network.interface, EXTRA_INTERFACE, UNKNOWN_INTERFACE)
            own = frozenset().union(*(_addresses(network, name) for name in names))
            model = RuleSet(own_addresses=own)
            yield _World(firewall, interfaces, _open_sockets(stack), model)
    finally:
        firewall.detach_all()


def _add_addresses(network: Network) -> None:
    """A second pair of interfaces, and addresses that rules are about; done once."""
    gateway = network.gateway
    if gateway.run("ip", "link", "show", EXTRA_INTERFACE, check=False).returncode == 0:
        return
    gateway.add_veth(EXTRA_INTERFACE, UNKNOWN_INTERFACE)
    for address in ("100.72.0.1/32", "fd00:1::1/128"):
        gateway.run("ip", "address", "add", address, "dev", network.interface)
    for address in ("10.1.2.3/8", "2001:db8::1/64"):
        gateway.run("ip", "address", "add", address, "dev", EXTRA_INTERFACE)
    # The link-local address of an interface comes when its carrier does.
    assert wait_until(
        lambda: any(one.is_link_local for one in _addresses(network, network.interface))
    )
    # It follows from a random MAC; a seed must give the same frames each time.
    gateway.run(*("ip", "-6", "address", "flush", "dev", network.interface, "scope", "link"))
    gateway.run(*("ip", "address", "add", "fe80::1234/64", "dev", network.interface, "nodad"))


def _addresses(network: Network, name: str) -> frozenset[reference.Address]:
    shown = network.gateway.run("ip", "-json", "address", "show", "dev", name).stdout
    return frozenset(
        ip_address(entry["local"]) for link in json.loads(shown) for entry in link["addr_info"]
    )


def _set_at_random(rng: Random, firewall: Firewall, interface: Interface) -> Interface:
    """Settings drawn anew, in both."""
    if interface.name == UNKNOWN_INTERFACE:
        return interface
    settings = {
        "icmp_echo": rng.random() < 0.5,
        "ssh": rng.random() < 0.7,
        "ipv6": rng.random() < 0.75,
        "per_interface_rules": rng.random() < 0.4,
        "pass_non_tuple": rng.random() < 0.25,
        "outbound_filter": rng.random() < 0.5,
        "vrrp": rng.random() < 0.3,
        "eapol": rng.random() < 0.3,
    }
    for setting, on in settings.items():
        firewall.set([interface.name], setting, on)
    return replace(interface, **settings)


def _open_sockets(stack: ExitStack) -> Sockets:
    """Listeners for some of the tproxy ports, and two connected sockets of each family."""
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    listeners = {}
    for family, protocol, port in sorted(LISTENERS):
        listeners[family, protocol, port] = Listener(family, kinds[protocol], port)
        stack.enter_context(listeners[family, protocol, port].socket)
    flows = set()
    for family, address in LOOPBACK.items():
        for protocol, kind, port in (("tcp", kinds["tcp"], 50001), ("udp", kinds["udp"], 50002)):
            client = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
            stack.enter_context(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # The kernel keeps no TIME_WAIT socket of a connection that is reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.bind((str(address), port))
            client.connect((str(address), 40001))
            flows.add(Flow(protocol, address, port, address, 40001))
            if protocol == "tcp":
                stack.enter_context(listeners[family, "tcp", 40001].accept())
                flows.add(Flow(protocol, address, 40001, address, port))
    return Sockets(set(LISTENERS), flows)


def _listed_key(rule: Rule) -> tuple[object, ...]:
    key = rule.key
    networks = _network(key.destination), _network(key.source)
    return (key.direction, key.protocol, *networks, key.low_port)


def _network(prefix: Prefix) -> object:
    """A prefix as the key of a rule of the model has it."""
    return str(prefix) if isinstance(prefix, OwnAddresses) else ip_network(str(prefix))


def _rule(each: reference.Rule) -> Rule:
    own = OWN4 if each.family == 4 else OWN6
    key = RuleKey(
        own if each.is_own else Prefix.parse(str(each.destination)),
        each.protocol,
        each.low,
        source=Prefix.parse(str(each.source)),
        direction=each.direction,
    )
    return Rule(
        key,
        each.high,
        tproxy_port=each.tproxy_port,
        deny=each.action == "deny",
        interfaces=tuple(sorted(each.interfaces)),
        limited=each.is_limited,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_explain_and_model_agree(network: Network, seed: int) -> None:
    """Of packets that options describe; and its own search finds the program's rule."""
    rng = Random(seed)
    with _world(network, rng) as world:
        world.insert(_new_rules(rng))
        world.check_rules()
        world.fill_flows(rng)
        with Maps(is_writer=False) as maps, Programs(maps) as running:
            names = Interfaces(maps)
            for _ in range(QUESTIONS_PER_SEED):
                asked = _question(rng, world)
                world.compare_question(asked, maps, names, running)


def _question(rng: Random, world: _World) -> Question:
    """A packet that matches a rule, or just does not."""
    direction = rng.choice(("ingress", "ingress", "egress"))
    # Without settings there is no program on an interface that could filter what leaves.
    names = 4 if direction == "ingress" else 3
    rules = [each for each in world.model if each.direction == direction] or list(world.model)
    each = rng.choice(rules)
    protocol = rng.choice((each.protocol, each.protocol, "tcp", "udp", "icmp"))
    source, destination = (
        rng.choice((network[0], network[-1], network[rng.randrange(network.num_addresses)]))
        for network in (each.source, each.destination)
    )
    port = min(max(rng.choice((each.low, each.high, each.low - 1, each.high + 1)), 0), 65535)
    icmp = None
    if protocol == "icmp":
        icmp = Icmp(rng.choice((0, 3, 8, 11, 13, 1, 2, 128, 129, 133, 135, 130)), 0)
    elif rng.random() < 0.05:
        icmp = Icmp(3 if each.family == 4 else 1, 1)
    return Question(
        *(each.family, protocol, source.packed, rng.choice((50000, 53, 67, 22))),
        *(destination.packed, port, rng.choice(world.interfaces[:names]).name, direction),
        tcp_flags=rng.choice(FLAGS),
        icmp=icmp,
    )
