# SPDX-License-Identifier: GPL-2.0-only
"""What began goes on: connections outlive the rules that let them in."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support import frames
from tests.firewall.support.frames import (
    AFTERWARDS,
    CLIENT,
    GATEWAY,
    PROTOCOLS,
    SERVICE,
    SOCKET_FAMILY,
    SOCKET_KIND,
    SOME,
    Gateway,
    exchange,
    families,
    ip,
    is_silent,
    listening,
    transparent_socket,
)
from tests.support.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from zfw_py import Inserted

    Change = Callable[[Gateway, Inserted, int], object]

pytestmark = pytest.mark.kernel

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)

# What may become of the rule that let a flow in; each takes the port of another listener.
CHANGES: dict[str, Change] = {
    "upsert to another port": lambda gateway, old, port: gateway.insert(
        str(old.rule.key.destination), old.rule.key.protocol, old.rule.key.low_port, to=port
    ),
    "upsert to deny": lambda gateway, old, port: gateway.insert(
        str(old.rule.key.destination), old.rule.key.protocol, old.rule.key.low_port, deny=True
    ),
    "delete": lambda gateway, old, port: gateway.firewall.delete(old.rule.key),
    "flush": lambda gateway, old, port: gateway.firewall.flush(),
    "flush of the direction": lambda gateway, old, port: gateway.firewall.flush("ingress"),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))


@families
@changes
def test_a_connection_outlives_its_rule(gateway: Gateway, change: Change, family: int) -> None:
    address = SERVICE[family]
    with listening("tcp", family) as listener, listening("tcp", family) as other:
        rule = gateway.insert(address, "tcp", 22, to=listener.port)
        with gateway.connects(listener, address, 22) as (client, connection):
            change(gateway, rule, other.port)
            with gateway.counts(established=SOME):
                exchange(client, connection)
                exchange(client, connection)
        assert is_silent(listener.socket, other.socket)


@families
@changes
def test_a_connected_udp_socket_outlives_the_rule(
    gateway: Gateway, change: Change, family: int
) -> None:
    """A router that answers from a socket of its own for each client keeps that client."""
    address = SERVICE[family]
    with (
        listening("udp", family) as listener,
        listening("udp", family) as other,
        gateway.client_socket("udp", family) as client,
        transparent_socket((address, 53)) as connection,
    ):
        rule = gateway.insert(address, "udp", 53, to=listener.port)
        client.connect((address, 53))
        client.send(b"first")
        connection.connect(listener.receive()[1])
        change(gateway, rule, other.port)
        with gateway.counts(established=2):
            exchange(client, connection)
            exchange(client, connection)
        assert is_silent(listener.socket, other.socket)


@families
@protocols
def test_after_a_delete_nothing_new_comes_in(gateway: Gateway, protocol: str, family: int) -> None:
    with listening(protocol, family) as listener:
        rule = gateway.insert(SERVICE[family], protocol, 80, to=listener.port)
        gateway.talks(listener, SERVICE[family], 80)
        gateway.firewall.delete(rule.rule.key)
        gateway.is_dropped(protocol, SERVICE[family], 80, "no_rule")


@families
@protocols
def test_after_an_upsert_new_flows_go_to_the_new_port(
    gateway: Gateway, protocol: str, family: int
) -> None:
    with listening(protocol, family) as old, listening(protocol, family) as new:
        gateway.insert(SERVICE[family], protocol, 80, to=old.port)
        gateway.talks(old, SERVICE[family], 80)
        replacing = gateway.insert(SERVICE[family], protocol, 80, to=new.port)
        assert replacing.is_replaced
        with gateway.counts(rule_intercept=1, **AFTERWARDS[protocol]):
            gateway.talks(new, SERVICE[family], 80)
        assert is_silent(old.socket)
    assert gateway.hits(replacing) == 2, "the rule is the same one: it goes on counting"


@families
def test_an_upsert_of_the_high_port_keeps_one_rule(gateway: Gateway, family: int) -> None:
    with listening("tcp", family) as listener:
        gateway.insert(SERVICE[family], "tcp", 22, 22, to=listener.port)
        gateway.insert(SERVICE[family], "tcp", 22, 30, to=listener.port)
        (rule,) = gateway.firewall.rules()
        assert (rule.key.low_port, rule.high_port) == (22, 30)
        gateway.talks(listener, SERVICE[family], 30)


@families
def test_an_upsert_keeps_its_place_in_the_order_of_entry(gateway: Gateway, family: int) -> None:
    address = SERVICE[family]
    with (
        listening("udp", family) as first,
        listening("udp", family) as second,
        listening("udp", family) as changed,
    ):
        gateway.insert(address, "udp", 1, 100, to=first.port)
        gateway.insert(address, "udp", 50, 60, to=second.port)
        gateway.talks(first, address, 55)
        gateway.insert(address, "udp", 1, 90, to=changed.port)
        gateway.talks(changed, address, 55)
        gateway.insert(address, "udp", 50, 95, to=second.port)
        gateway.talks(changed, address, 55)
        gateway.talks(second, address, 95)
        assert [rule.key.low_port for rule in gateway.firewall.rules()] == [1, 50]


@families
@protocols
def test_what_the_gateway_asks_for_is_let_in(gateway: Gateway, protocol: str, family: int) -> None:
    """Answers to sockets of the gateway's own, without a rule."""
    with gateway.client.entered():
        service = socket.create_server((CLIENT[family], 0), family=SOCKET_FAMILY[family])
        if protocol == "udp":
            service.close()
            service = gateway.client_socket("udp", family, CLIENT[family])
    client = socket.socket(SOCKET_FAMILY[family], SOCKET_KIND[protocol])
    client.settimeout(PATIENCE)
    with service, client, gateway.counts(established=SOME):
        client.connect(service.getsockname()[:2])
        client.send(b"question")
        if protocol == "udp":
            _, address = service.recvfrom(100)
            service.sendto(b"answer", address)
        else:
            connection, _ = service.accept()
            with connection:
                connection.sendall(b"answer")
        assert client.recv(100) == b"answer"


@families
def test_an_unconnected_udp_socket_takes_nothing_without_a_rule(
    gateway: Gateway, family: int
) -> None:
    with transparent_socket((GATEWAY[family], 5353)) as service:
        gateway.is_dropped("udp", GATEWAY[family], 5353, "no_rule")
        assert is_silent(service)


@families
@pytest.mark.parametrize("flags", ["A", "FA", "RA", "PA", "SA", ""], ids=lambda flags: flags or "0")
def test_a_segment_of_no_connection_is_nothing_established(
    gateway: Gateway, flags: str, family: int
) -> None:
    segment = frames.TCP(sport=40000, dport=22, flags=flags, seq=1, ack=1)
    with gateway.counts(no_rule=1):
        gateway.send(ip(SERVICE[family]) / segment)


@families
def test_a_bare_ack_at_an_intercepted_port_is_the_listeners(gateway: Gateway, family: int) -> None:
    """It might answer a SYN cookie; as it does not, the stack refuses it."""
    with listening("tcp", family) as listener, gateway.capture() as heard:
        gateway.insert(SERVICE[family], "tcp", 22, to=listener.port)
        with gateway.counts(rule_intercept=1):
            gateway.send(
                ip(SERVICE[family]) / frames.TCP(sport=40000, dport=22, flags="A", seq=1, ack=99)
            )
        answer = heard(frames.TCP)
        assert (str(answer.flags), answer.seq) == ("R", 99)
