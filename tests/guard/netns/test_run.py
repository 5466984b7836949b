# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard run: a command is run as if zfw were not there, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.terminal import terminal
from tests.guard.support.world import UPSTREAM
from tests.support.command import ZFW
from tests.support.waiting import wait_until
from zfw_py.guard import listing
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.terminal import Terminal
    from tests.guard.support.world import World
    from zfw_py.guard.listing import GuardStatus

pytestmark = pytest.mark.kernel

RUN = (str(ZFW), "guard", "run", "--dns-upstream", UPSTREAM, "--")
RUN_LINE = " ".join(RUN)

# Tells of each signal that it gets, and ends with its stdin.
TELLS_SIGNALS = """
import os, signal
def tell(number, frame):
    # Not print: the handler may run within another one.
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
for each in (1, 2, 3, 10, 12, 14, 15, 18, 28):
    signal.signal(each, tell)
os.write(1, b"ready\\n")
while os.read(0, 1) != b"":
    pass
"""


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


# How it ends


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -RTMIN $$", -signal.SIGRTMIN),
    ],
)
def test_it_ends_as_the_command_does(world: World, script: str, code: int) -> None:
    done = world.run(*RUN, "bash", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert world.left() == []


def test_it_leaves_no_core_where_the_command_left_one(world: World) -> None:
    script = f"ulimit -c unlimited; exec {RUN_LINE} sh -c 'ulimit -c 0; kill -SEGV $$'"
    process = world.start(*sh(script), cwd=world.folder, stdout=None, stderr=None)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGSEGV
    assert not os.WCOREDUMP(status)
    assert list(world.folder.glob("*core*")) == []


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ("nosuch", 127, "No such file or directory"),
        ("/nosuch/command", 127, "No such file or directory"),
        ("/etc/passwd/command", 127, "Not a directory"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/", 126, "Permission denied"),
        ("./no-program", 126, "Exec format error"),
    ],
)
def test_what_cannot_be_run_is_told_in_a_line(
    world: World, command: str, code: int, why: str
) -> None:
    (world.folder / "no-program").write_text("neither a program nor a script")
    (world.folder / "no-program").chmod(0o755)
    done = world.run(*RUN, command, cwd=world.folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"zfw: cannot run '{command}': {why}\n"
    assert world.left() == []


def test_whoever_runs_it_may_ignore_that_children_end(world: World) -> None:
    ignoring = (
        "import os, sys, signal as s; s.signal(17, s.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = "import signal, sys; sys.exit(3 if signal.getsignal(17) == signal.SIG_IGN else 4)"
    done = world.run(sys.executable, "-c", ignoring, *RUN, sys.executable, "-c", command)
    assert (done.returncode, done.stderr) == (3, "")
    assert world.left() == []


def test_as_init_it_buries_orphans(world: World) -> None:
    """As a container's first process."""
    script = """
(sh -c 'sleep 0.1; kill $$' &)
sleep 1
grep -h -E '^(Name|State|PPid)' /proc/[0-9]*/status | paste - - - | grep -c -w Z
exit 4
"""
    (world.folder / "script").write_text(script)
    namespace = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    done = world.run(*namespace, *RUN, "sh", f"{world.folder}/script")
    assert (done.returncode, done.stdout, done.stderr) == (4, "0\n", "")
    assert world.is_clean(), world.left()


def test_options_after_the_command_are_the_commands_own(world: World) -> None:
    command = ("run", "--dns-upstream", UPSTREAM, "printf", "%s ", "--quiet", "--help", "--", "-v")
    assert world.zfw(*command).stdout == "--quiet --help -- -v "


def test_where_no_cgroup_can_be_made_nothing_is_left(world: World) -> None:
    (world.cgroup / "cgroup.max.descendants").write_text("0")
    done = world.run(*RUN, "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"zfw: create {world.cgroup}/zfw-guard-")
    assert done.stderr.endswith(
        ": Resource temporarily unavailable (EAGAIN)\n"
        "hint: cgroup.max.descendants or cgroup.max.depth of a cgroup around it\n"
    )
    assert world.left() == []


# What it is given


def test_stdin_stdout_and_stderr_are_the_commands_own(world: World) -> None:
    process = world.start(*RUN, *sh("cat; echo told >&2"), stdin=subprocess.PIPE)
    assert process.communicate("some\ntext", timeout=60) == ("some\ntext", "told\n")
    assert process.returncode == 0


def test_a_pipeline_ends_with_its_reader(world: World) -> None:
    done = world.run("bash", "-c", f"{RUN_LINE} yes | head -n 2; echo ${{PIPESTATUS[0]}}")
    assert done.stdout == f"y\ny\n{128 + signal.SIGPIPE}\n"
    assert done.stderr == ""
    assert world.left() == []


def test_it_can_be_run_with_nothing_open(world: World) -> None:
    told = world.folder / "told"
    script = f"""
for each in 0 1 2; do
    [ -e /proc/$$/fd/$each ] && open="$open $each"
done
exec > {told} 2>&1
echo open: $open
getent hosts both.example
"""
    (world.folder / "script").write_text(script)
    run = f"{ZFW} guard run --allow both.example --dns-upstream {UPSTREAM} -- sh"
    done = world.run(*sh(f"exec {run} {world.folder}/script <&- >&- 2>&-"))
    assert done.returncode == 0
    assert told.read_text().splitlines() == ["open:", "fd09::10        both.example"]
    assert world.left() == []


def test_the_environment_and_the_folder_are_the_commands_too(world: World) -> None:
    done = world.run(
        *RUN, *sh("pwd; echo $THIS; umask"), cwd="/var", env={**os.environ, "THIS": "is it"}
    )
    assert done.stdout.splitlines()[:2] == ["/var", "is it"]


# Signals


def signal_teller(world: World) -> subprocess.Popen[str]:
    process = world.start(*RUN, sys.executable, "-c", TELLS_SIGNALS, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    "name", ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "WINCH", "CONT"]
)
def test_a_signal_to_zfw_alone_is_passed_on(world: World, name: str) -> None:
    process = signal_teller(world)
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.stdout is not None
    assert process.stdout.readline() == f"SIG{name}\n"
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert world.left() == []


def test_a_clock_that_was_set_before_zfw_was_executed_ends_the_command(world: World) -> None:
    setting = "import os, signal, sys; signal.alarm(2); os.execv(sys.argv[1], sys.argv[1:])"
    done = world.run(sys.executable, "-c", setting, *RUN, "sleep", "1000")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGALRM, "", "")
    assert world.left() == []


def test_a_command_that_is_stopped_and_continued_without_a_terminal_goes_on(world: World) -> None:
    process = world.start(
        "setsid", *RUN, *sh("echo $$; read line; echo $line"), stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    wait_for_state(pid, "T")
    os.kill(pid, signal.SIGCONT)
    assert process.communicate("on\n", timeout=60) == ("on\n", "")
    assert process.returncode == 0


def wait_for_state(pid: int, state: str) -> None:
    assert wait_until(lambda: state_of(pid) == state), f"{state_of(pid)}, not {state}"


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# A terminal


@pytest.fixture
def shell(world: World) -> Iterator[tuple[Terminal, subprocess.Popen[str]]]:
    """An interactive bash."""
    environment = {**os.environ, "PS1": "PROMPT ", "TERM": "dumb"}
    command = ("bash", "--norc", "--noprofile", "--noediting", "-i")
    with terminal(
        lambda *words, **options: world.start(*words, env=environment, **options), *command
    ) as made:
        made[0].expect("PROMPT ")
        yield made


def test_ctrl_c_comes_once(world: World, shell: tuple[Terminal, subprocess.Popen[str]]) -> None:
    at, bash = shell
    (world.folder / "tells").write_text(TELLS_SIGNALS)
    at.type(f"{RUN_LINE} {sys.executable} {world.folder}/tells\n")
    at.expect("ready")
    for _ in range(5):
        at.type("\x03")
        assert "SIG" not in at.expect("SIGINT")
    at.resize(33, 44)
    assert "SIG" not in at.expect("SIGWINCH")
    at.type("\x1c")
    assert "SIG" not in at.expect("SIGQUIT")
    assert at.foreground() != bash.pid
    at.type("\x04")
    assert "SIG" not in at.expect("PROMPT ")
    assert at.foreground() == bash.pid
    assert_usable(at)


def assert_usable(at: Terminal) -> None:
    at.type("echo still $((6 * 7))\n")
    at.expect("still 42")
    at.expect("PROMPT ")


def test_ctrl_c_ends_both(world: World, shell: tuple[Terminal, subprocess.Popen[str]]) -> None:
    at, bash = shell
    at.type(f"{RUN_LINE} sh -c 'echo here; exec sleep 1000'\n")
    at.expect("here\r\n")
    at.type("\x03")
    at.expect("PROMPT ")
    at.type("echo status $?\n")
    at.expect(f"status {128 + signal.SIGINT}")
    assert at.foreground() == bash.pid
    at.type("exit\n")
    bash.wait(timeout=60)
    assert world.left() == []


def test_ctrl_z_stops_the_job_and_fg_goes_on_with_it(
    shell: tuple[Terminal, subprocess.Popen[str]],
) -> None:
    at, bash = shell
    at.type(f"{RUN_LINE} sh -c 'echo $$ here; read line; echo got $line'\n")
    pid = int(at.expect(" here\r\n").split()[-1])
    for _ in range(3):
        at.type("\x1a")
        at.expect("Stopped")
        at.expect("PROMPT ")
        assert at.foreground() == bash.pid
        assert state_of(pid) == "T"
        assert_usable(at)
        at.type("fg\n")
        wait_for_state(pid, "S")
    at.type("a line\n")
    at.expect("got a line\r\n")
    at.expect("PROMPT ")
    assert at.foreground() == bash.pid


def test_a_job_goes_on_in_the_background(shell: tuple[Terminal, subprocess.Popen[str]]) -> None:
    at, bash = shell
    at.type(f"{RUN_LINE} sh -c 'echo here; read line; echo got $line' &\n")
    # It reads, which nobody does in the background.
    at.expect("here\r\n")
    at.type("wait\n")
    at.expect("Stopped")
    at.expect("PROMPT ")
    at.type("fg\n")
    at.expect("read line")
    at.type("a line\n")
    at.expect("got a line\r\n")
    at.expect("PROMPT ")
    assert at.foreground() == bash.pid


def test_a_command_that_does_not_want_to_stop_is_not_stopped(
    shell: tuple[Terminal, subprocess.Popen[str]],
) -> None:
    at, _ = shell
    at.type(f"{RUN_LINE} sh -c 'trap \"\" TSTP; echo here; read line; echo got $line'\n")
    at.expect("here\r\n")
    at.type("\x1aa line\n")
    assert "Stopped" not in at.expect("got")
    at.expect("PROMPT ")


def test_a_shell_with_jobs_of_its_own(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, bash = shell
    at.type(f"PS1='IN''NER ' {RUN_LINE} bash --norc --noprofile --noediting -i\n")
    at.expect("\r\nINNER ")
    inner = at.foreground()
    at.type("sh -c 'echo $$ here; exec sleep 1000'\n")
    pid = int(at.expect(" here\r\n").split()[-1])
    at.type("\x1a")
    at.expect("Stopped")
    at.expect("INNER ")
    assert at.foreground() == inner
    at.type("fg\n")
    wait_for_state(pid, "S")
    at.type("\x03")
    at.expect("INNER ")
    at.type("suspend\n")
    at.expect("Stopped")
    at.expect("PROMPT ")
    assert at.foreground() == bash.pid
    assert_usable(at)
    at.type("fg\n")
    at.expect("INNER ")
    assert at.foreground() == inner
    at.type("exit 5\n")
    at.expect("PROMPT ")
    at.type("echo status $?\n")
    at.expect("status 5")
    assert at.foreground() == bash.pid
    at.type("exit\n")
    bash.wait(timeout=60)
    assert world.left() == []


def test_a_pipeline_is_one_job(shell: tuple[Terminal, subprocess.Popen[str]]) -> None:
    at, bash = shell
    # A shell that waits in vfork(2) for a child that was stopped there does not stop itself.
    at.type(f"{RUN_LINE} sh -c 'echo here; exec cat' | {RUN_LINE} cat\n")
    at.expect("here\r\n")
    at.type("\x1a")
    at.expect("Stopped")
    at.expect("PROMPT ")
    at.type("fg\n")
    at.expect("cat\r\n")
    at.type("a line\n")
    at.expect("a line\r\n")
    at.expect("a line\r\n")
    at.type("\x04")
    at.expect("PROMPT ")
    assert at.foreground() == bash.pid


def test_hanging_up_ends_it(world: World, shell: tuple[Terminal, subprocess.Popen[str]]) -> None:
    at, bash = shell
    at.type(f"{RUN_LINE} sh -c 'echo here; exec sleep 1000'\n")
    at.expect("here\r\n")
    at.hang_up()
    bash.wait(timeout=60)
    assert world.is_clean(), world.left()


# Readers of what it prints


def test_nobody_reads_what_it_prints(world: World) -> None:
    asking = "for name in other v4 v6; do getent hosts $name.example 2>&1; done"
    script = f"{asking}; getent hosts both.example >&9; echo status $? >&9"
    run = f"{ZFW} guard run --allow both.example --dns-upstream {UPSTREAM} -- sh -c '{script}'"
    # The reader has gone before the first line comes.
    done = world.run("bash", "-c", f"exec 9>&1; {{ sleep 0.5; {run}; }} 2>&1 >/dev/null | true")
    assert done.stdout == "fd09::10        both.example\nstatus 0\n"
    assert world.left() == []


@pytest.mark.parametrize("is_buffered", [False, True])
def test_nobody_reads_what_it_has_to_say(world: World, is_buffered: bool) -> None:
    """What it left running stays guarded all the same."""
    environment = "env -u PYTHONUNBUFFERED" if is_buffered else "env PYTHONUNBUFFERED=1"
    leaving = "sleep 1000 > /dev/null 2>&1 & sleep 0.5; exit 3"
    script = f"{environment} {RUN_LINE} sh -c '{leaving}' 2>&1 | true"
    done = world.run("bash", "-c", f"{script}; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("3\n", "")
    [left], _ = listing.guards()
    assert (left.processes, left.problem) == (1, "")
    kill_in(left)
    assert world.is_clean(), world.left()


def test_a_reader_that_does_not_read_stops_nobody(world: World) -> None:
    names = " ".join(f"{'x' * 60}.{number}.example" for number in range(300))
    script = f"for name in {names}; do getent hosts $name; done; getent hosts both.example"
    (world.folder / "script").write_text(script)
    read_end, write_end = os.pipe()
    policy = ("--allow", "both.example", "--dns-upstream", UPSTREAM)
    process = world.start(
        str(ZFW), "guard", "run", *policy, "--", "sh", f"{world.folder}/script", stderr=write_end
    )
    os.close(write_end)
    assert process.communicate(timeout=100) == ("fd09::10        both.example\n", None)
    with os.fdopen(read_end) as file:
        lines = file.read().splitlines()
    assert len(lines) < 1000
    assert all(line.startswith("zfw guard: getent[") for line in lines)


def test_what_was_left_out_is_said(world: World) -> None:
    # More than a pipe holds: each name is printed once.
    names = [f"{'x' * 60}.{number}.example" for number in range(1000)]
    asking = f"for name in {' '.join(names)}; do getent hosts $name; done"
    (world.folder / "script").write_text(f"{asking}; echo now; read line; getent hosts last")
    log = world.folder / "log"
    policy = ("--dns-upstream", UPSTREAM, "--log", str(log))
    command = (str(ZFW), "guard", "run", *policy, "--", "sh", f"{world.folder}/script")
    read_end, write_end = os.pipe()
    process = world.start(*command, stdin=subprocess.PIPE, stderr=write_end)
    os.close(write_end)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    assert log.read_text().count('"deny"') >= len(names)
    with os.fdopen(read_end, "rb", buffering=0) as file:
        seen = file.read(1 << 20).splitlines()
        process.communicate("\n", timeout=60)
        first, second, *_ = file.read(1 << 20).decode().splitlines()
    assert first == f"zfw: {len(names) - len(seen)} lines left out"
    assert len(names) > len(seen) > 0
    assert " last: not allowed" in second


# As another user


def test_as_another_user(world: World) -> None:
    script = "id; echo $HOME $USER $LOGNAME; tail -n 1 /proc/self/cgroup"
    done = world.zfw("run", "--dns-upstream", UPSTREAM, "--user", "nobody", "--", *sh(script))
    lines = done.stdout.splitlines()
    assert lines[0] == "uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)"
    assert lines[1] == "/nonexistent nobody nobody"
    assert "/zfw-guard-" in lines[2]
    assert (done.returncode, done.stderr) == (0, "")


def test_as_another_user_it_cannot_leave(world: World) -> None:
    outside = world.cgroup / "cgroup.procs"
    script = f"echo 0 > {outside}; tail -n 1 /proc/self/cgroup"
    done = world.zfw("run", "--dns-upstream", UPSTREAM, "--user", "nobody", "--", *sh(script))
    assert "/zfw-guard-" in done.stdout
    assert "Permission denied" in done.stderr


def test_an_unknown_user_is_told(world: World) -> None:
    for name in ("nosuchuser", "4294967295", "99999999999999999999", ""):
        done = world.zfw("run", "--dns-upstream", UPSTREAM, "--user", name, "--", "true")
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr == f"zfw: no such user: {name}\n"
    assert world.left() == []


# What it leaves running


def test_what_is_left_running_stays_guarded_until_it_ends(world: World) -> None:
    policy = ("--allow", "both.example", "--dns-upstream", UPSTREAM, "--quiet")
    told, gate = world.folder / "told", world.folder / "gate"
    os.mkfifo(gate)
    later = "getent hosts both.example; getent hosts other.example; echo status $?"
    script = f"{{ read line < {gate}; {later}; }} > {told} 2>&1 &"
    done = world.zfw("run", *policy, "--", *sh(script))
    assert (done.returncode, done.stdout) == (0, "")
    identifier = done.stderr.split()[3]
    note = f"guard {identifier} stays for 1 process that the command has left running"
    assert done.stderr == f"zfw: warning: {note}\n"
    [listed], _ = listing.guards()
    assert (listed.manifest.id, listed.processes, listed.problem) == (identifier, 1, "")
    gate.write_text("\n")
    assert world.is_clean(), world.left()
    assert told.read_text() == "fd09::10        both.example\nstatus 2\n"


def test_the_callers_pipes_are_not_held_open(world: World) -> None:
    # Three of them: stdout, stderr, and one of the caller's own.
    script = "sleep 1000 > /dev/null 2>&1 3>&- &"
    run = f"{RUN_LINE} sh -c '{script}'"
    done = world.run("bash", "-c", f"{run} 2>&1 | cat; {{ {run} 3>&1 >&2 2>/dev/null | cat; }}")
    assert done.returncode == 0
    assert "stays for 1 process" in done.stdout
    first, second = listing.guards()[0]
    kill_in(first)
    kill_in(second)
    assert world.is_clean(), world.left()


def kill_in(guard: GuardStatus) -> None:
    """Kill all in it."""
    for pid in cgroup.processes(guard.manifest.cgroup, is_recursive=True):
        os.kill(pid, signal.SIGKILL)


def test_cgroups_that_the_command_made_go_with_it(world: World) -> None:
    script = f"cd {world.cgroup}/zfw-guard-*; mkdir a a/b c"
    done = world.run(*RUN, *sh(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert world.left() == []


# Several


def test_thirty_at_once(world: World) -> None:
    policy = ("--allow", "both.example", "--dns-upstream", UPSTREAM)
    command = (str(ZFW), "guard", "run", *policy, "--", "getent", "hosts", "both.example")
    started = [world.start(*command) for _ in range(30)]
    ended = [(*process.communicate(timeout=110), process.returncode) for process in started]
    assert set(ended) == {("fd09::10        both.example\n", "", 0)}
    assert world.left() == []


def test_a_command_in_a_command_may_reach_what_both_may(world: World) -> None:
    outer = ("--allow", "both.example", "--allow", "v4.example", "--quiet")
    inner = ("--allow", "both.example", "--allow", "other.example", "--quiet")
    script = """
for name in both v4 other; do
    getent ahostsv4 $name.example > /dev/null && echo $name is known
    curl --silent --max-time 20 http://$name.example > /dev/null && echo $name is there
done
curl --silent --max-time 20 http://10.9.0.20 > /dev/null || echo no address
"""
    (world.folder / "script").write_text(script)
    upstream = ("--dns-upstream", UPSTREAM)
    nested = (str(ZFW), "guard", "run", *inner, *upstream, "--", "sh", f"{world.folder}/script")
    with world.capture() as arrived:
        done = world.zfw("run", *outer, *upstream, "--", *nested)
    assert done.stdout.splitlines() == ["both is known", "both is there", "no address"]
    web = {one.destination for one in arrived if one.port == 80}
    assert web <= {"10.9.0.10", "fd09::10"}
    assert web
    assert world.left() == []


def test_the_outer_one_may_end_first(world: World) -> None:
    script = f"{RUN_LINE} sleep 1000 > /dev/null 2>&1 & while ! ls -d */; do sleep 0.1; done"
    script = f"cd {world.cgroup}/zfw-guard-*; {script}"
    done = world.run(*RUN, *sh(script))
    assert done.returncode == 0
    assert "stays for" in done.stderr
    _, inner = listing.guards()[0]
    kill_in(inner)
    assert world.is_clean(), world.left()


def test_the_outer_one_may_be_detached_first(world: World) -> None:
    outer = world.start(*RUN, *RUN, *sh("echo here; read line; exit 4"), stdin=subprocess.PIPE)
    assert outer.stdout is not None
    assert outer.stdout.readline() == "here\n"
    first, second = listing.guards()[0]
    assert world.zfw("detach", first.manifest.id).returncode == 0
    assert [each.manifest.id for each in listing.guards()[0]] == [second.manifest.id]
    out, err = outer.communicate("\n", timeout=60)
    assert (outer.returncode, out, err) == (4, "", "")
    assert world.left() == []
