# SPDX-License-Identifier: GPL-2.0-only
"""Which modules the fast path loads, beside those of the bare interpreter.

A router runs ``zfw -I`` once for each rule, and imports are most of what it
costs. Whoever needs another module here measures it first, then lists it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import zfw_py

ROOT = Path(zfw_py.__file__).parent.parent

# ctypes is the way into the kernel; the rest is built into the interpreter or small.
STANDARD_LIBRARY = {
    "__future__",
    "_ctypes",
    "_operator",
    "_socket",
    "_struct",
    "ctypes",
    "ctypes._endian",
    "errno",  # only where something fails
    "fcntl",
    "gc",
    "struct",
    "syslog",  # only where an insert fails
    "types",  # by ctypes
}
OURS = {
    "zfw_py",
    "zfw_py.firewall.codec",
    "zfw_py.firewall.layout",
    "zfw_py.cli",
    "zfw_py.cli.classic",
    "zfw_py.cli.classic.grammar",
    "zfw_py.cli.classic.run",
    "zfw_py.entry",
    "zfw_py.errors",
    "zfw_py.firewall",
    "zfw_py.firewall.service",
    "zfw_py.firewall.interfaces",
    "zfw_py.firewall.rules",
    "zfw_py.firewall.rules.commit",
    "zfw_py.firewall.rules.edit",
    "zfw_py.firewall.maps",
    "zfw_py.kernel",
    "zfw_py.kernel.bpf_maps",
    "zfw_py.kernel.own_netns",
    "zfw_py.kernel.libc",
    "zfw_py.kernel.lock",
    "zfw_py.lifecycle",
    "zfw_py.lifecycle.store",
    "zfw_py.values",
    "zfw_py.values.prefix",
    "zfw_py.version",  # only for -V
    "zfw_py.firewall.model",
}

# As the router gives them.
SELECTOR = ("-c", "10.0.0.16", "-m", "28", "-p", "tcp", "-o", "0.0.0.0", "-n", "0", "-l", "22")
INSERT = ("-I", *SELECTOR, "-h", "22", "-t", "33381", "-s", "5XzC8mf1RrFO2vmfHGG5GL")
DELETE = ("-D", *SELECTOR, "-h", "22")


def modules_after(code: str, *argv: str) -> set[str]:
    """The modules of an interpreter of its own when it ends."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as report:
        # Not on stdout, which the command has for itself.
        reporting = (
            "import atexit, posix, sys\n"
            "def report():\n"
            f"    open({write_end}, 'w').write(' '.join(sys.modules))\n"
            "atexit.register(report)\n"
            # The fast path ends without the interpreter's own clean-up.
            "end = posix._exit\n"
            "posix._exit = lambda code: (report(), end(code))\n"
        )
        try:
            subprocess.run(
                [sys.executable, "-I", "-c", reporting + code, *argv],
                pass_fds=[write_end],
                capture_output=True,
                check=False,
                timeout=60,
            )
        finally:
            os.close(write_end)
        return set(report.read().split())


@cache
def bare() -> set[str]:
    return modules_after("")


def loaded_by(*argv: str) -> set[str]:
    """What zfw with these arguments loads beyond the bare interpreter."""
    code = (
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.argv[0] = 'zfw'\n"
        "from zfw_py.entry import main\n"
        "main()\n"
    )
    loaded = modules_after(code, *argv) - bare()
    assert "zfw_py.entry" in loaded
    return loaded


@pytest.mark.parametrize("argv", [INSERT, DELETE], ids=["insert", "delete"])
def test_a_command_that_fails_stays_within_the_budget(argv: tuple[str, ...]) -> None:
    """It fails where there is no firewall, or no privilege, when all is loaded."""
    assert loaded_by(*argv) - STANDARD_LIBRARY - OURS == set()


@pytest.mark.parametrize("argv", [("-V",), ("-?",), ("--usage",), ("-I", "extra"), ("-K",)])
def test_so_does_what_needs_no_kernel(argv: tuple[str, ...]) -> None:
    assert loaded_by(*argv) - STANDARD_LIBRARY - OURS == set()


@pytest.mark.kernel
def test_case_28_an_insert_and_a_delete_that_succeed_stay_within_the_budget(
    firewall: object,
) -> None:
    for argv in (INSERT, DELETE):
        loaded = loaded_by(*argv)
        assert loaded - STANDARD_LIBRARY - OURS == set()
        assert "syslog" not in loaded, "it failed"


def test_the_budget_has_no_entry_that_nothing_needs() -> None:
    """Else it would let come back what somebody once took out."""
    loaded = loaded_by(*INSERT) | loaded_by(*DELETE)
    needed_elsewhere = {"errno", "zfw_py.version"}
    assert (STANDARD_LIBRARY | OURS) - loaded <= needed_elsewhere


def test_the_modern_grammar_is_not_loaded_for_the_classic_one() -> None:
    for module in ("typer", "rich", "pyroute2", "netaddr", "re", "typing", "dataclasses"):
        assert module not in loaded_by(*INSERT)
