# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard attach, list and detach: of cgroups and processes that are there already."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UPSTREAM, UPSTREAM6
from tests.support.command import ZFW
from tests.support.waiting import wait_until
from zfw_py.guard import layout, listing, maps
from zfw_py.guard.codec import ZERO, Config, decision_counts
from zfw_py.guard.maps import STORE
from zfw_py.guard.programs import SYSTEM
from zfw_py.kernel import bpf_links, bpf_maps, cgroup
from zfw_py.kernel.libbpf import BpfObject
from zfw_py.kernel.process import tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel

OPTIONS = ("--allow", "both.example", "--dns-upstream", UPSTREAM)
BOTH = "fd09::10        both.example\n"


def attach(world: World, *arguments: str) -> str:
    """Attach without a word of complaint; the id."""
    done = world.zfw("attach", *OPTIONS, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    identifier = done.stdout.strip()
    assert done.stdout == f"{identifier}\n"
    assert len(identifier) == 8
    return identifier


def detach(world: World, identifier: str) -> None:
    done = world.zfw("detach", identifier)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"detached {identifier}\n", "")


def inside(world: World, path: Path, *command: str) -> tuple[int, str]:
    """Run a command in a cgroup; its exit code and stdout."""
    done = world.run("sh", "-c", f'echo 0 > {path}/cgroup.procs; exec "$@"', "sh", *command)
    return done.returncode, done.stdout


def knows(world: World, path: Path, name: str) -> bool:
    return inside(world, path, "getent", "hosts", f"{name}.example")[0] == 0


def test_a_cgroup_is_guarded_until_it_is_detached(world: World, service: Path) -> None:
    assert knows(world, service, "other")
    identifier = attach(world, "--cgroup", str(service))
    assert inside(world, service, "getent", "hosts", "both.example") == (0, BOTH)
    assert not knows(world, service, "other")
    detach(world, identifier)
    assert knows(world, service, "other")
    assert not Path(f"{STORE.root}/{identifier}").exists()
    assert service.is_dir()
    service.rmdir()
    assert world.left() == []


def test_a_cgroup_may_be_named_in_other_ways(world: World, service: Path) -> None:
    (world.folder / "link").symlink_to(service)
    for path in (f"{service}/../service/", f"{world.folder}/link"):
        identifier = attach(world, "--cgroup", path)
        [status], _ = listing.guards()
        assert status.manifest.cgroup == str(service)
        detach(world, identifier)


def test_the_cgroup_of_a_process(world: World, service: Path) -> None:
    with world.bystander("sh", "-c", f"echo 0 > {service}/cgroup.procs; exec sleep 1000") as pid:
        assert wait_until(lambda: cgroup.of_process(pid) == str(service))
        identifier = attach(world, "--pid", str(pid))
        [status], _ = listing.guards()
        assert (status.manifest.cgroup, status.processes) == (str(service), 1)
        assert not knows(world, service, "other")
        detach(world, identifier)


def test_the_session_that_zfw_is_called_in(world: World) -> None:
    """Its process is in what it guards, and must not ask itself."""
    script = f"""
{ZFW} guard attach {" ".join(OPTIONS)} --pid $$
getent hosts both.example
getent hosts other.example || echo unknown
"""
    done = world.run("sh", "-c", script)
    identifier, *lines = done.stdout.splitlines()
    assert (lines, done.stderr) == ([BOTH.strip(), "unknown"], "")
    [status], _ = listing.guards()
    assert status.supervisor_pid is not None
    proxy = f"{world.cgroup.parent}/zfw-proxy-{identifier}"
    assert cgroup.of_process(status.supervisor_pid) == proxy
    detach(world, identifier)
    assert not Path(proxy).exists()
    assert world.left() == []


def test_without_loopback_the_proxy_is_reached_in_its_own_session_too(world: World) -> None:
    script = (
        f"{ZFW} guard attach --no-loopback {' '.join(OPTIONS)} --pid $$; getent hosts both.example"
    )
    done = world.run("sh", "-c", script)
    assert done.stdout.splitlines()[1:] == [BOTH.strip()]


