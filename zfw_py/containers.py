# SPDX-License-Identifier: GPL-2.0-only
"""A container's name and its main process, as the container engine knows them.

Through Docker's API, which podman serves too, by the optional package docker.
An engine says which process we are to act on, so only a socket of root's or of
the caller's own is asked.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import NotFound, PermissionDenied, UsageError, ZfwError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOCKETS = ("/var/run/docker.sock", "/run/podman/podman.sock")
_TIMEOUT = 5  # seconds, for each answer
# What docker and podman let a container be called; an id is one as well.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


class Container(NamedTuple):
    """A running container."""

    name: str
    id: str
    pid: int  # of its first process, in the engine's PID namespace


def find(name: str) -> Container:
    """The running container of a name, an id or an id's first digits.

    The engine is the one of the environment variable DOCKER_HOST, a ``unix://``
    path; else Docker's, and podman's for what that one does not know or where there
    is no other. Raises UsageError for what is no name, NotFound if no engine knows
    it, and ZfwError if it does not run or an engine cannot be asked.
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
        place = f"/proc/self/fd/{fd}"
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


def _inspect(path: str, name: str) -> object:
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
                answer: object = client.inspect_container(name)
                return answer
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
        raise ZfwError(f"container {name} is not running: {_line(status)}")
    if not os.path.exists(f"/proc/{pid}"):
        raise ZfwError(f"container {name}: its process {pid} cannot be seen from here")
    return Container(name, identifier, pid)
