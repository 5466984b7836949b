# SPDX-License-Identifier: GPL-2.0-only
"""The classic grammar, zfw -I and the like: reads it, runs it, prints its lists."""
