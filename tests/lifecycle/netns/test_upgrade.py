# SPDX-License-Identifier: GPL-2.0-only
"""Upgrades: all programs of an instance or none, and what an earlier one left is not in the way."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.lifecycle.support.subjects import SUBJECTS, Subject, subject
from zfw_py.errors import KernelError
from zfw_py.kernel import bpf_maps
from zfw_py.lifecycle import attachment as kinds
from zfw_py.lifecycle.store import UNNAMED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kernel


KINDS: tuple[Any, ...] = (
    kinds.Tcx,
    kinds.CgroupHook,
    kinds.NetnsHook,
    kinds.Tracing,
    kinds.Clsact,
)


@pytest.fixture(params=SUBJECTS)
def system(
    request: pytest.FixtureRequest, _private_bpffs: None, tmp_path: Path
) -> Iterator[Subject]:
    with subject(request.param, tmp_path) as made:
        yield made


def test_every_program_is_exchanged_once(system: Subject) -> None:
    system.install()
    before = system.running()
    system.upgrade()
    after = system.running()
    assert len(after) == len(before)
    assert None not in after
    assert not set(after) & set(before)
    system.upgrade()
    assert system.running() == after, "this build's are there already"
    assert system.probe() == "installed"


def test_an_exchange_that_fails_brings_the_old_programs_back(
    system: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.install()
    before = system.running()
    originals = {kind: kind.replace for kind in KINDS}
    for number in range(len(before)):
        count = [0]

        def replace(self: object, program: int, at: int = number, seen: list[int] = count) -> None:
            seen[0] += 1
            if seen[0] == at + 1:
                raise OSError(errno.ENOMEM, "no memory")
            originals[type(self)](self, program)

        with monkeypatch.context() as patched:
            for kind in KINDS:
                patched.setattr(kind, "replace", replace)
            with pytest.raises(KernelError, match=r"exchange program .*ENOMEM"):
                system.upgrade()
        assert system.running() == before, number
        assert not system.new_pins()
        assert system.probe() == "installed"
    system.upgrade()
    assert not set(system.running()) & set(before)


def test_pins_that_a_killed_upgrade_left_are_not_in_the_way(system: Subject) -> None:
    """Its new programs are pinned under other names, and some may be attached."""
    system.install()
    before = system.running()
    directory = system.directory()
    names = system.system.pinned or ("link_egress",)
    for name in names:
        pin = f"{system.system.prefix}{name}" if system.system.pinned else name
        fd = bpf_maps.open_pin(f"{directory}/{pin}")
        bpf_maps.pin(fd, f"{directory}/{UNNAMED}{pin}")
        os.close(fd)
    system.upgrade()
    assert not set(system.running()) & set(before)
    assert not system.new_pins()
