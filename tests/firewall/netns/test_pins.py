# SPDX-License-Identifier: GPL-2.0-only
"""Pins: where they lie, who may use them, and what each verb does with unexpected ones."""

from __future__ import annotations

import ctypes
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

import pytest

from tests.firewall.support.attached import (
    ALLOWED,
    INTERFACE,
    allow,
    attached,
    directory,
    frame,
    names_in,
    our_program,
)
from tests.support.children import drop_privileges, in_child
from tests.support.command import ZFW
from tests.support.netns import CLONE_NEWNS, Network
from tests.support.waiting import wait_until
from zfw_py import Firewall, LayoutMismatch, Prefix, Rule, RuleKey, ZfwError
from zfw_py.firewall import layout
from zfw_py.firewall.maps import ZERO, Maps
from zfw_py.kernel import bpf_maps, bpffs
from zfw_py.lifecycle.store import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.kernel


# Where state lies


@pytest.mark.usefixtures("stand_in")
def test_pins_are_root_s_alone(
    network: Network,
) -> None:
    old_mask = os.umask(0)
    try:
        Firewall().attach(INTERFACE, "both")
    finally:
        os.umask(old_mask)
    for path in (Path(ROOT), directory()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    pins = list(directory().iterdir())
    assert {*layout.MAPS, "ingress", "egress", "explain_ingress", "explain_egress"} < {
        pin.name for pin in pins
    }
    for pin in pins:
        assert stat.S_IMODE(pin.stat().st_mode) == 0o600, pin
        assert (pin.stat().st_uid, pin.stat().st_gid) == (0, 0)


@pytest.mark.usefixtures("stand_in")
def test_detach_all_removes_every_pin(
    network: Network,
) -> None:
    Firewall().attach(INTERFACE, "both")
    name = directory().name
    assert name in names_in(ROOT)
    Firewall().detach_all()
    assert name not in names_in(ROOT)
    assert wait_until(lambda: attached(INTERFACE) == [])


def outcome_in_child(action: Callable[[], object]) -> str:
    """Call an action in a new process: "done", or the name of the ZfwError that it raised."""

    def call() -> str:
        action()
        return "done"

    told: str = in_child(call)
    return told.partition(":")[0]


def as_nobody(action: Callable[[], object]) -> str:
    """The same, without any privilege."""

    def drop() -> None:
        drop_privileges()
        action()

    return outcome_in_child(drop)


def without_bpffs(action: Callable[[], object]) -> str:
    """The same, in a mount namespace of its own where no bpffs is mounted."""

    def unmount() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        while bpffs.is_mounted():
            assert libc.umount2(bpffs.MOUNT_POINT.encode(), 2) == 0  # MNT_DETACH
        action()

    return outcome_in_child(unmount)


VERBS = {
    "attach": lambda: Firewall().attach("lo", "ingress"),
    "detach": lambda: Firewall().detach("lo"),
    "detach_all": lambda: Firewall().detach_all(),
    "insert": allow,
    "delete": lambda: Firewall().delete(RuleKey(Prefix.parse("192.0.2.1"), "udp", 1)),
    "rules": lambda: Firewall().rules(),
    "flush": lambda: Firewall().flush(),
    "set": lambda: Firewall().set(["lo"], "icmp_echo", True),
    "refresh": lambda: Firewall().refresh(),
    "status": lambda: Firewall().status(),
    "explain": lambda: Firewall().explain(frame(1), "lo"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_needs_privilege_and_says_so(machine: Network, verb: str) -> None:
    allow()
    assert as_nobody(VERBS[verb]) == "PermissionDenied"
    assert [rule.key.low_port for rule in Firewall().rules()] == [ALLOWED]


def test_so_does_attach_where_bpffs_is_open_to_all_or_not_mounted(machine: Network) -> None:
    mount_point = Path(bpffs.MOUNT_POINT)
    mode = stat.S_IMODE(mount_point.stat().st_mode)
    mount_point.chmod(0o755)
    try:
        assert as_nobody(VERBS["attach"]) == "PermissionDenied"
    finally:
        mount_point.chmod(mode)

    def attach_as_nobody() -> None:
        drop_privileges()
        Firewall().attach("lo", "ingress")

    assert without_bpffs(attach_as_nobody) == "PermissionDenied"


def without_capabilities(action: Callable[[], object]) -> str:
    """The same as in a container: uid 0, and the files are ours, but bpf(2) is not."""

    def drop() -> None:
        # capset(2), version 3: no capability of any kind.
        header = pack("=Ii", 0x20080522, 0)
        assert ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) == 0
        action()

    return outcome_in_child(drop)


# The others may be done: the pins are root's, and the kernel asks no more for their maps.
@pytest.mark.parametrize("verb", ["attach", "insert", "delete", "rules", "flush", "status"])
def test_root_without_capabilities_is_told_the_same(machine: Network, verb: str) -> None:
    assert without_capabilities(VERBS[verb]) == "PermissionDenied"
    assert Firewall().is_installed()


@pytest.mark.usefixtures("stand_in")
def test_whoever_cannot_see_the_other_namespaces_does_not_take_them_for_gone(
    network: Network,
) -> None:
    """A first attach removes the state of namespaces that are gone, and only of those."""
    with network.client.entered():
        Firewall().attach("lo", "ingress")
        Firewall().detach("lo")
    assert without_capabilities(VERBS["attach"]) == "PermissionDenied"
    with network.client.entered():
        assert Firewall().is_installed()
        Firewall().detach_all()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "attach"])
