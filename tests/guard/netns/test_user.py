# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard run --user: what the unprivileged command may not do to root, or to its guard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.terminal import terminal
from tests.guard.support.world import UPSTREAM
from tests.support.children import NOBODY
from tests.support.command import ZFW
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.terminal import Terminal
    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

AS_USER = (str(ZFW), "guard", "run", "--dns-upstream", UPSTREAM, "--user", "nobody")
RUN = (*AS_USER, "--")
RUN_LINE = " ".join(RUN)


# The environment


def environment(world: World, *options: str, **variables: str) -> dict[str, str]:
    """The environment of a command that root starts with these variables."""
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    given = {"PATH": os.environ["PATH"], "HOME": "/root", "USER": "root", "LOGNAME": "root"}
    done = world.run(*AS_USER, *options, "--", sys.executable, "-c", script, env=given | variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


SECRETS = {
    "SUDO_USER": "admin",
    "LD_PRELOAD": "",
    "LD_LIBRARY_PATH": "/root/lib",
    "PYTHONPATH": "/root",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SSH_AUTH_SOCK": "/root/agent",
    "XDG_RUNTIME_DIR": "/run/user/0",
    "MAIL": "/var/mail/root",
}
OWN = {
    "HOME": "/nonexistent",
    "USER": "nobody",
    "LOGNAME": "nobody",
    "SHELL": "/usr/sbin/nologin",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
}


def test_the_environment_of_root_is_not_the_commands(world: World) -> None:
    found = environment(world, TERM="dumb", LANG="C.UTF-8", LC_TIME="C", TZ="UTC", **SECRETS)
    found.pop("LC_CTYPE", None)  # Python sets it
    assert found == OWN | {"TERM": "dumb", "LANG": "C.UTF-8", "LC_TIME": "C", "TZ": "UTC"}


def test_variables_are_kept_by_name_or_set(world: World) -> None:
    options = ("--env", "SSH_AUTH_SOCK", "--env", "MODE=a=b", "--env", "UNSET", "--env", "PATH")
    found = environment(world, *options, **SECRETS)
    assert found["SSH_AUTH_SOCK"] == "/root/agent"
    assert found["MODE"] == "a=b"
    assert found["PATH"] == os.environ["PATH"]
    assert "UNSET" not in found


def test_a_command_is_found_in_the_path_that_it_gets(world: World) -> None:
    program = world.folder / "here-only"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    given = {"PATH": f"{world.folder}:{os.environ['PATH']}"}
    assert world.run(*RUN, "here-only", env=given).returncode == 127


@pytest.mark.parametrize("option", [("--env", "A"), ("--allow-new-privileges",)])
def test_options_of_a_user_need_a_user(world: World, option: tuple[str, ...]) -> None:
    done = world.zfw("run", "--dns-upstream", UPSTREAM, *option, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"zfw: {option[0]}: needs --user\n"


# Privileges


def test_the_command_gains_no_privileges(world: World) -> None:
    """Neither by set-user-ID programs nor by file capabilities."""
    fields = "^(NoNewPrivs|CapPrm|CapEff|CapAmb|CapInh)"
    script = ("grep", "-E", fields, "/proc/self/status")
    found = dict(line.split(":\t") for line in world.run(*RUN, *script).stdout.splitlines())
    none = "0" * 16
    expected = {"NoNewPrivs": "1", "CapPrm": none, "CapEff": none, "CapAmb": none, "CapInh": none}
    assert found == expected
    done = world.run(*AS_USER, "--allow-new-privileges", "--", *script)
    assert "NoNewPrivs:\t0" in done.stdout


# Ways out that are no packet of a socket of IP. Prints the name of the error of each.
OTHER_WAYS = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def called(*arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*arguments) < 0 else "done"
def made(family, kind=socket.SOCK_DGRAM):
    try:
        socket.socket(family, kind).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(*[made(each) for each in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)])
print(made(socket.AF_NETLINK), made(socket.AF_PACKET), len(socket.socketpair()))
others = ("VSOCK", "RDS", "TIPC", "CAN", "BLUETOOTH", "QIPCRTR")
print({made(getattr(socket, "AF_" + name), kind) for name in others for kind in range(1, 6)})
REQUEST_KEY, IO_URING_SETUP = 249, 425
print(called(REQUEST_KEY, b"dns_resolver", b"name.example", b"", 0))
print(called(REQUEST_KEY, b"user", b"none", None, 0))
print(called(IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))
print(called(0x40000000 + 41, socket.AF_INET, socket.SOCK_DGRAM, 0))
"""


def test_it_sends_by_sockets_of_ip_alone(world: World) -> None:
    """Nothing else that sends meets the guard's programs."""
    done = world.run(*RUN, sys.executable, "-c", OTHER_WAYS)
    assert done.stdout.splitlines() == [
        "done done done",
        "done EPERM 2",
        "{'EAFNOSUPPORT'}",
        "EPERM",
        "ENOKEY",
        "EPERM",
        "ENOSYS",
    ], done.stderr
    done = world.run(*AS_USER, "--allow-new-privileges", "--", sys.executable, "-c", OTHER_WAYS)
    assert done.stdout.splitlines()[3] in ("ENOKEY", "ENOENT"), "the kernel looked for a program"


def test_keys_of_the_callers_session_are_not_the_commands(world: World) -> None:
    keys = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL, SESSION = 248, 250, -3
def read():
    key = libc.syscall(KEYCTL, 10, SESSION, b"user", b"ticket", 0)  # KEYCTL_SEARCH
    data = ctypes.create_string_buffer(6)
    return libc.syscall(KEYCTL, 11, key, data, 6) if key > 0 else -1
if len(sys.argv) == 1:
    print(read())
else:
    assert libc.syscall(KEYCTL, 1, None) > 0  # KEYCTL_JOIN_SESSION_KEYRING
    assert libc.syscall(ADD_KEY, b"user", b"ticket", b"secret", 6, SESSION) > 0
    assert read() == 6
    os.execv(sys.argv[1], sys.argv[1:])
"""
    (world.folder / "keys").write_text(keys)
    script = (sys.executable, f"{world.folder}/keys")
    command = " ".join((*RUN, "sh", "-c", f"'exec {sys.executable} -'"))
    done = world.run(*script, "/bin/sh", "-c", f"{command} < {world.folder}/keys")
    assert (done.stdout, done.stderr) == ("-1\n", "")


VXLAN = """
ip link add out0 type vxlan id 7 remote 10.9.0.20 dstport 4789 dev eth0
ip link set out0 up
ip address add 10.77.0.1/24 dev out0
ip neighbour add 10.77.0.2 lladdr 02:00:00:00:00:02 dev out0
exec 3<> /dev/udp/10.77.0.2/9
echo '<tunnelled>' >&3
"""


def test_one_capability_leads_past_the_guard(world: World) -> None:
    """As docs/architecture/security.md says; --user leaves none."""
    script = ("bash", "-c", VXLAN)
    setpriv = ("setpriv", "--reuid", "nobody", "--clear-groups")
    capable = (*setpriv, "--inh-caps", "+net_admin", "--ambient-caps", "+net_admin", *script)
    with world.capture() as arrived:
        world.guarded(["--allow", "10.77.0.0/24"], *capable)
    assert [one.destination for one in arrived if b"<tunnelled>" in one.data] == ["10.9.0.20"]
    world.inside.run("ip", "link", "delete", "out0")
    with world.capture() as arrived:
        world.run(*AS_USER, "--allow", "10.77.0.0/24", "--", *script)
    assert [one for one in arrived if one.destination == "10.9.0.20"] == []


# The cgroup


@pytest.fixture
def delegated(world: World) -> Path:
    """A cgroup in the world's that belongs to the unprivileged user, as systemd delegates it."""
    made = world.cgroup / "delegated"
    made.mkdir()
    for path in (made, made / "cgroup.procs", made / "cgroup.subtree_control"):
        os.chown(path, NOBODY, NOBODY)
    return made


# Tries each cgroup around its own, each beside it, and one of its own making.
LEAVE = """
import os, sys
top, own = sys.argv[1:]
def here():
    return open("/proc/self/cgroup").read().strip().rpartition("0::")[2]
before = here()
def enter(path):
    try:
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write("0")
        with open(f"{path}/cgroup.threads", "w") as file:
            file.write("0")
    except OSError:
        pass
try:
    os.mkdir(f"{own}/mine")
    enter(f"{own}/mine")
except OSError:
    pass
for path, _, _ in os.walk(top):
    enter(path)
print("stayed" if here() == before else f"left for {here()}")
"""


def leaving(world: World, delegated: Path) -> tuple[str, str, str, str]:
    """The command that tries to leave its guard's cgroup."""
    return sys.executable, "-c", LEAVE, str(world.cgroup), str(delegated)  # type: ignore[return-value]


def from_within(cgroup: Path, *command: str) -> tuple[str, ...]:
    """A command that is started in this cgroup."""
    return "sh", "-c", f'echo 0 > {cgroup}/cgroup.procs && exec "$@"', "sh", *command


def test_a_delegated_cgroup_is_no_way_out(world: World, delegated: Path) -> None:
    done = world.run(*from_within(delegated, *RUN, *leaving(world, delegated)))
    assert (done.stdout, done.stderr, done.returncode) == ("stayed\n", "", 0)
    (delegated / "mine").rmdir()
    delegated.rmdir()
    assert world.left() == []


def test_its_guard_is_beside_the_delegated_cgroup(world: World, delegated: Path) -> None:
    inner = delegated / "inner"
    inner.mkdir()
    script = "tail -n 1 /proc/self/cgroup; getent hosts both.example"
    command = (*AS_USER, "--allow", "both.example", "--", "sh", "-c", script)
    done = world.run(*from_within(inner, *command))
    where, answer = done.stdout.splitlines()
    assert Path(where).parent.name == world.cgroup.name
    assert answer.split() == ["fd09::10", "both.example"]
    assert done.stderr == ""
    inner.rmdir()
    delegated.rmdir()
    assert world.is_clean(), world.left()


def test_attach_warns_of_a_process_that_may_leave(world: World, delegated: Path) -> None:
    guarded = delegated / "app"
    guarded.mkdir()
    setpriv = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    command = (*setpriv, "sh", "-c", "echo in; exec sleep 1000")
    process = world.start(*from_within(guarded, *command))
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        warnings = world.attach(guarded).warnings
    finally:
        process.kill()
        process.communicate()
    assert warnings.startswith(f"zfw: warning: process {process.pid} (")
    assert warnings.endswith(f" may leave: user {NOBODY} may write to {delegated}/cgroup.procs\n")


def test_a_guard_around_the_caller_is_not_left(world: World, delegated: Path) -> None:
    outer = world.attach(delegated, "--allow", "both.example")
    done = world.run(*from_within(delegated, *RUN, "true"))
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == (
        f"zfw: nobody may move processes out of {delegated}, which guard {outer.id} guards\n"
        "hint: start it in a cgroup that this user may not write to\n"
    )
    assert world.zfw("detach", outer.id).returncode == 0


# The terminal


@pytest.fixture
def shell(world: World) -> Iterator[tuple[Terminal, subprocess.Popen[str]]]:
    """An interactive bash of root's."""
    environment = {**os.environ, "PS1": "PROMPT ", "TERM": "dumb"}
    command = ("bash", "--norc", "--noprofile", "--noediting", "-i")
    with terminal(
        lambda *words, **options: world.start(*words, env=environment, **options), *command
    ) as made:
        made[0].expect("PROMPT ")
        yield made


# Types a line at every terminal that it can reach.
TYPES = """
import fcntl, os, struct, termios
TIOCLINUX = 0x541C
fds = list(range(10))
for path in ("/dev/tty", *(f"/proc/self/fd/{fd}" for fd in range(10))):
    try:
        fds.append(os.open(path, os.O_RDWR))
    except OSError:
        pass
for fd in fds:
    for each in "echo typed-$((40 + 2))\\n":
        try:
            fcntl.ioctl(fd, termios.TIOCSTI, each.encode())
        except OSError:
            pass
    for code in (2, 3):
        try:
            fcntl.ioctl(fd, TIOCLINUX, struct.pack("=b", code) + bytes(16))
        except OSError:
            pass
print("tried", flush=True)
"""


@pytest.mark.parametrize("redirection", ["", "< /dev/null", "> /dev/null", "2>&1 | cat", "3<&0"])
def test_it_types_nothing_into_roots_terminal(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]], redirection: str
) -> None:
    at, _ = shell
    at.type(f"cat > {world.folder}/types\n{TYPES}\x04")
    at.expect("PROMPT ")
    at.type(f'{RUN_LINE} {sys.executable} -c "$(cat {world.folder}/types)" {redirection}\n')
    at.expect("PROMPT ")
    at.type("echo d'one'\n")
    assert "typed-42" not in at.expect("done\r\n")
    at.type("exit\n")
    assert "typed-42" not in at.seen


