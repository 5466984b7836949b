# SPDX-License-Identifier: GPL-2.0-only
"""What is told of mappings and of all of steering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from zfw_py.steer.codec import Counter
    from zfw_py.steer.model import Mapping
    from zfw_py.steer.sockets import Listener

# "pending": it has no socket yet, or no more.
Condition = Literal["steering", "pending"]


class Held(NamedTuple):
    """A socket of a target, and the processes that have it; the current one is the newest."""

    listener: Listener
    pids: list[int]
    is_current: bool


class Listed(NamedTuple):
    """A mapping as it is. ``run_pid``: the ``zfw steer run`` that holds it.

    ``problem`` says what to know of it, and is empty if there is nothing.
    """

    mapping: Mapping
    run_pid: int | None
    state: Condition
    problem: str
    sockets: list[Held]
    counters: Counter


class Applied(NamedTuple):
    """What became of mappings: how many of each, and how many have no socket."""

    added: int
    changed: int
    removed: int
    kept: int
    pending: int


class Status(NamedTuple):
    """Steering of a network namespace.

    ``order`` has the ids of all sk_lookup programs there, in the order in which they run;
    ``program_id`` is ours. ``troubles`` counts what did not work, by name.
    """

    cookie: int
    programs: list[str]
    program_id: int
    order: list[int]
    mappings: int
    pending: int
    targets: int
    manager_pid: int | None
    troubles: dict[str, int]
    warnings: list[str]
