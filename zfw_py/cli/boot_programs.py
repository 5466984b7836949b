# SPDX-License-Identifier: GPL-2.0-only
"""The boot and revert programs' own command line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from zfw_py.cli import output
from zfw_py.compat.report import Report
from zfw_py.compat.tree import Tree
from zfw_py.errors import UsageError, ZfwError
from zfw_py.firewall.model import check_interface_name

if TYPE_CHECKING:
    from typing import NoReturn

_PURPOSES = {
    "start": "Put zfw onto the interfaces of ebpf_config.json, open the {}'s own ports,"
    " and run user_rules.sh. Safe to run again.",
    "revert": "Take zfw off every interface, remove ebpf_config.json and user_rules.sh,"
    " and set the {} up as it was before.",
}
_CODES = (
    "Exit codes: 0 done; 2 a bad option or configuration, nothing changed; 5 an interface"
    " or a file is missing, the rest is done; 69 a feature is asked for that zfw does not"
    " have yet, the rest is done; 77 not root; another: a step failed, the rest is done."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _say(text: str) -> None:
    output.line(text)
    # What a program prints that is run next must not overtake it.
    sys.stdout.flush()


def main(verb: str, kind: str) -> NoReturn:
    """Run the program of this process, "start" or "revert", and exit with its code."""
    sys.exit(run(verb, kind, sys.argv[1:]))


def run(verb: str, kind: str, argv: list[str]) -> int:
    """Run it with these arguments; the exit code."""
    parser = _Parser(
        prog=f"{verb}_ebpf_{kind}.py",
        description=_PURPOSES[verb].format(kind),
        epilog=_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--prefix", metavar="DIR", default="/", help="where all files are")
    takes_interface = (verb, kind) == ("start", "controller")
    if takes_interface:
        parser.add_argument("--lanIf", metavar="IF", required=True, help="the LAN interface")
    report = Report(_say, output.warning)
    # What is made below a tree that is root's is for others to read at most.
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
        output.error(error.message, error.hint)
        return error.exit_code
    return report.exit_code
