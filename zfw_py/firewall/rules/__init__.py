# SPDX-License-Identifier: GPL-2.0-only
"""The rules in the maps, and the protocol of every change to them.

The element of a prefix holds all its rules and is replaced in one step, so what the programs
read is always consistent. All else follows from the prefixes or has no reader yet: length
lists, the list of free slots, port indexes of another size.

A change of rules, local routes or bound prefixes is a transaction:
1. It finds the mark that a killed writer left: it settles what was left half done (``rebuild``).
2. The caller collects inserts and deletes (``edit``, ``reconcile``).
3. It marks the state as in progress, makes local what rules begin to need, and narrows the
   settings of interfaces that the edit changes.
4. It writes the rules (``commit``), then the settings, then releases the routes that rules hold
   no longer.
5. It ends the mark, and brings the table of interfaces up to date.
An error in 3 or 4 undoes both, with signals held off. A writer that is killed, or that cannot
undo, leaves its mark.
Hot.
"""

from __future__ import annotations

from zfw_py.firewall.interfaces import Interfaces
from zfw_py.firewall.layout import PROGRESS_BACK, PROGRESS_FORWARD, PROGRESS_NONE
from zfw_py.firewall.rules.commit import Commit
from zfw_py.firewall.rules.edit import Deleted as Deleted
from zfw_py.firewall.rules.edit import Inserted as Inserted
from zfw_py.firewall.rules.edit import RuleEdit
from zfw_py.firewall.rules.edit import RuleNotFound as RuleNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from zfw_py.firewall.codec import State
    from zfw_py.firewall.maps import Maps
    from zfw_py.values.prefix import Prefix


class Transaction:
    """A change as a whole: written when the block ends, dropped if the block raises."""

    def __init__(
        self,
        maps: Maps,
        *,
        writes_directly: bool = False,
        last: Callable[[], None] | None = None,
    ) -> None:
        """``maps`` is entered as a writer.

        ``writes_directly``: the block itself writes what cannot be undone, under the mark;
        after an error the next writer rebuilds. ``last`` ends step 4, in place of bringing the
        table of interfaces up to date: an error of its own undoes the change.
        """
        self._maps = maps
        self._writes_directly = writes_directly
        self._last = last
        self.interfaces = Interfaces(maps)

    def __enter__(self) -> RuleEdit:
        """Heal what a killed writer left. Raises MapFull, and what the kernel answers."""
        self.interfaces.check_room()
        maps = self._maps
        state = maps.state()
        if state.in_progress or self.interfaces.is_changing():
            from zfw_py.firewall.routes import reconcile
            from zfw_py.firewall.rules.rebuild import rebuild, routed_destinations, settle

            settle(maps, state, self.interfaces.members_of)
            self.interfaces.end(is_forward=state.in_progress == PROGRESS_FORWARD)
            self.interfaces.refresh()
            state = rebuild(maps)
            reconcile(maps, routed_destinations(maps))
            self._mark(state, False)
        if self._writes_directly:
            self._mark(state, True)
        self._edit = RuleEdit(maps, self.interfaces, state)
        return self._edit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was collected. Raises MapFull or KernelError, and has changed nothing."""
        if error is not None:
            return
        if not self._edit.is_empty():
            self._commit()
        elif self._writes_directly:
            self._mark(self._maps.state(), False)
        elif self._last is not None:
            self._last()
        if self._last is None:
            self.interfaces.refresh()

    def _mark(self, state: State, is_in_progress: bool) -> None:
        state.in_progress = PROGRESS_BACK if is_in_progress else PROGRESS_NONE
        self._maps.write_state(state)

    def _commit(self) -> None:
        maps, edit, interfaces = self._maps, self._edit, self.interfaces
        held: list[Prefix] = []
        released: list[Prefix] = []
        if edit.held or edit.released:
            from zfw_py.firewall import routes

        def finish() -> None:
            interfaces.end(is_forward=True)
            for destination, keep in edit.released:
                routes.release(maps, destination, keep=keep)
                released.append(destination)
            if self._last is not None:
                self._last()

        has_more = bool(edit.released or edit.settings or self._last)
        commit = Commit(maps, edit, finish if has_more else None)
        old_settings = {name: interfaces.bits_of(name) for name in edit.settings}
        try:
            if edit.held:
                self._mark(maps.state(), True)
                for destination in edit.held:
                    routes.hold(maps, destination)
                    held.append(destination)
            interfaces.begin(old_settings, edit.settings)
            state = commit.run()
            if self._last is None:
                self._mark(state, False)
        except BaseException:
            from zfw_py.kernel.signals import HeldSignals

            # An error here leaves the mark: then the next writer has to settle it.
            with HeldSignals():
                interfaces.begin(old_settings, edit.settings)
                commit.undo()
                for destination in released:
                    routes.hold(maps, destination)
                for destination in held:
                    routes.release(maps, destination)
                interfaces.end(is_forward=False)
                if edit.settings:
                    interfaces.refresh()
                self._mark(maps.state(), False)
            raise
        # What ``last`` has done is not undone any more.
        if self._last is not None:
            self._mark(state, False)
