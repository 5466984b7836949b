# SPDX-License-Identifier: GPL-2.0-only
"""A container's DNS, answered by another server than the engine's."""
