# SPDX-License-Identifier: GPL-2.0-only
"""Where connections land that steer's programs steer: real clients, real daemons."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections import Counter
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.installed import OBJECT, cookie_of, steered
from tests.steer.support.reference import Mapping
from tests.support.children import child
from tests.support.sockets import error_of
from zfw_py.kernel import bpf_links, bpf_maps
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.steer.codec import Counter as Counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.steer.support.installed import Steered
    from tests.support.netns import Network

pytestmark = pytest.mark.kernel

TCP = socket.IPPROTO_TCP
ANY_PORT = None
# An address of the gateway that is no interface's: the client reaches it by one, the
# gateway by lo.
EVERYWHERE = "10.77.0.1"
# A target's number.
SHELL, WEB = 0, 1


@pytest.fixture
def programs(network: Network) -> Iterator[Steered]:
    """In force on the gateway, which has private addresses for its daemons."""
    for address in ("fd00::7/128", f"{EVERYWHERE}/32"):
        network.gateway.add_addresses("lo", address)
    with steered() as made:
        yield made
        assert made.troubles() == {}


def _listen(address: str, port: int, *options: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind((address, port))
    made.listen(128)
    made.settimeout(20)
    return made


def _listen_at_device(network: Network, address: str, port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, network.interface.encode())
    made.bind((address, port))
    made.listen()
    made.settimeout(20)
    return made


def _connect(network: Network, address: str, port: int) -> socket.socket:
    """A client's connection, from beyond the gateway's interface."""
    with network.client.entered():
        return socket.create_connection((address, port), timeout=20)


def _mapping(
    number: int,
    target: int,
    ports: int | tuple[int, int] | None,
    network: str | None = None,
    **flags: bool,
) -> Mapping:
    return Mapping(
        number,
        TCP,
        None if network is None else ip_network(network),
        (ports, ports) if isinstance(ports, int) else ports,
        target,
        **flags,
    )


@pytest.mark.parametrize(
    ("daemon", "asked"),
    [
        ("127.0.0.5", "gateway_ipv4"),
        ("::ffff:127.0.0.5", "gateway_ipv4"),
        ("0.0.0.0", "gateway_ipv4"),
        ("::", "gateway_ipv4"),
        ("fd00::7", "gateway_ipv6"),
        ("::", "gateway_ipv6"),
    ],
)
def test_both_ends_see_true_addresses(
    programs: Steered, network: Network, daemon: str, asked: str
) -> None:
    programs.name_target(SHELL, TCP, daemon, 22)
    programs.apply([_mapping(1, SHELL, 5555)])
    address = getattr(network, asked)
    client_address = network.client_ipv4 if asked == "gateway_ipv4" else network.client_ipv6
    with _listen(daemon, 22) as listener, _connect(network, address, 5555) as client:
        made, _ = listener.accept()
        with made:
            prefix = "::ffff:" if ":" in daemon and asked == "gateway_ipv4" else ""
            assert made.getsockname()[:2] == (prefix + address, 5555)
            assert made.getpeername()[:2] == (prefix + client_address, client.getsockname()[1])
            assert client.getpeername()[:2] == (address, 5555)
            client.sendall(b"question")
            assert made.recv(8) == b"question"
            made.sendall(b"answer")
            assert client.recv(6) == b"answer"
    assert programs.counter(1) == Counts(lookups=1, kept_by_listener=0, no_socket=0)


def test_whoever_listens_there_exactly_keeps_it(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, ANY_PORT)])
    with _listen("127.0.0.5", 80) as web, _listen(network.gateway_ipv4, 8080) as exact:
        with _connect(network, network.gateway_ipv4, 8080), exact.accept()[0]:
            pass
        with _connect(network, network.gateway_ipv4, 8081), web.accept()[0]:
            pass
        programs.apply([_mapping(2, WEB, ANY_PORT, is_override=True)])
        with _connect(network, network.gateway_ipv4, 8080), web.accept()[0]:
            pass
    assert programs.counter(1) == Counts(lookups=2, kept_by_listener=1, no_socket=0)
    assert programs.counter(2) == Counts(lookups=1, kept_by_listener=0, no_socket=0)


def test_a_listener_on_another_device_keeps_nothing(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    at_device = _listen_at_device(network, EVERYWHERE, 8080)
    with at_device, _listen("127.0.0.5", 80) as web:
        with _connect(network, EVERYWHERE, 8080), at_device.accept()[0]:
            pass
        with socket.create_connection((EVERYWHERE, 8080), 20), web.accept()[0]:
            pass
    assert programs.counter(1) == Counts(lookups=2, kept_by_listener=1, no_socket=0)


def test_a_target_takes_what_comes_in_at_its_device(programs: Steered, network: Network) -> None:
    at_device = _listen_at_device(network, "127.0.0.5", 80)
    programs.put(WEB, at_device)
    programs.apply([_mapping(1, WEB, 8080)])
    with at_device:
        with _connect(network, EVERYWHERE, 8080), at_device.accept()[0]:
            pass
        refused = error_of(lambda: socket.create_connection((EVERYWHERE, 8080), 20))
        assert refused == "ECONNREFUSED"
    assert programs.counter(1) == Counts(lookups=2, kept_by_listener=0, no_socket=1)


def test_without_its_daemon_nothing_lands_elsewhere(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080), _mapping(2, WEB, 8081, is_fallthrough=True)])
    with _listen("0.0.0.0", 8080), _listen("0.0.0.0", 8081) as wild:
        assert error_of(lambda: _connect(network, network.gateway_ipv4, 8080)) == "ECONNREFUSED"
        with _connect(network, network.gateway_ipv4, 8081), wild.accept()[0]:
            pass
    assert programs.counter(1) == Counts(lookups=1, kept_by_listener=0, no_socket=1)
    assert programs.counter(2) == Counts(lookups=1, kept_by_listener=0, no_socket=1)


def test_a_restarted_daemon_is_taken_at_once_and_by_the_kernel_alone(
    programs: Steered, network: Network
) -> None:
    """Killed as hard as can be; between its end and its listening connections are refused."""
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    listeners: list[socket.socket] = []

    def start() -> int:
        listeners.append(_listen("127.0.0.5", 80, socket.SO_REUSEADDR))
        return cookie_of(listeners[0])

    for _ in range(5):
        assert error_of(lambda: _connect(network, network.gateway_ipv4, 8080)) == "ECONNREFUSED"
        with child(start) as daemon:
            assert programs.sockets(WEB) == [daemon.told]
            with _connect(network, network.gateway_ipv4, 8080):
                pass
            os.kill(daemon.pid, signal.SIGKILL)
        assert programs.sockets(WEB) == []


def test_a_listener_that_was_shut_down_swallows_nothing(
    programs: Steered, network: Network
) -> None:
    """It stays in the map until it is closed; listening again, it is adopted again."""
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    with _listen("127.0.0.5", 80) as web:
        for _ in range(3):
            web.shutdown(socket.SHUT_RD)
            refused = error_of(lambda: _connect(network, network.gateway_ipv4, 8080))
            assert refused == "ECONNREFUSED"
            web.listen()
            assert programs.sockets(WEB)[0] == cookie_of(web)
            with _connect(network, network.gateway_ipv4, 8080), web.accept()[0]:
                pass
        with _listen("127.0.0.6", 80) as other:
            programs.put(WEB, other)
            other.shutdown(socket.SHUT_RD)
            with _connect(network, network.gateway_ipv4, 8080), web.accept()[0]:
                pass
    assert programs.sockets(WEB) == []


def test_connections_in_flight_stay_where_they_are(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    first = _listen("127.0.0.5", 80, socket.SO_REUSEADDR)
    client = _connect(network, network.gateway_ipv4, 8080)
    made, _ = first.accept()
    first.close()
    with _listen("127.0.0.5", 80, socket.SO_REUSEADDR) as second:
        programs.apply([_mapping(2, WEB, 9090)])
        client.sendall(b"still here")
        assert made.recv(10) == b"still here"
        with _connect(network, network.gateway_ipv4, 9090), second.accept()[0]:
            pass
        assert error_of(lambda: _connect(network, network.gateway_ipv4, 8080)) == "ECONNREFUSED"
        programs.detach()
        made.sendall(b"so am I")
        assert client.recv(7) == b"so am I"
    made.close()
    client.close()


def test_the_newest_is_it_and_those_before_stand_in(programs: Steered, network: Network) -> None:
    programs.apply([_mapping(1, WEB, 8080)])
    daemons = [_listen(f"127.0.0.{number}", 80) for number in range(1, 12)]
    for daemon in daemons:
        programs.put(WEB, daemon)
    for daemon in reversed(daemons[-8:]):
        with _connect(network, network.gateway_ipv4, 8080), daemon.accept()[0]:
            pass
        daemon.close()
    # A target keeps as many as these.
    assert error_of(lambda: _connect(network, network.gateway_ipv4, 8080)) == "ECONNREFUSED"
    for daemon in daemons:
        daemon.close()


def test_a_group_is_balanced_and_outlives_its_newest(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    group = [_listen("127.0.0.5", 80, socket.SO_REUSEPORT) for _ in range(4)]
    while group:
        landed: Counter[int] = Counter()
        for _ in range(24 * len(group)):
            with _connect(network, network.gateway_ipv4, 8080):
                landed.update([_where(group)])
        # One is left out by a chance of one to a billion: the kernel's hash has no seed of ours.
        assert len(landed) == len(group)
        group.pop().close()
    assert programs.sockets(WEB) == []


def _where(group: list[socket.socket]) -> int:
    """Which of a group has a connection; it is accepted."""
    ready, _, _ = select.select(group, [], [], 20)
    (one,) = ready
    one.accept()[0].close()
    return group.index(one)


def test_a_change_of_all_mappings_misleads_nobody(programs: Steered, network: Network) -> None:
    """Under the most specific mapping others are exchanged, and it with them."""
    right, wrong = _listen("127.0.0.5", 80), _listen("127.0.0.6", 80)
    programs.put(SHELL, right)
    programs.put(WEB, wrong)
    wrong.settimeout(None)
    tables = [
        [
            _mapping(1, SHELL, 8080, f"{network.gateway_ipv4}/32"),
            _mapping(2, WEB, 8080),
            _mapping(3, WEB, (8000, 9000)),
        ],
        [
            _mapping(4, SHELL, 8080, "10.0.0.0/8"),
            _mapping(5, WEB, ANY_PORT),
            *(_mapping(6 + number, WEB, (8000 + number, 8100)) for number in range(20)),
        ],
        [
            _mapping(99, SHELL, (8080, 8081)),
            _mapping(98, WEB, (8079, 8090)),
            _mapping(97, WEB, None),
        ],
    ]
    programs.apply(tables[0])
    is_over = threading.Event()
    failures: list[BaseException] = []

    def connect_again_and_again() -> None:
        try:
            while not is_over.is_set():
                with _connect(network, network.gateway_ipv4, 8080), right.accept()[0]:
                    pass
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    thread = threading.Thread(target=connect_again_and_again)
    thread.start()
    try:
        for number in range(150):
            programs.apply(tables[number % len(tables)])
    finally:
        is_over.set()
        thread.join()
    assert not failures
    wrong.setblocking(False)
    with pytest.raises(BlockingIOError):
        wrong.accept()
    total = sum(programs.counter(number).lookups for number in (1, 4, 99))
    assert total > 0
    assert all(programs.counter(number).lookups == 0 for number in (2, 3, 5, 97, 98))
    right.close()
    wrong.close()


def test_a_hundred_thousand_mappings(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    many = [
        _mapping(number, WEB, 1 + number % 65535, f"203.0.{number >> 8 & 255}.{number & 255}/32")
        for number in range(100_000)
    ]
    network.gateway.run("ip", "route", "add", "local", "203.0.0.0/16", "dev", "lo")
    programs.apply(many)
    with _listen("127.0.0.5", 80) as web:
        for number in (0, 1, 65_534, 99_999):
            address = str(many[number].network.network_address)  # type: ignore[union-attr]
            with _connect(network, address, 1 + number % 65535) as client, web.accept()[0] as made:
                assert made.getsockname() == client.getpeername()
            assert programs.counter(number).lookups == 1
        assert error_of(lambda: _connect(network, "203.0.0.1", 1)) == "ECONNREFUSED"


def test_two_programs_run_in_the_order_they_were_attached(
    programs: Steered, network: Network
) -> None:
    """The one that was there first has chosen; ours leaves its choice alone."""
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ours = bpf_maps.object_id(programs.programs["lookup"])
    programs.put(WEB, web := _listen("127.0.0.5", 80))
    programs.apply([_mapping(1, WEB, 8080)])
    with steered() as second:
        theirs = bpf_maps.object_id(second.programs["lookup"])
        assert bpf_links.attached_to_netns(namespace, bpf_links.SK_LOOKUP) == [ours, theirs]
        second.put(WEB, other := _listen("127.0.0.6", 80))
        second.apply([_mapping(1, WEB, 8080), _mapping(2, WEB, 9090)])
        with _connect(network, network.gateway_ipv4, 8080), web.accept()[0]:
            pass
        with _connect(network, network.gateway_ipv4, 9090), other.accept()[0]:
            pass
        assert second.counter(1) == Counts(0, 0, 0)
    assert bpf_links.attached_to_netns(namespace, bpf_links.SK_LOOKUP) == [ours]
    os.close(namespace)
    web.close()
    other.close()


def test_an_exchanged_program_goes_on_with_the_same_maps(
    programs: Steered, network: Network
) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    with BpfObject(OBJECT) as newer, _listen("127.0.0.5", 80) as web:
        newer.reuse_maps({name: one.fd for name, one in programs.maps.items()})
        newer.load()
        for name, link in programs.links.items():
            if name != "set_state":
                bpf_links.update_link(link, newer.programs()[name])
        # A tracepoint's link keeps its program: for a moment there are two.
        second = bpf_links.attach_tracing(newer.programs()["set_state"])
        with _listen("127.0.0.6", 80):
            assert sorted(programs.listeners().values()) == [1, 1]
            os.close(programs.links.pop("set_state"))
        assert list(programs.listeners().values()) == [1]
        with _connect(network, network.gateway_ipv4, 8080), web.accept()[0]:
            pass
        os.close(second)
    assert programs.counter(1) == Counts(lookups=1, kept_by_listener=0, no_socket=0)


def test_a_listener_of_mptcp_is_no_target(programs: Steered, network: Network) -> None:
    programs.name_target(WEB, TCP, "127.0.0.5", 80)
    programs.apply([_mapping(1, WEB, 8080)])
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
        listener.bind(("127.0.0.5", 80))
        listener.listen()
        (event,) = programs.take_events()
        assert (event.listener.is_mptcp, event.is_adopted, event.target) == (True, False, WEB)
        assert error_of(lambda: _connect(network, network.gateway_ipv4, 8080)) == "ECONNREFUSED"
    # But it listens there, and keeps what is its own.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
        listener.bind((network.gateway_ipv4, 8080))
        listener.listen()
        with _connect(network, network.gateway_ipv4, 8080), listener.accept()[0]:
            pass
    assert programs.listeners() == {}
