# SPDX-License-Identifier: GPL-2.0-only
"""What a guard tells: JSON lines in a file, lines for people, and what it has to leave out."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.guard.support.world import UNNAMED, UPSTREAM
from tests.support.command import ZFW
from tests.support.pids import is_told
from tests.support.waiting import wait_until
from zfw_py.guard import listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

FIELDS = {
    "time",
    "pid",
    "command",
    "cgroup",
    "hook",
    "protocol",
    "original",
    "redirected",
    "name",
    "type",
    "verdict",
    "reason",
    "enforced",
}


def records_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def logged(world: World, policy: list[str], *command: str) -> list[dict[str, Any]]:
    """The records of a guarded command."""
    log = world.folder / "log"
    world.guarded([*policy, "--quiet", "--log", str(log)], *command)
    return records_of(log)


def python(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"from socket import *\n{text}")


def test_a_record_has_all_fields(world: World) -> None:
    code = """
import os
print(os.getpid(), open('/proc/self/cgroup').read().strip().splitlines()[-1].split('::')[1])
s = socket(AF_INET, SOCK_DGRAM)
question = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4both\\7example\\0\\0\\1\\0\\1"
s.sendto(question, ("10.9.0.1", 53))
assert s.recvfrom(512)[1] == ("10.9.0.1", 53)
create_connection(("10.9.0.10", 80)).close()
try: create_connection(("10.9.0.20", 80))
except PermissionError: print("denied")
u = socket(AF_INET6, SOCK_DGRAM)
u.sendto(b"x", ("fd09::10", 443))
"""
    log = world.folder / "log"
    before = datetime.now(UTC)
    policy = ["--allow", "both.example", "--allow", "fd09::10/128", "--quiet", "--log", str(log)]
    done = world.guarded(policy, *python(code))
    assert done.stderr == ""
    (pid, path), [denied] = done.stdout.splitlines()[0].split(), done.stdout.splitlines()[1:]
    assert denied == "denied"
    records = records_of(log)
    assert all(set(record) == FIELDS for record in records)
    for record in records:
        assert before - timedelta(seconds=1) < datetime.fromisoformat(record["time"])
        assert datetime.fromisoformat(record["time"]) < datetime.now(UTC) + timedelta(seconds=1)
        assert is_told(record["pid"], int(pid))
        assert record["command"] == Path(sys.executable).name
        assert record["cgroup"].endswith(path)
    redirect, question, connect, refusal, datagram = (
        {name: record[name] for name in record if name not in ("time", "pid", "command", "cgroup")}
        for record in records
    )
    plain = {"name": None, "type": None, "redirected": None, "enforced": True}
    assert redirect["redirected"]["address"] == "127.0.0.1"
    assert 0 < redirect["redirected"].pop("port") < 65536
    assert redirect == plain | {
        "hook": "sendmsg4",
        "protocol": "udp",
        "original": {"address": "10.9.0.1", "port": 53},
        "redirected": {"address": "127.0.0.1"},
        "verdict": "redirect",
        "reason": "dns",
    }
    assert question == plain | {
        "hook": "dns",
        "protocol": "udp",
        "original": None,
        "name": "both.example",
        "type": "A",
        "verdict": "allow",
        "reason": "allowed",
    }
    assert connect == plain | {
        "hook": "connect4",
        "protocol": "tcp",
        "original": {"address": "10.9.0.10", "port": 80},
        "name": "both.example",
        "verdict": "allow",
        "reason": "name",
    }
    assert refusal == plain | {
        "hook": "connect4",
        "protocol": "tcp",
        "original": {"address": "10.9.0.20", "port": 80},
        "verdict": "deny",
        "reason": "not_allowed",
    }
    assert datagram == plain | {
        "hook": "egress",
        "protocol": "udp",
        "original": {"address": "fd09::10", "port": 443},
        "verdict": "allow",
        "reason": "prefix",
    }


def test_lines_for_people(world: World) -> None:
    code = f"""
