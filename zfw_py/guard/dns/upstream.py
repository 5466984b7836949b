# SPDX-License-Identifier: GPL-2.0-only
"""Finds the upstream servers, and sends queries to them.

Each attempt has its own socket, connected to the server, with a random port and a random id: an
attacker who cannot see the query has to guess both. A packet that does not repeat the question is
ignored.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import token_bytes
from struct import pack
from typing import TYPE_CHECKING, Any, NamedTuple

from dns.exception import DNSException
from dns.opcode import QUERY
from dns.rcode import FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, YXDOMAIN

from zfw_py.errors import NotFound, UsageError, ZfwError
from zfw_py.guard.dns import edns
from zfw_py.guard.dns.questions import query
from zfw_py.guard.dns.wire import HEADER, read_reply
from zfw_py.values.endpoint import DNS_PORT, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dns.message import Message
    from dns.name import Name

    from zfw_py.guard.dns.questions import Question

RESOLV_CONF = "/etc/resolv.conf"
# The C library reads as many (MAXNS).
_MOST_SYSTEM_UPSTREAMS = 3
_MOST_RESOLV_CONF = 65_536

ROUNDS = 2
UDP_TIMEOUT = 2.0
TCP_TIMEOUT = 4.0
_LARGEST = 65_535
# In the third byte of a message.
_QR, _OPCODE, _TC = 0x80, 0x78, 0x02
_ANSWERS = frozenset({NOERROR, NXDOMAIN, YXDOMAIN})
# Errors of a server that could not read the query, and so does not repeat the question.
_ERRORS = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})


class NoAnswer(ZfwError):
    """No server had an answer. ``options``: extended errors for the client, as EDNS options."""

    def __init__(self, message: str, options: bytes) -> None:
        super().__init__(message)
        self.options = options


def system_upstreams(path: str = RESOLV_CONF) -> list[Endpoint]:
    """The name servers in resolv.conf(5), at most three. Raises NotFound if there is none.

    Skips lines and addresses that it cannot parse, as the C library does.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_RESOLV_CONF).decode("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            server = Endpoint(words[1], DNS_PORT)
            if _socket_address(server) is not None:
                found.append(server)
    if not found:
        raise NotFound(f"{path} names no server", hint="--dns-upstream ADDR[:PORT] names one")
    return found[:_MOST_SYSTEM_UPSTREAMS]


def check_upstreams(upstreams: Iterable[Endpoint], listening: Iterable[tuple[str, int]]) -> None:
    """Raise UsageError for a server that is not an IP address, or that is the proxy itself.

    ``listening``: addresses and ports of the proxy's sockets in the network namespace from which it
    asks. Leave out sockets of other namespaces: their 127.0.0.1 is another host.
    """
    own = [(_ip(address), port) for address, port in listening]
    for server in upstreams:
        if _socket_address(server) is None:
            raise UsageError(f"upstream {server}: not an IP address and a port from 1 to 65535")
        address = _ip(server.address)
        if address.is_unspecified:  # Linux connects to loopback
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        for own_address, port in own:
            if port == server.port and (
                own_address == address or (own_address.is_unspecified and _is_local(address))
            ):
                raise UsageError(f"upstream {server}: this is the proxy itself")


def is_reply(asked: bytes, received: bytes) -> bool:
    """Whether a message replies to ``asked``: same id, opcode and question, ignoring case."""
    if len(received) < HEADER or received[:2] != asked[:2]:
        return False
    if not received[2] & _QR or received[2] & _OPCODE != QUERY:
        return False
    questions = int.from_bytes(received[4:6])
    if questions == 0:
        return received[3] & 15 in _ERRORS
    end = HEADER
    while asked[end]:
        end += 1 + asked[end]
    end += 1
    return (
        questions == 1
        and received[HEADER:end].lower() == asked[HEADER:end].lower()
        and received[end : end + 4] == asked[end : end + 4]
    )


class Upstream:
    """The upstream servers, asked in turn; the first is the one that answered last."""

    def __init__(self, servers: Sequence[Endpoint]) -> None:
        """Raises UsageError for a server that is not an IP address, or if there is none."""
        check_upstreams(servers, ())
        self._servers = [found for server in servers if (found := _socket_address(server))]
        if not self._servers:
            raise UsageError("no upstream server")
        self._first = 0

    async def ask(self, name: Name, question: Question, deadline: float) -> Message:
        """Ask for this name, with the type and flags of the question; the first good reply.

        ``deadline`` is a time of the running loop. A server that does not answer, or answers with
        an error, is skipped. Raises NoAnswer after two rounds.
        """
        loop = asyncio.get_running_loop()
        servers = self._servers[self._first :] + self._servers[: self._first]
        errors = b""
        for _ in range(ROUNDS):
            for server in servers.copy():
                if loop.time() >= deadline:
                    break
                try:
                    reply = await _ask_server(server, name, question, deadline)
                except OSError:
                    self._skip(server)
                    continue
                if reply.rcode() in _ANSWERS:
                    return reply
                more = edns.errors(reply.options)
                if len(errors) + len(more) <= edns.MOST_OPTIONS:
                    errors += more
                servers.remove(server)
        if len(servers) == len(self._servers):
            reason = edns.extended_error(edns.NO_REACHABLE_AUTHORITY)
            raise NoAnswer("no upstream server answers", reason)
        reason = edns.extended_error(edns.NETWORK_ERROR)
        raise NoAnswer("no upstream server knows", errors or reason)

    def _skip(self, server: _SocketAddress) -> None:
        """Start with the next server from now on: only this query waits for the silent one."""
        if self._servers[self._first] is server:
            self._first = (self._first + 1) % len(self._servers)


class _SocketAddress(NamedTuple):
    family: int
    address: Any


async def _ask_server(
    server: _SocketAddress, name: Name, question: Question, deadline: float
) -> Message:
    """Ask over UDP; over TCP if the reply is truncated; again without EDNS if it is not known."""
    for is_edns in (True, False):
        asked = query(name, question, is_edns=is_edns)
        received = await _ask_udp(server, asked, deadline)
        if received[2] & _TC:
            received = await _ask_tcp(server, asked, deadline)
        try:
            reply = read_reply(received, question.rdtype)
        except DNSException as error:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from error
        if reply.opt is not None or reply.rcode() not in (FORMERR, NOTIMP):
            break
    return reply


async def _ask_udp(server: _SocketAddress, asked: bytes, deadline: float) -> bytes:
    loop = asyncio.get_running_loop()
    message = token_bytes(2) + asked
    answered: asyncio.Future[bytes] = loop.create_future()

    def receive() -> None:
        try:
            received = udp.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError as error:  # an ICMP error: no server listens there
            if not answered.done():
                answered.set_exception(error)
            return
        if not answered.done() and is_reply(message, received):
            answered.set_result(received)

    def expire() -> None:
        if not answered.done():
            answered.set_exception(TimeoutError())

    with socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as udp:
        udp.connect(server.address)
        udp.send(message)
        # By number: with a socket object, asyncio formats it for an error on each call.
        fd = udp.fileno()
        loop.add_reader(fd, receive)
        timer = loop.call_at(min(loop.time() + UDP_TIMEOUT, deadline), expire)
        try:
            return await answered
        finally:
            timer.cancel()
            loop.remove_reader(fd)


async def _ask_tcp(server: _SocketAddress, asked: bytes, deadline: float) -> bytes:
    loop = asyncio.get_running_loop()
    message = token_bytes(2) + asked
    with socket.socket(server.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as tcp:
        async with asyncio.timeout_at(min(loop.time() + TCP_TIMEOUT, deadline)):
            await loop.sock_connect(tcp, server.address)
            await loop.sock_sendall(tcp, pack("!H", len(message)) + message)
            while True:
                length = int.from_bytes(await _receive(tcp, 2))
                received = await _receive(tcp, length)
                if is_reply(message, received):
                    return received


async def _receive(tcp: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = b""
    while len(received) < length:
        more = await loop.sock_recv(tcp, length - len(received))
        if not more:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        received += more
    return received


def _socket_address(server: Endpoint) -> _SocketAddress | None:
    """The address for connect(2); None if it is not an IP address with a valid port."""
    try:
        ip_address(server.address)
        found = socket.getaddrinfo(
            *server, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (ValueError, socket.gaierror):  # gaierror: a zone without such an interface
        return None
    return _SocketAddress(found[0][0], found[0][4]) if 0 < server.port < 65_536 else None


def _ip(address: str) -> IPv4Address | IPv6Address:
    """The parsed address; an IPv4-mapped one as IPv4."""
    ip = ip_address(address)
    return ip.ipv4_mapped or ip if ip.version == 6 else ip


def _is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has the address: a socket can be bound to it only then."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        try:
            udp.bind((str(address), 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True
