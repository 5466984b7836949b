# SPDX-License-Identifier: GPL-2.0-only
"""Containers by name, and all that an engine may answer instead; the engine is a stand-in."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import LiveEngine, container, conversation, engine
from zfw_py import containers
from zfw_py.containers import Container, ContainerEvent, NotRunning, Watch, find
from zfw_py.errors import NotFound, PermissionDenied, UsageError, ZfwError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "ab" * 32
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket that DOCKER_HOST names; nothing is there yet.

    At the end nothing is left open: what is collected then would be warned of.
    """
    made = tmp_path / "engine.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{made}")
    # No configuration of whoever runs the tests.
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    yield made
    gc.collect()


def refusal(kind: type[ZfwError], name: str = "web") -> str:
    """Exactly this error, and what it says."""
    with pytest.raises(ZfwError) as refused:
        find(name)
    assert type(refused.value) is kind, refused.value
    message = str(refused.value)
    assert message.isprintable()
    return message


def test_a_running_container_is_found_by_its_name(path: Path) -> None:
    with engine(path, container("web", os.getpid()), container("db-1.a_b", os.getppid())) as asked:
        assert find("web") == Container("web", ID, os.getpid())
        assert find("db-1.a_b") == Container("db-1.a_b", ID, os.getppid())
    assert asked == [
        "/version",
        "/v1.41/containers/web/json",
        "/version",
        "/v1.41/containers/db-1.a_b/json",
    ]


def test_a_container_that_nobody_knows(path: Path) -> None:
    with engine(path, container("web", os.getpid())):
        assert refusal(NotFound, "webb") == "no such container: webb"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../info", "-a", "a b", "a\n", "ä", "x" * 256, "a?b", "a%2fb"]
)
def test_what_is_no_name_is_not_asked_for(path: Path, name: str) -> None:
    with engine(path) as asked:
        assert refusal(UsageError, name) == f"not a container's name: {name!r}"
    assert asked == []


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"Status": "exited", "Running": False, "Pid": 0}, "is not running: exited"),
        ({"Status": "created", "Running": False, "Pid": 0}, "is not running: created"),
        ({"Status": "restarting", "Running": True, "Pid": 0}, "is not running: restarting"),
        ({"Status": "e\x1b[31m", "Running": False, "Pid": 0}, "is not running: e?[31m"),
        ({"Status": "running", "Pid": -1}, "is not running: running"),
        # The engine lives in another PID namespace, or on another machine.
        ({"Pid": 1 << 30}, "its process 1073741824 cannot be seen from here"),
    ],
)
def test_a_container_without_a_process_here(path: Path, state: dict[str, Any], told: str) -> None:
    with engine(path, container("web", os.getpid(), **state)):
        message = refusal(NotRunning)
    assert message.removeprefix("container web").lstrip(": ") == told


# Engines that cannot be asked


def test_an_engine_that_is_not_there(path: Path) -> None:
    assert refusal(ZfwError) == f"container engine {path}: No such file or directory"


def test_an_engine_that_has_gone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    assert refusal(ZfwError) == f"container engine {path}: nothing listens there"


def test_a_file_that_is_no_socket(path: Path) -> None:
    path.write_text("")
    assert refusal(ZfwError) == f"container engine {path}: not a socket"
    path.unlink()
    path.mkdir()
    assert refusal(ZfwError) == f"container engine {path}: not a socket"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another owner")
def test_an_engine_of_somebody_else_is_not_asked(path: Path) -> None:
    with engine(path, container("web", os.getpid())) as asked:
        os.chown(path, 65534, -1)
        told = f"container engine {path}: belongs to user 65534, not to root or you"
        assert refusal(PermissionDenied) == told
        assert asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes somebody else")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_engine_that_the_caller_may_not_ask(path: Path) -> None:
    """In a process of its own, which gives root up."""
    from tests.support.children import drop_privileges, in_child

    def as_nobody() -> object:
        drop_privileges()
        return find("web")

    for place in (path, path.parent):
        with engine(path, container("web", os.getpid())):
            for each in (path.parent.parent, path.parent):
                each.chmod(0o755)
            place.chmod(0o600)
            told = in_child(as_nobody)
            place.chmod(0o700)
        assert told == f"PermissionDenied: container engine {path}: permission denied"


