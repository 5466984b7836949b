# SPDX-License-Identifier: GPL-2.0-only
"""zfw docker-dns redirect."""

from __future__ import annotations

from typing import Any

from zfw_py.cli import output
from zfw_py.cli.commands.docker_dns import options
from zfw_py.cli.options import takes


@takes(options.REDIRECT)
def command(**values: Any) -> None:
    """Redirect a container's DNS queries.

    The redirect ends with zfw docker-dns remove, or when the container stops. A
    container that starts again has a new network namespace: zfw docker-dns watch
    follows it. Prints the redirect's id; no process stays behind. A query may be as
    large as the interface's MTU, an answer may have any size. IPv6 servers are not
    supported.
    """
    asked, how = options.asked_of(values), options.options_of(values)
    output.line(options.redirect_of(values).create(asked, how).id)
