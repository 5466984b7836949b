# SPDX-License-Identifier: GPL-2.0-only
"""bpffs as the kernel mounts it, mode 1777: an unprivileged user is first with zfw's directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.children import child, drop_privileges
from tests.support.netns import Namespace
from zfw_py.kernel.lock import require_own
from zfw_py.lifecycle.store import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.kernel

TOP = Path("/sys/fs/bpf")
# Of each system, a command that reads and one that writes.
COMMANDS = {
    "firewall": (("list",), ("attach", "lo")),
    "classic": (("-L",), ("-Q",)),
    "guard": (("guard", "list"), ("guard", "run", "--allow", "example.com", "true")),
    "docker-dns": (
        ("docker-dns", "list"),
        ("docker-dns", "redirect", "--netns", "/proc/self/ns/net", "--to", "192.0.2.1"),
    ),
    "steer": (("steer", "list"), ("steer", "add", "tcp", "192.0.2.1", "80", "--to", "127.0.0.1:1")),
}
CONFLICT = 6


@pytest.fixture
def open_bpffs(namespace: Namespace) -> Iterator[None]:
    """A bpffs over the run's own, with the kernel's default mode."""
    subprocess.run(["mount", "-t", "bpf", "bpf", TOP, "-o", "mode=1777"], check=True)
    yield
    subprocess.run(["umount", "-l", TOP], check=True)


def as_nobody(action: Callable[[], None]) -> None:
    def act() -> None:
        drop_privileges()
        action()

    with child(act):
        pass


def zfw(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zfw_py", *words], capture_output=True, text=True, check=False
    )


def make_open() -> None:
    Path(ROOT).mkdir()
    Path(ROOT).chmod(0o777)
    Path(ROOT, "guard").mkdir()
    Path(ROOT, "steer").mkdir()
    Path(ROOT, "docker_dns").mkdir()


def make_link() -> None:
    Path(ROOT).symlink_to(TOP / "elsewhere")


@pytest.mark.parametrize("made", [make_open, make_link])
@pytest.mark.parametrize("system", COMMANDS)
def test_no_command_uses_a_directory_of_another_user(
    open_bpffs: None, system: str, made: Callable[[], None]
) -> None:
    as_nobody(made)
    for words in COMMANDS[system]:
        found = zfw(*words)
        said = found.stdout + found.stderr
        assert found.returncode == (1 if system == "classic" else CONFLICT), (words, said)
        assert "Traceback" not in said
        if system != "classic":
            assert f"{ROOT} is not root's alone" in found.stderr
            assert len(found.stderr.splitlines()) == 2, "a line, and a hint"
    left = {path.name for path in Path(ROOT).glob("*")} if made is make_open else set()
    assert left <= {"guard", "steer", "docker_dns"}, "nothing was pinned there"


def test_a_lock_in_it_keeps_no_command_waiting(open_bpffs: None) -> None:
    as_nobody(make_open)
    held = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert zfw("list").returncode == CONFLICT
    finally:
        os.close(held)


def test_a_root_that_others_can_write_to_is_refused(open_bpffs: None) -> None:
    Path(ROOT).mkdir(0o700)
    assert zfw("list").returncode == 3, "no firewall"
    Path(ROOT).chmod(0o770)
    found = zfw("list")
    assert found.returncode == CONFLICT
    assert "other users can write to it (mode 770)" in found.stderr
    Path(ROOT).chmod(0o711)
    assert zfw("list").returncode == 3, "a group's members may look into steer's"


def test_the_hint_helps(open_bpffs: None) -> None:
    as_nobody(make_open)
    (hint,) = [line for line in zfw("attach", "lo").stderr.splitlines() if "mv -T" in line]
    subprocess.run(hint[hint.index("mv -T") :].split(), check=True)
    assert zfw("attach", "lo").returncode == 0
    assert zfw("detach", "--all").returncode == 0


def test_a_directory_within_is_looked_at_too(open_bpffs: None) -> None:
    Path(ROOT).mkdir(0o700)
    as_root_of_another = Path(ROOT, "guard")
    as_root_of_another.mkdir(0o700)
    os.chown(as_root_of_another, 65534, 65534)
    found = zfw("guard", "list")
    assert found.returncode == CONFLICT
    assert f"{as_root_of_another} is not root's alone" in found.stderr


def test_bpffs_itself_has_to_be_roots(open_bpffs: None) -> None:
    Path(ROOT).mkdir(0o700)
    require_own(ROOT, str(TOP))
    TOP.chmod(0o777)
    found = zfw("list")
    assert found.returncode == CONFLICT, "without the sticky bit anybody can exchange it"
    assert f"chown 0 {TOP}; chmod 700 {TOP}" in found.stderr
