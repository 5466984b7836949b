# SPDX-License-Identifier: GPL-2.0-only
"""A stand-in for a container engine, for replies that a real one never gives: wrong, late, none.

It has the part of Docker's API by which zfw finds a container: GET /version,
GET /containers/(id)/json and GET /events. For real containers see tests/support/podman.py.
https://docs.docker.com/reference/api/engine/version/v1.41/
"""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from queue import Queue
from socketserver import BaseRequestHandler, ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

API = "1.41"


def container(name: str, pid: int, **state: object) -> dict[str, Any]:
    """An engine's object of a running container: the fields that zfw reads."""
    running = {"Status": "running", "Running": True, "Paused": False, "Pid": pid}
    return {"Id": "ab" * 32, "Name": f"/{name}", "State": running | state}


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: object, client_address: object) -> None:
        # The client may close the connection first.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    def reply(self, status: int, body: bytes) -> None:
        """Send JSON."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


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
    """An engine at a socket, with these containers; yields a list of the requests so far.

    ``answers`` replace its replies by a status and a body: ``version`` that to GET /version,
    ``inspect`` those about containers.
    """
    known = {each["Name"].lstrip("/"): each for each in containers}
    asked: list[str] = []

    class Handler(_Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.reply(*self.answer())

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

    with _serving(path, Handler):
        yield asked


@contextmanager
def conversation(path: Path, speak: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server at a socket that calls ``speak`` with each connection."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            speak(self.request)

    with _serving(path, Handler):
        yield


class LiveEngine:
    """An engine whose containers start and end, with events to its listeners."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.containers: dict[str, dict[str, Any]] = {}
        self.listeners: list[Queue[bytes | None]] = []
        self._changed = threading.Condition()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve, for the length of a with block."""
        live = self

        class Handler(_Handler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.startswith(f"/v{API}/events"):
                    self.tell()
                    return
                self.reply(*live.answer(self.path))

            def tell(self) -> None:
                self.close_connection = True
                told: Queue[bytes | None] = Queue()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                live.listen(told)
                while (data := told.get()) is not None:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        with _serving(self.path, Handler):
            try:
                yield
            finally:
                self.hang_up()

    def answer(self, path: str) -> tuple[int, bytes]:
        """The reply to a request: status and body."""
        if path == "/version":
            return 200, json.dumps({"ApiVersion": API, "MinAPIVersion": "1.12"}).encode()
        name = path.removeprefix(f"/v{API}/containers/").removesuffix("/json")
        known = {
            key: each for each in self.containers.values() for key in (each["Name"][1:], each["Id"])
        }
        if name not in known:
            return 404, json.dumps({"message": f"No such container: {name}"}).encode()
        return 200, json.dumps(known[name]).encode()

    def listen(self, told: Queue[bytes | None]) -> None:
        """Add a listener: later events are put into this queue."""
        with self._changed:
            self.listeners.append(told)
            self._changed.notify_all()

    def wait_for_listener(self, timeout: float) -> None:
        """Wait until there is a listener."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.listeners, timeout), "no listener"

    def start(self, name: str, pid: int) -> None:
        """Start a container."""
        self.containers[name] = container(name, pid)
        self.tell("start", name)

    def end(self, name: str) -> None:
        """End a container, which the engine still knows."""
        self.containers[name] = container(name, 0, Status="exited", Running=False)
        self.tell("die", name)

    def rename(self, name: str, new: str) -> None:
        """Give a container another name."""
        self.containers[new] = self.containers.pop(name) | {"Name": f"/{new}"}
        self.tell("rename", new)

    def tell(self, action: str, name: str, **more: object) -> None:
        """Send an event with the documented fields."""
        actor = {"ID": "ab" * 32, "Attributes": {"name": name, "image": "machine"}}
        event = {"Type": "container", "Action": action, "Actor": actor, "time": 1, **more}
        self.send(json.dumps(event).encode() + b"\n")

    def send(self, data: bytes) -> None:
        """Send bytes to all listeners."""
        for each in self.listeners:
            each.put(data)

    def hang_up(self) -> None:
        """Close the connections of all listeners."""
        with self._changed:
            for each in self.listeners:
                each.put(None)
            self.listeners = []
