# SPDX-License-Identifier: GPL-2.0-only
"""State of network namespaces: each has its own, and that of one that is gone is removed.

And calls from within another one.
"""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support.children import drop_privileges, in_child
from tests.support.netns import Namespace, Network
from zfw_py import Firewall, NotFound, Prefix, Rule, RuleKey, UsageError
from zfw_py.firewall.maps import STORE
from zfw_py.kernel.namespaces import call_in, find, live_cookies
from zfw_py.kernel.own_netns import netns_cookie

pytestmark = pytest.mark.kernel


def test_a_namespace_that_a_thread_a_descriptor_or_a_mount_holds_is_live(
    namespace: Namespace,
) -> None:
    held_by_descriptor = Namespace()
    with held_by_descriptor.entered():
        cookie = netns_cookie()
    live = live_cookies()
    assert live is not None
    assert {netns_cookie(), cookie} <= live
    path = find(cookie)
    assert path is not None
    assert call_in(path, netns_cookie) == cookie
    held_by_descriptor.close()
    assert cookie not in (live_cookies() or ())
    assert find(cookie) is None


def test_a_namespace_is_found_while_threads_come_and_go_in_it(namespace: Namespace) -> None:
    held = Namespace()
    with held.entered():
        cookie = netns_cookie()
    stop = threading.Event()

    def visit() -> None:
        while not stop.is_set():
            call_in(f"/proc/self/fd/{held.fd}", netns_cookie)

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        for _ in range(100):
            assert find(cookie) is not None
            assert cookie in (live_cookies() or ())
    finally:
        stop.set()
        thread.join()
        held.close()


def test_state_of_a_namespace_that_is_gone_is_removed_by_the_next_first_attach(
    network: Network,
) -> None:
    gone = Namespace()
    with gone.entered():
        gone.add_veth("d0", "d1")
        Firewall().attach("d0", "ingress")
        old = str(netns_cookie())
        rule = Rule(RuleKey(Prefix.parse("192.0.2.1"), "tcp", 1))
        Firewall().insert(rule)
    assert old in STORE.identifiers()
    gone.close()

    # The kernel takes a namespace apart in its own time.
    deadline = time.monotonic() + 10
    while old in STORE.identifiers() and time.monotonic() < deadline:
        Firewall().attach(network.interface, "ingress")
        if old in STORE.identifiers():
            Firewall().detach_all()
    assert STORE.identifiers() == [str(netns_cookie())]


def test_state_of_a_namespace_that_lives_stays(network: Network) -> None:
    with network.client.entered():
        Firewall().attach("eth0", "ingress")
    Firewall().attach(network.interface, "ingress")
    assert len(STORE.identifiers()) == 2
    with network.client.entered():
        assert Firewall().detach_all()
    assert Path(f"/sys/fs/bpf/zfw/{netns_cookie()}").is_dir()


def test_a_function_is_called_in_another_namespace_and_the_caller_stays(
    namespace: Namespace,
) -> None:
    with Namespace() as other:
        with other.entered():
            there = netns_cookie()
        here = netns_cookie()
        path = f"/proc/self/fd/{other.fd}"
        assert call_in(path, netns_cookie) == there != here
        assert netns_cookie() == here
        # A socket stays where it was made: this port is free here.
        with call_in(path, lambda: socket.create_server(("127.0.0.1", 0))) as server:
            with socket.create_server(server.getsockname()):
                pass
            with pytest.raises(OSError, match="Address already in use"):
                call_in(path, lambda: socket.create_server(server.getsockname()))


def test_what_the_function_raises_in_another_namespace_is_raised_here(
    namespace: Namespace,
) -> None:
    with pytest.raises(ZeroDivisionError):
        call_in("/proc/self/ns/net", lambda: 1 // 0)


def test_what_is_no_network_namespace_is_said_to_be_none(
    namespace: Namespace, tmp_path: Path
) -> None:
    for path in ("/proc/self/ns/mnt", "/dev/null", str(tmp_path)):
        with pytest.raises(UsageError) as refused:
            call_in(path, netns_cookie)
        assert str(refused.value) == f"{path}: not a network namespace"
    for path in (f"{tmp_path}/none", "/dev/null/none", "/proc/0/ns/net"):
        with pytest.raises(NotFound) as missing:
            call_in(path, netns_cookie)
        assert str(missing.value) == f"no such network namespace: {path}"


def test_without_the_capability_the_namespace_is_refused(namespace: Namespace) -> None:
    """In a process of its own, which gives root up."""

    def enter() -> None:
        drop_privileges()
        call_in("/proc/thread-self/ns/net", netns_cookie)

    told = in_child(enter)
    assert told == (
        "PermissionDenied: enter the network namespace /proc/thread-self/ns/net: needs root"
    )