import os
print(os.getpid())
getaddrinfo("v4.example", 80, AF_INET)
create_connection(("10.9.0.11", 80)).close()
for address in {UNNAMED}:
    try: create_connection((address, 80))
    except PermissionError: pass
s = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP)
try: s.sendto(bytes(8), ("{UNNAMED[0]}", 0))
except PermissionError: pass
"""
    comm = Path(sys.executable).name
    for options, has_all in ((["--verbose"], True), ([], False)):
        done = world.guarded(["--allow", "v4.example", *options], *python(code))
        lines = done.stderr.splitlines()
        pid = lines[0].partition("[")[2].partition("]")[0]
        assert is_told(int(pid), int(done.stdout))
        who = f"zfw guard: {comm}[{pid}]"
        denials = [
            f"{who} denied: tcp 10.9.0.20:80: not allowed",
            f"{who} denied: tcp [fd09::20]:80: not allowed",
            f"{who} denied: icmp 10.9.0.20: not allowed",
        ]
        if not has_all:
            assert lines == denials
            continue
        assert lines[0].startswith(f"{who} redirected: udp 10.9.0.1:53 to 127.0.0.1:")
        assert lines[0].endswith(": dns")
        assert lines[1:] == [
            f"{who} allowed: DNS A v4.example: allowed",
            f"{who} allowed: tcp 10.9.0.11:80 (v4.example): name",
            *denials,
        ]


def test_log_only_lets_everything_pass_and_says_what_would_not(world: World) -> None:
    code = f"""
getaddrinfo("other.example", 80, AF_INET)
create_connection(("10.9.0.13", 80)).close()
create_connection(("{UNNAMED[1]}", 80)).close()
print("passed")
"""
    log = world.folder / "log"
    policy = ["--allow", "both.example", "--log-only", "--log", str(log)]
    with world.capture() as arrived:
        done = world.guarded(policy, *python(code))
    assert done.stdout == "passed\n"
    assert {one.destination for one in arrived if one.port == 80} == {"10.9.0.13", UNNAMED[1]}
    would = [record for record in records_of(log) if record["verdict"] == "deny"]
    assert not any(record["enforced"] for record in would)
    assert [
        (record["hook"], record["reason"]) for record in would if record["hook"] != "egress"
    ] == [
        ("dns", "not_allowed"),
        ("connect4", "not_allowed"),
        ("connect6", "not_allowed"),
    ]
    assert " would be denied: DNS A other.example: not allowed\n" in done.stderr
    assert " would be denied: tcp 10.9.0.13:80" in done.stderr


def test_lines_come_in_the_order_of_what_happened(world: World) -> None:
    """Though what the kernel decided and what was asked come by different ways."""
    code = """
for number in range(50):
    s = socket(AF_INET, SOCK_DGRAM)
    head = number.to_bytes(2) + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0"
    s.sendto(head + b"\\4both\\7example\\0\\0\\1\\0\\1", ("10.9.0.1", 53))
    s.recv(512)
    s.close()
"""
    records = logged(world, ["--allow", "both.example"], *python(code))
    assert [record["hook"] for record in records] == ["sendmsg4", "dns"] * 50


def test_hostile_names_do_not_reach_the_terminal(world: World) -> None:
    name = b"\x1b[2J\n\x07\xff\xe2\x80\xaezfw"  # clears, breaks the line, rings, turns round
    code = f"""
import ctypes
ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)
for address in ("{UNNAMED[0]}",):
    try: create_connection((address, 80))
    except PermissionError: pass
