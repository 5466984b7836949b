# SPDX-License-Identifier: GPL-2.0-only
"""zfw steer: what its commands print, and which exit code they have."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ZFW, captured
from zfw_py.errors import NotInstalled
from zfw_py.kernel import bpf_links, bpf_maps
from zfw_py.kernel.process import start_time
from zfw_py.steer.maps import STORE
from zfw_py.steer.service import Steering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Zfw
    from tests.support.netns import Namespace

pytestmark = pytest.mark.kernel

ADD = ("steer", "add", "tcp")
NOTHING = (3, "", "zfw: nothing is steered in this network namespace\n")


@pytest.fixture(autouse=True)
def _nothing_is_left(namespace: Namespace) -> Iterator[None]:
    yield
    try:
        Steering().detach()
    except NotInstalled:
        pass


@contextmanager
def daemon(port: int, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_server((address, port), reuse_port=False) as made:
        yield made


def test_add_list_and_remove(zfw: Zfw) -> None:
    assert zfw("steer", "list") == (0, "no mappings\n", "")
    assert zfw("steer", "list", "--json") == (0, "[]\n", "")
    assert zfw("steer", "remove", "--all") == NOTHING
    with daemon(2222):
        assert zfw(*ADD, "any", "5555", "--to", "127.0.0.1:2222") == (
            0,
            "tcp 0.0.0.0/0 port 5555 to 127.0.0.1:2222: steering\n",
            "",
        )
        added = zfw(
            *ADD, "203.0.113.0/24", "any", "--to", "127.0.0.1:9", "--label", "web", "--override"
        )
        assert added == (0, "tcp 203.0.113.0/24 port any to 127.0.0.1:9: pending\n", "")
        pid = str(os.getpid())
        assert zfw("steer", "list") == (
            0,
            "PROTOCOL  ADDRESS         PORT  TO              LABEL  FLAGS     STATE     "
            f"{'SOCKETS':{max(7, len(pid))}}  LOOKUPS  EXACT  NO SOCKET\n"
            "tcp       0.0.0.0/0       5555  127.0.0.1:2222  -      -         steering  "
            f"{pid:{max(7, len(pid))}}        0      0          0\n"
            "tcp       203.0.113.0/24  any   127.0.0.1:9     web    override  pending   "
            f"{'-':{max(7, len(pid))}}        0      0          0\n",
            "",
        )
    assert zfw("steer", "remove", "tcp", "any", "5555") == (
        0,
        "removed tcp 0.0.0.0/0 port 5555 to 127.0.0.1:2222\n",
        "",
    )
    assert zfw("steer", "remove", "tcp", "any", "5555") == (
        5,
        "",
        "zfw: no such mapping: tcp any port 5555\n",
    )
    assert zfw("steer", "remove", "--label", "web") == (
        0,
        "removed tcp 203.0.113.0/24 port any to 127.0.0.1:9\n",
        "",
    )
    assert zfw("steer", "detach") == (0, "detached; 0 mappings removed\n", "")
    assert zfw("steer", "detach") == NOTHING


def test_json_goes_round(zfw: Zfw, stdin: Callable[[str], None], tmp_path: Path) -> None:
    zfw(*ADD, "any", "5555", "--to", "[::1]:2222", "--fallthrough")
    zfw("steer", "add", "udp", "192.0.2.1", "53", "--to-pid", str(os.getpid()), "--label", "dns")
    listed = zfw("steer", "list", "--json")
    assert json.loads(listed.out) == [
        {
            "protocol": "tcp",
            "address": "::/0",
            "port": "5555",
            "to": "[::1]:2222",
            "label": "",
            "override": False,
            "fallthrough": True,
            "run_pid": None,
            "state": "pending",
            "problem": None,
            "sockets": [],
            "counters": {"lookups": 0, "kept": 0, "no_socket": 0},
        },
        {
            "protocol": "udp",
            "address": "192.0.2.1",
            "port": "53",
            "to_pid": os.getpid(),
            "to_pid_start": start_time(os.getpid()),
            "label": "dns",
            "override": False,
            "fallthrough": False,
            "run_pid": None,
            "state": "pending",
            "problem": None,
            "sockets": [],
            "counters": {"lookups": 0, "kept": 0, "no_socket": 0},
        },
    ]
    file = tmp_path / "steer.json"
    file.write_text(listed.out)
    kept = "0 mappings added, 0 changed, 0 removed, 2 kept\npending: 2, nothing listens there yet\n"
    assert zfw("steer", "apply", str(file)) == (0, kept, "")
    stdin("[]")
    assert zfw("steer", "apply", "-") == (
        0,
        "0 mappings added, 0 changed, 2 removed, 0 kept\n",
        "",
    )
    assert zfw("steer", "list", "--json") == (0, "[]\n", "")
    assert zfw("steer", "apply", str(file)).out.startswith("2 mappings added, 0 changed")
    assert zfw("steer", "list", "--json") == listed


def test_status(zfw: Zfw) -> None:
    assert zfw("steer", "status") == NOTHING
    zfw(*ADD, "any", "5555", "--to", "127.0.0.1:2222")
    zfw(*ADD, "any", "5556", "--to", "127.0.0.1:2222")
    steering = Steering()
    number = steering.status().program_id
    assert zfw("steer", "status") == (
        0,
        f"network namespace: {steering.cookie}\n"
        "programs: set_state, sock_release, adopt, bind4, bind6, post_bind4, post_bind6, connect4,"
        " connect6, sendmsg4, sendmsg6, lookup\n"
        f"sk_lookup programs, in their order: {number} (zfw)\n"
        "2 mappings, 2 pending; 1 target\n"
        "manager: none runs\n",
        "",
    )
    told = json.loads(zfw("steer", "status", "--json").out)
    assert (told["mappings"], told["pending"], told["manager_pid"]) == (2, 2, None)
    assert told["sk_lookup_order"] == [number]
    link = bpf_maps.open_pin(f"{STORE.directory(steering.cookie)}/link_lookup")
    bpf_links.detach_link(link)
    os.close(link)
    result = zfw("steer", "status")
    assert result.code == 21
    assert "the program lookup was detached by another process" in result.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("tcp", "any", "80"), 2, "give exactly one of --to, --to-pid, --to-unit and --register"),
        (
            ("tcp", "any", "80", "--to", "127.0.0.1:1", "--to-pid", "1"),
            2,
            "give exactly one of --to",
        ),
        (("sctp", "any", "80", "--to", "127.0.0.1:1"), 2, "not tcp or udp: 'sctp'"),
        (("tcp", "10.0.0.1/8", "80", "--to", "127.0.0.1:1"), 2, "address: host bits are set"),
        (("tcp", "any", "0", "--to", "127.0.0.1:1"), 2, "port: not within 1 to 65535: '0'"),
        (("tcp", "any", "80", "--to", "localhost:1"), 2, "--to: not an IPv4 or IPv6 address"),
        (("tcp", "::/0", "80", "--to", "127.0.0.1:1"), 2, "tcp ::/0 port 80: an IPv4 socket"),
        (
            ("udp", "any", "53", "--to", "127.0.0.1:5353"),
            2,
            "udp 0.0.0.0/0 port 53: UDP answers of",
        ),
        (("udp", "any", "1-9", "--to-pid", "1"), 2, "udp any port 1-9: UDP answers come from the"),
        (("tcp", "any", "80", "--to-pid", "0"), 2, "--to-pid: not a process id: 0"),
        (("tcp", "any", "80", "--to-pid", "4194304"), 5, "no such process: 4194304"),
        (("tcp", "any", "80", "--to-unit", "a/b"), 2, "--to-unit: not the name of a unit"),
        (("tcp", "any", "80", "--register"), 2, "--register: no socket was passed"),
        (("tcp", "any", "80", "--to", "127.0.0.1:1", "--label", "a b"), 2, "--label: not up to"),
        (("tcp", "any", "80", "--to", "127.0.0.1:1", "--netns", "/nowhere"), 5, "no such network"),
        (("tcp", "any", "80", "--to", "127.0.0.1:1", "--netns", "/"), 2, "/: not a network"),
    ],
)
def test_what_makes_no_sense(zfw: Zfw, argv: tuple[str, ...], code: int, message: str) -> None:
    result = zfw("steer", "add", *argv)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"zfw: {message}")
    assert zfw("steer", "status") == NOTHING


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("tcp", "any"),
        ("--all", "--label", "x"),
        ("tcp", "any", "80", "--all"),
        ("tcp", "--all"),
    ],
)
def test_which_mapping_is_to_be_said(zfw: Zfw, argv: tuple[str, ...]) -> None:
    assert zfw("steer", "remove", *argv) == (
        2,
        "",
        "zfw: give PROTOCOL ADDRESS PORT, --label or --all\n",
    )


def test_a_file_that_is_none(zfw: Zfw, tmp_path: Path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    assert zfw("steer", "apply", str(missing)) == (5, "", f"zfw: {missing}: no such file\n")
    zfw(*ADD, "any", "5555", "--to", "127.0.0.1:2222")
    before = zfw("steer", "list", "--json")
    for text, message in (
        ("[\n{]", "FILE:2: Expecting property name enclosed in double quotes"),
        ("{}", "FILE: document: expected array, got object"),
        ('[{"protocol": "tcp", "address": "any", "port": "x", "to": "127.0.0.1:1"}]', "FILE: [0]"),
        ('[{"protocol": "tcp", "address": "any", "port": "1", "to": 7}]', "FILE: [0].to: "),
    ):
        file.write_text(text)
        result = zfw("steer", "apply", str(file))
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"zfw: {message.replace('FILE', str(file))}"), result.err
    assert zfw("steer", "list", "--json") == before


def test_a_process_with_several_sockets(zfw: Zfw) -> None:
    with daemon(2222), daemon(2223):
        result = zfw(*ADD, "any", "5555", "--to-pid", str(os.getpid()))
    assert result == (
        6,
        "",
        f"zfw: pid {os.getpid()} listens on several: 127.0.0.1:2222, 127.0.0.1:2223\n"
        "hint: name one of them: --to ADDR:PORT\n",
    )
    assert zfw("steer", "list") == (0, "no mappings\n", "")


def start_with(sockets: list[socket.socket], *argv: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as systemd starts it with sockets."""
    high = [os.dup(each.fileno()) for each in sockets]
    script = (
        "import os, sys\n"
        "count = int(sys.argv[1])\n"
        "for number in range(count):\n"
        "    os.dup2(int(sys.argv[2 + number]), 3 + number, inheritable=True)\n"
        "os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.argv[2 + count], sys.argv[2 + count:])\n"
    )
    numbers = [200 + number for number in range(len(high))]
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    try:
        words = (str(len(numbers)), *map(str, numbers), str(ZFW), *argv)
        return captured("/usr/bin/python3", "-c", script, *words, close_fds=False)
    finally:
        for number in numbers:
            os.close(number)


