# SPDX-License-Identifier: GPL-2.0-only
"""The network namespaces in which a guard's DNS proxy answers.

The proxy answers in each namespace that has guarded processes. It asks the servers of the policy
from its own namespace. Without such servers it asks as a process there would: from the namespace of
the client, by the resolv.conf of a process in it. So a container keeps the names of its siblings.

A socket keeps its namespace alive. So the proxy leaves a namespace once no guarded process is in
it; and where there is no room for a new one, the one that asked longest ago.
"""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from zfw_py.errors import NotFound, ZfwError
from zfw_py.guard import layout, listeners
from zfw_py.guard.dns.resolv_conf import RESOLV_CONF, ResolvConf, open_own
from zfw_py.guard.dns.upstream import Upstream
from zfw_py.guard.events import TRANSPORTS
from zfw_py.kernel import cgroup
from zfw_py.kernel.files import open_in_root
from zfw_py.kernel.namespaces import call_here, inodes_of, namespace_of_socket, path_of
from zfw_py.kernel.own_netns import netns_cookie
from zfw_py.kernel.process import Process, root_of, start_time
from zfw_py.values.endpoint import DNS_PORT, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfw_py.guard.codec import Client
    from zfw_py.guard.dns.listening import Transport
    from zfw_py.guard.dns.proxy import Proxy
    from zfw_py.guard.held_sockets import Sender
    from zfw_py.guard.listeners import Listeners
    from zfw_py.guard.supervisor import GuardContext

# Entering a network namespace takes a thread, and a guarded program can cause it at will.
_FOLLOW_INTERVAL = 1.0  # seconds, for each namespace
_MAX_FOLLOWED = 4096
# A socket may ask from a namespace that its process has left: a namespace stays for so long after
# its last query.
GRACE = 10.0
# Descriptors: for all else, mostly queries to upstream servers, and for each namespace.
_OTHER_FDS, _NAMESPACE_FDS = 600, 2 * (layout.SERVERS + 1) + 1
# How often a process in a namespace is looked for, in seconds.
_SEARCH_INTERVAL = 5.0
# What the C library asks if resolv.conf names no server.
_DEFAULT = [Endpoint("127.0.0.1", DNS_PORT)]


def servers_seen_by(pid: int, otherwise: list[str] | None = None) -> list[str]:
    """The servers that a process's resolv.conf names now.

    ``otherwise``: while it names none; without, those that the C library asks then.
    """

    def open_file() -> int:
        return open_in_root(root_of(pid), RESOLV_CONF)

    found = ResolvConf(open_file, [])()
    return [str(each) for each in found] or otherwise or [str(each) for each in _DEFAULT]


class _Namespace:
    """One namespace: the proxy's sockets in it, and the servers that are asked for it."""

    def __init__(self, opened: Listeners, cgroup_path: str, own: Upstream | None) -> None:
        """``own``: the servers to ask; None: those of a process in the namespace."""
        self.listeners = opened
        self.last_used = asyncio.get_running_loop().time()
        self._fd = namespace_of_socket(opened.udp[0])
        self.inode = os.fstat(self._fd).st_ino
        self._cgroup = cgroup_path
        self._user = Process(0, 0)
        self._next_search = 0.0
        self.upstream = own or Upstream(
            ResolvConf(self._open_resolv_conf, _DEFAULT), partial(call_here, self._fd)
        )

    def close(self) -> None:
        """Let go of the namespace; its sockets are the proxy's."""
        os.close(self._fd)

    def _open_resolv_conf(self) -> int:
        """Open resolv.conf as a process in the namespace sees it. Raises OSError."""
        if not self._is_user(self._user):
            self._user = self._find_user()
        fd = open_in_root(root_of(self._user.pid), RESOLV_CONF)
        # The kernel may have reused the id before the file was opened.
        if not self._user.is_alive():
            os.close(fd)
            raise ProcessLookupError
        return fd

    def _is_user(self, process: Process) -> bool:
        with suppress(OSError):
            return process.is_alive() and os.stat(path_of(process.pid)).st_ino == self.inode
        return False

    def _find_user(self) -> Process:
        now = asyncio.get_running_loop().time()
        if now >= self._next_search:
            self._next_search = now + _SEARCH_INTERVAL
            for pid in cgroup.processes(self._cgroup, is_recursive=True):
                process = Process(pid, start_time(pid) or 0)
                if self._is_user(process):
                    return process
        raise ProcessLookupError


