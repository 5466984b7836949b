# SPDX-License-Identifier: GPL-2.0-only
"""``zfw guard list``: what holds now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.guard.support.world import UPSTREAM, UPSTREAM6

if TYPE_CHECKING:
    from tests.guard.support.world import World

pytestmark = pytest.mark.kernel


def test_list_shows_the_servers_that_are_asked_now(world: World) -> None:
    """Not those of the guard's creation: resolv.conf is followed."""
    file = world.folder / "resolv.conf"
    before = file.read_text()
    cgroup = world.new_cgroup()
    done = world.zfw("attach", "--cgroup", str(cgroup), "--allow", "both.example")
    identifier = done.stdout.strip()

    def listed() -> list[str]:
        (found,) = json.loads(world.zfw("list", "--json").stdout)
        servers: list[str] = found["dns"]
        assert ",".join(servers) in world.zfw("list").stdout.split()
        return servers

    try:
        assert listed() == [f"{UPSTREAM}:53", f"[{UPSTREAM6}]:53"]
        file.write_text(f"nameserver {UPSTREAM6}\n")
        assert listed() == [f"[{UPSTREAM6}]:53"]
        # A process in another network namespace has a file of its own.
        own = world.folder / "own"
        own.write_text("nameserver 192.0.2.9\n")
        mount = f"mount --bind {own} /etc/resolv.conf"
        script = f"echo 0 > {cgroup}/cgroup.procs; {mount}; echo; exec sleep 99"
        with world.start("unshare", "--net", "--mount", "sh", "-c", script) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert listed() == ["192.0.2.9:53"]
            process.kill()
    finally:
        file.write_text(before)
        assert world.zfw("detach", identifier).returncode == 0
