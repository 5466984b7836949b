# SPDX-License-Identifier: GPL-2.0-only
"""A wheel carries the compiled object: where it is installed no compiler is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zfw_py import __version__
from zfw_py.firewall.maps import STORE
from zfw_py.kernel.own_netns import netns_cookie

if TYPE_CHECKING:
    from tests.support.netns import Namespace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("LICENSE", "README.md", "bpf", "hatch_build.py", "pyproject.toml", "zfw_py")


def run(*command: str | Path, **environment: str) -> str:
    """Run a command, with these variables set besides; what it printed."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of these sources, made in a copy that has no object yet."""
    sources = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("objects", "__pycache__")
            shutil.copytree(ROOT / name, sources / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, sources)
    made = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", made, sources)
    (path,) = made.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with that wheel, into which only what is built was put."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--only-binary", ":all:", wheel, PATH=str(python.parent))
    return python.parent


def test_the_wheel_has_the_object_and_fits_every_machine_of_this_byte_order(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "zfw_py/objects/firewall.bpf.o" in names
    assert "zfw_py/py.typed" in names
    assert f"zfw-{__version__}.data/scripts/zfw" in names
    assert not [name for name in names if name.startswith(("bpf/", "tests/", "scripts/"))]
    if sys.byteorder == "little":
        assert wheel.name == f"zfw-{__version__}-py3-none-any.whl"


def test_the_command_runs_where_no_compiler_can_be_found(installed: Path) -> None:
    path = str(installed)
    assert not any(shutil.which(name, path=path) for name in ("clang", "cc", "gcc", "ziglang"))
    assert __version__ in run(installed / "zfw", "-V", PATH=path)
    assert "attach" in run(installed / "zfw", "--help", PATH=path)
    assert not list(installed.parent.glob("lib/python*/site-packages/ziglang*"))


@pytest.mark.kernel
def test_it_loads_the_object_it_came_with(installed: Path, namespace: Namespace) -> None:
    zfw = str(installed / "zfw")
    env = os.environ | {"PATH": str(installed)}
    attached = namespace.run(zfw, "attach", "lo", env=env).stdout
    assert [line.split(" by ")[0] for line in attached.splitlines()] == [
        "attached lo ingress",
        "attached lo egress",
    ]
    assert STORE.identifiers() == [str(netns_cookie())]
    assert "lo" in namespace.run(zfw, "status", env=env).stdout
    assert namespace.run(zfw, "detach", "--all", env=env).stdout
    assert STORE.identifiers() == []
