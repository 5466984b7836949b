# SPDX-License-Identifier: GPL-2.0-only
"""Plain values that several systems share, and their text forms. Pure: no system call."""