s = socket(AF_INET, SOCK_DGRAM)
head = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0"
s.sendto(head + b"\\5\\x1b[2J\\n\\0\\0\\1\\0\\1", ("10.9.0.1", 53))
s.recv(512)
"""
    log = world.folder / "log"
    done = world.guarded(["--log", str(log)], *python(code))
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert lines[0].startswith("zfw guard: \\x1b[2J\\n\\x07\\xff\\u202ezfw[")
    assert "DNS A \\027[2j\\010: not allowed" in lines[1]
    assert log.read_bytes().isascii()
    assert records_of(log)[0]["command"] == "\x1b[2J\n\x07\\xff\u202ezfw"


# The file


def test_the_file_is_its_owners_and_is_appended_to(world: World) -> None:
    log = world.folder / "log"
    log.write_text('{"earlier": true}\n')
    log.chmod(0o640)
    assert {"earlier": True} in logged(world, [], "getent", "hosts", "other.example")
    assert stat.S_IMODE(log.stat().st_mode) == 0o640
    log.unlink()
    done = world.run("sh", "-c", f"umask 0; exec {ZFW} guard run --log {log} -- true")
    assert (done.returncode, done.stderr) == (0, "")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_several_append_to_one_file(world: World) -> None:
    log = world.folder / "log"
    asking = "for i in 1 2 3 4 5 6 7 8 9; do getent hosts $i.example; done"
    command = (str(ZFW), "guard", "run", "-q", "--log", str(log), "--dns-upstream", UPSTREAM, "--")
    started = [world.start(*command, "sh", "-c", asking) for _ in range(6)]
    for process in started:
        process.communicate(timeout=110)
    records = records_of(log)
    assert len({record["cgroup"] for record in records}) == 6
    asked = {(record["cgroup"], record["name"]) for record in records if record["hook"] == "dns"}
    assert len(asked) == 6 * 9


def test_a_relative_name_is_where_zfw_was_called(world: World) -> None:
    (world.folder / "here").mkdir()
    command = (str(ZFW), "guard", "run", "-q", "--log", "log", "--dns-upstream", UPSTREAM, "--")
    world.run(*command, "getent", "hosts", "other.example", cwd=world.folder / "here")
    assert records_of(world.folder / "here" / "log")


def test_what_is_no_file_to_append_to_is_refused(world: World) -> None:
    folder = world.folder / "folder"
    folder.mkdir()
    (folder / "log").write_text("")
    (folder / "link").symlink_to("log")
    (folder / "nowhere").symlink_to("created")
    os.mkfifo(folder / "fifo")
    for name, code, why in (
        ("link", 2, "a symbolic link, which zfw does not follow"),
        ("nowhere", 2, "a symbolic link, which zfw does not follow"),
        ("fifo", 2, "No such device or address"),
        ("", 2, "Is a directory"),
        ("log/log", 2, "Not a directory"),
        ("gone/log", 5, "no such directory"),
        ("x" * 256, 2, "File name too long"),
    ):
        path = f"{folder}/{name}"
        done = world.zfw("run", "--dns-upstream", UPSTREAM, "--log", path, "--", "true")
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == f"zfw: --log {path}: {why}\n"
    for path in ("/dev/null", "/dev/full"):
        done = world.zfw("run", "--dns-upstream", UPSTREAM, "--log", path, "--", "true")
        assert (done.returncode, done.stderr) == (2, f"zfw: --log {path}: not a file\n")
    assert sorted(each.name for each in folder.iterdir()) == ["fifo", "link", "log", "nowhere"]
    assert world.left() == []


@pytest.fixture
def small(world: World) -> Iterator[Path]:
    """A file system of 16 KB."""
    place = world.folder / "small"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"none", bytes(place), b"tmpfs", 0, b"size=16k") == 0
    yield place
    assert libc.umount2(bytes(place), 2) == 0


def test_a_full_disk_stops_nobody(world: World, small: Path) -> None:
    log = small / "log"
    filling = "for i in $(seq 100); do getent hosts $i.example; done"
    policy = ("--allow", "both.example", "--dns-upstream", UPSTREAM, "--log", str(log))
    with world.shell(str(ZFW), "guard", "run", *policy, "--") as shell:
        shell.ask(filling)
        assert log.stat().st_size == 16384
        assert shell.ask("getent hosts both.example") == (0, "fd09::10        both.example\n")
        torn = log.read_text().splitlines()
        assert not torn[-1].endswith("}")
        # Somebody makes room: from now on it is written again, on a line of its own.
        os.truncate(log, len("\n".join(torn[:5])) + 10)
        shell.ask("getent hosts last.example")
        shell.end()
        assert shell.process.wait(60) == 0
        assert shell.process.stderr is not None
        warnings = [line for line in shell.process.stderr if line.startswith("zfw: ")]
        missing = f"zfw: warning: --log {log}: No space left on device; records are missing\n"
        assert warnings == [missing]
    lines = log.read_text().splitlines()
    assert any(json.loads(line)["name"] == "last.example" for line in lines[6:])


# What finds no room


def test_events_that_nobody_takes_are_counted(world: World) -> None:
    log = world.folder / "log"
    status = decided_while_nobody_listens(world, UNNAMED[0], log)
    # Port 53 is no destination like others.
    assert sum(status.decisions["connect4"].values()) == 4000
    assert status.lost > 0
    assert len(records_of(log)) == 4000 - status.lost


def test_what_nobody_wants_to_know_takes_no_room(world: World) -> None:
    """Only denials are told where there is no log."""
    status = decided_while_nobody_listens(world, "127.0.0.1")
    assert status.decisions["connect4"]["prefix"] == 3999
    assert status.lost == 0


def test_more_denials_than_can_be_told_keep_nobody_from_asking(world: World) -> None:
    """Nor the guard from being taken away: its process does not have to be killed."""
    code = f"""
