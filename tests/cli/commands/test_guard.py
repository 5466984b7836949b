# SPDX-License-Identifier: GPL-2.0-only
"""zfw guard's words: bad input in one line with nothing done, and listings as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UNNAMED, UPSTREAM, UPSTREAM6
from tests.support.command import ZFW
from zfw_py.guard import instance, layout
from zfw_py.guard.codec import ZERO, Config
from zfw_py.guard.maps import STORE, Maps
from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from tests.cli.conftest import Zfw
    from tests.guard.support.world import World


@pytest.fixture
def _no_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    def entered(*_: object, **__: object) -> None:
        pytest.fail("a guard is made")

    monkeypatch.setattr(instance, "make_root", entered)
    monkeypatch.setattr(instance, "locked", entered)


# Bad input

TRY = "Try 'zfw guard {} --help'."


@pytest.mark.usefixtures("_no_guard")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("run", 2, f"Missing argument '-- COMMAND ARG...'. {TRY.format('run')}"),
        ("run --nosuch -- true", 2, f"No such option: --nosuch {TRY.format('run')}"),
        ("run --allow", 2, f"Option '--allow' requires an argument. {TRY.format('run')}"),
        (
            "run --allow 10.0.0.1/8 true",
            2,
            "--allow: host bits are set in '10.0.0.1/8'; the prefix is 10.0.0.0/8",
        ),
        ("run --allow a..b true", 2, "--allow: an empty label in 'a..b'"),
        (
            "run --allow example.com:0 true",
            2,
            "--allow: the port of 'example.com:0' is not within 1 to 65535",
        ),
        (
            "run --allow example.com:99999 true",
            2,
            "--allow: the port of 'example.com:99999' is not within 1 to 65535",
        ),
        (
            "run --allow *.example.com true",
            2,
            "--allow: 'example.com' covers all names below it: '*.example.com'",
        ),
        (
            "run --allow https://example.com true",
            2,
            "--allow: give the host name, not a URL: 'https://example.com'",
        ),
        (
            "run --allow fd00::/8:443 true",
            2,
            "--allow: IPv6 with a port is [ADDR/LEN]:PORT, not 'fd00::/8:443'",
        ),
        ("run --allow 300.0.0.1 true", 2, "--allow: not an IPv4 or IPv6 address: '300.0.0.1'"),
        (
            "run --block example.com:53 true",
            2,
            "--block: a block is for all ports, and takes no port: 'example.com:53'",
        ),
        (
            "run --dns-upstream dns.example true",
            2,
            "--dns-upstream: not an IPv4 or IPv6 address: 'dns.example'",
        ),
        (
            "run --dns-upstream 10.0.0.1:0 true",
            2,
            "--dns-upstream: the port of '10.0.0.1:0' is not within 1 to 65535",
        ),
        (
            "run --dns-upstream 224.0.0.1 true",
            2,
            "--dns-upstream: not the address of one server: '224.0.0.1'",
        ),
        (
            "run --default maybe true",
            2,
            "Invalid value for '--default': 'maybe' is not one of 'deny', 'allow'."
            f" {TRY.format('run')}",
        ),
        ("run --user nosuchuser true", 5, "no such user: nosuchuser"),
        ("run --policy /nosuch.toml true", 5, "/nosuch.toml: no such file"),
        ("attach", 2, "give exactly one of --cgroup, --pid and --docker"),
        ("attach --cgroup /x --pid 1", 2, "give exactly one of --cgroup, --pid and --docker"),
        ("attach --cgroup /nosuch", 5, "no such cgroup: /nosuch"),
        ("attach --cgroup /x --move", 2, "--move: needs --pid"),
        ("attach --docker x --move", 2, "--move: needs --pid"),
        (
            "attach --pid x",
            2,
            f"Invalid value for '--pid': 'x' is not a valid int. {TRY.format('attach')}",
        ),
        ("attach --pid -1", 2, "--pid: not a process id: -1"),
        ("attach --docker a/b", 2, "not a container's name: 'a/b'"),
        ("redirect --cgroup /x", 2, f"Missing option '--dns-to'. {TRY.format('redirect')}"),
        ("redirect --dns-to 10.0.0.1", 2, "give exactly one of --cgroup, --pid and --docker"),
        ("detach", 2, "give either an ID or --all"),
        ("detach abc --all", 2, "give either an ID or --all"),
        ("detach abc def", 2, f"Got unexpected extra argument(s) (def) {TRY.format('detach')}"),
        ("detach ../../etc", 5, "no such guard: '../../etc'"),
        ("detach new_1", 5, "no such guard: 'new_1'"),
        ("list --yaml", 2, f"No such option: --yaml {TRY.format('list')}"),
        ("nosuch", 2, "No such command 'nosuch'. Try 'zfw guard --help'."),
    ],
)
def test_bad_input_is_told_in_a_line(zfw: Zfw, arguments: str, code: int, message: str) -> None:
    assert zfw("guard", *arguments.split()) == (code, "", f"zfw: {message}\n")


@pytest.mark.parametrize("is_closed", [False, True])
def test_an_error_that_nobody_reads_keeps_its_exit_code(is_closed: bool) -> None:
    """Also where stderr has a buffer, which would fail once more when the interpreter ends."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = f"exec {ZFW} guard detach ../../etc {'2>&-' if is_closed else ''}"
    with os.fdopen(write_end, "w") as pipe:
        done = subprocess.run(
            ["sh", "-c", command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=pipe,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (5, b"")


POLICIES = {
    "nonsense.toml": ("allow = [", 1, "Invalid value"),
    "unknown.toml": ('allowed = ["a.example"]', None, "allowed: no such field"),
    "type.toml": ("\nallow = 5", None, "allow: expected array, got int"),
    "name.toml": ('allow = ["ok.example", "a..b"]', None, "allow[1]: an empty label in 'a..b'"),
    "port.json": ('{"block": ["a.example:53"]}', None, "block[0]: a block is for all ports"),
    "line.json": ('{\n  "allow": [,]\n}', 2, ""),
    "file.yaml": ("allow: []", None, ""),
}


@pytest.mark.usefixtures("_no_guard")
def test_a_container_engine_that_is_not_there(zfw: Zfw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nosuch/docker.sock")
    message = "zfw: container engine /nosuch/docker.sock: No such file or directory\n"
    assert zfw("guard", "attach", "--docker", "web") == (1, "", message)


@pytest.mark.usefixtures("_no_guard")
@pytest.mark.parametrize("name", POLICIES)
def test_a_bad_policy_is_told_with_its_place(zfw: Zfw, tmp_path: Path, name: str) -> None:
    text, line, message = POLICIES[name]
    (tmp_path / name).write_text(text)
    code, out, err = zfw("guard", "run", "--policy", str(tmp_path / name), "true")
    print(err)
    assert (code, out) == (2, "")
    assert err.startswith(f"zfw: {tmp_path / name}" + (f":{line}: " if line else ": "))
    assert message in err
    assert err.count("\n") <= 2


# What is printed of guards


def masked(world: World, text: str) -> str:
    """Without what is another thing each time, and without the padding of columns."""
    plain = re.sub(r"\b[0-9a-f]{8}\b", "ID", text.replace(str(world.cgroup), "/CG"))
    return re.sub(" +", " ", plain)


@pytest.mark.kernel
def test_no_guards(world: World) -> None:
    for arguments, out in (
        (("list",), "no guards\n"),
        (("list", "--json"), "[]\n"),
        (("detach", "--all"), ""),
    ):
        done = world.zfw(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


@pytest.mark.kernel
def test_a_table_of_guards(world: World, service: Path) -> None:
    other = world.cgroup / "other"
    other.mkdir()
    policy = ("--allow", "both.example", "--allow", "10.0.0.0/8", "--dns-upstream", UPSTREAM)
    blocks = ("--block", "x.example", "--cgroup", str(service))
    assert world.zfw("attach", *policy, *blocks).returncode == 0
    servers = ("--dns-to", UPSTREAM, "--dns-to", f"[{UPSTREAM6}]:5353")
    assert world.zfw("redirect", *servers, "--cgroup", str(other)).returncode == 0
    with world.shell(str(ZFW), "guard", "run", "-q", "--log-only", *policy, "--") as shell:
        assert shell.ask("getent hosts both.example") == (0, "fd09::10        both.example\n")
        assert shell.ask(f"curl -s -o /dev/null --max-time 9 'http://[{UNNAMED[1]}]'") == (0, "")
        done = world.zfw("list")
        lines = masked(world, done.stdout).splitlines()
        denied = lines[3].split(" ")[-1]
        assert (done.returncode, done.stderr) == (0, "")
        assert lines == [
            "ID KIND CGROUP STATE PROCESSES ALLOWS BLOCKS DNS LEARNT DENIED",
            "ID attach /CG/service guarding 0 2 1 10.9.0.1:53 0 0",
            "ID redirect /CG/other redirecting 0 0 0 10.9.0.1:53,[fd09::1]:5353 0 0",
            f"ID run /CG/zfw-guard-ID log only 1 2 0 10.9.0.1:53 1 {denied}",
        ]
        assert int(denied) > 0
        # Columns are aligned, and a guard is no longer than its line.
        starts = [
            line.index(cell)
            for line, cell in zip(
                done.stdout.splitlines(), ("KIND", "attach", "redirect", "run"), strict=True
            )
        ]
        assert len(set(starts)) == 1
        shell.end()
        shell.process.wait(60)


@pytest.mark.kernel
def test_a_guard_as_json(world: World, service: Path) -> None:
    (world.folder / "policy.toml").write_text(
        f"""
allow = ["both.example:80", "192.0.2.0/24"]
block = ["192.0.2.128/25"]
dns_upstream = ["{UPSTREAM}"]
"""
    )
    policy = ("--policy", f"{world.folder}/policy.toml", "--allow", "v4.example", "--no-loopback")
    before = time.time()
    made = world.zfw("attach", *policy, "--cgroup", str(service))
    entering = ("sh", "-c", f'echo 0 > {service}/cgroup.procs; exec "$@"', "sh")
    with world.shell(*entering) as shell:
        assert shell.ask("getent ahostsv4 v4.example > /dev/null") == (0, "")
        assert shell.ask("curl --silent http://192.0.2.129")[0] == 7
        done = world.zfw("list", "--json")
        shell.end()
        shell.process.wait(60)
    [listed] = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert before < listed.pop("created") < time.time()
    assert Path(f"/proc/{listed.pop('keeper_pid')}").exists()
    assert listed.pop("decisions")["connect4"] == {"blocked": 1, "dns": 1}
    assert listed == {
        "id": made.stdout.strip(),
        "kind": "attach",
        "cgroup": str(service),
        "cgroup_id": service.stat().st_ino,
        "problem": None,
        "restarts": 0,
        "last_end": None,
        "processes": 1,
        "dns": ["10.9.0.1:53"],
        "policy": {
            "allow": ["both.example:80", "192.0.2.0/24", "v4.example"],
            "block": ["192.0.2.128/25"],
            "dns_upstream": ["10.9.0.1:53"],
            "loopback": False,
            "log_only": False,
        },
        "learnt_addresses": 1,
        "lost_events": 0,
    }


@pytest.mark.kernel
def test_a_guard_whose_cgroup_is_gone(world: World, service: Path) -> None:
    made = world.zfw("redirect", "--dns-to", UPSTREAM, "--cgroup", str(service)).stdout.strip()
    service.rmdir()
    for _ in range(2):
        done = world.zfw("list")
        line = masked(world, done.stdout).splitlines()[1]
        assert line == "ID redirect /CG/service gone 0 0 0 10.9.0.1:53 0 0"
        assert done.stderr == f"zfw: warning: guard {made}: its cgroup is gone\n"
        # Another one of that name is not it.
        service.mkdir(exist_ok=True)
    assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
    assert world.zfw("list").stdout == "no guards\n"


@pytest.mark.kernel
def test_an_attached_guard_ends_with_its_cgroup(world: World, service: Path) -> None:
    options = ("--dns-upstream", UPSTREAM, "--cgroup", str(service))
    assert world.zfw("attach", *options).returncode == 0
    service.rmdir()
    assert world.is_clean(), world.left()


# Of another version

HINT = "hint: that version's zfw guard detach removes it, or rm -r {}\n"


def of_other_version(identifier: str) -> str:
    """Make a guard one of another version; what is said of it."""
    maps = Maps(f"{STORE.root}/{identifier}")
    maps.map("config").update(ZERO, Config(layout.ABI_VERSION + 1, 0).encode())
    place = f"{STORE.root}/{identifier}"
    what = f"{place}/config is of another version of zfw: version {layout.ABI_VERSION + 1}"
    return f"zfw: {what}\n{HINT.format(place)}"


@pytest.mark.kernel
def test_the_guard_of_another_version_is_left_alone(world: World, service: Path) -> None:
    other = world.cgroup / "other"
    other.mkdir()
    options = ("--dns-upstream", UPSTREAM, "--cgroup")
    foreign = world.zfw("attach", *options, str(service)).stdout.strip()
    own = world.zfw("attach", *options, str(other)).stdout.strip()
    said = of_other_version(foreign)
    done = world.zfw("list")
    assert (done.returncode, done.stderr) == (8, said)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", own]
    done = world.zfw("list", "--json")
    assert (done.returncode, done.stderr) == (8, said)
    assert [each["id"] for each in json.loads(done.stdout)] == [own]
    done = world.zfw("detach", foreign)
    assert (done.returncode, done.stdout, done.stderr) == (8, "", said)
    done = world.zfw("detach", "--all")
    assert (done.returncode, done.stdout, done.stderr) == (8, f"detached {own}\n", said)
    # Others can be made beside it.
    assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
    # What the hint says is what helps, and its process sees that it is gone.
    world.run("rm", "-r", f"{STORE.root}/{foreign}")
    other.rmdir()
    service.rmdir()
    assert world.is_clean(), world.left()


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["about", "keeper", "config"])
def test_pins_of_other_shapes_are_refused(world: World, service: Path, name: str) -> None:
    options = ("--dns-upstream", UPSTREAM, "--cgroup", str(service))
    identifier = world.zfw("attach", *options).stdout.strip()
    pin = f"{STORE.root}/{identifier}/{name}"
    Path(pin).unlink()
    made = bpf_maps.create_map((1, 8, 8, 1, 0), "other")
    bpf_maps.pin(made.fd, pin)
    done = world.zfw("list")
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.startswith(f"zfw: {pin} is of another version of zfw: (1, 8, 8, 1, 0)")
    assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
    world.run("rm", "-r", f"{STORE.root}/{identifier}")
    service.rmdir()
    assert world.is_clean(), world.left()


@pytest.mark.kernel
@pytest.mark.parametrize("name", ["about", "keeper", "config"])
def test_a_guard_without_one_of_its_pins_is_not_hidden(
    world: World, service: Path, name: str
) -> None:
    options = ("--dns-upstream", UPSTREAM, "--cgroup", str(service))
    identifier = world.zfw("attach", *options).stdout.strip()
    place = f"{STORE.root}/{identifier}"
    Path(f"{place}/{name}").unlink()
    said = f"zfw: {place}/{name} is of another version of zfw: it is missing\n{HINT.format(place)}"
    done = world.zfw("list")
    assert (done.returncode, done.stdout, done.stderr) == (8, "", said)
    if name != "about":
        assert world.zfw("detach", identifier).stderr == said
    world.run("rm", "-r", place)
    service.rmdir()
    assert world.is_clean(), world.left()


@pytest.mark.kernel
def test_what_is_left_of_a_guard_can_be_detached(world: World, service: Path) -> None:
    """Somebody has removed some of its pins by hand."""
    options = ("--dns-upstream", UPSTREAM, "--cgroup", str(service))
    identifier = world.zfw("attach", *options).stdout.strip()
    for name in ("link_egress", "link_connect4", "learnt", "about"):
        Path(f"{STORE.root}/{identifier}/{name}").unlink()
    done = world.zfw("detach", identifier)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"detached {identifier}\n", "")
    service.rmdir()
    assert world.is_clean(), world.left()


@pytest.mark.kernel
def test_what_is_no_guard_is_no_guard(world: World) -> None:
    assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
    place = Path(f"{STORE.root}/no-guard")
    place.mkdir()
    try:
        assert world.zfw("list").stdout == "no guards\n"
        assert world.zfw("detach", "--all").returncode == 0
        assert world.zfw("run", "--dns-upstream", UPSTREAM, "--", "true").returncode == 0
    finally:
        place.rmdir()
