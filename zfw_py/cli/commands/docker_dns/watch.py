# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns watch."""

from __future__ import annotations

import signal
import sys
from typing import Any

from zfw_py.cli import docker_dns_log, output
from zfw_py.cli.commands.docker_dns import options
from zfw_py.cli.options import takes

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@takes(options.WATCH)
def command(**values: Any) -> None:
    """Redirect a container's queries each time it starts.

    A container that runs already is redirected at once. The command prints the
    queries until Ctrl-C or SIGTERM, and then removes the redirect. If the Docker
    daemon stops, the command waits for it for two minutes. An error with the first
    redirect ends the command; later errors are printed, and zfw tries again.
    """
    from zfw_py.docker_dns.watch import watch

    asked, how = options.asked_of(values), options.options_of(values)
    emit = docker_dns_log.emitter(values["log"], output.Events(sys.stdout))
    watch(values["docker"], asked, how, emit, _ENDS)
