# SPDX-License-Identifier: GPL-2.0-only
"""The version of the package. scripts/release compares it with CHANGELOG.md and the tag."""

__version__ = "0.1.0"
