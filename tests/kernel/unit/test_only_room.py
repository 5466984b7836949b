# SPDX-License-Identifier: GPL-2.0-only
"""Only zfw_py/kernel enters the kernel: what the lint rules of pyproject.toml do not see."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import zfw_py

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(zfw_py.__file__).parent
KERNEL = ROOT / "kernel"

PATHS = ("/proc/", "/sys/")
# Functions of the kernel's interfaces under any name that a module is imported by.
CALLS = {"getxattr", "ioctl", "pidfd_open", "pidfd_send_signal", "setns", "unshare", "CDLL"}

# Why a file outside uses one all the same, by file and what it uses.
ALLOWED = {
    ("lifecycle/store.py", "/sys/fs/bpf"): "the root of all pins, on the hot path",
}
# Modules that also most kernel files may not import, and the one that may.
HOMES = {"subprocess": "subprocesses.py", "docker": None, "rich": None, "yaml": None}


def documentation(tree: ast.AST) -> set[int]:
    """The ids of nodes that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
    return found


def entrances(path: Path) -> Iterator[str]:
    """Paths of the kernel's file systems, and functions of its interfaces, that a file uses."""
    tree = ast.parse(path.read_text())
    documented = documentation(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documented and any(each in node.value for each in PATHS):
                yield node.value
        elif isinstance(node, ast.Attribute) and node.attr in CALLS:
            yield node.attr


def modules(path: Path) -> set[str]:
    """The modules that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_no_other_folder_enters_the_kernel() -> None:
    used = {
        (str(path.relative_to(ROOT)), what)
        for path in ROOT.rglob("*.py")
        if KERNEL not in path.parents
        for what in entrances(path)
    }
    assert used == set(ALLOWED)


def test_the_test_sees_what_it_looks_for() -> None:
    assert "/proc/" in set(entrances(KERNEL / "process.py"))
    assert "pidfd_open" in set(entrances(KERNEL / "process.py"))
    assert "CDLL" in set(entrances(KERNEL / "libc.py"))


def test_a_kernel_file_imports_no_module_that_is_not_its_own() -> None:
    for module, home in HOMES.items():
        importers = [path.name for path in KERNEL.glob("*.py") if module in modules(path)]
        assert importers == ([home] if home else [])
