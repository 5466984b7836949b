# SPDX-License-Identifier: GPL-2.0-only
"""cgroup2 as the kernel has it: real cgroups below the test's own, real processes in them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroups import cgroup_of, enter, is_empty_within, private_cgroup
from tests.support.children import child, drop_privileges, in_child
from tests.support.waiting import wait_until
from zfw_py.errors import Conflict, KernelError, NotFound, UsageError, ZfwError
from zfw_py.kernel import cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

CLONE_NEWNS, CLONE_NEWCGROUP = 0x00020000, 0x02000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
# Far longer than anything here takes.
LONG = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A system call that has to succeed."""
    if getattr(_libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def leave_mounts() -> None:
    """From here on this process has mounts of its own."""
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


@pytest.fixture
def own(_private_bpffs: None) -> Iterator[str]:
    """A cgroup of the test's own."""
    with private_cgroup() as path:
        yield str(path)


@pytest.fixture
def root(own: str) -> str:
    """The cgroup around all others."""
    *_, top = cgroup.ancestors(own)
    if not cgroup.is_root(top):
        pytest.skip("in a cgroup namespace: the root cgroup cannot be seen")
    return top


@contextmanager
def sleeping(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a cgroup, from its first instruction on."""
    process = subprocess.Popen(["/bin/sleep", "1000"], preexec_fn=partial(enter, path))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def make(*parts: str) -> str:
    path = "/".join(parts)
    Path(path).mkdir()
    return path


# Which cgroup a process is in


def test_a_process_is_in_the_cgroup_that_it_was_moved_into(own: str) -> None:
    assert cgroup.of_process(os.getpid()) == str(cgroup_of(os.getpid()))
    inner = make(own, "inner")
    with sleeping(own) as process:
        assert cgroup.of_process(process.pid) == own
        cgroup.move(process.pid, inner)
        assert cgroup.of_process(process.pid) == inner
        assert cgroup.processes(inner) == [process.pid]


@pytest.mark.parametrize(
    "name",
    ["with space", "back\\slash", "0::", "a\r0::", "a\v\x1c\x85\u2028b", "x (deleted)", "\udcff"],
)
def test_whatever_a_cgroup_is_called_its_processes_are_found_in_it(own: str, name: str) -> None:
    path = make(own, name)
    with sleeping(path) as process:
        assert cgroup.of_process(process.pid) == path
        assert cgroup.processes(own, is_recursive=True) == [process.pid]


def test_a_process_that_is_gone_is_not_found(own: str) -> None:
    with sleeping(own) as process:
        pass
    for gone in (process.pid, 0, -1, 1 << 40):
        with pytest.raises(NotFound) as refused:
            cgroup.of_process(gone)
        assert str(refused.value) == f"no such process: {gone}"


def test_the_cgroup_of_a_zombie_may_be_gone(own: str) -> None:
    path = make(own, "gone")
    with sleeping(path) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert cgroup.of_process(process.pid) == path
        assert not cgroup.is_populated(path)
        cgroup.remove(path)
        with pytest.raises(NotFound, match=r"its cgroup .*/gone is gone"):
            cgroup.of_process(process.pid)


# Mounts


def test_without_cgroup2_there_is_a_clear_error(own: str) -> None:
    def unmounted(find: object) -> object:
        leave_mounts()
        # Hidden by another mount, as good as not mounted.
        call("mount", b"none", cgroup.mount_point().encode(), b"tmpfs", 0, None)
        assert callable(find)
        return find()

    for find in (cgroup.mount_point, partial(cgroup.of_process, os.getpid())):
        assert in_child(partial(unmounted, find)) == "ZfwError: no cgroup2 is mounted"


def test_cgroup2_is_found_wherever_it_is_mounted(own: str, tmp_path: Path) -> None:
    place = tmp_path / "with space"
    place.mkdir()

    def elsewhere() -> list[str]:
        leave_mounts()
        call("umount2", cgroup.mount_point().encode(), MNT_DETACH)
        call("mount", b"none", os.fsencode(place), b"cgroup2", 0, None)
        enter(f"{place}/{inside}")
        return [cgroup.mount_point(), cgroup.of_process(os.getpid())]

    inside = os.path.relpath(own, cgroup.mount_point())
    assert in_child(elsewhere) == [str(place), f"{place}/{inside}"]


def test_of_several_mounts_one_that_shows_the_cgroup_is_taken(own: str, tmp_path: Path) -> None:
    """A container is given a bind mount of its own cgroup."""
    shown, hidden = make(own, "shown"), make(own, "hidden")
    inner = make(shown, "inner")

    def narrow() -> list[str]:
        enter(inner)
        leave_mounts()
        top = cgroup.mount_point()
        for name, path in (("hidden", hidden), ("shown", shown)):
            (tmp_path / name).mkdir()
            call("mount", path.encode(), os.fsencode(tmp_path / name), None, MS_BIND, None)
        call("umount2", top.encode(), MNT_DETACH)
        found = cgroup.of_process(os.getpid())
        return [found, *cgroup.ancestors(found), str(cgroup.is_root(str(tmp_path / "shown")))]

    assert in_child(narrow) == [f"{tmp_path}/shown/inner", f"{tmp_path}/shown", "False"]

    def without() -> str:
        leave_mounts()
        top = cgroup.mount_point()
        call("mount", hidden.encode(), os.fsencode(tmp_path), None, MS_BIND, None)
        call("umount2", top.encode(), MNT_DETACH)
        return cgroup.of_process(inside.pid)

    with sleeping(inner) as inside:
        told = in_child(without)
    assert told.startswith(f"ZfwError: process {inside.pid}: no mount of cgroup2 shows its cgroup ")
    assert told.endswith("/shown/inner")


def test_a_mount_that_another_one_lies_over_is_not_taken(own: str) -> None:
    """Here both are of cgroup2, and of the same mount point."""
    inner = make(own, "inner")

    def covered() -> list[str]:
        enter(inner)
        leave_mounts()
        top = cgroup.mount_point()
        call("mount", own.encode(), top.encode(), None, MS_BIND, None)
        return [cgroup.mount_point(), cgroup.of_process(os.getpid())]

    top = cgroup.mount_point()
    assert in_child(covered) == [top, f"{top}/inner"]


def test_from_within_a_cgroup_namespace(own: str, tmp_path: Path) -> None:
    inner, sibling = make(own, "inner"), make(own, "sibling")

    def found(pid: int) -> list[str]:
        """The cgroup of this process, which is the namespace's root, and one beside it."""
        told = []
        for each in (os.getpid(), pid):
            try:
                told.append(cgroup.of_process(each))
            except ZfwError as error:
                told.append(str(error))
        return told

    def namespaced() -> list[list[str]]:
        leave_mounts()
        top = cgroup.mount_point()
        call("mount", own.encode(), os.fsencode(tmp_path), None, MS_BIND, None)
        call("umount2", top.encode(), MNT_DETACH)
        enter(f"{tmp_path}/inner")
        call("unshare", CLONE_NEWCGROUP)
        before = found(beside.pid)
        call("umount2", os.fsencode(tmp_path), MNT_DETACH)
        call("mount", b"none", os.fsencode(tmp_path), b"cgroup2", 0, None)
        return [before, found(beside.pid)]

    with sleeping(sibling) as beside, child(namespaced) as process:
        before, after = process.told
        assert cgroup.processes(inner) == [process.pid]
        # The mount from outside shows what lies around, but not where we are in it.
        assert before == [
            f"process {process.pid}: no mount of cgroup2 shows its cgroup /",
            f"{tmp_path}/sibling",
        ]
        assert after == [
            str(tmp_path),
            f"process {beside.pid}: its cgroup lies outside of our cgroup namespace: /../sibling",
        ]


# What a user names


def test_a_path_of_the_user_s_is_resolved(own: str, tmp_path: Path) -> None:
    inner = make(own, "inner")
    link = tmp_path / "link"
    link.symlink_to(own)
    assert cgroup.resolve(f"{link}/inner/../inner/") == inner
    assert cgroup.resolve(own) == own


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("{own}/none", NotFound("no such cgroup: {own}/none")),
        ("{own}/cgroup.procs", UsageError("{own}/cgroup.procs: not a directory, so not a cgroup")),
        ("{own}/cgroup.procs/x", UsageError("{own}/cgroup.procs/x: not a directory, so not a")),
        ("/dev/null", UsageError("/dev/null: not a directory, so not a cgroup")),
        ("{tmp}", UsageError("{tmp}: not a cgroup")),
        ("", UsageError(f"{Path.cwd()}: not a cgroup")),
        ("{own}/" + "x" * 300, NotFound("no such cgroup: {own}/xxx")),
    ],
)
def test_what_is_no_cgroup_is_said_to_be_none(
    own: str, tmp_path: Path, path: str, told: ZfwError
) -> None:
    path = path.format(own=own, tmp=tmp_path)
    with pytest.raises(type(told)) as refused:
        cgroup.resolve(path)
    expected = told.message.format(own=own, tmp=tmp_path).partition("xxx")[0]
    assert str(refused.value).startswith(expected)
    assert "\n" not in str(refused.value)


