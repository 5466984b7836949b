# SPDX-License-Identifier: GPL-2.0-only
"""fetch.py WAY HOST PORT: what an HTTP server says, by one of Python's ways to get there."""

import asyncio
import socket
import sys
import urllib.request

REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def by_urllib(host: str, port: int) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/") as answer:
        body: bytes = answer.read()
    return body.decode()


def by_create_connection(host: str, port: int) -> str:
    with socket.create_connection((host, port)) as made:
        return _converse(made)


def by_dual_stack_socket(host: str, port: int) -> str:
    """IPv4 and IPv6 by sockets of AF_INET6 alone, as .NET and Java do it."""
    flags = socket.AI_V4MAPPED | socket.AI_ALL
    found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM, 0, flags)
    for place, (*kind, _, end) in enumerate(found):
        with socket.socket(*kind) as made:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                made.connect(end)
            except OSError:
                if place + 1 == len(found):
                    raise
                continue
            return _converse(made)
    raise AssertionError("no address, and no error")


def by_asyncio(host: str, port: int) -> str:
    async def run() -> str:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return body.decode()

    return asyncio.run(run())


def _converse(made: socket.socket) -> str:
    made.sendall(REQUEST)
    with made.makefile("rb") as answer:
        while answer.readline() != b"\r\n":
            pass
        return answer.readline().decode()


WAYS = {
    "urllib": by_urllib,
    "create_connection": by_create_connection,
    "dual_stack_socket": by_dual_stack_socket,
    "asyncio": by_asyncio,
}

if __name__ == "__main__":
    way, host, port = sys.argv[1:]
    try:
        sys.stdout.write(WAYS[way](host, int(port)))
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
