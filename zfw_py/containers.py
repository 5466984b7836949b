# SPDX-License-Identifier: GPL-2.0-only
"""A container's name and its main process, as the container engine knows them; when it starts.

Through Docker's API, which podman serves too, by the optional package docker.
An engine says which process we are to act on, so only a socket of root's or of
the caller's own is asked.
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
_TIMEOUT = 5  # seconds, for each answer
_MAX_EVENT = 1 << 20
# How long an engine that has gone is waited for, and how long between tries.
_PATIENCE = 120.0
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
# What docker and podman let a container be called; an id is one as well.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


class Container(NamedTuple):
    """A running container."""

    name: str
    id: str
    pid: int  # of its first process, in the engine's PID namespace


class NotRunning(ZfwError):
    """There is a container of that name, and no process of it."""


def find(name: str) -> Container:
    """The running container of a name, an id or an id's first digits.

    The engine is the one of the environment variable DOCKER_HOST, a ``unix://``
    path; else Docker's, and podman's for what that one does not know or where there
    is no other. Raises UsageError for what is no name, NotFound if no engine knows
    it, NotRunning, and ZfwError if an engine cannot be asked.
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
    """Another path of a socket, which stays that of the socket whose owner was looked at."""
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
        place = descriptor_path(fd)
        try:
            # Here an error is still what the kernel said.
            with socket(AF_UNIX, SOCK_STREAM) as probe:
                probe.settimeout(_TIMEOUT)
                probe.connect(place)
        except OSError as error:
            raise _unreached(path, error) from error
        yield place
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
    """A client of an engine, whose failures are told as ours. Raises NotFound, ZfwError."""
    try:
        from docker import APIClient
        from docker.errors import APIError, DockerException
        from docker.errors import NotFound as Unknown
    except ImportError:
        raise ZfwError(
            "to find a container by its name zfw needs the docker package",
            hint="pip install 'zfw[docker]'",
        ) from None
    with _opened(path) as place:
        try:
            with APIClient(f"unix://{place}", version="auto", timeout=_TIMEOUT) as client:
                yield client
        except Unknown as error:
            raise NotFound(f"no such container: {name}") from error
        except APIError as error:
            raise ZfwError(f"container engine {path}: {_line(error.explanation)}") from error
        # Those of requests are OSErrors; the last are raised where an answer is not as documented.
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
    # The packages between wrap what happened several times.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return ZfwError(f"container engine {path}: no answer for {_TIMEOUT} s")
        cause = cause.__cause__ or cause.__context__
    return ZfwError(f"container engine {path}: no answer of Docker's API: {_line(error)}")


def _line(words: object) -> str:
    """Some words of an engine's, fit to be shown."""
    first = (str(words).strip().splitlines() or ["nothing"])[0]
    return "".join(each if each.isprintable() else "?" for each in first[:200])


def _found(path: str, answer: object) -> Container:
    """A container from what an engine answers, GET /containers/(id)/json."""
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


# What happens to it


class Happening(NamedTuple):
    """Something that happened to a container, or to the engine that knows of it.

    ``runs``: it does, from now on or since earlier; ``absent``: it does not; ``lost``: the
    engine has gone, and is waited for; ``back``: it is there again, and what has become of
    the container comes next.
    """

    kind: Literal["runs", "absent", "lost", "back"]
    container: Container | None = None
    reason: str = ""


class Watch:
    """What happens to the container of a name, from now on: to be iterated over, once.

    First it is whether it runs. Ends when it is closed, from whatever thread; raises
    ZfwError if there is no engine at first, or has been none for two minutes.
    """

    def __init__(self, name: str) -> None:
        """Raises UsageError for what is no name."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"not a container's name: {name!r}")
        self._name = name
        self._is_closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: CancellableStream | None = None

    def close(self) -> None:
        """End the iteration, also one that waits."""
        with self._lock:
            self._is_closed.set()
            if self._stream is not None:
                _end(self._stream)

    def __iter__(self) -> Iterator[Happening]:
        path = self._engine()
        has_begun = False
        deadline: float | None = None  # for an engine that has gone to be back
        pause = _FIRST_PAUSE
        while not self._is_closed.is_set():
            reason = f"container engine {path} has ended the connection"
            began = time.monotonic()
            try:
                with self._listening(path) as events:
                    if deadline is not None:
                        yield Happening("back")
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
                yield Happening("lost", reason=reason)
            elif now > deadline:
                raise ZfwError(f"{reason}; given up after {_PATIENCE:.0f} s")
            # One that ends each connection at once is not to be asked all the time.
            pause = _FIRST_PAUSE if now - began > _LAST_PAUSE else min(2 * pause, _LAST_PAUSE)
            self._is_closed.wait(pause)

    def _engine(self) -> str:
        """The engine that knows the container; the first, where none does."""
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
            # Not decoded: what is no JSON it would keep, and wait for the rest of.
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

    def _now(self, path: str) -> Happening:
        try:
            return Happening("runs", _found(path, _inspect(path, self._name)))
        except (NotFound, NotRunning) as error:
            return Happening("absent", reason=error.message)

    def _is_about(self, event: object) -> bool:
        """Whether an event, as GET /events tells it, is a start or an end of our container."""
        match event:
            case {
                "Action": "start" | "die" | "died",
                "Actor": {"ID": str(identifier), "Attributes": {"name": str(name)}},
            }:
                return name == self._name or identifier.startswith(self._name)
        return False


def _events(chunks: Iterable[bytes]) -> Iterator[object]:
    """JSON, a line each. Raises ValueError for anything else."""
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
    """Hang up, whoever reads from it."""
    # It looks for the socket where there is none any more, if the engine was quicker.
    with suppress(AttributeError, OSError):
        stream.close()
