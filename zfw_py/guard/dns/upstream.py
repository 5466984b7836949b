# SPDX-License-Identifier: GPL-2.0-only
"""Sends queries to the upstream servers.

Each attempt has its own socket, connected to the server, with a random port and a random id: an
attacker who cannot see the query has to guess both. A packet that does not repeat the question is
ignored.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import token_bytes
from struct import pack
from typing import TYPE_CHECKING, Any, NamedTuple

from dns.exception import DNSException
from dns.opcode import QUERY
from dns.rcode import FORMERR, NOERROR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, YXDOMAIN

from zfw_py.errors import UsageError, ZfwError
from zfw_py.guard.dns import edns
from zfw_py.guard.dns.questions import query
from zfw_py.guard.dns.wire import HEADER, read_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dns.message import Message
    from dns.name import Name
    from dns.rcode import Rcode

    from zfw_py.guard.dns.questions import Question
    from zfw_py.values.endpoint import Endpoint

    # Calls a function, and returns its result or raises its error.
    Within = Callable[[Callable[[], Any]], Any]

# For the first server, then for each next one that is asked too.
ROUNDS = 2
UDP_TIMEOUT = 2.0
TCP_TIMEOUT = 4.0
# A server that did not answer so many queries in a row is asked last for some seconds.
_SILENCES = 2
PENALTY = 5.0
# How often the list of servers is looked at, in seconds.
LOOK_INTERVAL = 0.5
_LARGEST = 65_535
# In the third byte of a message.
_QR, _OPCODE, _TC = 0x80, 0x78, 0x02
_ANCOUNT = slice(6, 8)  # the number of records in the answer section
_ANSWERS = frozenset({NOERROR, NXDOMAIN, YXDOMAIN})
# Errors of a server that could not read the query, and so does not repeat the question.
_ERRORS = frozenset({FORMERR, SERVFAIL, NOTIMP, REFUSED})

_epochs = itertools.count(1)


class NoAnswer(ZfwError):
    """No server had an answer.

    ``rcode``: the error of the last server that answered with one, as a resolver reports it.
    ``options``: extended errors for the client, as EDNS options. ``is_silence``: nothing at all
    came from any server in the time, not even an ICMP error.
    """

    def __init__(
        self, message: str, options: bytes, rcode: Rcode = SERVFAIL, *, is_silence: bool = False
    ) -> None:
        super().__init__(message)
        self.options = options
        self.rcode = rcode
        self.is_silence = is_silence


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


def is_usable(server: Endpoint) -> bool:
    """Whether this is an IP address with a port, and its zone an interface of the caller."""
    return _socket_address(server) is not None


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
    """The upstream servers of a network namespace, asked in their order.

    The order is meant: with split DNS the first server knows names that the next one denies. So a
    lost packet is sent again before the next server is asked, and a server that refuses or stays
    silent is asked first again by the next query. Only one that is silent twice is asked last, for
    PENALTY seconds.

    ``epoch`` is another number whenever the servers are others; answers of one are not for the
    other.
    """

    def __init__(
        self,
        servers: Callable[[], Sequence[Endpoint]],
        within: Within = lambda function: function(),
    ) -> None:
        """``servers`` returns the servers of now; ``within`` calls a function in the namespace."""
        self._source = servers
        self._within = within
        self._named: tuple[Endpoint, ...] | None = None
        self._servers: list[_SocketAddress] = []
        self._silent: dict[_SocketAddress, tuple[int, float]] = {}
        self._next_look = 0.0
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The number of the list of servers. Looks whether it has changed."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_look:
            self._next_look = now + LOOK_INTERVAL
            named = tuple(self._within(self._source))
            if named != self._named:
                self._named = named
                self._servers = self._within(
                    lambda: [found for each in named if (found := _socket_address(each))]
                )
                self._silent.clear()
                self._epoch = next(_epochs)
        return self._epoch

    async def ask(self, name: Name, question: Question, deadline: float) -> Message:
        """Ask for this name, with the type and flags of the question; the first good reply.

        ``deadline`` is a time of the running loop. A server that answers with an error is not asked
        again. While one is silent, the next one is asked too. Raises NoAnswer after two rounds: if
        one has answered with an error, the others have UDP_TIMEOUT more, else until the deadline.
        """
        loop = asyncio.get_running_loop()
        servers = self._in_order()
        plan = [server for _ in range(ROUNDS) for server in servers]
        attempts: dict[asyncio.Task[Message], _SocketAddress] = {}
        errors = b""
        failed: dict[_SocketAddress, Rcode] = {}
        is_silence = False
        try:
            while (plan or attempts) and loop.time() < deadline:
                if plan:
                    server = plan.pop(0)
                    attempt = self._ask_server(server, name, question, deadline)
                    attempts[loop.create_task(attempt)] = server
                left = max(deadline - loop.time(), 0)
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=min(UDP_TIMEOUT, left) if plan or failed else left,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    self._note_silence(server)
                    if not plan:
                        break
                for task in [each for each in attempts if each in done]:
                    answering = attempts.pop(task)
                    try:
                        reply = task.result()
                    except OSError as error:
                        is_silence |= isinstance(error, TimeoutError)
                        continue
                    self._silent.pop(answering, None)
                    if reply.rcode() in _ANSWERS:
                        return reply
                    failed[answering] = reply.rcode()
                    more = edns.errors(reply.options)
                    if len(errors) + len(more) <= edns.MOST_OPTIONS:
                        errors += more
                    plan = [each for each in plan if each != answering]
        finally:
            is_silence |= bool(attempts)
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)
        if not failed:
            reason = edns.extended_error(edns.NO_REACHABLE_AUTHORITY)
            raise NoAnswer("no upstream server answers", reason, is_silence=is_silence)
        reason = edns.extended_error(edns.NETWORK_ERROR)
        last = [failed[each] for each in servers if each in failed][-1]
        rcode = last if last in _ERRORS else SERVFAIL
        raise NoAnswer("no upstream server knows", errors or reason, rcode)

    def _in_order(self) -> list[_SocketAddress]:
        """The servers, those that are silent last."""
        now = asyncio.get_running_loop().time()
        return sorted(self._servers, key=lambda each: self._silent.get(each, (0, 0.0))[1] > now)

    def _note_silence(self, server: _SocketAddress) -> None:
        count = self._silent.get(server, (0, 0.0))[0] + 1
        until = asyncio.get_running_loop().time() + PENALTY if count >= _SILENCES else 0.0
        self._silent[server] = (count, until)

    async def _ask_server(
        self, server: _SocketAddress, name: Name, question: Question, deadline: float
    ) -> Message:
        """Ask over UDP; over TCP if the reply is truncated; without EDNS if it is not known.

        The truncated reply counts if the server does not serve TCP: musl and busybox use it too.
        """
        for is_edns in (True, False):
            asked = query(name, question, is_edns=is_edns)
            with self._socket(server, socket.SOCK_DGRAM) as udp:
                received = await _ask_udp(udp, server.address, asked, deadline)
            if received[2] & _TC:
                with self._socket(server, socket.SOCK_STREAM) as tcp:
                    try:
                        received = await _ask_tcp(tcp, server.address, asked, deadline)
                    except OSError:
                        if not any(received[_ANCOUNT]):
                            raise
            try:
                reply = read_reply(received, question.rdtype)
            except DNSException as error:
                raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG)) from error
            if reply.opt is not None or reply.rcode() not in (FORMERR, NOTIMP):
                break
        return reply

    def _socket(self, server: _SocketAddress, kind: socket.SocketKind) -> socket.socket:
        made: socket.socket = self._within(
            lambda: socket.socket(server.family, kind | socket.SOCK_NONBLOCK)
        )
        return made


class _SocketAddress(NamedTuple):
    family: int
    address: Any


async def _ask_udp(udp: socket.socket, address: Any, asked: bytes, deadline: float) -> bytes:
    """Send a query, once more after half a time-out, and wait for the reply."""
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

    def send_again() -> None:
        try:
            udp.send(message)
        except OSError as error:
            if not answered.done():
                answered.set_exception(error)

    udp.connect(address)
    udp.send(message)
    # By number: with a socket object, asyncio formats it for an error on each call.
    fd = udp.fileno()
    loop.add_reader(fd, receive)
    timers = (loop.call_later(UDP_TIMEOUT / 2, send_again), loop.call_at(deadline, expire))
    try:
        return await answered
    finally:
        for timer in timers:
            timer.cancel()
        loop.remove_reader(fd)


async def _ask_tcp(tcp: socket.socket, address: Any, asked: bytes, deadline: float) -> bytes:
    loop = asyncio.get_running_loop()
    message = token_bytes(2) + asked
    async with asyncio.timeout_at(min(loop.time() + TCP_TIMEOUT, deadline)):
        await loop.sock_connect(tcp, address)
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
