# SPDX-License-Identifier: GPL-2.0-only
"""Ways for bytes to leave a socket: those that a guard has to stop, and those that it has to let.

Each is a function that sends its own name, and knows nothing of the guard. Run as a
program, the package goes all ways. What got out is for others to say.

OPEN may be reached on all ports, PORTED on port 80, DENIED on none.
"""

from tests.guard.support.ways import makers, packets, reflections, sockets

__all__ = ["makers", "packets", "reflections", "sockets"]
