# SPDX-License-Identifier: GPL-2.0-only
"""How programs get into the kernel and out of it: the same for all four systems.

A system declares what it has (``programs.System``); install, upgrade, collect and remove
are here, each once. docs/architecture/lifecycle.md tells what a killed process leaves.
"""
