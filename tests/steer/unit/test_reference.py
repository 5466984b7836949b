# SPDX-License-Identifier: GPL-2.0-only
"""The model that steer's look-up is compared with: its answers, one by one, against the issue."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from tests.steer.support.reference import Bound, Mapping, Packet, State, decide

TCP, UDP = 6, 17
HERE, THERE = IPv4Address("203.0.113.7"), IPv4Address("198.51.100.1")


def _mapping(number: int, network: str | None, ports: tuple[int, int] | None) -> Mapping:
    return Mapping(number, TCP, None if network is None else ip_network(network), ports, number)


def _packet(port: int = 80, protocol: int = TCP, local: object = HERE) -> Packet:
    remote = THERE if local is HERE else IPv6Address("2001:db8::1")
    return Packet(protocol, local, port, remote, 4242, ifindex=2)  # type: ignore[arg-type]


DAEMON = Bound(1, TCP, 4, IPv4Address("127.0.0.5"), 22)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        # A port before a range before any, whatever their prefixes.
        ((None, (80, 80)), ("203.0.113.7/32", (79, 81))),
        ((None, (79, 81)), ("203.0.113.7/32", None)),
        # Within that the longest prefix.
        (("203.0.113.0/24", (80, 80)), ("203.0.0.0/16", (80, 80))),
        (("203.0.113.0/24", (1, 1000)), (None, (79, 81))),
        (("203.0.113.0/24", None), ("0.0.0.0/0", None)),
        # Then the narrower range, then which begins first.
        ((None, (79, 81)), ("0.0.0.0/0", (78, 82))),
        ((None, (79, 81)), (None, (80, 82))),
    ],
)
def test_the_most_specific_mapping(
    more: tuple[str | None, tuple[int, int] | None],
    less: tuple[str | None, tuple[int, int] | None],
) -> None:
    for order in (1, -1):
        state = State([_mapping(1, *more), _mapping(2, *less)][::order])
        assert decide(_packet(), state).mapping == 1


def test_what_is_not_about_a_packet() -> None:
    state = State([_mapping(1, "203.0.113.0/24", (80, 90)), _mapping(2, "::/0", None)])
    assert decide(_packet(80), state).mapping == 1
    assert decide(_packet(91), state).outcome == "untouched"
    assert decide(_packet(80, UDP), state).outcome == "untouched"
    assert decide(_packet(80, local=IPv6Address("fd00::7")), state).mapping == 2


def test_a_listener_there_keeps_it_unless_overridden() -> None:
    exact = Bound(2, TCP, 6, IPv6Address(f"::ffff:{HERE}"), 80)
    state = State([_mapping(1, None, None)], [exact, DAEMON], {1: [DAEMON]})
    assert decide(_packet(80), state).outcome == "kept"
    assert decide(_packet(81), state).socket == 1
    assert decide(_packet(80, local=IPv6Address("fd00::7")), state).outcome == "refused"
    for elsewhere in (3, 0):
        other = Bound(2, TCP, 4, HERE if elsewhere else None, 80, ifindex=elsewhere)
        assert decide(_packet(80), State(state.mappings, [other], state.targets)).socket == 1
    override = Mapping(1, TCP, None, None, 1, is_override=True)
    assert decide(_packet(80), State([override], state.listening, state.targets)).socket == 1


def test_the_newest_socket_that_takes_it() -> None:
    v6 = Bound(3, TCP, 6, None, 22, is_v6only=True)
    at_device = Bound(4, TCP, 4, None, 22, ifindex=9)
    udp = Bound(5, UDP, 4, None, 22)
    bound_v6 = Bound(6, TCP, 6, IPv6Address("fd00::7"), 22)
    state = State([_mapping(1, None, None)], [], {1: [v6, at_device, udp, bound_v6, DAEMON]})
    assert decide(_packet(), state).socket == 1
    assert decide(_packet(local=IPv6Address("fd00::9")), state).socket == 3


def test_without_a_socket() -> None:
    for is_fallthrough, outcome in ((False, "refused"), (True, "fallen through")):
        mapping = Mapping(1, TCP, None, None, 1, is_fallthrough=is_fallthrough)
        assert decide(_packet(), State([mapping])).outcome == outcome
