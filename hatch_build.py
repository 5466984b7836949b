# SPDX-License-Identifier: GPL-2.0-only
"""Put the compiled BPF objects into the wheel, and into the tree of an editable install."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Build front ends do not put the project on sys.path.
sys.path.insert(0, str(Path(__file__).parent))
from bpf.build import BuildError, build, find_clang


class BpfBuildHook(BuildHookInterface[Any]):
    """Compiles bpf/*.bpf.c before a wheel is assembled."""

    def dependencies(self) -> list[str]:
        """Ask for a compiler from PyPI only where the machine has none."""
        return [] if find_clang() else ["ziglang==0.17.1"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say where the wheel fits."""
        try:
            build()
        except BuildError as error:
            self.app.abort(f"zfw: {error}")
        # Little-endian objects run on any little-endian machine, so py3-none-any is right
        # for them; a big-endian wheel is for machines like the one that built it.
        if sys.byteorder == "big":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
