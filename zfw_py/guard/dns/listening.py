# SPDX-License-Identifier: GPL-2.0-only
"""The proxy's side towards its clients: messages off sockets, and answers back onto them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from functools import partial
from struct import pack
from typing import TYPE_CHECKING, Any, Literal

from zfw_py.guard.dns import questions

if TYPE_CHECKING:
    import socket

Transport = Literal["udp", "tcp"]
Reply = Callable[[bytes], None]
# A message, who sent it, by what, and how it is answered, at once or later. False: it will not be.
Handle = Callable[[bytes, tuple[str, int], Transport, Reply], bool]
# Has a task run this, and sees to what becomes of it.
Spawn = Callable[[Coroutine[Any, Any, None]], None]

# One look at a socket takes that many datagrams; then others have their turn.
_BATCH = 64
_BACKLOG = 128
MOST_CONNECTIONS = 100
# For a whole question to come, and for an answer to be taken: RFC 7766 wants some seconds.
IDLE = 10.0
# Unanswered questions of a connection; an answer has up to 64 KB, which its client may not take.
_MOST_UNANSWERED = 16
_LARGEST = 2 + questions.LARGEST
# There is no descriptor or no memory for another connection: it waits for better times.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 1.0


class Datagrams:
    """UDP sockets, ours from now on. Each is bound to one address: what answers was asked."""

    def __init__(self, handle: Handle) -> None:
        """Without a socket yet."""
        self._handle = handle
        self._sockets: list[socket.socket] = []

    def listen(self, udp: socket.socket) -> None:
        """Take questions from this one as well; in the running loop."""
        udp.setblocking(False)
        self._sockets.append(udp)
        asyncio.get_running_loop().add_reader(udp, self._receive, udp)

    def close(self) -> None:
        """Take no more, and close the sockets."""
        for udp in self._sockets:
            asyncio.get_running_loop().remove_reader(udp)
            udp.close()

    def _receive(self, udp: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                message, client = udp.recvfrom(_LARGEST)
            except OSError:  # nothing is there, or an error of an earlier answer is told
                return
            self._handle(message, client[:2], "udp", partial(_send, udp, client))


def _send(udp: socket.socket, client: Any, message: bytes) -> None:
    try:
        udp.sendto(message, client)
    except OSError:  # lost, as datagrams are: who needs it asks again
        pass


class Connections:
    """TCP sockets that listen, ours from now on, and the connections to them."""

    def __init__(self, handle: Handle, spawn: Spawn) -> None:
        """Without a socket yet."""
        self._handle = handle
        self._spawn = spawn
        self._sockets: list[socket.socket] = []
        self._connected = 0

    def listen(self, tcp: socket.socket) -> None:
        """Accept connections to this one as well; in the running loop."""
        tcp.setblocking(False)
        tcp.listen(_BACKLOG)
        self._sockets.append(tcp)
        self._watch(tcp)

    def close(self) -> None:
        """Accept no more, and close the sockets. Connections end with their tasks."""
        for tcp in self._sockets:
            asyncio.get_running_loop().remove_reader(tcp)
            tcp.close()

    def _watch(self, tcp: socket.socket) -> None:
        if tcp.fileno() >= 0:  # not closed in a pause
            asyncio.get_running_loop().add_reader(tcp, self._accept, tcp)

    def _accept(self, tcp: socket.socket) -> None:
        try:
            accepted, client = tcp.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                loop = asyncio.get_running_loop()
                loop.remove_reader(tcp)
                loop.call_later(_PAUSE, self._watch, tcp)
            return  # else the client has gone already
        if self._connected >= MOST_CONNECTIONS:
            accepted.close()
            return
        self._connected += 1
        self._spawn(self._converse(accepted, client[:2]))

    async def _converse(self, accepted: socket.socket, client: tuple[str, int]) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=accepted)
            try:
                await self._answer(reader, writer, client)
            except OSError:  # a client that has gone, or that does not take its answers
                pass
            finally:
                writer.transport.abort()
        finally:
            self._connected -= 1

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: tuple[str, int]
    ) -> None:
        """Take questions one after the other, and answer as answers come (RFC 7766)."""
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
            if message is None or not self._handle(message, client, "tcp", reply):
                break
        # Nothing more is asked; what was asked is still answered.
        for _ in range(_MOST_UNANSWERED - 1):
            await room.acquire()
        async with asyncio.timeout(IDLE):
            writer.close()
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """The next message; None if none comes, or one that is no question by its length."""
    try:
        async with asyncio.timeout(IDLE):
            length = int.from_bytes(await reader.readexactly(2))
            return await reader.readexactly(length) if length <= _LARGEST else None
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
