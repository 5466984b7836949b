# SPDX-License-Identifier: GPL-2.0-only
"""The user that a guarded command runs as, and what that command gets of root's: little."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, NamedTuple

from zfw_py.errors import NotFound
from zfw_py.kernel.process import forbid_new_privileges, join_new_session_keyring
from zfw_py.kernel.seccomp import keep_to_ip

if TYPE_CHECKING:
    from collections.abc import Mapping

_PATH = "/usr/local/bin:/usr/bin:/bin"
# Variables that say how to print and nothing else.
_KEPT = ("TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ")
_KEPT_PREFIX = "LC_"


class User(NamedTuple):
    """A user that a command runs as.

    ``variables`` of the environment are kept ("NAME") or set ("NAME=VALUE") beside the user's own.
    Without ``may_gain`` set-user-ID programs and file capabilities have no effect, and only sockets
    of IP send.
    """

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    variables: tuple[str, ...] = ()
    may_gain: bool = False

    def groups(self) -> list[int]:
        """The ids of all groups of the user."""
        return os.getgrouplist(self.name, self.gid)

    def environment(self, present: Mapping[str, str]) -> dict[str, str]:
        """The command's environment, given that of the caller."""
        made = {
            name: value
            for name, value in present.items()
            if name in _KEPT or name.startswith(_KEPT_PREFIX)
        }
        made |= {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        made |= {"SHELL": self.shell, "PATH": _PATH}
        for variable in self.variables:
            name, equals, value = variable.partition("=")
            if equals:
                made[name] = value
            elif name in present:
                made[name] = present[name]
        return made

    def become(self) -> None:
        """Make the calling process this user's, for good. Raises OSError."""
        # The session's keyring has tickets and keys of the caller (session-keyring(7)).
        join_new_session_keyring()
        os.setgroups(self.groups())
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if not self.may_gain:
            forbid_new_privileges()
            keep_to_ip()


def find_user(name: str) -> User:
    """A user by name or number. Raises NotFound."""
    try:
        found = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise NotFound(f"no such user: {name}") from None
    shell = found.pw_shell or "/bin/sh"
    return User(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, shell)
