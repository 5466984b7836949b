# SPDX-License-Identifier: GPL-2.0-only
"""``from zfw_py import ...``: every name is there, and importing does nothing else."""

from __future__ import annotations

import ast
import inspect
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import zfw_py
from tests.support.command import captured

ROOT = Path(zfw_py.__file__).parent

NAMES = {
    "AddressTarget",
    "Applied",
    "Attachment",
    "Busy",
    "Conflict",
    "Decision",
    "DnsRedirect",
    "Explanation",
    "Flow",
    "FlowLimits",
    "Delete",
    "Deleted",
    "Document",
    "DocumentError",
    "EventSink",
    "Firewall",
    "Guard",
    "GuardEvent",
    "GuardStatus",
    "GuardTarget",
    "Insert",
    "Inserted",
    "InterfaceStatus",
    "KernelError",
    "LayoutMismatch",
    "MapFull",
    "Mapping",
    "MappingKey",
    "MappingStatus",
    "NotFound",
    "NotInstalled",
    "PermissionDenied",
    "Policy",
    "Prefix",
    "Question",
    "ProcessTarget",
    "Redirect",
    "RedirectOptions",
    "RedirectStatus",
    "Restored",
    "Rule",
    "RuleKey",
    "RuleNotFound",
    "Status",
    "Steering",
    "SteeringStatus",
    "UnitTarget",
    "UsageError",
    "VerifierError",
    "ZfwError",
}
VALUES = {"OWN4", "OWN6"}


def interpreter(code: str) -> str:
    """What an interpreter of its own prints."""
    path = f"import sys\nsys.path.insert(0, {str(ROOT.parent)!r})"
    done = captured(sys.executable, "-IB", "-c", f"{path}\n{code}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_there_under_its_own_name(name: str) -> None:
    assert getattr(zfw_py, name).__name__ == name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_class_is_documented_and_so_are_its_methods(name: str) -> None:
    public = getattr(zfw_py, name)
    assert public.__doc__
    for member, function in inspect.getmembers(public, inspect.isfunction):
        if not member.startswith("_") and function.__module__.startswith("zfw_py"):
            assert function.__doc__, f"{name}.{member}"


def test_all_and_dir_agree() -> None:
    assert set(zfw_py.__all__) == NAMES | VALUES
    assert set(dir(zfw_py)) == NAMES | VALUES | {"__version__"}


def test_a_star_brings_every_name() -> None:
    printed = interpreter("from zfw_py import *\nprint(*sorted(n for n in dir() if n[0] != '_'))")
    assert set(printed.split()) == NAMES | VALUES | {"sys"}


def test_type_checkers_are_told_of_every_name() -> None:
    """They do not run ``__getattr__``: what they see are the imports for them."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    told = {
        name.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    assert told == NAMES | VALUES | {"__version__"}


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"zfw_py.*Fierwall"):
        zfw_py.Fierwall  # noqa: B018
    with pytest.raises(ImportError):
        from zfw_py import Fierwall  # noqa: F401


def test_the_version_is_the_package_s() -> None:
    assert zfw_py.__version__ == version("zfw")


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").exists()


def test_importing_the_package_imports_nothing_else() -> None:
    code = "before = set(sys.modules)\nimport zfw_py\nprint(*sorted(set(sys.modules) - before))"
    assert interpreter(code).split() == ["__future__", "zfw_py"]


def test_importing_every_name_opens_and_writes_nothing() -> None:
    """Nor does making a Firewall: nothing happens before a verb is called."""
    code = f"""
import socket, warnings  # what may come along
names = {sorted(NAMES | VALUES)!r}
opened = []
def hook(event, arguments):
    if event in ("socket.__new__", "subprocess.Popen", "os.system", "os.exec", "os.fork"):
        opened.append(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
        opened.append(arguments[0])
sys.addaudithook(hook)
import zfw_py
for name in names:
    getattr(zfw_py, name)
zfw_py.Firewall()
print(opened)
"""
    assert interpreter(code) == "[]\n"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if "cli" not in path.relative_to(ROOT).parts
        and path.name not in ("__main__.py", "entry.py")
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_library_never_prints_never_exits_never_reads_argv(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Name) and node.id in ("print", "input", "exit", "quit"))
        assert not (isinstance(node, ast.Attribute) and node.attr in ("argv", "exit", "stdout"))
