# SPDX-License-Identifier: GPL-2.0-only
"""The recipes of docs/RECIPES.md: its code blocks by name, run as they stand.

A block's name is the second word of its info string, such as "forward" in "```sh forward".
"""

from __future__ import annotations

import os
import re
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.netns import Namespace

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "RECIPES.md"
_BLOCK = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page() -> str:
    """The text of the page."""
    return _PAGE.read_text()


def block_names() -> list[str]:
    """The names of all code blocks that have one."""
    return [name for name, _ in _BLOCK.findall(page())]


def block(name: str) -> str:
    """The text of a code block. Raises KeyError."""
    return str(dict(_BLOCK.findall(page()))[name])


def follow(namespace: Namespace, name: str) -> None:
    """Run the commands of a block in a namespace. Raises AssertionError if one of them fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    namespace.run("/bin/sh", "-eu", "-c", block(name), env=os.environ | {"PATH": path})


def configuration(name: str, directory: Path, before: str = "", after: str = "") -> str:
    """Write a block to a file, between two texts of the test's own; the file's path."""
    path = directory / name
    path.write_text(before + block(name) + after)
    return str(path)


def is_listening(namespace: Namespace, port: int, protocol: str = "tcp") -> bool:
    """Whether a socket is bound to a port within the time that a daemon may need."""
    which = "-Hlnt" if protocol == "tcp" else "-Hlnu"
    return wait_until(lambda: f":{port} " in namespace.run("ss", which).stdout)


class _Handler(BaseHTTPRequestHandler):
    """Answers with the address of the client and the one that it asked."""

    def do_GET(self) -> None:
        addresses = (self.client_address, self.connection.getsockname())
        text = " asked ".join(str(address[0]).removeprefix("::ffff:") for address in addresses)
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    address_family = AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)


@contextmanager
def web_server(namespace: Namespace, port: int = 80) -> Iterator[None]:
    """An HTTP server of both families that answers "CLIENT asked ADDRESS"."""
    with namespace.entered():
        server = _Server(("::", port), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetched(
    namespace: Namespace, url: str, *, as_user: tuple[str, ...] = (), patience: float = 20
) -> str:
    """The body that curl gets, or "" if it got none within ``patience`` seconds.

    ``as_user`` are the command and options that start curl as another user, or nothing.
    """
    command = ("curl", "--silent", "--noproxy", "*", "--max-time", str(patience), url)
    return namespace.run(*as_user, *command, check=False).stdout