def test_a_process_is_moved_into_a_cgroup_of_its_own(world: World) -> None:
    with world.bystander() as pid, world.bystander() as other:
        done = world.zfw("attach", *OPTIONS, "--pid", str(pid), "--move")
        identifier = done.stdout.strip()
        assert (done.returncode, done.stderr) == (0, "")
        own = f"{world.cgroup}/zfw-guard-{identifier}"
        assert cgroup.of_process(pid) == own
        assert cgroup.of_process(other) == str(world.cgroup)
        detach(world, identifier)
        assert cgroup.of_process(pid) == str(world.cgroup)
        assert not Path(own).exists()


# A process whose children have children, some in sessions of their own, and go on starting more.
FAMILY = """
import os, sys, time
for depth in range(3):
    if os.fork() == 0:
        if depth == 1:
            os.setsid()
        if os.fork() == 0:
            while True:
                if os.fork() == 0:
                    time.sleep(0.05)
                    os._exit(0)
                os.wait()
        os.wait()
print("here", flush=True)
time.sleep(1000)
"""


def test_a_process_is_moved_with_its_descendants(world: World) -> None:
    with world.bystander() as other:
        process = world.start(sys.executable, "-c", FAMILY)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert wait_until(lambda: len(tree_of(process.pid)) >= 6)
        done = world.zfw("attach", *OPTIONS, "--pid", str(process.pid), "--move")
        assert (done.returncode, done.stderr) == (0, "")
        own = f"{world.cgroup}/zfw-guard-{done.stdout.strip()}"
        for _ in range(10):
            left = set(cgroup.processes(str(world.cgroup))) & {
                each.pid for each in tree_of(process.pid)
            }
            assert left == set()
        assert cgroup.of_process(other) == str(world.cgroup)
        for pid in cgroup.processes(own):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert world.is_clean(), world.left()


def test_the_shell_that_runs_zfw_is_moved_without_zfw(world: World) -> None:
    script = f"""
sleep 1000 & child=$!
id=$({ZFW} guard attach {" ".join(OPTIONS)} --pid $$ --move) || exit
grep -l guard-$id /proc/$$/cgroup /proc/$child/cgroup | wc -l
getent hosts both.example; getent hosts other.example; echo $?
kill $child
"""
    done = world.run("bash", "-c", script)
    assert (done.stdout, done.stderr) == (f"2\n{BOTH}2\n", "")
    assert world.is_clean(), world.left()


def test_a_moved_process_that_ends_takes_its_guard_along(world: World) -> None:
    for verb in (("attach", *OPTIONS), ("redirect", "--dns-to", UPSTREAM)):
        with world.bystander() as pid:
            assert world.zfw(*verb, "--pid", str(pid), "--move").returncode == 0
            assert len(listing.guards()[0]) == 1
        if verb[0] == "redirect":
            # Nobody is there to notice it.
            assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
        assert world.is_clean(), world.left()


