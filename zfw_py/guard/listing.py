# SPDX-License-Identifier: GPL-2.0-only
"""The guards there are, and how each is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import LayoutMismatch, NotFound
from zfw_py.guard.maps import STORE, NoGuards, Tables
from zfw_py.guard.programs import is_gone
from zfw_py.kernel import cgroup
from zfw_py.lifecycle.programs import locked

if TYPE_CHECKING:
    from zfw_py.guard.maps import About


class Status(NamedTuple):
    """A guard as it is.

    ``keeper_pid`` is None where no process keeps it; a redirect needs none.
    ``is_gone``: its cgroup is. ``learnt`` counts addresses of names that may be reached
    now; ``decisions`` what was decided how often, by hook and reason; ``lost`` events
    that nobody took in time.
    """

    about: About
    keeper_pid: int | None
    is_gone: bool
    processes: int
    learnt: int
    decisions: dict[str, dict[str, int]]
    lost: int

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if self.is_gone:
            return "its cgroup is gone"
        if self.keeper_pid is None and self.about.kind != "redirect":
            return "its process has died: DNS fails, the rest is judged as before"
        return ""


def guards() -> tuple[list[Status], list[LayoutMismatch]]:
    """All guards, the oldest first; and of those that another version made, what is to be said.

    Raises PermissionDenied.
    """
    found, foreign = [], []
    try:
        with locked(STORE, is_exclusive=False):
            for identifier in sorted(STORE.identifiers()):
                try:
                    found.append(_status(Tables(STORE.directory(identifier))))
                except LayoutMismatch as error:
                    foreign.append(error)
                except NotFound:
                    continue  # removed by hand
    except NoGuards:
        return [], []
    return sorted(found, key=lambda status: status.about.created), foreign


def _status(tables: Tables) -> Status:
    about = tables.about()
    tables.config()
    keeper = tables.keeper()
    is_here = not is_gone(about)
    count = 0
    if is_here:
        try:
            count = len(cgroup.processes(about.cgroup, is_recursive=True))
        except NotFound:
            is_here = False
    return Status(
        about=about,
        keeper_pid=keeper.pid if keeper.is_alive() else None,
        is_gone=not is_here,
        processes=count,
        learnt=len({address for address, _ in tables.learnt()}),
        decisions=tables.decisions(),
        lost=tables.lost(),
    )