class Namespaces:
    """The namespaces in which a proxy answers. To be used in its loop."""

    def __init__(self, context: GuardContext, proxy: Proxy, sender: Sender | None) -> None:
        """Without namespaces. ``sender`` leads to a watcher, which holds the sockets too."""
        self._sender = sender
        self._maps = context.maps
        self._cgroup = context.manifest.cgroup
        self._proxy = proxy
        self._cookie = netns_cookie()
        is_fixed = context.policy is None or bool(context.policy.dns_upstreams)
        # A process that sees other files than its creator keeps the servers that were named there.
        self._is_fixed = is_fixed or not context.has_own_files
        upstreams = context.upstreams
        self._own = Upstream(
            (lambda: upstreams) if self._is_fixed else ResolvConf(open_own, upstreams)
        )
        self._served: dict[int, _Namespace] = {}
        self._followed: dict[int, float] = {}
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(4, min(layout.NAMESPACES, (limit - _OTHER_FDS) // _NAMESPACE_FDS))

    def serve(self, opened: Listeners) -> None:
        """Answer on these sockets, in the place of earlier ones of the namespace."""
        self._withdraw(opened.cookie)
        is_own = self._is_fixed or opened.cookie == self._cookie
        made = _Namespace(opened, self._cgroup, self._own if is_own else None)
        self._served[opened.cookie] = made
        if self._sender is not None:
            self._sender.hold(opened)
        by_family = {each.family: each for each in opened.tcp}
        for udp in opened.udp:
            # A family has one TCP socket, on the port of its first UDP socket.
            tcp = by_family.pop(udp.family, None)
            self._proxy.serve(made.upstream, partial(self._is_client, made), udp, tcp)

    def close(self) -> None:
        """Let go of all namespaces. The proxy closes their sockets."""
        for each in self._served.values():
            each.close()
        self._served.clear()

    def client(self, client: tuple[str, int], transport: Transport) -> Client | None:
        """The guarded process that sent from this address and port, if it is known."""
        address, port = client
        protocol = TRANSPORTS[transport]
        found = (
            self._maps.client(cookie, port, protocol, is_ipv6=":" in address)
            for cookie in self._served
        )
        return next(filter(None, found), None)

    def _is_client(
        self, namespace: _Namespace, client: tuple[str, int], transport: Transport
    ) -> bool:
        """Whether a guarded process sent from this address and port.

        Any process may send to the proxy's ports. ``egress`` notes the guarded ones before their
        packets arrive.
        """
        address, port = client
        is_known = self._maps.has_client(
            namespace.listeners.cookie, port, TRANSPORTS[transport], is_ipv6=":" in address
        )
        if is_known:
            namespace.last_used = asyncio.get_running_loop().time()
        return is_known

    def follow(self, pid: int, cookie: int) -> None:
        """Open sockets in a namespace where a query found none; the next query finds them.

        The namespace is new, or its loopback was not up for that family. ``pid`` is the client's.
        """
        now = asyncio.get_running_loop().time()
        if now - self._followed.get(cookie, -_FOLLOW_INTERVAL) < _FOLLOW_INTERVAL:
            return
        if len(self._followed) >= _MAX_FOLLOWED:
            self._followed.clear()
        self._followed[cookie] = now
        # Ended meanwhile, or no descriptor or memory left: the next query tries again.
        with suppress(ZfwError, OSError):
            path = listeners.namespace_of(cookie, self._candidates(pid))
            if path is None:
                return
            if cookie not in self._served and len(self._served) >= self._most:
                self._make_room()
            opened = listeners.open_in(path)
            known = self._served.get(cookie)
            if known is not None and len(opened.udp) <= len(known.listeners.udp):
                opened.close()
                return
            try:
                self._maps.write_listeners(opened)
            except OSError:
                opened.close()
                raise
            self.serve(opened)

    def release_unused(self) -> None:
        """Leave namespaces that no guarded process is in, and from which no query came lately."""
        others = [each for cookie, each in self._served.items() if cookie != self._cookie]
        before = asyncio.get_running_loop().time() - GRACE
        idle = [each for each in others if each.last_used < before]
        if not idle:
            return
        used: set[int] = set()
        with suppress(NotFound):  # the cgroup was removed
            for pid in cgroup.processes(self._cgroup, is_recursive=True):
                used |= inodes_of(pid)
        for each in idle:
            if each.inode not in used:
                self._leave(each)

    def _make_room(self) -> None:
        """Leave what is unused, and in any case the namespace that asked longest ago."""
        self.release_unused()
        others = [each for cookie, each in self._served.items() if cookie != self._cookie]
        if len(self._served) >= self._most and others:
            self._leave(min(others, key=lambda each: each.last_used))

    def _leave(self, namespace: _Namespace) -> None:
        cookie = namespace.listeners.cookie
        self._maps.remove_proxy(cookie)
        self._withdraw(cookie)
        if self._sender is not None:
            self._sender.let_go(cookie)

    def _withdraw(self, cookie: int) -> None:
        known = self._served.pop(cookie, None)
        if known is not None:
            self._proxy.withdraw(known.listeners.udp, known.listeners.tcp)
            known.close()

    def _candidates(self, pid: int) -> Iterator[int]:
        """Processes that may be in the namespace: the client first, then all guarded ones.

        ``pid`` is the client's in the initial PID namespace. Here it may have another pid, or
        have ended.
        """
        yield pid
        yield from cgroup.processes(self._cgroup, is_recursive=True)
