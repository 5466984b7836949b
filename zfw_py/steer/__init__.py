# SPDX-License-Identifier: GPL-2.0-only
"""Connections to any address and port land on a chosen daemon's socket, and follow it."""
