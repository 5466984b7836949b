# SPDX-License-Identifier: GPL-2.0-only
"""Asks the container engine for a container's first process, and for its starts and ends.

It speaks Docker's API, which podman serves too, by the optional package docker. zfw enters
the namespaces of the process that the engine names. It therefore asks only an engine whose
socket belongs to root or to the caller.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
import time
from contextlib import contextmanager, suppress
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import TYPE_CHECKING, Literal, NamedTuple

from zfw_py.errors import NotFound, PermissionDenied, UsageError, ZfwError
from zfw_py.kernel.process import descriptor_path, is_visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docker import APIClient
    from docker.types import CancellableStream

_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
_TIMEOUT = 5  # seconds for each answer
_MAX_EVENT = 1 << 20
# How long to wait for an engine that has gone, and the pauses between tries: seconds.
_PATIENCE = 120.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
# The names that docker and podman allow; an id matches as well.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


class Container(NamedTuple):
    """A running container."""

    name: str
    id: str
    pid: int  # of its first process, in the engine's PID namespace


class NotRunning(ZfwError):
    """The container exists, but has no process."""


def find(name: str) -> Container:
    """Find a running container by its name, its id, or the first digits of its id.

    If DOCKER_HOST is set (``unix://`` and a path), that engine is asked. Else Docker is asked,
    then podman. Raises UsageError for a malformed name, NotFound if no engine knows it,
    NotRunning, PermissionDenied, and ZfwError if an engine cannot be asked.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a container's name: {name!r}")
    for path in _engines():
        try:
            return _found(path, _inspect(path, name))
        except NotFound:
            continue
    raise NotFound(f"no such container: {name}")


def _engines() -> list[str]:
    host = os.environ.get("DOCKER_HOST")
    if host:
        path = host.removeprefix("unix://")
        if path == host or not path.startswith("/"):
            raise UsageError(f"DOCKER_HOST is {host!r}: not unix:// and an absolute path")
        return [path]
    paths = [path for path in _SOCKETS if os.path.exists(path)]
    if not paths:
        raise ZfwError(
            f"no container engine: there is no {' and no '.join(_SOCKETS)}",
            hint="start it, or set DOCKER_HOST=unix:///ITS/SOCKET",
        )
    return paths


@contextmanager
def _opened(path: str) -> Iterator[str]:
    """Check the owner of a socket; a path to it that stays the same socket's."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise _unreached(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode):
            raise ZfwError(f"container engine {path}: not a socket")
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionDenied(
                f"container engine {path}: belongs to user {status.st_uid}, not to root or you"
            )
        held = descriptor_path(fd)
        try:
            # The docker package would wrap the kernel's error several times.
            with socket(AF_UNIX, SOCK_STREAM) as probe:
                probe.settimeout(_TIMEOUT)
                probe.connect(held)
        except OSError as error:
            raise _unreached(path, error) from error
        yield held
    finally:
        os.close(fd)


def _unreached(path: str, error: OSError) -> ZfwError:
    if isinstance(error, PermissionError):
        return PermissionDenied(f"container engine {path}: permission denied")
    if isinstance(error, ConnectionRefusedError):
        return ZfwError(f"container engine {path}: nothing listens there")
    return ZfwError(f"container engine {path}: {error.strerror or error}")


@contextmanager
def _asked(path: str, name: str = "") -> Iterator[APIClient]:
    """A client of an engine; its exceptions become NotFound and ZfwError."""
    try:
        from docker import APIClient
        from docker.errors import APIError, DockerException
        from docker.errors import NotFound as Unknown
    except ImportError:
        raise ZfwError(
            "to find a container by its name zfw needs the docker package",
            hint="pip install 'zfw[docker]'",
        ) from None
    with _opened(path) as held:
        try:
            with APIClient(f"unix://{held}", version="auto", timeout=_TIMEOUT) as client:
                yield client
        except Unknown as error:
            raise NotFound(f"no such container: {name}") from error
        except APIError as error:
            raise ZfwError(f"container engine {path}: {_line(error.explanation)}") from error
        # requests raises OSErrors; docker the last four for an answer that is not as documented.
        except (
            DockerException,
            OSError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise _unanswered(path, error) from error


def _inspect(path: str, name: str) -> object:
    with _asked(path, name) as client:
        answer: object = client.inspect_container(name)
        return answer


def _unanswered(path: str, error: BaseException) -> ZfwError:
    # requests and urllib3 wrap a time-out several times.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return ZfwError(f"container engine {path}: no answer for {_TIMEOUT} s")
        cause = cause.__cause__ or cause.__context__
    return ZfwError(f"container engine {path}: no answer of Docker's API: {_line(error)}")


def _line(text: object) -> str:
    """The first line of an engine's text, at most 200 characters, all of them printable."""
    first = (str(text).strip().splitlines() or ["nothing"])[0]
    return "".join(each if each.isprintable() else "?" for each in first[:200])


def _found(path: str, answer: object) -> Container:
    """The container in the answer to GET /containers/(id)/json. Raises NotRunning, ZfwError."""
    match answer:
        case {
            "Name": str(name),
            "Id": str(identifier),
            "State": {"Running": bool(is_running), "Pid": int(pid), "Status": str(status)},
        } if _NAME.fullmatch(name.lstrip("/")) and _NAME.fullmatch(identifier):
            pass
        case _:
            raise ZfwError(f"container engine {path}: no answer of Docker's API: no container")
    name = name.lstrip("/")
    if not is_running or pid <= 0:
        raise NotRunning(f"container {name} is not running: {_line(status)}")
    if not is_visible(pid):
        raise NotRunning(f"container {name}: its process {pid} cannot be seen from here")
    return Container(name, identifier, pid)


# Events


class ContainerEvent(NamedTuple):
    """A change of a container, or of its engine.

    ``kind``: "runs" (``container`` is set), "absent" (the container does not run), "lost" (the
    engine is gone; Watch waits for it), "back" (the engine answers again; the container's state
    is the next event). ``reason``: one line of text for "absent" and "lost".
    """

    kind: Literal["runs", "absent", "lost", "back"]
    container: Container | None = None
    reason: str = ""


class Watch:
    """An iterator over the events of one container; the first one says whether it runs.

        for event in Watch("web"):
            print(event.kind)

    The iteration ends after ``close``. It raises ZfwError if no engine answers at first, or if
    the engine is gone for two minutes.
    """

    def __init__(self, name: str) -> None:
        """``name``: a name or an id. Raises UsageError if it is malformed.

        A container that is renamed while it runs is followed under its new name, until another
        one of this name starts.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"not a container's name: {name!r}")
        self._name = name
        self._id = ""  # of the container that ran last
        self._is_closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: CancellableStream | None = None

    def close(self) -> None:
        """End the iteration, from any thread, also while it waits."""
        with self._lock:
            self._is_closed.set()
            if self._stream is not None:
                _end(self._stream)

    def __iter__(self) -> Iterator[ContainerEvent]:
        path = self._engine()
        has_begun = False
        deadline: float | None = None  # until when to wait for an engine that is gone
        pause = _FIRST_PAUSE
        while not self._is_closed.is_set():
            reason = f"container engine {path} has ended the connection"
            began = time.monotonic()
            try:
                with self._listening(path) as events:
                    if deadline is not None:
                        yield ContainerEvent("back")
                    has_begun, deadline = True, None
                    yield self._now(path)
                    for event in events:
                        if self._is_about(event):
                            yield self._now(path)
            except ZfwError as error:
                if not has_begun:
                    raise
                reason = error.message
            if self._is_closed.is_set():
                return
            now = time.monotonic()
            if deadline is None:
                deadline = now + _PATIENCE
                yield ContainerEvent("lost", reason=reason)
            elif now > deadline:
                raise ZfwError(f"{reason}; given up after {_PATIENCE:.0f} s")
            # An engine that ends each connection at once must not be asked without a pause.
            pause = _FIRST_PAUSE if now - began > _LAST_PAUSE else min(2 * pause, _LAST_PAUSE)
            self._is_closed.wait(pause)

    def _engine(self) -> str:
        """The path of the engine that knows the container; else of the first one."""
        paths = _engines()
        for path in paths:
            try:
                _inspect(path, self._name)
                return path
            except NotFound:
                continue
        return paths[0]

    @contextmanager
    def _listening(self, path: str) -> Iterator[Iterable[object]]:
        with _asked(path) as client:
            # Not decoded by docker, which would wait for the rest of what is no JSON.
            stream = client.events(filters={"type": "container"})
            with self._lock:
                self._stream = stream
                is_closed = self._is_closed.is_set()
            try:
                yield () if is_closed else _events(stream)
            finally:
                with self._lock:
                    self._stream = None
                    _end(stream)

    def _now(self, path: str) -> ContainerEvent:
        try:
            found = self._find(path)
        except (NotFound, NotRunning) as error:
            return ContainerEvent("absent", reason=error.message)
        self._id = found.id
        return ContainerEvent("runs", found)

    def _find(self, path: str) -> Container:
        """The container of the name; if none has it, the one that had it last."""
        try:
            return _found(path, _inspect(path, self._name))
        except NotFound as error:
            if not self._id:
                raise
            try:
                return _found(path, _inspect(path, self._id))
            except NotFound:
                raise error from None

    def _is_about(self, event: object) -> bool:
        """Whether an event of GET /events is a start, an end or a new name of our container."""
        match event:
            case {
                "Action": "start" | "die" | "died" | "rename",
                "Actor": {"ID": str(identifier), "Attributes": {"name": str(name)}},
            }:
                return identifier == self._id or (
                    name == self._name or identifier.startswith(self._name)
                )
        return False


def _events(chunks: Iterable[bytes]) -> Iterator[object]:
    """The JSON values of a stream, one in each line. Raises ValueError for other data."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_EVENT:
            raise ValueError(f"an event of more than {_MAX_EVENT} bytes")
        for line in filter(None, lines):
            try:
                event = json.loads(line)
            except RecursionError:
                raise ValueError("an event that is too deep") from None
            yield event


def _end(stream: CancellableStream) -> None:
    """Close the connection, also while another thread reads from it."""
    # AttributeError: docker looks for a socket that the engine has closed already.
    with suppress(AttributeError, OSError):
        stream.close()
