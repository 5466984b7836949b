# SPDX-License-Identifier: GPL-2.0-only
"""The interception firewall: rules, interfaces, attachments of one network namespace."""
