# SPDX-License-Identifier: GPL-2.0-only
"""Asks the upstream servers: which they are, and what one of them answers.

Each attempt has a socket of its own, connected to the server, with a port that the kernel draws and
an id that we draw: whoever cannot see the question has to guess both. What does not repeat the
question is not looked at, and waiting goes on.
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
from dns.message import from_wire
from dns.opcode import QUERY
from dns.rcode import FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, YXDOMAIN

from zfw_py.errors import NotFound, UsageError, ZfwError
from zfw_py.guard.dns import edns
from zfw_py.guard.dns.questions import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dns.message import Message
    from dns.name import Name

    from zfw_py.guard.dns.questions import Question

RESOLV_CONF = "/etc/resolv.conf"
PORT = 53
# As many as the C library reads (MAXNS).
_MOST_SYSTEM_UPSTREAMS = 3
_MOST_RESOLV_CONF = 65_536

ROUNDS = 2
UDP_TIMEOUT = 2.0
TCP_TIMEOUT = 4.0
_LARGEST = 65_535
_HEADER = 12
# In the third byte of a message.
_QR, _OPCODE, _TC = 0x80, 0x78, 0x02
_ANSWERS = frozenset({NOERROR, NXDOMAIN, YXDOMAIN})
# What a server may say without repeating the question: it could not read it.
_ERRORS = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})


class Server(NamedTuple):
    """Where an upstream server is: a literal address, perhaps with a zone, and a port."""

    address: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self[0]}:{self[1]}"


class NoAnswer(ZfwError):
    """No server had an answer. ``options`` are extended errors for the client that asked."""

    def __init__(self, message: str, options: bytes) -> None:
        super().__init__(message)
        self.options = options


def system_upstreams(path: str = RESOLV_CONF) -> list[Server]:
    """The servers that resolv.conf(5) names, three at most. Raises NotFound if it names none.

    As the C library does, lines and addresses that it cannot read are passed over.
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
            server = Server(words[1])
            if _socket_address(server) is not None:
                found.append(server)
    if not found:
        raise NotFound(f"{path} names no server", hint="--dns-upstream ADDR[:PORT] names one")
    return found[:_MOST_SYSTEM_UPSTREAMS]


def check_upstreams(upstreams: Iterable[Server], listening: Iterable[tuple[str, int]]) -> None:
    """Raise UsageError for a server that is no address, or that is the proxy itself.

    ``listening`` are addresses and ports of the proxy's sockets in the network namespace that it
    asks from. 127.0.0.1 of another namespace is another place: leave such sockets out.
    """
    own = [(_ip(address), port) for address, port in listening]
    for server in upstreams:
        if _socket_address(server) is None:
            raise UsageError(f"upstream {server}: not an IP address and a port from 1 to 65535")
        address = _ip(server.address)
        if address.is_unspecified:  # Linux connects to itself
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        for own_address, port in own:
            if port == server.port and (
                own_address == address or (own_address.is_unspecified and _is_local(address))
            ):
                raise UsageError(f"upstream {server}: this is the proxy itself")


def is_reply(asked: bytes, received: bytes) -> bool:
    """Whether a message answers this one: its id, its opcode and its question, case aside."""
    if len(received) < _HEADER or received[:2] != asked[:2]:
        return False
    if not received[2] & _QR or received[2] & _OPCODE != QUERY:
        return False
    questions = int.from_bytes(received[4:6])
    if questions == 0:
        return received[3] & 15 in _ERRORS
    end = _HEADER
    while asked[end]:
        end += 1 + asked[end]
    end += 1
    return (
        questions == 1
        and received[_HEADER:end].lower() == asked[_HEADER:end].lower()
        and received[end : end + 4] == asked[end : end + 4]
    )


class Upstream:
    """The servers, asked one after the other, the one that was there last time first."""

    def __init__(self, servers: Sequence[Server]) -> None:
        """Ask these. Raises UsageError for one that is no address, or if there is none."""
        check_upstreams(servers, ())
        self._servers = [found for server in servers if (found := _socket_address(server))]
        if not self._servers:
            raise UsageError("no upstream server")
        self._first = 0

    async def ask(self, name: Name, question: Question, deadline: float) -> Message:
        """What a server says of this name, for the rest as in the question.

        The deadline is a time of the running loop. Servers that do not answer, or that answer with
        an error, are passed over; after two rounds NoAnswer is raised.
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
                    self._pass_over(server)
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

    def _pass_over(self, server: _Server) -> None:
        """Begin with the next one from now on, so that its silence is waited for once."""
        if self._servers[self._first] is server:
            self._first = (self._first + 1) % len(self._servers)


class _Server(NamedTuple):
    family: int
    address: Any


async def _ask_server(server: _Server, name: Name, question: Question, deadline: float) -> Message:
    """Ask over UDP, over TCP what does not fit, without EDNS a server that does not know it."""
    for is_edns in (True, False):
        asked = query(name, question, is_edns=is_edns)
        received = await _ask_udp(server, asked, deadline)
        if received[2] & _TC:
            received = await _ask_tcp(server, asked, deadline)
        try:
            reply = from_wire(received, keyring=False)
        except DNSException as error:
            raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from error
        if reply.opt is not None or reply.rcode() not in (FORMERR, NOTIMP):
            break
    return reply


async def _ask_udp(server: _Server, asked: bytes, deadline: float) -> bytes:
    loop = asyncio.get_running_loop()
    message = token_bytes(2) + asked
    answered: asyncio.Future[bytes] = loop.create_future()

    def receive() -> None:
        try:
            received = udp.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError as error:  # nobody is there, says ICMP
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
        # By number: asyncio looks it up first, and has a socket describe itself in the error.
        fd = udp.fileno()
        loop.add_reader(fd, receive)
        timer = loop.call_at(min(loop.time() + UDP_TIMEOUT, deadline), expire)
        try:
            return await answered
        finally:
            timer.cancel()
            loop.remove_reader(fd)


async def _ask_tcp(server: _Server, asked: bytes, deadline: float) -> bytes:
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


def _socket_address(server: Server) -> _Server | None:
    """The address for sockets; None if it is none."""
    try:
        ip_address(server.address)
        found = socket.getaddrinfo(
            *server, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (ValueError, socket.gaierror):  # gaierror: a zone that is no interface's name
        return None
    return _Server(found[0][0], found[0][4]) if 0 < server.port < 65_536 else None


def _ip(address: str) -> IPv4Address | IPv6Address:
    """The address as such, IPv4 also where it is written as IPv6."""
    ip = ip_address(address)
    return ip.ipv4_mapped or ip if ip.version == 6 else ip


def _is_local(address: IPv4Address | IPv6Address) -> bool:
    """Whether this host has the address: only then can a socket be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as udp:
        try:
            udp.bind((str(address), 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return False
    return True
