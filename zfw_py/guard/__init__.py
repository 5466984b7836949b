# SPDX-License-Identifier: GPL-2.0-only
"""The guard: one program's DNS goes where you say, and it reaches nothing else."""