def test_register(zfw: Zfw) -> None:
    with daemon(2222) as passed:
        done = start_with([passed], "steer", "add", "tcp", "any", "5555", "--register")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "tcp 0.0.0.0/0 port 5555 to 127.0.0.1:2222: steering\n"
        with socket.create_connection(("127.0.0.9", 5555)):
            passed.accept()[0].close()
    assert json.loads(zfw("steer", "list", "--json").out)[0]["to"] == "127.0.0.1:2222"
    with daemon(2222), daemon(2223) as another, daemon(2224) as third:
        done = start_with([another, third], "steer", "add", "tcp", "any", "1", "--register")
        assert done.returncode == 6
        assert done.stderr.startswith(
            "zfw: --register: several tcp sockets were passed: 127.0.0.1:"
        )
        done = start_with([another], "steer", "add", "udp", "any", "1", "--register")
        assert (done.returncode, done.stderr) == (2, "zfw: --register: no udp socket was passed\n")


def test_run(zfw: Zfw, namespace: Namespace) -> None:
    zfw(*ADD, "any", "7777", "--to", "127.0.0.1:2222")
    with daemon(2222) as listener:
        command = [
            str(ZFW),
            "steer",
            "run",
            "-t",
            "5555=127.0.0.1:2222",
            "-t",
            "[::]:5555=[::1]:22",
        ]
        started = namespace.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert started.stdout is not None
        try:
            lines = [started.stdout.readline() for _ in range(3)]
            assert lines == [
                "tcp 0.0.0.0/0 port 5555 to 127.0.0.1:2222: steering\n",
                "tcp ::/0 port 5555 to [::1]:22: pending\n",
                "managing\n",
            ]
            with socket.create_connection(("127.0.0.9", 5555)):
                listener.accept()[0].close()
            found = json.loads(zfw("steer", "list", "--json").out)
            assert [each["run_pid"] for each in found] == [None, started.pid, started.pid]
            assert {each["label"] for each in found} == {"", f"run-{started.pid}"}
            assert f"manager: process {started.pid}\n" in zfw("steer", "status").out
        finally:
            started.send_signal(signal.SIGTERM)
            _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (0, "")
    assert [each["port"] for each in json.loads(zfw("steer", "list", "--json").out)] == ["7777"]


@pytest.mark.parametrize("text", ["5555", "5555=x", "udp:53=127.0.0.1:5353", "[::1=1.2.3.4:5"])
def test_run_with_what_makes_no_sense(zfw: Zfw, text: str) -> None:
    result = zfw("steer", "run", "-t", text)
    assert (result.code, result.out) == (2, "")
    assert zfw("steer", "status") == NOTHING
