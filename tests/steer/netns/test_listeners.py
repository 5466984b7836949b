# SPDX-License-Identifier: GPL-2.0-only
"""Which sockets listen where, as the kernel itself keeps it: real sockets come and go."""

from __future__ import annotations

import os
import signal
import socket
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from tests.steer.support.elements import listener_count
from tests.steer.support.installed import cookie_of, loaded, packed, steered
from tests.steer.support.packets import context_of
from tests.steer.support.reference import Mapping, Packet
from tests.support.cgroups import private_cgroup, within
from tests.support.children import child
from tests.support.netns import Namespace
from tests.support.pids import is_told
from tests.support.sockets import disconnect, error_of
from tests.support.waiting import wait_until
from zfw_py.kernel import bpf_run
from zfw_py.steer import codec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.steer.support.installed import Steered

pytestmark = pytest.mark.kernel

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
# The namespace has no route beyond its own addresses.
UNREACHABLE = {
    "127.0.0.5": "203.0.113.9",
    "fd00::7": "2001:db8::9",
    "::ffff:127.0.0.5": "::ffff:203.0.113.9",
}
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


def _open(
    address: str, port: int, protocol: int = TCP, *, options: tuple[int, ...] = (), backlog: int = 8
) -> socket.socket:
    """A socket that listens, or a bound one of UDP; an address with a colon is IPv6's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, KINDS[protocol])
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind((address, port))
    if protocol == TCP:
        made.listen(backlog)
    return made


def _at(address: str, port: int, protocol: int = TCP, ifindex: int = 0) -> codec.Address:
    return codec.Address(packed(address), ifindex, port, protocol)


@pytest.fixture
def programs(namespace: Namespace) -> Iterator[Steered]:
    """In force in a namespace with one more address of IPv6."""
    namespace.add_addresses("lo", "fd00::7/128")
    with steered() as made:
        yield made
        assert made.troubles() == {}


def _stop_reading(made: socket.socket) -> None:
    made.shutdown(socket.SHUT_RD)


LEAVING: dict[str, Callable[[socket.socket], None]] = {
    "close": socket.socket.close,
    "shutdown": _stop_reading,
    "disconnect": disconnect,
}


@pytest.mark.parametrize("address", ["127.0.0.5", "fd00::7", "::ffff:127.0.0.5"])
@pytest.mark.parametrize("way", LEAVING)
def test_a_listener_of_tcp_comes_and_leaves(programs: Steered, address: str, way: str) -> None:
    made = _open(address, 22)
    assert programs.listeners() == {_at(address, 22): 1}
    found = programs.listening()[cookie_of(made)]
    assert (found.at, found.is_exact) == (_at(address, 22), True)
    assert is_told(found.pid, os.getpid())
    assert found.family == (6 if ":" in address else 4)
    assert not found.is_mptcp
    LEAVING[way](made)
    assert programs.listeners() == {}
    assert programs.listening() == {}
    made.close()


@pytest.mark.parametrize("address", ["127.0.0.5", "fd00::7", "::ffff:127.0.0.5"])
def test_a_bound_socket_of_udp_comes_and_leaves(programs: Steered, address: str) -> None:
    made = _open(address, 53, UDP)
    assert programs.listeners() == {_at(address, 53, UDP): 1}
    assert is_told(programs.listening()[cookie_of(made)].pid, os.getpid())
    made.close()
    assert programs.listeners() == {}
    assert programs.listening() == {}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_process_that_is_killed_listens_no_more(programs: Steered, protocol: int) -> None:
    held = []

    def listen() -> int:
        held.append(_open("127.0.0.5", 80, protocol))
        return cookie_of(held[0])

    with child(listen) as process:
        assert is_told(programs.listening()[process.told].pid, process.pid)
        os.kill(process.pid, signal.SIGKILL)
        # It is the kernel that closes what a process held, when that ends.
        assert wait_until(lambda: programs.listening() == {})
        assert programs.listeners() == {}


def test_a_socket_that_listens_again_is_there_again(programs: Steered) -> None:
    made = _open("127.0.0.5", 22)
    for _ in range(3):
        disconnect(made)
        assert programs.listeners() == {}
        made.listen()
        assert programs.listeners() == {_at("127.0.0.5", 22): 1}
        # To listen once more changes the backlog alone.
        made.listen(64)
        assert programs.listeners() == {_at("127.0.0.5", 22): 1}
    made.close()
    assert programs.listeners() == {}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_group_of_sockets_listens_until_its_last_has_left(
    programs: Steered, protocol: int
) -> None:
    group = [_open("127.0.0.5", 80, protocol, options=(socket.SO_REUSEPORT,)) for _ in range(12)]
    for left in range(12, 0, -1):
        assert programs.listeners() == {_at("127.0.0.5", 80, protocol): left}
        group.pop().close()
    assert programs.listeners() == {}


def test_whoever_listens_on_all_addresses_listens_on_none_exactly(programs: Steered) -> None:
    held = [
        _open("0.0.0.0", 22),
        _open("::", 23),
        _open("::ffff:0.0.0.0", 24),
        _open("0.0.0.0", 53, UDP),
        _open("::", 54, UDP),
    ]
    assert programs.listeners() == {}
    assert programs.listening() == {}
    for made in held:
        made.close()


def test_who_does_not_listen_is_not_there(programs: Steered) -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.5", 22))
    unbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    unbound.connect(("127.0.0.5", 9))
    # Somebody else has the port: what has begun to listen did not get to it.
    first = _open("127.0.0.6", 80, options=(socket.SO_REUSEADDR,), backlog=1)
    second = socket.socket()
    second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    assert error_of(lambda: second.bind(("127.0.0.6", 80))) == "EADDRINUSE"
    late, later = socket.socket(), socket.socket()
    for made in (late, later):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.7", 80))
    late.listen()
    assert error_of(later.listen) == "EADDRINUSE"
    assert programs.listeners() == {_at("127.0.0.6", 80): 1, _at("127.0.0.7", 80): 1}
    for made in (bound, unbound, first, second, late, later):
        made.close()
    assert programs.listeners() == {}


def test_connections_are_no_listeners(programs: Steered) -> None:
    listener = _open("127.0.0.5", 80)
    for _ in range(3):
        with socket.create_connection(("127.0.0.5", 80)) as client, listener.accept()[0] as made:
            client.sendall(b"x")
            assert made.recv(1) == b"x"
    assert programs.listeners() == {_at("127.0.0.5", 80): 1}
    assert list(programs.listening()) == [cookie_of(listener)]
    listener.close()


def _is_kept(programs: Steered, address: str, port: int) -> bool:
    """Whether a socket keeps a datagram that a mapping of all addresses covers."""
    local = ip_address(address)
    if isinstance(local, IPv6Address):
        local = local.ipv4_mapped or local
    programs.apply([Mapping(1, UDP, None, None, 0)])
    before = programs.counter(1).kept_by_listener
    packet = Packet(UDP, local, port, local, 9999, 0)
    bpf_run.run(programs.programs["lookup"], b"", context_of(packet))
    return programs.counter(1).kept_by_listener > before


@pytest.mark.parametrize("address", ["127.0.0.5", "fd00::7", "::ffff:127.0.0.5"])
def test_a_connected_socket_of_udp_keeps_nothing(programs: Steered, address: str) -> None:
    """The kernel finds it before any look-up, and it takes nothing from other clients."""
    made = _open(address, 53, UDP)
    for _ in range(3):
        assert _is_kept(programs, address, 53)
        for _ in range(2):
            made.connect((address, 9))
            assert not _is_kept(programs, address, 53)
        disconnect(made)
    # There is no route: the socket is as unconnected as before.
    with pytest.raises(OSError, match="unreachable"):
        made.connect((UNREACHABLE[address], 9))
    assert _is_kept(programs, address, 53)
    # Of two sockets there, one that is not connected is enough.
    other = _open(address, 54, UDP, options=(socket.SO_REUSEPORT,))
    more = _open(address, 54, UDP, options=(socket.SO_REUSEPORT,))
    for one, two in ((other, more), (more, other)):
        one.connect((address, 9))
        assert _is_kept(programs, address, 54)
        two.connect((address, 9))
        assert not _is_kept(programs, address, 54)
        disconnect(one)
        assert _is_kept(programs, address, 54)
        disconnect(two)
    for each in (made, other, more):
        each.close()
    assert not _is_kept(programs, address, 53)
    assert not _is_kept(programs, address, 54)
    assert programs.listening() == {}


def test_connecting_at_an_address_of_its_own_makes_no_listener(programs: Steered) -> None:
    """connect(2) gives a socket an address, and a disconnect takes it away again."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wild = _open("0.0.0.0", 53, UDP)
    for each in (made, wild):
        for _ in range(2):
            each.connect(("127.0.0.5", 9))
            each.connect(("127.0.0.6", 9))
            port = each.getsockname()[1]
            programs.scan()
            assert not _is_kept(programs, each.getsockname()[0], port)
            disconnect(each)
            for address in ("127.0.0.1", "127.0.0.5", "127.0.0.6"):
                assert not _is_kept(programs, address, port)
        each.close()
    assert programs.listening() == {}


