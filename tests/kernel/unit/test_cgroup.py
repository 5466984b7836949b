# SPDX-License-Identifier: GPL-2.0-only
"""Where mounts show a cgroup: mountinfo and /proc/PID/cgroup as other machines have them."""

from __future__ import annotations

import pytest

from zfw_py.kernel.cgroup import _Mount, _mounts, _places

UNIFIED = (
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2"
    " rw,nsdelegate,memory_recursiveprot"
)
HYBRID = [
    "31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755",
    "32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate",
    "33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,name=systemd",
]


@pytest.mark.parametrize(
    ("mountinfo", "mounts"),
    [
        ([UNIFIED], [(29, "/", "/sys/fs/cgroup")]),
        (HYBRID, [(32, "/", "/sys/fs/cgroup/unified")]),
        (HYBRID[::2], []),
        # No optional field, and two; a type with a subtype.
        (["7 1 0:5 / /a rw - cgroup2 none rw"], [(7, "/", "/a")]),
        (["7 1 0:5 / /a rw shared:1 master:2 - cgroup2 none rw"], [(7, "/", "/a")]),
        (["7 1 0:5 / /a rw - fuse.cgroup2 cgroup2 rw"], []),
        # A mount point called "-", and a source: neither is the separator or the type.
        (["7 1 0:5 / - rw - ext4 cgroup2 rw"], []),
        (
            [r"7 1 0:5 /sl\134ice\040one /mnt/a\040b\011c\012d rw - cgroup2 none rw"],
            [(7, "/sl\\ice one", "/mnt/a b\tc\nd")],
        ),
        # The root of a mount that was made outside of our cgroup namespace.
        (["7 1 0:5 /../.. /c rw - cgroup2 none rw"], [(7, "/../..", "/c")]),
    ],
)
def test_mounts_of_cgroup2_are_found_in_a_mountinfo(
    mountinfo: list[str], mounts: list[tuple[int, str, str]]
) -> None:
    assert _mounts(mountinfo) == [_Mount(*mount) for mount in mounts]


@pytest.mark.parametrize(
    ("cgroup", "root", "place"),
    [
        ("/", "/", "/c"),
        ("/user.slice/a b", "/", "/c/user.slice/a b"),
        # A container's bind mount of its own cgroup.
        ("/docker/1234", "/docker/1234", "/c"),
        ("/docker/1234/inner", "/docker/1234", "/c/inner"),
        ("/docker/12345", "/docker/1234", None),
        ("/docker", "/docker/1234", None),
        ("/", "/docker/1234", None),
        # From within a cgroup namespace: the mount shows more than the namespace.
        ("/../sibling", "/..", "/c/sibling"),
        ("/../../aunt/cousin", "/../..", "/c/aunt/cousin"),
        ("/..", "/..", "/c"),
        # Between such a root and the namespace lies a name that nobody tells.
        ("/inner", "/..", None),
        ("/", "/..", None),
        ("/../sibling", "/../..", None),
        # Outside, and not shown.
        ("/../sibling", "/", None),
        ("/..", "/", None),
    ],
)
def test_a_mount_shows_the_cgroups_below_its_root(
    cgroup: str, root: str, place: str | None
) -> None:
    assert _places(cgroup, [_Mount(1, root, "/c")]) == ([] if place is None else [place])


def test_each_mount_that_shows_a_cgroup_is_tried() -> None:
    mounts = [_Mount(1, "/a", "/x"), _Mount(2, "/b", "/y"), _Mount(3, "/", "/")]
    assert _places("/a/b", mounts) == ["/x/b", "/a/b"]
    assert _places("/", mounts) == ["/"]