def test_without_bpffs_there_is_no_firewall(machine: Network, verb: str) -> None:
    assert without_bpffs(VERBS[verb]) == "NotInstalled"


@pytest.mark.usefixtures("stand_in")
def test_attach_mounts_bpffs_where_it_is_missing(
    network: Network,
) -> None:
    def attach() -> None:
        Firewall().attach(INTERFACE, "ingress")
        assert bpffs.is_mounted()
        assert Path(bpffs.MOUNT_POINT).stat().st_mode & 0o777 == 0o700
        last = [
            line.split()
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4] == bpffs.MOUNT_POINT
        ][-1]
        assert {"nosuid", "nodev", "noexec"} <= set(last[5].split(","))
        assert attached(INTERFACE) == [("ingress", "tcx", our_program())]
        Firewall().detach_all()

    assert without_bpffs(attach) == "done"


@pytest.mark.usefixtures("stand_in")
def test_attach_says_so_where_bpffs_cannot_be_mounted(
    network: Network,
) -> None:
    def attach() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNS) == 0
        assert libc.mount(b"none", b"/sys", b"tmpfs", 0, None) == 0
        Firewall().attach(INTERFACE, "ingress")

    assert outcome_in_child(attach) == "KernelError"


# Pins that are not what they should be


@contextmanager
def in_place_of(name: str, put: Callable[[str], None]) -> Iterator[None]:
    """In the block something else is where a pin of ours was; ``put`` puts it there."""
    path = directory() / name
    fd = bpf_maps.open_pin(str(path))
    path.unlink()
    try:
        put(str(path))
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        bpf_maps.pin(fd, str(path))
        os.close(fd)


def put_map(*spec: int) -> Callable[[str], None]:
    def put(path: str) -> None:
        made = bpf_maps.create_map(spec, "other")  # type: ignore[arg-type]
        bpf_maps.pin(made.fd, path)

    return put


def put_program(path: str) -> None:
    fd = bpf_maps.open_pin(f"{directory()}/explain_ingress")
    bpf_maps.pin(fd, path)
    os.close(fd)


# Type 2 is an array, 1 a hash.
GARBAGE = {
    "another type": put_map(2, 4, 4, 16384, 0),
    "another size": put_map(1, 20, 8, 16384, 1),
    "fewer entries": put_map(1, 20, 4, 100, 1),
    "another flag": put_map(1, 20, 4, 16384, 0),
    "a program": put_program,
    "a directory": os.mkdir,
}


