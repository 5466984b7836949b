# SPDX-License-Identifier: GPL-2.0-only
"""The DNS proxy of a guard; it does not know about BPF."""
