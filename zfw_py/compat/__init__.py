# SPDX-License-Identifier: GPL-2.0-only
"""The files, boot programs and revert programs of the C program that zfw replaces."""
