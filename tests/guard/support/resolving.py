# SPDX-License-Identifier: GPL-2.0-only
"""Both ends of the guard's DNS proxy: a scripted upstream server, and a client."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from functools import partial
from struct import pack
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset

from zfw_py.guard.dns.proxy import Proxy
from zfw_py.guard.dns.upstream import Upstream
from zfw_py.values.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from zfw_py.guard.dns.listening import IsClient
    from zfw_py.guard.dns.proxy import AnsweredQuery

    Message = dns.message.Message
    # The replies to one query, in order: messages, or bytes that are sent as they are.
    Script = Callable[[Message, str], Iterable[Message | bytes]]

# Seconds; the machine may be slow.
PATIENCE = 30.0
LOOPBACK = "127.0.0.1"


def records(text: str) -> list[dns.rrset.RRset]:
    """RRsets from lines such as ``www.test. 60 A 192.0.2.1``, one for each name and type."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, ttl, rdtype, data = line.split(maxsplit=3)
        covers = data.split()[0] if rdtype == "RRSIG" else ""
        sets.setdefault((name, ttl, rdtype, covers), []).append(data)
    return [
        dns.rrset.from_text(name, int(ttl), "IN", rdtype, *data)
        for (name, ttl, rdtype, _), data in sets.items()
    ]


def response(
    query: Message,
    answer: str = "",
    *,
    authority: str = "",
    additional: str = "",
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
    flags: int = 0,
    options: Sequence[dns.edns.Option] = (),
) -> Message:
    """A response to a query, with these records."""
    made = dns.message.make_response(query, recursion_available=True)
    made.answer = records(answer)
    made.authority = records(authority)
    made.additional = records(additional)
    made.flags |= flags
    if query.edns >= 0:
        made.use_edns(0, query.ednsflags, 1232, options=list(options))
    made.set_rcode(rcode)
    return made


class FakeServer:
    """A name server on a UDP and a TCP socket of the same port; ``script`` says what it answers.

    ``asked`` has the queries with "udp" or "tcp". ``script`` may be exchanged at any time; it is
    called in the server's thread.
    """

    def __init__(self, script: Script, *, has_tcp: bool = True, port: int = 0) -> None:
        """Open the sockets and answer in a thread."""
        self.script = script
        self.asked: list[tuple[Message, str]] = []
        self.clients: list[tuple[str, int]] = []
        self._tcp = socket.socket()
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((LOOPBACK, port))
        self.server = Endpoint(*self._tcp.getsockname())
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(self.server)
        self._listening = [self._tcp] if has_tcp else []
        for each in self._listening:
            each.listen()
        self._wake, self._woken = socket.socketpair()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join()
        for each in (self._udp, self._tcp, self._woken):
            each.close()
        if self._failure is not None:
            raise self._failure

    def names(self) -> list[str]:
        """The names in the queries so far, in order."""
        return [query.question[0].name.to_text() for query, _ in self.asked]

    def _run(self) -> None:
        sockets = [self._udp, self._woken, *self._listening]
        own = len(sockets)
        try:
            while self._woken not in (ready := select.select(sockets, [], [])[0]):
                for each in ready:
                    if each is self._udp:
                        self._answer_datagram()
                    elif each is self._tcp:
                        sockets.append(self._tcp.accept()[0])
                    elif not self._answer_stream(each):
                        sockets.remove(each)
                        each.close()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self._failure = error
        finally:
            for each in sockets[own:]:
                each.close()

    def _answer_datagram(self) -> None:
        data, client = self._udp.recvfrom(65535)
        self.clients.append(client)
        for reply in self._replies(data, "udp"):
            self._udp.sendto(reply, client)

    def _answer_stream(self, stream: socket.socket) -> bool:
        stream.settimeout(PATIENCE)
        head = stream.recv(2, socket.MSG_WAITALL)
        if len(head) < 2:
            return False
        data = stream.recv(int.from_bytes(head), socket.MSG_WAITALL)
        for reply in self._replies(data, "tcp"):
            stream.sendall(pack("!H", len(reply)) + reply)
        return True

    def _replies(self, data: bytes, transport: str) -> Iterable[bytes]:
        query = dns.message.from_wire(data)
        self.asked.append((query, transport))
        for reply in self.script(query, transport):
            yield (
                reply
                if isinstance(reply, bytes)
                else reply.to_wire(max_size=65535, want_shuffle=False)
            )


