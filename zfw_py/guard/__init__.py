# SPDX-License-Identifier: GPL-2.0-only
"""The guard: limits the network access of a cgroup's processes, and controls their DNS."""