def snapshot() -> list[str]:
    return [repr((rule, rule.interfaces, rule.service_id)) for rule in Firewall().rules()]


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("verb", ["insert", "set", "refresh", "status", "attach"])
def test_a_map_that_is_not_as_compiled_is_refused_and_nothing_changed(
    machine: Network, verb: str, what: str
) -> None:
    """The table of addresses, which each of these verbs reads or writes."""
    firewall = Firewall()
    firewall.insert(Rule(RuleKey(Prefix.parse("192.0.2.1"), "udp", 1)))
    before = snapshot(), firewall.status()
    with in_place_of("addresses", GARBAGE[what]):
        action = VERBS[verb] if verb != "attach" else lambda: firewall.attach(INTERFACE, "ingress")
        if verb == "set":
            action = lambda: firewall.set([INTERFACE], "icmp_echo", True)  # noqa: E731
        with pytest.raises(LayoutMismatch, match="addresses") as refused:
            action()
        assert refused.value.hint
    assert (snapshot(), firewall.status()) == before
    assert attached(INTERFACE) == []


@pytest.mark.parametrize("name", layout.MAPS)
def test_every_map_is_compared_with_the_compiled_layout(machine: Network, name: str) -> None:
    map_type, key_size, value_size, max_entries, flags = layout.MAPS[name]
    if map_type in (9, 12, 18):
        # An LRU map, and one whose values are maps or sockets, take no other size so simply.
        other = put_map(1, key_size, value_size, max_entries, 1)
    else:
        other = put_map(map_type, key_size, value_size + 8, max_entries, flags)
    with (
        in_place_of(name, other),
        pytest.raises(LayoutMismatch, match=name),
        Maps(is_writer=False) as maps,
    ):
        maps.map(name)


@pytest.mark.parametrize("name", layout.INNER_MAPS)
def test_so_is_every_inner_map(
    machine: Network, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow()
    Firewall().attach(INTERFACE, "egress")  # there are no tables of flows before
    map_type, key_size, value_size, *rest = layout.INNER_MAPS[name]
    monkeypatch.setitem(layout.INNER_MAPS, name, (map_type, key_size, value_size + 8, *rest))
    with pytest.raises(LayoutMismatch, match=name), Maps(is_writer=False) as maps:
        maps.inner(name)


def test_a_state_of_another_version_is_refused_by_every_verb(machine: Network) -> None:
    allow()
    before = snapshot()
    states = bpf_maps.open_map(f"{directory()}/state")
    good = states.lookup(ZERO)
    assert good is not None
    for version in (0, layout.ABI_VERSION + 1):
        states.update(ZERO, pack("=I", version) + good[4:])
        try:
            for verb in VERBS.values():
                with pytest.raises(LayoutMismatch, match=f"version {version}") as refused:
                    verb()
                assert refused.value.hint
        finally:
            states.update(ZERO, good)
    assert snapshot() == before
    assert attached(INTERFACE) == attached("lo") == []


@pytest.mark.parametrize("is_read_only", [True, False], ids=["read-only", "descriptors"])
@pytest.mark.parametrize("verb", ["insert -c 100.72.0.9 -p tcp -l 80", "attach lo"])
def test_a_pin_that_the_system_cannot_open_is_not_of_another_version(
    network: Network, verb: str, is_read_only: bool
) -> None:
    """The hint for another version is to remove the firewall."""
    Firewall().attach(INTERFACE, "both")
    before, after, said = "ulimit -n 9", "true", "Too many open files (EMFILE)"
    if is_read_only:
        before, after = (f"mount -o remount,{how} /sys/fs/bpf" for how in ("ro", "rw"))
        said = "Read-only file system (EROFS)"
    script = f"{before} && {ZFW} {verb}; code=$?; {after}; exit $code"
    done = network.gateway.run("sh", "-c", script, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "version" not in done.stderr


@pytest.mark.parametrize("mode", ["tcx", "clsact"])
def test_a_pin_that_is_no_program_is_refused(machine: Network, mode: str) -> None:
    with in_place_of("ingress", put_map(1, 4, 4, 1, 1)):
        with pytest.raises(LayoutMismatch, match="ingress"):
            Firewall().attach(INTERFACE, "ingress", mode)
        assert attached(INTERFACE) == []


@pytest.mark.parametrize("name", ["state", "addresses", "ingress"])
def test_a_pin_that_is_missing_is_an_expected_failure(machine: Network, name: str) -> None:
    with in_place_of(name, lambda path: None), pytest.raises(ZfwError):
        Firewall().attach(INTERFACE, "ingress")
    assert attached(INTERFACE) == []
