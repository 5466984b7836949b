#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compile bpf/*.bpf.c.

bpf/build.py                                 into zfw_py/objects, with the newest clang
bpf/build.py --clang 16 --output DIRECTORY   with this one, into another directory
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "zfw_py" / "objects"

# -mcpu=v3 (32-bit jumps) is understood from Linux 5.1 on. The loops compare int
# with sizeof on purpose: sign-compare has nothing to say there.
FLAGS = (
    "--target=bpf",
    "-O2",
    "-g",
    "-mcpu=v3",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-sign-compare",
)

# Absolute paths, newest first: a build by root takes no compiler out of PATH.
PLACES = ("/usr/bin/clang{}", "/usr/local/bin/clang{}", "/usr/lib/llvm{}/bin/clang")
CLANGS = tuple(
    Path(place.format(version))
    for version in (*(f"-{number}" for number in range(22, 13, -1)), "")
    for place in PLACES
)

# The Debian package that brings the headers of a folder.
PACKAGES = {"asm": "linux-libc-dev", "bpf": "libbpf-dev", "linux": "linux-libc-dev"}


class BuildError(Exception):
    """An object cannot be built; the message is one line."""


def find_clang(major: int | None = None) -> Path | None:
    """Return the newest clang of this machine, or the one of a major version.

    A path without a number counts as older than each path with one, whatever its version.
    """
    paths = CLANGS if major is None else [Path(place.format(f"-{major}")) for place in PLACES]
    return next((path for path in paths if path.is_file()), None)


def compile_bpf(source: Path, output: Path, *flags: str, clang: Path | None = None) -> None:
    """Compile one C file to a BPF object with BTF, for this machine's byte order.

    ``flags`` are further ones for the compiler: ``clang``, or the newest of this machine.

    Raises:
        BuildError: There is no compiler, or it refuses the source.
    """
    clang = clang or find_clang()
    if clang:
        compiler = [str(clang)]
    elif (ziglang := find_spec("ziglang")) and ziglang.origin:
        headers = Path(ziglang.origin).parent / "lib"
        compiler = [sys.executable, "-m", "ziglang", "clang", f"-resource-dir={headers}"]
    else:
        raise BuildError("no clang 14 or later found; on Debian: apt-get install clang")

    command = [*compiler, *FLAGS, *flags]
    command += [f"-ffile-prefix-map={ROOT}=.", f"-I{ROOT / 'bpf' / 'include'}"]
    # Debian keeps asm/ there. The target is bpf, so that clang does not look by itself.
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        command += ["-idirafter", f"/usr/include/{multiarch}"]
    output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, "-c", str(source.resolve()), "-o", str(output.resolve())],
        cwd=ROOT,  # BTF.ext names it: no path of this machine gets into the object
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        missing = re.search(r"'((\w+)/\S+)' file not found", done.stderr)
        if missing and (package := PACKAGES.get(missing[2])):
            raise BuildError(f"<{missing[1]}> is missing; on Debian: apt-get install {package}")
        sys.stderr.write(done.stderr)
        raise BuildError(f"{clang or 'ziglang'} cannot compile {source}")

    # DWARF is most of the object, and the kernel reads only BTF. Without a strip
    # that knows BPF it stays: larger, not different.
    strip = clang and clang.resolve().with_name("llvm-strip")
    if strip and strip.exists():
        subprocess.run([str(strip), "--strip-debug", str(output)], check=True)


def build(directory: Path = OBJECTS, clang: Path | None = None) -> None:
    """Build every object of the package into a directory.

    Raises:
        BuildError: There is no compiler, or it refuses a source.
    """
    for source in sorted((ROOT / "bpf").glob("*.bpf.c")):
        compile_bpf(source, directory / f"{source.stem}.o", clang=clang)


def main() -> None:
    """Build as the arguments of this process say."""
    parser = argparse.ArgumentParser(description="Compile bpf/*.bpf.c.")
    parser.add_argument("--clang", type=int, metavar="VERSION", help="not the newest, but this")
    parser.add_argument("--output", type=Path, default=OBJECTS, metavar="DIRECTORY")
    arguments = parser.parse_args()
    clang = find_clang(arguments.clang)
    if arguments.clang and not clang:
        version = arguments.clang
        raise BuildError(f"no clang {version} found; on Debian: apt-get install clang-{version}")
    build(arguments.output, clang)
    print(f"build: {arguments.output} by {clang or 'ziglang'}")


if __name__ == "__main__":
    try:
        main()
    except BuildError as error:
        sys.exit(f"build: {error}")
