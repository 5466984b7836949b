# SPDX-License-Identifier: GPL-2.0-only
"""Receives queries on the proxy's UDP and TCP sockets and sends the replies."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from functools import partial
from struct import pack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zfw_py.guard.dns import questions

if TYPE_CHECKING:
    import socket

Transport = Literal["udp", "tcp"]
Reply = Callable[[bytes], None]
# Arguments: message, client, transport, and the function that sends the reply, now or later. False:
# there will be no reply.
Handle = Callable[[bytes, tuple[str, int], Transport, Reply], bool]
# Runs a coroutine as a task, and handles its exceptions.
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
# Whether a client, by its address and port, is one whose queries are answered.
IsClient = Callable[[tuple[str, int], Transport], bool]

# Datagrams that are read from a socket before other sockets get their turn.
_BATCH = 64
_BACKLOG = 128
MOST_CONNECTIONS = 100
# Seconds for a whole query to arrive, and for a reply to be read; RFC 7766 wants some seconds.
IDLE = 10.0
# Unanswered queries of a connection: a reply has up to 64 KB, which a client may not read.
_MOST_UNANSWERED = 16
_LARGEST = 2 + questions.LARGEST
# No descriptor or memory for another connection: leave it in the backlog for a second.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 1.0


class Datagrams:
    """The UDP sockets. Each is bound to one address, so a reply comes from the address asked."""

    def __init__(self) -> None:
        """Start without sockets."""
        self._sockets: list[socket.socket] = []

    def listen(self, udp: socket.socket, handle: Handle, is_client: IsClient) -> None:
        """Read queries from this socket too; call it in the running loop."""
        udp.setblocking(False)
        self._sockets.append(udp)
        asyncio.get_running_loop().add_reader(udp, self._receive, udp, handle, is_client)

    def close(self, udp: socket.socket) -> None:
        """Stop reading from this socket, and close it."""
        self._sockets.remove(udp)
        asyncio.get_running_loop().remove_reader(udp)
        udp.close()

    def close_all(self) -> None:
        """Close all sockets."""
        for udp in self._sockets.copy():
            self.close(udp)

    def _receive(self, udp: socket.socket, handle: Handle, is_client: IsClient) -> None:
        for _ in range(_BATCH):
            try:
                message, client = udp.recvfrom(_LARGEST)
            except OSError:  # no datagram left, or the error of an earlier reply
                return
            if is_client(client[:2], "udp"):
                handle(message, client[:2], "udp", partial(_send, udp, client))


def _send(udp: socket.socket, client: Any, message: bytes) -> None:
    try:
        udp.sendto(message, client)
    except OSError:  # the reply is lost; the client asks again
        pass


class _Connection(NamedTuple):
    """A connection: the socket that accepted it, and its task."""

    listener: socket.socket
    task: asyncio.Task[None]


class Connections:
    """The listening TCP sockets, and the connections to them.

    With too many connections, the one that sent no query for the longest time is closed.
    """

    def __init__(self, spawn: Spawn) -> None:
        """Start without sockets."""
        self._spawn = spawn
        self._sockets: list[socket.socket] = []
        # In the order of their last query, the latest last.
        self._open: dict[socket.socket, _Connection] = {}

    def listen(self, tcp: socket.socket, handle: Handle, is_client: IsClient) -> None:
        """Accept connections to this socket too; call it in the running loop."""
        tcp.setblocking(False)
        tcp.listen(_BACKLOG)
        self._sockets.append(tcp)
        self._watch(tcp, handle, is_client)

    def close(self, tcp: socket.socket) -> None:
        """Stop accepting on this socket, close it, and end the connections to it."""
        self._sockets.remove(tcp)
        asyncio.get_running_loop().remove_reader(tcp)
        tcp.close()
        for each in [each for each in self._open.values() if each.listener is tcp]:
            each.task.cancel()

    def close_all(self) -> None:
        """Close all sockets."""
        for tcp in self._sockets.copy():
            self.close(tcp)

    def _watch(self, tcp: socket.socket, handle: Handle, is_client: IsClient) -> None:
        if tcp.fileno() >= 0:  # unless it was closed during a pause
            asyncio.get_running_loop().add_reader(tcp, self._accept, tcp, handle, is_client)

    def _accept(self, tcp: socket.socket, handle: Handle, is_client: IsClient) -> None:
        try:
            accepted, client = tcp.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                loop = asyncio.get_running_loop()
                loop.remove_reader(tcp)
                loop.call_later(_PAUSE, self._watch, tcp, handle, is_client)
            return  # any other error: the client has closed the connection already
        if not is_client(client[:2], "tcp"):
            accepted.close()
            return
        if len(self._open) >= MOST_CONNECTIONS:
            # Its task ends later; this one counts no more from here on.
            self._open.pop(next(iter(self._open))).task.cancel()
        task = self._spawn(self._converse(accepted, client[:2], handle))
        self._open[accepted] = _Connection(tcp, task)

    async def _converse(
        self, accepted: socket.socket, client: tuple[str, int], handle: Handle
    ) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=accepted)
            try:
                await self._answer(accepted, reader, writer, client, handle)
            except OSError:  # the client closed the connection, or does not read its replies
                pass
            finally:
                writer.transport.abort()
        finally:
            self._open.pop(accepted, None)
            accepted.close()

    async def _answer(
        self,
        accepted: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        client: tuple[str, int],
        handle: Handle,
    ) -> None:
        """Read queries one after the other; send each reply when it is there (RFC 7766)."""
        room = asyncio.Semaphore(_MOST_UNANSWERED)

        def reply(message: bytes) -> None:
            if not writer.is_closing():
                writer.write(pack("!H", len(message)) + message)
            room.release()

        while True:
            await room.acquire()
            async with asyncio.timeout(IDLE):
                await writer.drain()
            message = await _read(reader)
            if message is None:
                break
            if (connection := self._open.pop(accepted, None)) is not None:
                self._open[accepted] = connection
            if not handle(message, client, "tcp", reply):
                break
        # No more queries; wait for the replies to those that were read.
        for _ in range(_MOST_UNANSWERED - 1):
            await room.acquire()
        async with asyncio.timeout(IDLE):
            writer.close()
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """The next message; None if none arrives in time, or if it is too long for a query."""
    try:
        async with asyncio.timeout(IDLE):
            length = int.from_bytes(await reader.readexactly(2))
            return await reader.readexactly(length) if length <= _LARGEST else None
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
