# SPDX-License-Identifier: GPL-2.0-only
"""The systemd units of zfw, and their installation."""
