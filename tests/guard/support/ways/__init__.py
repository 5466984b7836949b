# SPDX-License-Identifier: GPL-2.0-only
"""Ways for bytes to leave a socket: a guard must drop some of them and let others pass.

Each way is a function that sends its own name, without any knowledge of the guard. The package
run as a program tries every way; the tests capture outside what has left.

The policy allows OPEN on all ports, PORTED on port 80, and DENIED on none.
"""

from tests.guard.support.ways import makers, packets, reflections, sockets

__all__ = ["makers", "packets", "reflections", "sockets"]