def test_a_link_to_an_engine_is_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{link}")
    with engine(path, container("web", os.getpid())):
        assert find("web").pid == os.getpid()


def test_a_long_path_is_no_obstacle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes 107 bytes of one."""
    directory = path.parent / ("d" * 150)
    directory.mkdir()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{directory}/engine.sock")
    with engine(path, container("web", os.getpid())):
        path.rename(directory / "engine.sock")
        try:
            assert find("web").pid == os.getpid()
        finally:
            (directory / "engine.sock").rename(path)


@pytest.mark.parametrize(
    "body", ["", "[]", "null", '{"ApiVersion": 7}', '{"message": 1}', '{"x": 1}', "{", "9"]
)
@pytest.mark.parametrize("question", ["version", "inspect"])
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_an_answer_that_is_not_as_documented(
    path: Path, status: int, question: str, body: str
) -> None:
    answers = {question: (status, body.encode())}
    with engine(path, container("web", os.getpid()), **answers), pytest.raises(ZfwError) as refused:
        find("web")
    message = str(refused.value)
    assert message.startswith((f"container engine {path}: ", "no such container: web"))
    assert message.isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"Name": None},
        {"Name": "/"},
        {"Name": "/a\x1b[31m"},
        {"Id": 7},
        {"Id": ""},
        {"State": None},
        {"State": {}},
        {"State": {"Running": True, "Pid": "1", "Status": "running"}},
        {"State": {"Running": "yes", "Pid": 1, "Status": "running"}},
    ],
)
def test_a_container_that_is_not_as_documented(path: Path, change: dict[str, Any]) -> None:
    body = json.dumps(container("web", os.getpid()) | change).encode()
    with engine(path, inspect=(200, body)):
        told = f"container engine {path}: no answer of Docker's API: no container"
        assert refusal(ZfwError) == told


def test_an_error_of_the_engine_s_is_told_in_its_first_words(path: Path) -> None:
    body = json.dumps({"message": "database\x1b[2J is locked\nand more" + "x" * 5000}).encode()
    with engine(path, inspect=(500, body)):
        assert refusal(ZfwError) == f"container engine {path}: database?[2J is locked"


def test_an_engine_of_another_time(path: Path) -> None:
    with engine(path, version=(200, b'{"ApiVersion": "1.12"}')):
        message = refusal(ZfwError)
    assert message.startswith(f"container engine {path}: no answer of Docker's API: API versions")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0" * 4096,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 301 Moved\r\nLocation: /version\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    ],
)
def test_what_speaks_no_http_is_no_engine(path: Path, said: bytes) -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with conversation(path, speak):
        message = refusal(ZfwError)
    assert message.startswith(f"container engine {path}: no answer of Docker's API: ")


def test_an_engine_that_says_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_TIMEOUT", 1)
    is_over = threading.Event()
    with conversation(path, lambda connection: is_over.wait(60)):
        try:
            assert refusal(ZfwError) == f"container engine {path}: no answer for 1 s"
        finally:
            is_over.set()


# Which engine


@pytest.mark.parametrize(
    "host",
    ["tcp://127.0.0.1:2375", "ssh://root@host", "unix://docker.sock", "unix://", "/run/x", "\n"],
)
def test_only_sockets_of_this_machine_are_asked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    assert refusal(UsageError) == f"DOCKER_HOST is {host!r}: not unix:// and an absolute path"


@pytest.mark.parametrize("host", [None, ""])
def test_docker_is_asked_and_then_podman(
    path: Path, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    if host is None:
        monkeypatch.delenv("DOCKER_HOST")
    else:
        monkeypatch.setenv("DOCKER_HOST", host)
    docker, podman = path.with_name("docker.sock"), path.with_name("podman.sock")
    monkeypatch.setattr(containers, "_SOCKETS", (str(docker), str(podman)))
    assert refusal(ZfwError) == f"no container engine: there is no {docker} and no {podman}"
    with engine(podman, container("web", os.getpid())):
        assert find("web").pid == os.getpid()
        with engine(docker, container("web", os.getppid()), container("db", os.getppid())) as asked:
            assert find("web").pid == os.getppid()
        assert len(asked) == 2
        with engine(docker, container("db", os.getppid())):
            assert find("web").pid == os.getpid()
            assert refusal(NotFound, "none") == "no such container: none"
        # One that cannot be asked might know the name: nothing is guessed.
        docker.mkdir()
        assert refusal(ZfwError) == f"container engine {docker}: not a socket"


def test_the_default_sockets_are_docker_s_and_podman_s() -> None:
    assert containers._SOCKETS == ("/var/run/docker.sock", "/run/podman/podman.sock")


def test_without_the_package_it_is_said_how_to_get_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(ZfwError, match="zfw needs the docker package") as refused:
        find("web")
    assert refused.value.hint == "pip install 'zfw[docker]'"


def test_a_broken_configuration_of_docker_s_own_is_no_traceback(path: Path) -> None:
    (path.parent / "config.json").write_text("[]")
    with engine(path, container("web", os.getpid())):
        assert refusal(ZfwError).startswith(f"container engine {path}: ")


# What happens to a container


@contextmanager
def watching(name: str = "web") -> Iterator[tuple[Watch, Queue[ContainerEvent | ZfwError | None]]]:
    """A watch in a thread of its own, and what it tells; None at its end. It has ended then."""
    told: Queue[ContainerEvent | ZfwError | None] = Queue()
    watch = Watch(name)

    def listen() -> None:
        try:
            for happening in watch:
                told.put(happening)
        except ZfwError as error:
            told.put(error)
        told.put(None)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield watch, told
    finally:
        watch.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def told_next(told: Queue[ContainerEvent | ZfwError | None]) -> Any:
    return told.get(timeout=PATIENCE)


def test_starts_and_ends_are_told(path: Path) -> None:
    live = LiveEngine(path)
    live.containers["web"] = container("web", os.getpid())
    with live.serving(), watching() as (_, told):
        assert told_next(told) == ContainerEvent("runs", Container("web", ID, os.getpid()))
        live.end("web")
        ended = ContainerEvent("absent", reason="container web is not running: exited")
        assert told_next(told) == ended
        # Of others, or nothing that starts or ends it.
        live.tell("start", "other", Actor={"ID": "cd" * 32, "Attributes": {"name": "other"}})
        live.tell("exec_start: /bin/sh", "web")
        live.tell("health_status: healthy", "web")
        live.start("web", os.getppid())
        assert told_next(told) == ContainerEvent("runs", Container("web", ID, os.getppid()))
        assert told.empty()


def test_a_container_that_is_renamed_is_followed(path: Path) -> None:
    """As compose does it: the old one is renamed, and a new one gets the name."""
    live = LiveEngine(path)
    live.containers["web"] = container("web", os.getpid())
    with live.serving(), watching() as (_, told):
        assert told_next(told) == ContainerEvent("runs", Container("web", ID, os.getpid()))
        live.wait_for_listener(PATIENCE)
        live.rename("web", "old_web")
        assert told_next(told) == ContainerEvent("runs", Container("old_web", ID, os.getpid()))
        live.end("old_web")
        ended = ContainerEvent("absent", reason="container old_web is not running: exited")
        assert told_next(told) == ended
        live.start("old_web", os.getppid())
        assert told_next(told) == ContainerEvent("runs", Container("old_web", ID, os.getppid()))
        new = "cd" * 32
        live.containers["web"] = container("web", os.getpid()) | {"Id": new}
        live.tell("start", "web", Actor={"ID": new, "Attributes": {"name": "web"}})
        assert told_next(told) == ContainerEvent("runs", Container("web", new, os.getpid()))
        # The old one is another container from now on.
        live.end("old_web")
        live.tell("die", "web", Actor={"ID": new, "Attributes": {"name": "web"}})
        assert told_next(told).container.id == new
        assert told.empty()


@pytest.mark.parametrize("name", ["web", ID, ID[:12]])
def test_a_container_that_does_not_run_yet(path: Path, name: str) -> None:
    live = LiveEngine(path)
    with live.serving(), watching(name) as (_, told):
        assert told_next(told) == ContainerEvent("absent", reason=f"no such container: {name}")
        live.wait_for_listener(PATIENCE)
        live.containers[name] = container("web", os.getpid())
        live.containers[name]["Id"] = ID if name == "web" else name
        live.tell("start", "web")
        happening = told_next(told)
        assert (happening.kind, happening.container.pid) == ("runs", os.getpid())


def test_an_engine_that_is_started_again(path: Path) -> None:
    """What has happened meanwhile is told when it is back."""
    live = LiveEngine(path)
    live.containers["web"] = container("web", os.getpid())
    with ExitStack() as stack:
        with live.serving():
            _, told = stack.enter_context(watching())
            assert told_next(told).kind == "runs"
            live.wait_for_listener(PATIENCE)
        lost = told_next(told)
        assert lost == ContainerEvent(
            "lost", reason=f"container engine {path} has ended the connection"
        )
        live.containers["web"] = container("web", os.getppid())
        stack.enter_context(live.serving())
        assert told_next(told) == ContainerEvent("back")
        assert told_next(told).container.pid == os.getppid()


def test_an_engine_that_stays_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_PATIENCE", 0.3)
    live = LiveEngine(path)
    with ExitStack() as stack:
        with live.serving():
            _, told = stack.enter_context(watching())
            assert told_next(told).kind == "absent"
            live.wait_for_listener(PATIENCE)
        assert told_next(told).kind == "lost"
        given_up = told_next(told)
        assert isinstance(given_up, ZfwError)
        assert str(given_up).startswith(
            f"container engine {path}: No such file or directory; given up"
        )
        assert told_next(told) is None


def test_there_is_no_engine_to_watch(path: Path) -> None:
    with watching() as (_, told):
        assert "No such file or directory" in str(told_next(told))
        assert told_next(told) is None
    with pytest.raises(UsageError):
        Watch("no name")


def test_a_watch_ends_while_it_waits_for_an_engine(path: Path) -> None:
    live = LiveEngine(path)
    with ExitStack() as stack:
        with live.serving():
            watch, told = stack.enter_context(watching())
            assert told_next(told).kind == "absent"
            live.wait_for_listener(PATIENCE)
        assert told_next(told).kind == "lost"
        watch.close()
        assert told_next(told) is None


@pytest.mark.parametrize(
    "said",
    [
        b"not JSON at all\n",
        b"[]\n",
        b'"start"\n',
        b'{"Action": "start"}\n',
        b'{"Action": "start", "Actor": {"ID": 7, "Attributes": {"name": "web"}}}\n',
        b'{"Action": "start", "Actor": {"ID": "", "Attributes": ["web"]}}\n',
        b"\xff\xfe\n",
        b"[" * (1 << 21),
        b"[" * 10_000 + b"\n",
    ],
)
def test_events_that_are_none(path: Path, said: bytes) -> None:
    """They are passed over, or the connection is begun anew; what follows is told."""
    live = LiveEngine(path)
    with live.serving(), watching() as (_, told):
        assert told_next(told).kind == "absent"
        live.wait_for_listener(PATIENCE)
        live.send(said)
        live.containers["web"] = container("web", os.getpid())
        live.tell("start", "web")
        kinds = []
        while (happening := told_next(told)).kind != "runs":
            kinds.append(happening.kind)
        assert kinds in ([], ["lost", "back"])
