#!python
# SPDX-License-Identifier: GPL-2.0-only
"""The command zfw: an isolated interpreter, then zfw_py.entry.

The wheel also has this file as the script ``zfw``, with the environment's interpreter
in its first line. The wrapper that pip writes for an entry point imports re, which costs
more than all of this.
"""

import os
import sys

# zfw runs as root, and variables such as PYTHONPATH choose what code is run.
# Containers set these two, which do not: no second start of the interpreter for them.
HARMLESS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")

if not sys.flags.isolated:
    if any(name.startswith("PYTHON") and name not in HARMLESS for name in os.environ):
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv])
    if not sys.flags.safe_path:
        del sys.path[0]  # the directory of this file; of python -m, the current one

from zfw_py.entry import main

main()
