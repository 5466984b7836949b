# SPDX-License-Identifier: GPL-2.0-only
"""The places and programs of the command that zfw replaces, for those who go on calling them."""