def test_what_it_leaves_running_does_not_read_roots_terminal(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    heard = world.folder / "heard"
    heard.touch()
    heard.chmod(0o666)
    script = f"setsid sh -c 'trap : HUP; exec cat <&3 > {heard}' 3<&0 > /dev/null 2>&1 & echo on"
    (world.folder / "script").write_text(script)
    at.type(f'{RUN_LINE} sh -c "$(cat {world.folder}/script)"\n')
    at.expect("on\r\n")
    at.expect("PROMPT ")
    for _ in range(5):
        at.type(": a secret\n")
        at.expect("PROMPT ")
    assert heard.read_text() == ""


def test_an_interactive_command_has_a_terminal(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, bash = shell
    at.resize(33, 44)
    script = 'stty size; test -t 0 -a -t 1 -a -t 2; echo all $?; read a; echo "got $a"; exit 7'
    (world.folder / "script").write_text(script)
    at.type(f'{RUN_LINE} sh -c "$(cat {world.folder}/script)"\n')
    at.expect("33 44\r\nall 0\r\n")
    at.type("a line\n")
    at.expect("got a line\r\n")
    at.expect("PROMPT ")
    at.type("echo status $?\n")
    at.expect("status 7\r\n")
    assert at.foreground() == bash.pid


def test_a_shell_of_its_own_has_job_control(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    at.type(f"{AS_LINE} --env PS1=IN''NER' ' -- bash --norc --noprofile --noediting -i\n")
    at.expect("INNER ")
    assert "no job control" not in at.seen
    for key in ("\x1a", "\x03"):
        at.type("sh -c 'echo g''o; exec sleep 1000'\n")
        at.expect("go\r\n")
        at.type(key)
        at.expect("Stopped" if key == "\x1a" else "^C")
        at.expect("INNER ")
    at.resize(11, 22)
    at.type("stty size\n")
    at.expect("11 22\r\n")
    at.type("exit\n")
    at.expect("stopped jobs.")
    at.expect("INNER ")
    at.type("exit 5\n")
    at.expect("PROMPT ")
    at.type("echo status $?\n")
    at.expect("status 5\r\n")
    at.type("stty -a | grep -c -w -e icanon; echo still $((6 * 7))\n")
    at.expect("1\r\nstill 42\r\n")


AS_LINE = " ".join(AS_USER)


def test_ctrl_c_ends_the_command(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, bash = shell
    for redirection in ("", "< /dev/null", "| cat"):
        at.type(f"{RUN_LINE} sh -c 'echo here >&2; exec sleep 1000' {redirection}\n")
        at.expect("here\r\n")
        at.type("\x03")
        at.expect("PROMPT ")
        at.type("echo status ${PIPESTATUS[0]}\n")
        at.expect(f"status {128 + signal.SIGINT}\r\n")
        assert at.foreground() == bash.pid


def test_a_pager_beside_it_keeps_the_keyboard(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    reader = "{ read a < /dev/tty; echo reader got $a; cat; }"
    at.type(f"{RUN_LINE} sh -c 'read a; echo end $?; sleep 1' | {reader}\n")
    at.type("a key\n")
    at.expect("reader got a key\r\n")
    at.expect("end 1\r\n")
    at.expect("PROMPT ")


def test_a_hang_up_reaches_the_command(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    at.type(f"{RUN_LINE} sh -c 'echo here; exec sleep 1000'\n")
    at.expect("here\r\n")
    at.hang_up()
    assert wait_until(lambda: not world.left()[1:]), world.left()


def test_denials_are_lines_of_the_terminal(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    at.type(f"{RUN_LINE} sh -c 'getent hosts other.example; sleep 1; echo e''nd'\n")
    at.expect("other.example: not allowed\r\n")
    at.expect("end\r\n")


def test_all_of_a_long_output_arrives(
    world: World, shell: tuple[Terminal, subprocess.Popen[str]]
) -> None:
    at, _ = shell
    at.type(f"{RUN_LINE} seq 1 50000\n")
    at.expect("\r\n1\r\n")
    numbers = at.expect("PROMPT ").split()
    assert numbers == [str(number) for number in range(2, 50001)]
