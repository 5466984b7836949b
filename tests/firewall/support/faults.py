# SPDX-License-Identifier: GPL-2.0-only
"""Faults of single writes to the firewall's maps: a write that fails, or before which zfw dies."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from zfw_py.kernel import bpf_maps

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

_ARRAY_OF_MAPS = 12  # enum bpf_map_type
KILLED = 9  # the exit code of a process that ``die`` has ended
WRITES = ("update", "delete", "update_many", "delete_many")


def fail_at(
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fails: Callable[[], None],
    concerns: Callable[[bpf_maps.Map], bool] = lambda written: True,
) -> list[int]:
    """Call ``fails`` in place of the n-th write, from 0, to the maps that ``concerns`` selects.

    Returns a list of one number, which counts down with each write and is -1 after the n-th.
    """
    left = [number]

    def wrapped(original: Callable[..., object]) -> Callable[..., object]:
        def write(self: bpf_maps.Map, *arguments: object) -> object:
            if concerns(self):
                left[0] -= 1
                if left[0] == -1:
                    fails()
            return original(self, *arguments)

        return write

    for name in WRITES:
        monkeypatch.setattr(bpf_maps.Map, name, wrapped(getattr(bpf_maps.Map, name)))
    return left


def can_fail(written: bpf_maps.Map) -> bool:
    """Whether a write may need memory; an array has all of its elements from the start."""
    return written.type in (1, _ARRAY_OF_MAPS)


def die() -> None:
    """End the process as SIGKILL does: nothing is cleaned up."""
    os._exit(KILLED)


def is_killed(action: Callable[[], object]) -> bool:
    """Call an action in a new process; whether ``die`` has ended that. No error may be raised."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def is_killed_at(
    monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]
) -> bool:
    """Call an action in a new process that dies before its n-th write to a map, from 0.

    False if the action has fewer writes.
    """

    def act() -> None:
        fail_at(monkeypatch, number, die)
        action()

    return is_killed(act)


def watch_each_write(monkeypatch: pytest.MonkeyPatch, look: Callable[[], str]) -> list[str]:
    """What ``look`` returns after each write to a map, from now on."""
    found: list[str] = []

    def wrapped(original: Callable[..., object]) -> Callable[..., object]:
        def write(self: bpf_maps.Map, *arguments: object) -> object:
            done = original(self, *arguments)
            found.append(look())
            return done

        return write

    for name in WRITES:
        monkeypatch.setattr(bpf_maps.Map, name, wrapped(getattr(bpf_maps.Map, name)))
    return found