def test_a_cgroup_of_version_1_is_said_to_be_one(own: str, tmp_path: Path) -> None:
    def old() -> str:
        leave_mounts()
        try:
            call("mount", b"none", os.fsencode(tmp_path), b"cgroup", 0, b"none,name=zfw-test")
        except PermissionError:
            return "not permitted"
        return cgroup.resolve(str(tmp_path))

    told = in_child(old)
    if told == "not permitted":
        pytest.skip("in a cgroup namespace: cgroups of version 1 cannot be mounted")
    assert told == f"UsageError: {tmp_path}: a cgroup of version 1, not of cgroup2"


def test_a_cgroup_is_in_another_one_and_has_an_id_of_its_own(own: str) -> None:
    inner = make(own, "inner")
    assert cgroup.parent(inner) == own
    *_, top = cgroup.ancestors(inner)
    assert next(cgroup.ancestors(inner)) == own
    assert top == cgroup.mount_point()
    assert cgroup.parent(top) is None
    assert not cgroup.is_root(own)
    assert cgroup.identifier(own) != cgroup.identifier(inner)
    for ask in (cgroup.is_root, cgroup.identifier, cgroup.parent, cgroup.is_populated):
        with pytest.raises(NotFound, match=r"^no such cgroup: .*/none$"):
            ask(f"{own}/none")


