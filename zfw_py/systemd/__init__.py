# SPDX-License-Identifier: GPL-2.0-only
"""The systemd units that zfw writes."""
