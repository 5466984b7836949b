# SPDX-License-Identifier: GPL-2.0-only
"""Each finding about guards: provoked, found, mended by its own command, gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guard.support.dns_process import end_for_good
from tests.support import doctor
from tests.support.command import ZFW, captured
from tests.support.waiting import wait_until
from zfw_py.guard import listing
from zfw_py.guard.maps import STORE

pytestmark = pytest.mark.kernel


def attached(*words: str) -> str:
    """The id of a new guard."""
    done = captured(ZFW, "guard", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def attach(service: Path) -> str:
    options = ("--allow", "v4.example", "--dns-upstream", "192.0.2.53")
    return attached("attach", "--cgroup", str(service), *options)


def redirect(service: Path) -> str:
    return attached("redirect", "--cgroup", str(service), "--dns-to", "192.0.2.53")


def supervisor() -> int | None:
    return listing.guards()[0][0].supervisor_pid


@pytest.mark.usefixtures("world")
def test_a_guard_whose_process_has_died(service: Path) -> None:
    attach(service)
    assert doctor.findings() == []
    pid = supervisor()
    assert pid
    end_for_good(pid)
    assert wait_until(lambda: supervisor() is None)
    (what,) = doctor.mend("guard-process-gone")
    assert what.endswith(f"the DNS process of {service} has died")
    assert supervisor()


@pytest.mark.usefixtures("world")
def test_a_guard_whose_cgroup_is_gone(service: Path) -> None:
    number = redirect(service)
    assert doctor.findings() == []
    service.rmdir()
    assert wait_until(lambda: listing.guards()[0][0].is_gone)
    assert doctor.mend("guard-cgroup-gone") == [f"guard {number}: cgroup {service} is gone"]


@pytest.mark.usefixtures("world")
def test_pins_that_a_killed_process_left(service: Path) -> None:
    redirect(service)
    path = Path(STORE.root, "new_1")
    path.mkdir()
    assert doctor.mend("guard-stale-pins") == [f"{path} was left by a process that was killed"]
