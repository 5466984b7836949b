# SPDX-License-Identifier: GPL-2.0-only
"""The import path that zfw_monitor of older versions has; hosts may still have that program."""

from __future__ import annotations

from zfw_py.cli.classic.run import run as run
