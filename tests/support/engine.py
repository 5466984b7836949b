# SPDX-License-Identifier: GPL-2.0-only
"""A stand-in of a container engine: as much of Docker's documented API as finds a container.

https://docs.docker.com/reference/api/engine/version/v1.41/: GET /version and
GET /containers/(id)/json. For what a real engine cannot be made to do: to be
wrong, slow or gone. The real one is in tests/support/podman.py.
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

API = "1.41"


def container(name: str, pid: int, **state: object) -> dict[str, Any]:
    """What an engine tells of a running container, as far as it is read."""
    running = {"Status": "running", "Running": True, "Paused": False, "Pid": pid}
    return {"Id": "ab" * 32, "Name": f"/{name}", "State": running | state}


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: object, client_address: object) -> None:
        # Whoever asks may hang up first.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def _serving(path: Path, handler: type[BaseRequestHandler]) -> Iterator[None]:
    with _Server(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


@contextmanager
def engine(
    path: Path, *containers: dict[str, Any], **answers: tuple[int, bytes]
) -> Iterator[list[str]]:
    """An engine at a socket, with these containers; the requests that came, as they come.

    ``answers`` are others in place of its own, status and body: ``version`` to the question for
    the version, ``inspect`` to any for a container.
    """
    known = {each["Name"].lstrip("/"): each for each in containers}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, body = self.answer()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self) -> tuple[int, bytes]:
            if self.path == "/version":
                own = {"Version": "20.10.0", "ApiVersion": API, "MinAPIVersion": "1.12"}
                return answers.get("version", (200, json.dumps(own).encode()))
            if "inspect" in answers:
                return answers["inspect"]
            prefix, suffix = f"/v{API}/containers/", "/json"
            name = self.path.removeprefix(prefix).removesuffix(suffix)
            if self.path != prefix + name + suffix:
                return 404, b'{"message":"page not found"}'
            if name not in known:
                return 404, json.dumps({"message": f"No such container: {name}"}).encode()
            return 200, json.dumps(known[name]).encode()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    with _serving(path, Handler):
        yield asked


@contextmanager
def conversation(path: Path, speak: Callable[[socket.socket], object]) -> Iterator[None]:
    """Something at a socket that is no engine: ``speak`` has each connection for itself."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            speak(self.request)

    with _serving(path, Handler):
        yield