def test_the_root_is_never_empty_and_has_the_first_id(root: str) -> None:
    assert cgroup.is_root(root)
    # kernel/cgroup/cgroup.c says so.
    assert cgroup.identifier(root) == 1
    assert cgroup.is_populated(root)
    with pytest.raises(UsageError, match="the root cgroup is never empty"):
        cgroup.Population(root)


def test_descendants_come_after_what_they_are_in(own: str) -> None:
    assert cgroup.descendants(own) == []
    paths = [make(own, "a"), make(own, "a", "b"), make(own, "a", "b", "c"), make(own, "d")]
    found = cgroup.descendants(own)
    assert sorted(found) == sorted(paths)
    for path in reversed(found):
        cgroup.remove(path)
    assert cgroup.descendants(own) == []


# Making and removing


def test_a_cgroup_is_made_with_mode_0755_and_removed(own: str) -> None:
    def careful() -> str:
        os.umask(0o077)
        return cgroup.create(own, "made")

    path = in_child(careful)
    assert path == f"{own}/made"
    assert Path(path).stat().st_mode & 0o777 == 0o755
    with pytest.raises(Conflict, match=r"^create .*/made: it is there already$"):
        cgroup.create(own, "made")
    with pytest.raises(Conflict, match="it is there already"):
        cgroup.create(own, "cgroup.procs")
    cgroup.remove(path)
    assert not Path(path).exists()
    with pytest.raises(NotFound, match=r"^no such cgroup: .*/made$"):
        cgroup.remove(path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "a\0b", "x" * 256, "ä" * 128])
def test_what_is_no_name_makes_no_cgroup(own: str, name: str) -> None:
    with pytest.raises(UsageError, match=r"^not a name for a cgroup: '"):
        cgroup.create(own, name)
    assert cgroup.descendants(own) == []


