# SPDX-License-Identifier: GPL-2.0-only
"""Values that two systems share, and their texts: prefix, endpoint, DNS name. Pure."""