def test_where_many_sockets_were_connected_the_ninth_is_no_listener_until_it_is_scanned(
    programs: Steered,
) -> None:
    held = [_open("127.0.0.5", 53, UDP, options=(socket.SO_REUSEPORT,)) for _ in range(9)]
    for made in held:
        made.connect(("127.0.0.5", 9))
    disconnect(held[7])
    assert _is_kept(programs, "127.0.0.5", 53)
    held.pop(7).close()
    disconnect(held[7])
    assert not _is_kept(programs, "127.0.0.5", 53)
    # A closed socket's place is the next one's.
    held.append(_open("127.0.0.5", 53, UDP, options=(socket.SO_REUSEPORT,)))
    held[-1].connect(("127.0.0.5", 9))
    assert not _is_kept(programs, "127.0.0.5", 53)
    disconnect(held[-1])
    assert _is_kept(programs, "127.0.0.5", 53)
    for made in held:
        made.close()


def test_connects_and_scans_at_once_leave_what_is_true(programs: Steered) -> None:
    """Four processes open, connect and disconnect sockets, and the test scans meanwhile."""

    def change() -> None:
        for number in range(3_000):
            with _open("127.0.0.5", 80, UDP, options=(socket.SO_REUSEPORT,)) as made:
                for _ in range(number % 4):
                    made.connect(("127.0.0.5", 9))
                    disconnect(made)

    stays = _open("127.0.0.5", 80, UDP, options=(socket.SO_REUSEPORT,))
    running = {_process(change) for _ in range(4)}
    try:
        while running:
            stays.connect(("127.0.0.5", 9))
            programs.scan()
            disconnect(stays)
            assert _is_kept(programs, "127.0.0.5", 80)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    assert status == 0
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    # As a scan of zfw does: an iterator may have returned a socket whose end a hook saw before.
    for cookie in programs.listening().keys() - {cookie_of(stays)}:
        assert bpf_run.call(programs.programs["forget"], codec.cookie_key(cookie))[0] == 0
    assert programs.listeners() == {}
    assert list(programs.listening()) == [cookie_of(stays)]
    stays.connect(("127.0.0.5", 9))
    assert not _is_kept(programs, "127.0.0.5", 80)
    stays.close()


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_socket_that_is_bound_to_a_device_listens_there(programs: Steered, protocol: int) -> None:
    made = socket.socket(socket.AF_INET, KINDS[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    made.bind(("127.0.0.5", 80))
    if protocol == TCP:
        made.listen()
    ifindex = socket.if_nametoindex("lo")
    assert programs.listeners() == {_at("127.0.0.5", 80, protocol, ifindex): 1}
    assert programs.device_listeners() == 1
    made.close()
    assert programs.listeners() == {}
    assert programs.device_listeners() == 0


def test_another_namespace_is_another_affair(programs: Steered) -> None:
    with Namespace() as other:
        with other.entered():
            held = [_open("127.0.0.5", 22), _open("127.0.0.5", 53, UDP)]
        assert programs.listeners() == {}
        for made in held:
            made.close()


def test_those_who_were_there_before_are_scanned_once(namespace: Namespace) -> None:
    namespace.add_addresses("lo", "fd00::7/128")
    with private_cgroup() as place, within(place):
        held = {
            _at("127.0.0.5", 22): _open("127.0.0.5", 22),
            _at("fd00::7", 22): _open("fd00::7", 22),
            _at("127.0.0.6", 22): _open("::ffff:127.0.0.6", 22),
            _at("127.0.0.5", 53, UDP): _open("127.0.0.5", 53, UDP),
            _at("fd00::7", 53, UDP): _open("fd00::7", 53, UDP),
        }
        connected = _open("127.0.0.7", 53, UDP)
        connected.connect(("127.0.0.5", 53))
        others = [connected, _open("0.0.0.0", 80), _open("::", 54, UDP), socket.socket()]
        with loaded() as programs:
            programs.attach_listening(place)
            assert programs.listeners() == {}
            new = _open("127.0.0.8", 22)
            for _ in range(3):
                programs.scan()
            assert programs.listeners() == {**dict.fromkeys(held, 1), _at("127.0.0.8", 22): 1}
            found = programs.listening()
            assert is_told(found[cookie_of(new)].pid, os.getpid())
            assert found[cookie_of(held[_at("fd00::7", 22)])].pid == 0
            assert not _is_kept(programs, "127.0.0.7", 53)
            disconnect(connected)
            assert _is_kept(programs, "127.0.0.7", 53)
            for made in (*held.values(), *others, new):
                made.close()
            assert programs.listeners() == {}
            assert programs.listening() == {}
            assert programs.troubles() == {}


def test_a_socket_that_went_unseen_can_be_forgotten(programs: Steered) -> None:
    made = _open("127.0.0.5", 22)
    cookie = cookie_of(made)
    programs.links.pop("lookup")
    os.close(programs.links.pop("set_state"))
    made.close()
    assert programs.listeners() == {_at("127.0.0.5", 22): 1}
    for _ in range(2):
        assert bpf_run.call(programs.programs["forget"], codec.cookie_key(cookie))[0] == 0
        assert programs.listeners() == {}
        assert programs.listening() == {}


def _come_and_go(programs: Steered) -> None:
    """Alone on an address or not, as it happens: its count goes to 0 and back."""
    keys = {protocol: _at("127.0.0.5", 80, protocol).encode() for protocol in (TCP, UDP)}
    listeners, listening = programs.maps["listeners"], programs.maps["listening"]
    for number in range(25_000):
        protocol = (UDP, TCP)[number % 8 == 0]
        with _open("127.0.0.5", 80, protocol, options=(socket.SO_REUSEPORT,)) as made:
            count = listeners.lookup(keys[protocol])
            if count is None or listener_count(count) == 0:
                # Its processor was stopped where another waited for it, as a virtual one may
                # be: that is a trouble told of, and the next scan's affair.
                assert listening.lookup(codec.cookie_key(cookie_of(made))) is None


def _process(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.usefixtures("namespace")
def test_nobody_is_lost_where_many_come_and_go_at_once() -> None:
    """The first on an address and the last that leaves it change the same element."""
    with steered() as programs:
        stays = _open("127.0.0.5", 81, options=(socket.SO_REUSEPORT,))
        processes = [_process(lambda: _come_and_go(programs)) for _ in range(4)]
        for pid in processes:
            assert os.waitpid(pid, 0)[1] == 0
        assert programs.listeners() == {_at("127.0.0.5", 81): 1}
        assert list(programs.listening()) == [cookie_of(stays)]
        stays.close()
        assert programs.listeners() == {}
        assert set(programs.troubles()) <= {"listeners"}


def test_events_tell_of_targets_and_of_all_if_so_set(programs: Steered) -> None:
    programs.name_target(3, TCP, "127.0.0.5", 22)
    programs.name_target(4, UDP, "0.0.0.0", 53)
    held = [
        _open("127.0.0.5", 22),
        _open("127.0.0.6", 22),
        _open("0.0.0.0", 53, UDP),
        _open("0.0.0.0", 80),
    ]
    told = [(e.kind, e.target, e.cookie, e.is_adopted) for e in programs.take_events()]
    assert told == [
        ("came", 3, cookie_of(held[0]), True),
        ("came", 4, cookie_of(held[2]), False),
    ]
    programs.tell(is_all=True)
    held.append(_open("::", 81))
    event = programs.take_events()[0]
    assert (event.kind, event.target) == ("came", None)
    assert is_told(event.listener.pid, os.getpid())
    assert event.listener.at == _at("::", 81)
    cookies = [cookie_of(made) for made in held]
    for made in held:
        made.close()
    told = [(e.kind, e.target, e.cookie, e.is_adopted) for e in programs.take_events()]
    assert told == [
        ("left", 3, cookies[0], False),
        ("left", None, cookies[1], False),
        ("left", 4, cookies[2], False),
        ("left", None, cookies[4], False),
    ]