def test_a_cgroup_is_made_in_a_cgroup_only(own: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a cgroup"):
        cgroup.create(str(tmp_path), "made")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        cgroup.create(f"{own}/none", "made")


def test_limits_of_the_cgroups_around_are_told_of(own: str) -> None:
    Path(own, "cgroup.max.descendants").write_text("0")
    with pytest.raises(KernelError, match="EAGAIN") as refused:
        cgroup.create(own, "made")
    assert refused.value.hint is not None
    assert "cgroup.max.descendants" in refused.value.hint


def test_a_cgroup_in_use_is_not_removed(own: str) -> None:
    inner = make(own, "inner")
    with pytest.raises(Conflict, match="there are processes or cgroups in it"):
        cgroup.remove(own)
    with sleeping(inner), pytest.raises(Conflict, match="there are processes or cgroups in it"):
        cgroup.remove(inner)


def test_without_privilege_it_is_said_what_was_refused(own: str) -> None:
    def as_nobody(verb: str) -> None:
        drop_privileges()
        if verb == "create":
            cgroup.create(own, "made")
        elif verb == "remove":
            cgroup.remove(f"{own}/inner")
        else:
            cgroup.move(os.getpid(), own)

    make(own, "inner")
    for verb, told in (
        ("create", f"create {own}/made"),
        ("remove", f"remove {own}/inner"),
        ("move", f"move a process into {own}"),
    ):
        assert in_child(partial(as_nobody, verb)) == f"PermissionDenied: {told}: Permission denied"


# Processes


def test_processes_are_listed_with_those_of_the_cgroups_within_if_asked_for(own: str) -> None:
    inner = make(own, "inner")
    innermost = make(own, "inner", "most")
    with sleeping(own) as first, sleeping(inner) as second, sleeping(innermost) as third:
        assert cgroup.processes(own) == [first.pid]
        assert cgroup.processes(inner, is_recursive=True) == sorted([second.pid, third.pid])
        assert cgroup.processes(own, is_recursive=True) == sorted(
            [first.pid, second.pid, third.pid]
        )
    assert cgroup.processes(own, is_recursive=True) == []
    with pytest.raises(NotFound):
        cgroup.processes(f"{own}/none")


def test_a_process_is_in_a_threaded_cgroup_if_a_thread_of_it_is(own: str) -> None:
    threaded = make(own, "threaded")
    Path(threaded, "cgroup.type").write_text("threaded")

    def split() -> int:
        enter(own)
        started = threading.Event()
        numbers = []

        def stay() -> None:
            Path(threaded, "cgroup.threads").write_text(str(threading.get_native_id()))
            numbers.append(threading.get_native_id())
            started.set()
            threading.Event().wait()

        threading.Thread(target=stay, daemon=True).start()
        started.wait()
        return numbers[0]

    with child(split) as process:
        assert process.told != process.pid
        # The list of processes cannot be read there.
        with pytest.raises(OSError, match="Operation not supported"):
            Path(threaded, "cgroup.procs").read_text()
        assert cgroup.processes(threaded) == [process.pid]
        assert cgroup.processes(own, is_recursive=True) == [process.pid]
        assert cgroup.is_populated(threaded)


def test_a_cgroup_may_take_no_process(own: str) -> None:
    """One below a threaded cgroup that is not threaded itself is invalid."""
    threaded = make(own, "threaded")
    Path(threaded, "cgroup.type").write_text("threaded")
    invalid = make(threaded, "invalid")
    with sleeping(own) as process:
        with pytest.raises(Conflict, match=rf"^move process {process.pid} into {invalid}: "):
            cgroup.move(process.pid, invalid)
        assert cgroup.of_process(process.pid) == own
        assert cgroup.processes(invalid) == []
    with pytest.raises(NotFound, match=f"^no such process: {process.pid}$"):
        cgroup.move(process.pid, own)
    for pid in (0, -1):
        with pytest.raises(UsageError, match="not a process id"):
            cgroup.move(pid, own)
    with pytest.raises(NotFound, match=r"^no such cgroup: "):
        cgroup.move(os.getpid(), f"{own}/none")


# Emptiness


def test_a_cgroup_is_populated_while_a_process_is_in_it_or_below(own: str) -> None:
    inner = make(own, "inner")
    assert not cgroup.is_populated(own)
    with sleeping(inner):
        assert cgroup.is_populated(inner)
        assert cgroup.is_populated(own)
    assert not cgroup.is_populated(own)


def test_the_end_of_the_last_process_is_told_without_polling(own: str) -> None:
    inner = make(own, "inner")
    with cgroup.Population(own) as population:
        assert is_empty_within(population, 0)
        with sleeping(own) as first, sleeping(inner) as second:
            # Two changes from empty to populated, or one; then nothing more.
            while select.select([population], [], [], 0)[0]:
                assert population.is_populated()
            assert not is_empty_within(population, 0.05)
            first.kill()
            assert not is_empty_within(population, 0.05)
            threading.Timer(0.1, second.kill).start()
            assert is_empty_within(population, LONG)
        assert not population.is_populated()


def test_a_cgroup_that_is_removed_while_it_is_watched_is_empty(own: str) -> None:
    path = make(own, "inner")
    with cgroup.Population(path) as population:
        with sleeping(path):
            assert population.is_populated()
        cgroup.remove(path)
        assert is_empty_within(population, LONG)
        assert not population.is_populated()


def test_asyncio_can_wait_for_it(own: str) -> None:
    async def wait() -> int:
        loop = asyncio.get_running_loop()
        is_empty = asyncio.Event()
        calls = 0
        with cgroup.Population(own) as population, sleeping(own) as process:
            assert population.is_populated()

            def look() -> None:
                nonlocal calls
                calls += 1
                if not population.is_populated():
                    is_empty.set()

            loop.add_reader(population, look)
            try:
                await asyncio.sleep(0.1)
                process.kill()
                await asyncio.wait_for(is_empty.wait(), LONG)
            finally:
                loop.remove_reader(population)
        return calls

    # Once for each change, and not as often as the loop can.
    assert 1 <= asyncio.run(wait()) <= 3


def test_no_descriptor_is_left_open(own: str) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        cgroup.of_process(os.getpid())
        cgroup.create(own, "made")
        assert not cgroup.is_populated(f"{own}/made")
        cgroup.remove(cgroup.resolve(f"{own}/made"))
        for ask in (cgroup.Population, cgroup.resolve, cgroup.is_populated, cgroup.remove):
            with pytest.raises(ZfwError):
                ask(f"{own}/none")
        with pytest.raises(ZfwError):
            cgroup.resolve("/dev")
    wait_until(lambda: descriptors() <= before, LONG)
    assert descriptors() == before