from itertools import cycle
s = socket(AF_INET, SOCK_DGRAM)
for port in cycle(range(1000, 1100)):
    try: s.sendto(b"x", ("{UNNAMED[0]}", port))
    except PermissionError: pass
"""
    cgroup = world.new_cgroup()
    enter = ("sh", "-c", f'echo 0 > {cgroup}/cgroup.procs; exec "$@"', "sh")
    log = world.folder / "log"
    made = world.attach(cgroup, "--allow", "both.example", "--log", str(log))
    with world.bystander(*enter, *python(code)):
        assert wait_until(lambda: listing.guards()[0][0].lost > 0)
        dig = ("dig", "+short", "+tries=1", "+time=10", f"@{UPSTREAM}", "both.example")
        for _ in range(5):
            assert world.run(*enter, *dig).stdout == "10.9.0.10\n"
        [status], _ = listing.guards()
        assert status.supervisor_pid is not None
        supervisor = os.pidfd_open(status.supervisor_pid)
        try:
            signal.pidfd_send_signal(supervisor, signal.SIGTERM)
            assert select.select([supervisor], [], [], 60)[0]
        finally:
            os.close(supervisor)
    assert world.zfw("detach", made.id).returncode == 0


def decided_while_nobody_listens(
    world: World, address: str, log: Path | None = None
) -> listing.GuardStatus:
    """What is so after connections to 4,000 ports while the guard's process was stopped."""
    code = f"""
import sys
sys.stdin.readline()
for port in range(1, 4001):
    s = socket(AF_INET, SOCK_STREAM)
    try: s.connect(("{address}", port))
    except OSError: pass
    s.close()
print("done", flush=True)
sys.stdin.readline()
"""
    logging = () if log is None else ("--log", str(log))
    command = (str(ZFW), "guard", "run", "-q", *logging, "--dns-upstream", UPSTREAM, "--")
    with world.start(*command, *python(code), stdin=subprocess.PIPE) as process:
        assert wait_until(lambda: [status.processes for status in listing.guards()[0]] == [1])
        [status], _ = listing.guards()
        assert status.supervisor_pid is not None
        os.kill(status.supervisor_pid, signal.SIGSTOP)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            [status], _ = listing.guards()
        finally:
            os.kill(status.supervisor_pid or 0, signal.SIGCONT)
        # Whoever ends the guard does not wait for long.
        told = 4000 - status.lost
        assert log is None or wait_until(lambda: log.read_bytes().count(b"\n") == told)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(60) == 0
    return status
