# SPDX-License-Identifier: GPL-2.0-only
"""The command line of the boot and revert programs."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from zfw_py.compat.report import Report
from zfw_py.compat.tree import Tree
from zfw_py.errors import UsageError, ZfwError
from zfw_py.firewall.model import check_interface_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_PURPOSES = {
    "start": "Attach zfw to the interfaces in ebpf_config.json, add rules for the {}'s own"
    " ports, and run user_rules.sh. It may be run again at any time.",
    "revert": "Detach zfw from every interface, remove ebpf_config.json and user_rules.sh,"
    " and restore the {}'s own configuration.",
}
_CODES = (
    "Exit codes: 0 done; 2 bad option or configuration, nothing was changed; 5 an interface"
    " or file is missing, the rest was done; 69 the configuration needs a feature that zfw"
    " does not have yet, the rest was done; 77 not root; another: a step failed, the rest"
    " was done."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def run(
    verb: str,
    kind: str,
    argv: list[str],
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    fail: Callable[[str, str | None], None],
) -> int:
    """Run the program "start" or "revert" of a ``boot.KINDS``; return its exit code.

    ``say`` prints a line about a step at once, since programs that run next may print to the
    same file; ``warn`` prints a warning, ``fail`` an error and perhaps a hint.
    """
    parser = _Parser(
        prog=f"{verb}_ebpf_{kind}.py",
        description=_PURPOSES[verb].format(kind),
        epilog=_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--prefix", metavar="DIR", default="/", help="root of the file system")
    takes_interface = (verb, kind) == ("start", "controller")
    if takes_interface:
        parser.add_argument("--lanIf", metavar="IF", required=True, help="the LAN interface")
    report = Report(say, warn)
    # Other users may read the files that root creates, but not change them.
    os.umask(0o022)
    try:
        options = parser.parse_args(argv)
        tree = Tree(options.prefix)
        if verb == "start":
            from zfw_py.compat.start import start

            name = check_interface_name(options.lanIf, "--lanIf") if takes_interface else None
            start(kind, tree, report, name)
        else:
            from zfw_py.compat.revert import revert

            revert(kind, tree, report)
    except ZfwError as error:
        fail(error.message, error.hint)
        return error.exit_code
    return report.exit_code
