# SPDX-License-Identifier: GPL-2.0-only
"""The C library of this process, for the system calls that Python has no function for. Hot.

A call that fails returns -1 or NULL; ``last_error()`` is then its errno.
"""

from __future__ import annotations

import ctypes

libc = ctypes.CDLL(None, use_errno=True)
last_error = ctypes.get_errno
