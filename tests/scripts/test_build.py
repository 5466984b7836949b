# SPDX-License-Identifier: GPL-2.0-only
"""bpf/build.py: the compiler that it chooses. Other tests load the objects."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bpf import build
from tests.support.sandbox import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which compilers are searched instead of the machine's."""
    places = (f"{tmp_path}/bin/clang{{}}", f"{tmp_path}/llvm{{}}/clang")
    versions = ("-19", "-16", "")
    paths = (tmp_path / place.format(version) for version in versions for place in places)
    monkeypatch.setattr(build, "PLACES", places)
    monkeypatch.setattr(build, "CLANGS", tuple(paths))
    return tmp_path


def install(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_the_newest_compiler_or_that_of_a_version(machine: Path) -> None:
    assert build.find_clang() is None
    unnumbered = install(machine / "bin" / "clang")
    assert (build.find_clang(), build.find_clang(16)) == (unnumbered, None)
    older = install(machine / "bin" / "clang-16")
    newer = install(machine / "llvm-19" / "clang")
    assert (build.find_clang(), build.find_clang(16), build.find_clang(19)) == (newer, older, newer)
    assert build.find_clang(1) is None


def test_a_compiler_that_is_not_installed() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "bpf" / "build.py", "--clang", "99"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "build: no clang 99 found; on Debian: apt-get install clang-99\n",
    )


@pytest.mark.slow
def test_all_objects_by_one_compiler_into_a_directory(tmp_path: Path) -> None:
    compiler = build.find_clang()
    assert compiler is not None
    build.build(tmp_path / "objects", compiler)
    sources = {source.stem for source in (ROOT / "bpf").glob("*.bpf.c")}
    assert {path.stem for path in (tmp_path / "objects").iterdir()} == sources