class Policy:
    """A policy that allows ``*.test`` for any port, and a stand-in for the kernel's map."""

    def __init__(self) -> None:
        """Block nothing; the map is empty."""
        self.ports: dict[str, frozenset[int]] = {"test": frozenset()}
        self.blocked: set[str] = set()
        self.admitted: list[tuple[tuple[bytes, ...], frozenset[int], float]] = []
        self.events: list[AnsweredQuery] = []
        self.bugs: list[BaseException] = []
        self.is_full = False
        self.now = 1000.0

    def ports_of_name(self, name: str) -> frozenset[int] | None:
        """The ports of the rule for the name or a parent domain."""
        if self.is_blocked_name(name):
            return None
        for suffix in suffixes(name):
            if suffix in self.ports:
                return self.ports[suffix]
        return None

    def is_blocked_name(self, name: str) -> bool:
        """Whether the name or a parent domain is blocked."""
        return not self.blocked.isdisjoint(suffixes(name))

    def admit(self, addresses: Iterable[bytes], ports: frozenset[int], lifetime: float) -> None:
        """Record addresses; a full map refuses them."""
        if self.is_full:
            raise OSError(7, "Argument list too long")
        self.admitted.append((tuple(addresses), ports, lifetime))

    def proxy(self, **options: Any) -> Proxy:
        """A proxy with this policy, whose clock is ``now``."""
        return Proxy(
            ports_of_name=self.ports_of_name,
            is_blocked_name=self.is_blocked_name,
            admit=self.admit,
            report=self.events.append,
            on_bug=self.bugs.append,
            **options,
            clock=lambda: self.now,
        )


def suffixes(name: str) -> list[str]:
    """The name and its parent domains."""
    labels = name.split(".")
    return [".".join(labels[index:]) for index in range(len(labels))]


class Running:
    """A proxy in a thread, whose network namespace is that of this thread."""

    def __init__(
        self,
        proxy: Proxy,
        upstreams: Sequence[Endpoint] | Upstream,
        sockets: tuple[socket.socket, socket.socket] | None = None,
        is_client: IsClient = lambda *_: True,
    ) -> None:
        """Start the proxy; ``failure`` is the error that its ``run`` raised."""
        self.proxy = proxy
        self.failure: BaseException | None = None
        self.sockets = udp, tcp = sockets or bound_pair()
        self.address, self.port = udp.getsockname()[:2]
        if not isinstance(upstreams, Upstream):
            upstreams = Upstream(partial(list, upstreams))
        self.upstream = upstreams
        proxy.serve(self.upstream, is_client, udp, tcp)
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._has_begun.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if self.failure is not None and error is None:
            raise self.failure

    def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer on other sockets too."""
        self.call(self.proxy.serve, self.upstream, lambda *_: True, udp, tcp)

    def stop(self) -> None:
        """Stop the proxy, and wait until it has ended."""
        if self._loop is not None and self._thread.is_alive():
            self.call(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def join(self) -> BaseException | None:
        """Wait until the proxy ends by itself, and return its error."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        failure, self.failure = self.failure, None
        return failure

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in the proxy's event loop, unless that has ended."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            assert self._loop.is_closed()

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            task = asyncio.create_task(self.proxy.run(self._stop))
            await asyncio.sleep(0)  # it listens
            self._has_begun.set()
            await task

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self.failure = error

    # A client

    def udp(self) -> socket.socket:
        """A client's connected UDP socket."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(PATIENCE)
        made.connect((self.address, self.port))
        return made

    def tcp(self) -> socket.socket:
        """A client's TCP connection."""
        return socket.create_connection((self.address, self.port), PATIENCE)

    def ask(self, name: str, rdtype: str = "A", *, is_tcp: bool = False, **edns: Any) -> Message:
        """The answer to a question; dnspython checks that it matches the question."""
        query = dns.message.make_query(name, rdtype, **edns)
        return self.send(query, is_tcp=is_tcp)

    def send(self, query: Message, *, is_tcp: bool = False) -> Message:
        """The answer to a query."""
        exchange = dns.query.tcp if is_tcp else dns.query.udp
        return exchange(query, self.address, PATIENCE, self.port)

    def raw(self, data: bytes) -> bytes:
        """The datagram that answers a query."""
        with self.udp() as udp:
            udp.send(data)
            return udp.recv(65535)


def bound_pair(address: str = LOOPBACK, port: int = 0) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on one port of an address; port 0 selects a free one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        tcp = socket.socket(family)
        tcp.bind((address, port))
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            if port:
                raise
        else:
            return udp, tcp


def read_frames(stream: socket.socket, count: int) -> list[bytes]:
    """Read ``count`` messages from a TCP connection, fewer if it ends."""
    stream.settimeout(PATIENCE)
    found: list[bytes] = []
    while len(found) < count:
        head = stream.recv(2, socket.MSG_WAITALL)
        if len(head) < 2:
            break
        found.append(stream.recv(int.from_bytes(head), socket.MSG_WAITALL))
    return found


def framed(*messages: bytes) -> bytes:
    """Messages with the lengths that TCP needs before them."""
    return b"".join(pack("!H", len(message)) + message for message in messages)