def test_sockets_from_outside_are_warned_of(world: World, service: Path) -> None:
    made = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 4242)); s.listen(); "
    entered = f"open('{service}/cgroup.procs', 'w').write('0'); print('here', flush=True); "
    code = f"{made}{entered}sys.stdin.read()"
    process = world.start(sys.executable, "-c", code, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    done = world.zfw("attach", *OPTIONS, "--cgroup", str(service))
    comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
    assert done.returncode == 0
    assert done.stderr == (
        f"zfw: warning: process {process.pid} ({comm}) holds a socket that was created outside of"
        " the cgroup: TCP 127.0.0.1:4242; it is not guarded\n"
    )
    process.communicate(timeout=60)


# In the foreground


def in_foreground(world: World, service: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    arguments = ("--foreground", "--cgroup", str(service), *more)
    process = world.start(str(ZFW), "guard", "attach", *OPTIONS, *arguments)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_a_signal_takes_it_away(
    world: World, service: Path, number: signal.Signals
) -> None:
    process, identifier = in_foreground(world, service)
    [status], _ = listing.guards()
    assert (status.manifest.id, status.supervisor_pid, status.problem) == (
        identifier,
        process.pid,
        "",
    )
    assert inside(world, service, "getent", "hosts", "both.example") == (0, BOTH)
    assert not knows(world, service, "other")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = [line[13:] for line in out.splitlines()]
    assert any(" redirected: udp 10.9.0.1:53 to 127.0.0.1:" in line for line in lines)
    assert any(" allowed: DNS AAAA both.example: allowed" in line for line in lines)
    assert len([line for line in lines if " denied: DNS " in line]) == 1
    assert knows(world, service, "other")
    service.rmdir()
    assert world.left() == []


def test_in_the_foreground_it_can_be_detached_from_elsewhere(world: World, service: Path) -> None:
    process, identifier = in_foreground(world, service)
    detach(world, identifier)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_in_the_foreground_it_ends_with_its_cgroup(world: World, service: Path) -> None:
    process, _ = in_foreground(world, service)
    service.rmdir()
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert world.left() == []


def test_in_the_foreground_nobody_has_to_read(world: World, service: Path) -> None:
    process, _ = in_foreground(world, service)
    assert process.stdout is not None
    process.stdout.close()
    assert not knows(world, service, "other")
    assert knows(world, service, "both")
    process.send_signal(signal.SIGINT)
    with process:
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert knows(world, service, "other")


def test_in_the_foreground_of_its_own_session(world: World) -> None:
    process, _ = in_foreground(world, world.cgroup)
    assert inside(world, world.cgroup, "getent", "hosts", "both.example") == (0, BOTH)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert world.left() == []


# What is refused


def refused(world: World, *arguments: str) -> tuple[int, str]:
    """The exit code and the line of a command that must not change anything."""
    before = world.left()
    done = world.zfw(*arguments)
    assert done.stdout == ""
    assert world.left() == before
    return done.returncode, done.stderr


def test_the_root_cgroup_is_refused(world: World) -> None:
    root = cgroup.mount_point()
    if not cgroup.is_root(root):
        pytest.skip("the root cgroup is not seen in this cgroup namespace")
    for verb in (("attach",), ("redirect", "--dns-to", UPSTREAM)):
        message = f"zfw: {root}: the root cgroup cannot be guarded\n"
        assert refused(world, *verb, "--cgroup", root) == (2, message)
        enter = f"echo 0 > {root}/cgroup.procs; exec sleep 1000"
        with world.bystander("sh", "-c", enter) as pid:
            assert wait_until(lambda: cgroup.of_process(pid) == root)
            code, line = refused(world, *verb, "--pid", str(pid))
        assert code == 2
        assert line == (
            f"zfw: process {pid} is in the root cgroup, which cannot be guarded\n"
            "hint: --move puts it into a cgroup of its own\n"
        )


def is_kernel_thread(pid: int) -> bool:
    """By PF_KTHREAD among its flags, the ninth field of /proc/PID/stat (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return bool(int(fields[6]) & 0x00200000)


def test_a_thread_of_the_kernel_cannot_be_moved(world: World) -> None:
    if not is_kernel_thread(2):
        pytest.skip("no thread of the kernel has an id in this PID namespace")
    code, line = refused(world, "attach", "--pid", "2", "--move", "--dns-upstream", UPSTREAM)
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("zfw: move process 2 into ")
    assert line.endswith(": Invalid argument (EINVAL)\n")


def test_twice_is_refused(world: World, service: Path) -> None:
    identifier = attach(world, "--cgroup", str(service))
    message = f"zfw: {service} is guarded already, by guard {identifier}\n"
    assert refused(world, "attach", *OPTIONS, "--cgroup", str(service)) == (6, message)
    redirect = ("redirect", "--dns-to", UPSTREAM)
    assert refused(world, *redirect, "--cgroup", str(service)) == (6, message)
    assert knows(world, service, "both")


def test_what_is_no_cgroup_is_refused(world: World, service: Path) -> None:
    gone = f"{service}/gone"
    for path, code, message in (
        (gone, 5, f"no such cgroup: {gone}"),
        ("/etc/passwd", 2, "/etc/passwd: not a directory, so not a cgroup"),
        ("/etc", 2, "/etc: not a cgroup"),
        ("", 2, "--cgroup: empty"),
    ):
        assert refused(world, "attach", *OPTIONS, "--cgroup", path) == (code, f"zfw: {message}\n")


def test_a_process_that_is_not_there_is_refused(world: World) -> None:
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    message = f"zfw: no such process: {most}\n"
    assert refused(world, "attach", *OPTIONS, "--pid", str(most)) == (5, message)
    assert refused(world, "attach", *OPTIONS, "--pid", "0") == (
        2,
        "zfw: --pid: not a process id: 0\n",
    )


def test_an_upstream_that_is_the_proxy_itself_is_not_a_matter_of_luck(
    world: World, service: Path
) -> None:
    """No port is free that is not the proxy's: so one of them it is."""
    # Two ports for everybody; the proxy takes one with TCP and all with UDP.
    world.inside.run("sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 40003")
    upstream = ("--dns-upstream", "127.0.0.1:40001")
    code, line = refused(world, "attach", *upstream, "--cgroup", str(service))
    assert (code, line) == (2, "zfw: upstream 127.0.0.1:40001: this is the proxy itself\n")
    code, line = refused(world, "run", *upstream, "--", "true")
    assert (code, line) == (2, "zfw: upstream 127.0.0.1:40001: this is the proxy itself\n")


def test_strangers_get_no_answer_and_take_no_connection(world: World, service: Path) -> None:
    """Any user can send to the proxy's ports; a hundred idle connections starve no guarded one."""
    identifier = attach(world, "--cgroup", str(service))
    proxy = maps.Maps(f"{STORE.root}/{identifier}").map("proxies").items()
    port = next(int.from_bytes(value[32:34], sys.byteorder) for _, value in proxy)

    def connections() -> Iterator[object]:
        os.setuid(65534)
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        for each in held:
            each.settimeout(20)
        yield len(held)
        # The proxy has closed all of them.
        yield sum(each.recv(1) == b"" for each in held)

    ask = ("dig", "+tries=1", "+time=1", "@127.0.0.1", "-p", str(port), "both.example")
    for how in ("+notcp", "+tcp"):
        assert "status:" not in world.run(*ask, how).stdout
    with world.stages(world.cgroup, connections) as stage:
        assert stage() == 150
        guarded = world.call(
            service,
            lambda: (
                subprocess.run(
                    ["dig", "+tcp", "+short", "+tries=1", f"@{UPSTREAM}", "both.example"],
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout
            ),
        )
        assert guarded == "10.9.0.10\n"
        assert stage() == 150


def test_without_root(world: World) -> None:
    for arguments in (
        ("run", "--dns-upstream", UPSTREAM, "--", "true"),
        ("attach", *OPTIONS, "--cgroup", str(world.cgroup)),
        ("redirect", "--dns-to", UPSTREAM, "--cgroup", str(world.cgroup)),
        ("list",),
        ("detach", "12345678"),
        ("detach", "--all"),
    ):
        done = world.run(
            "setpriv", "--reuid", "65534", "--clear-groups", str(ZFW), "guard", *arguments
        )
        assert (done.returncode, done.stdout) == (77, "")
        assert done.stderr.startswith("zfw: not permitted: ")
        assert done.stderr.endswith(": needs root\n")
        assert done.stderr.count("\n") == 1


IN_PRIVATE = "unshare --mount --propagation private sh -c"


def test_without_cgroup2(world: World) -> None:
    script = (
        f"umount {cgroup.mount_point()} && exec {ZFW} guard run --dns-upstream {UPSTREAM} -- true"
    )
    done = world.run("sh", "-c", f"{IN_PRIVATE} '{script}'")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "zfw: no cgroup2 is mounted\n"
        "hint: mount -t cgroup2 none /sys/fs/cgroup, or see systemd(1)\n"
    )


def test_without_bpffs(world: World) -> None:
    """It is mounted where it is missing; and what is not there is not listed."""
    command = f"{ZFW} guard run --dns-upstream {UPSTREAM} -- true"
    script = f"umount -a -t bpf; {ZFW} guard list; {ZFW} guard detach abc; {command}; echo $?"
    done = world.run("sh", "-c", f"{IN_PRIVATE} '{script}'")
    assert done.stdout == "no guards\n0\n"
    assert done.stderr == "zfw: no such guard: abc\n"


# Names


def test_names_that_are_denied_are_counted(world: World, service: Path) -> None:
    """And by their reasons, as denied packets are."""
    allow = ("--allow", "example", "--block", "other.example")
    identifier = attach(world, "--cgroup", str(service), *allow)
    for name in ("other.example", "both.example", "both.test", "b.test"):
        inside(world, service, "dig", "+tries=1", f"@{UPSTREAM}", name)
    inside(world, service, "dig", "+tries=1", f"@{UPSTREAM}", "AXFR", "both.example")
    expected = {"blocked": 1, "not_allowed": 2, "unsupported": 1}
    wait_until(lambda: listing.status(identifier).decisions.get("dns") == expected, 3)
    assert listing.status(identifier).decisions.get("dns") == expected
    [line] = world.zfw("list").stdout.splitlines()[1:]
    assert line.split()[-1] == "4"


# Network namespaces


def test_a_cgroup_with_several_network_namespaces(world: World, service: Path) -> None:
    """One that is there when it is attached, one without loopback then, and a later one."""
    enter = ("sh", "-c", f'echo 0 > {service}/cgroup.procs; exec unshare --net "$@"', "sh")
    up, ask, unknown = "ip link set lo up", "getent hosts both.example", "getent hosts v4.example"
    dig = f"dig +short +tries=1 @{UPSTREAM6} both.example AAAA"
    with world.shell(*enter) as first, world.shell(*enter) as second:
        assert first.ask(up) == (0, "")
        assert second.ask("true") == (0, "")
        attach(world, "--cgroup", str(service))
        assert first.ask(ask) == (0, BOTH)
        assert first.ask(dig) == (0, "fd09::10\n")
        assert first.ask(unknown) == (2, "")
        assert second.ask(up) == (0, "")
        # A first question tells where somebody is: it is refused.
        assert wait_until(lambda: second.ask(dig) == (0, "fd09::10\n"))
        assert second.ask(ask) == (0, BOTH)
        with world.shell(*enter) as third:
            assert third.ask(up) == (0, "")
            assert wait_until(lambda: third.ask(ask) == (0, BOTH))
            assert third.ask(dig) == (0, "fd09::10\n")
            assert third.ask(unknown) == (2, "")


def test_a_network_namespace_is_found_from_within_a_pid_namespace(world: World) -> None:
    """The kernel tells of processes by ids that they do not have there."""
    in_pids = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    run = (str(ZFW), "guard", "run", "-q", "--allow", "both.example", "--dns-upstream", UPSTREAM)
    with world.shell(*in_pids, *run, "--", "unshare", "--net") as shell:
        assert shell.ask("ip link set lo up") == (0, "")
        assert wait_until(lambda: shell.ask("getent hosts both.example") == (0, BOTH))
        shell.end()
        assert shell.process.wait(60) == 0


# Nested


def curl(address: str) -> tuple[str, ...]:
    return ("curl", "--silent", "--max-time", "10", "--output", "/dev/null", f"http://{address}")


def test_a_guard_within_one_asks_through_it(world: World, service: Path) -> None:
    inner = service / "inner"
    inner.mkdir()
    allow = ("--allow", "both.example", "--allow", "other.example", "--dns-upstream", UPSTREAM)
    outer_id = attach(world, "--cgroup", str(service))
    done = world.zfw("attach", *allow, "--cgroup", str(inner))
    inner_id = done.stdout.strip()
    assert (done.returncode, done.stderr) == (0, "")
    proxy = service / f"zfw-proxy-{inner_id}"
    assert proxy.is_dir()
    assert inside(world, inner, *curl("both.example"))[0] == 0
    assert not knows(world, inner, "other")
    assert not knows(world, service, "other")
    detach(world, inner_id)
    assert not proxy.exists()
    detach(world, outer_id)
    assert knows(world, inner, "other")


def test_a_guard_around_one_is_asked_through(world: World, service: Path) -> None:
    inner = service / "inner"
    inner.mkdir()
    allow = ("--allow", "both.example", "--allow", "other.example", "--dns-upstream", UPSTREAM)
    inner_id = world.zfw("attach", *allow, "--cgroup", str(inner)).stdout.strip()
    outer_id = attach(world, "--cgroup", str(service))
    proxy = service / f"zfw-proxy-{inner_id}"
    assert proxy.is_dir()
    assert inside(world, inner, *curl("both.example"))[0] == 0
    assert not knows(world, inner, "other")
    detach(world, outer_id)
    assert knows(world, inner, "other")
    detach(world, inner_id)
    assert not proxy.exists()


def test_a_running_command_gets_a_guard_around_it(world: World) -> None:
    allow = ("--allow", "both.example", "--allow", "other.example", "--dns-upstream", UPSTREAM)
    with world.shell(str(ZFW), "guard", "run", "-q", *allow, "--") as shell:
        assert shell.ask("getent hosts v4.example") == (2, "")
        identifier = attach(world, "--cgroup", str(world.cgroup))
        assert shell.ask("getent hosts other.example") == (2, "")
        assert shell.ask(" ".join(curl("both.example"))) == (0, "")
        shell.end()
        assert shell.process.wait(60) == 0
    detach(world, identifier)
    assert world.left() == []


# Other programs


class Other:
    """A program on a cgroup that is not this guard's: it counts packets, and lets them pass."""

    def __init__(self, stack: ExitStack) -> None:
        loaded = stack.enter_context(BpfObject(SYSTEM.object))
        loaded.load()
        self.program = loaded.programs()["egress"]
        maps = loaded.maps()
        flags = layout.LOG_ONLY | layout.DEFAULT_ALLOW
        config = Config(layout.ABI_VERSION, flags).encode()
        bpf_maps.Map(os.dup(maps["config"])).update(ZERO, config)
        self._decisions = bpf_maps.Map(os.dup(maps["decisions"]))

    def count(self) -> int:
        """Of the packets that it has seen."""
        counts = decision_counts([value for _, value in sorted(self._decisions.items())])
        return sum(counts.get("egress", {}).values())


def test_other_programs_on_the_cgroup_stay_and_run(world: World, service: Path) -> None:
    with ExitStack() as stack:
        place = cgroup.open_directory(str(service))
        stack.callback(os.close, place)
        before, after = Other(stack), Other(stack)
        hook = bpf_links.CGROUP_INET_EGRESS
        stack.callback(os.close, bpf_links.create_link(before.program, place, hook))
        identifier = attach(world, "--cgroup", str(service))
        stack.callback(os.close, bpf_links.create_link(after.program, place, hook))
        assert knows(world, service, "both")
        counts = [before.count(), after.count()]
        assert all(counts)
        detach(world, identifier)
        assert knows(world, service, "other")
        assert before.count() > counts[0]
        assert after.count() > counts[1]


@pytest.mark.parametrize("how", ["alone", "override"])
@pytest.mark.parametrize("is_around", [False, True], ids=["on it", "around it"])
def test_a_program_that_would_not_run_any_more_is_a_conflict(
    world: World, service: Path, how: str, is_around: bool
) -> None:
    """What was attached in the old way allows no other beside it, or none further in."""
    pin = "/sys/fs/bpf/zfw-test-other"
    where = str(service.parent if is_around else service)
    flags = [how] if how == "override" else []
    with ExitStack() as stack:
        other = Other(stack)
        bpf_maps.pin(other.program, pin)
        stack.callback(os.unlink, pin)
        attached = (where, "egress", "pinned", pin)
        subprocess.run(["bpftool", "cgroup", "attach", *attached, *flags], check=True)
        stack.callback(subprocess.run, ["bpftool", "cgroup", "detach", *attached], check=True)
        code, line = refused(world, "attach", *OPTIONS, "--cgroup", str(service))
        assert code == 6
        assert line == (
            f"zfw: attach egress: a program on {where} allows no other beside it\n"
            "hint: bpftool cgroup tree shows it\n"
        )
        assert knows(world, service, "other")
        assert other.count() > 0
